"""A feature store as a dataset repository::

README.md                 the data card; one configuration, ``features``
store.json                what the numbers are, dtype and shape of each array, hashes of the tables
data/shard-00000.parquet  row_id and each array, flat: a list of a fixed length per row
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from hfdataopt.errors import DataError, StoreError
from hfdataopt.gradients.store import GradientStore
from hfdataopt.sharing.card import data_card, versions
from hfdataopt.sharing.reading import ids_of, read_document, read_table, vectors_of

KIND, FORMAT = "hfdataopt-store", 1
DOCUMENT = "store.json"
FILES = (DOCUMENT, "data/shard-*.parquet")
_DTYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "uint8", "bool")


def write_store(store: GradientStore, folder: Path) -> None:
    """Write the content of the repository of a complete store to ``folder``, a shard at a time.

    Raises:
        StoreError: shards are missing.
    """
    import pyarrow as pa
    import pyarrow.parquet

    (folder / "data").mkdir(parents=True, exist_ok=True)
    names = store.arrays()
    if "row_id" in names:
        raise DataError(f"store {store.folder}: an array is called 'row_id', which is the column of the ids; rename it")
    arrays = {name: store.read(name) for name in names}
    hashes = {}
    for shard in range(store.shards):
        rows = store.rows_of(shard)
        columns: dict[str, Any] = {"row_id": pa.array(store.row_ids[rows.start : rows.stop])}
        for name, array in arrays.items():
            part = array[rows.start : rows.stop]
            flat = pa.array(np.ascontiguousarray(part).ravel())
            size = int(np.prod(part.shape[1:], dtype=np.int64))
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, size) if part.ndim > 1 else flat
        file = folder / _name(shard)
        pyarrow.parquet.write_table(pa.table(columns), file)
        with file.open("rb") as stream:
            hashes[_name(shard)] = hashlib.file_digest(stream, "sha256").hexdigest()
    shapes = {name: {"dtype": str(array.dtype), "shape": list(array.shape[1:])} for name, array in arrays.items()}
    document = {
        "kind": KIND,
        "format": FORMAT,
        "rows": len(store.row_ids),
        "rows_per_shard": store.rows_per_shard,
        "arrays": shapes,
        "sha256": hashes,
        "versions": versions(),
        "of": store.manifest,
    }
    (folder / DOCUMENT).write_text(json.dumps(document), encoding="utf-8")
    facts = {
        **{f"array {name}": f"{one['dtype']} {[len(store.row_ids), *one['shape']]}" for name, one in shapes.items()},
        **{f"made of: {key}": value for key, value in store.manifest.items()},
        "made with": ", ".join(f"{name} {version}" for name, version in document["versions"].items()),
    }
    intro = "Numbers per training row, such as projected gradients, from which methods of data attribution make scores."
    use = (
        "```python\nfrom datasets import load_dataset\nfrom hfdataopt.gradients import GradientStore\n\n"
        'table = load_dataset("REPOSITORY")\nstore = GradientStore.from_hub("REPOSITORY", "folder")\n```'
    )
    card = data_card(
        "Features of training data",
        intro,
        facts,
        [("Use", use)],
        {"features": FILES[1]},
        ["data-attribution", "gradients"],
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def read_store(source: Path, folder: str | os.PathLike[str]) -> GradientStore:
    """The store in a copy of a repository, written to ``folder``; what is there already of the same store is kept.

    Raises:
        StoreError: the copy holds something else, anything in it is not as it should be, or ``folder`` holds another store.
    """
    keys: dict[str, Any] = {"rows": int, "rows_per_shard": int, "arrays": dict, "sha256": dict, "of": dict}
    document = read_document(source, DOCUMENT, KIND, FORMAT, keys)
    what, rows, per_shard = str(source / DOCUMENT), document["rows"], document["rows_per_shard"]
    shards = -(-rows // per_shard) if rows > 0 and per_shard > 0 else 0
    if shards == 0 or shards != len(document["sha256"]):
        raise StoreError(f"{what!r}: {rows} rows, {per_shard} per shard, do not fit the files that it lists")
    arrays = {name: _array(name, one, what) for name, one in document["arrays"].items()}
    if not arrays or "row_id" in arrays:
        raise StoreError(
            f"{what!r}: it names the arrays {', '.join(arrays) or 'none'}; expected one or more, none called row_id"
        )
    bounds = [(shard * per_shard, min((shard + 1) * per_shard, rows)) for shard in range(shards)]

    def table_of(shard: int) -> Any:
        start, stop = bounds[shard]
        table = read_table(source, _name(shard), document["sha256"], stop - start)
        if set(table.column_names) != {"row_id", *arrays}:
            raise StoreError(
                f"{str(source / _name(shard))!r} has the columns {', '.join(table.column_names)}; expected row_id, "
                f"{', '.join(arrays)}"
            )
        return table

    ids = [value for shard in range(shards) for value in ids_of(table_of(shard), "row_id", str(source / _name(shard)))]
    if len({type(value) for value in ids}) > 1:
        raise StoreError(f"{str(source)!r}: ids of some shards are numbers, and of others text")
    store = GradientStore.open_or_create(folder, document["of"], ids, per_shard)
    for shard in store.missing_shards():
        table, file = table_of(shard), str(source / _name(shard))
        store.write(shard, {name: vectors_of(table, name, *one, file) for name, one in arrays.items()})
    return store


def _array(name: Any, given: Any, what: str) -> tuple[tuple[int, ...], Any]:
    """Shape per row and dtype of one array of a document."""
    shape, dtype = (given.get("shape"), given.get("dtype")) if isinstance(given, dict) else (None, None)
    good = isinstance(shape, list) and all(type(size) is int and 0 < size < 1 << 31 for size in shape)
    if not isinstance(shape, list) or not good or dtype not in _DTYPES:
        raise StoreError(f"{what!r}: the array {name!r} is described by {given!r:.80}; expected a shape and a dtype")
    return tuple(shape), np.dtype(dtype)


def _name(shard: int) -> str:
    return f"data/shard-{shard:05d}.parquet"
