"""``Scores`` as a dataset repository::

README.md             the data card; configurations ``scores`` and ``queries``
scores.json           method, options, moments, fingerprint of the rows, hashes of the tables
data/scores.parquet   row_id, score (null: none), standard_error, per_query [queries], input_ids
data/queries.parquet  query_id, input_ids
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from hfdataopt.attribution.scores import Scores, finite
from hfdataopt.errors import DataError, StoreError
from hfdataopt.sharing.card import data_card, quoted, versions
from hfdataopt.sharing.reading import column_of, ids_of, read_document, read_table, vectors_of

KIND, FORMAT = "hfdataopt-scores", 1
DOCUMENT, ROWS, QUERIES = "scores.json", "data/scores.parquet", "data/queries.parquet"
FILES = (DOCUMENT, ROWS, QUERIES)
_TOKENS = ("list<element: int32>", "list<item: int32>")


def write_scores(scores: Scores, folder: Path, *, tokens: bool, model: str | None, dataset: str | None) -> None:
    """Write the content of the repository to ``folder``; arguments as of ``Scores.push_to_hub``."""
    import pyarrow as pa
    import pyarrow.parquet

    (folder / "data").mkdir(parents=True, exist_ok=True)
    ids = scores.metadata.get("query_ids")
    columns: dict[str, Any] = {
        "row_id": pa.array(scores.row_ids),
        "score": pa.array(scores.values, pa.float64(), mask=np.isnan(scores.values)),
    }
    if scores.standard_errors is not None:
        columns["standard_error"] = pa.array(scores.standard_errors, pa.float64())
    if scores.matrix is not None:
        flat = pa.array(np.ascontiguousarray(scores.matrix, dtype=np.float64).ravel())
        columns["per_query"] = pa.FixedSizeListArray.from_arrays(flat, scores.matrix.shape[1])
        ids = list(range(scores.matrix.shape[1])) if ids is None else ids
    queries: dict[str, Any] = {} if ids is None else {"query_id": pa.array(ids)}
    for table, given in ((columns, scores.pool_tokens), (queries, scores.query_tokens)):
        if tokens and given is not None and table:
            table["input_ids"] = pa.array(given, pa.list_(pa.int32()))
    tables = {ROWS: columns, **({QUERIES: queries} if queries else {})}
    for name, table in tables.items():
        pyarrow.parquet.write_table(pa.table(table), folder / name)
    document = {
        "kind": KIND,
        "format": FORMAT,
        "rows": len(scores),
        "queries": None if ids is None else len(ids),
        "columns": list(columns),
        "sha256": {name: _sha256(folder / name) for name in tables},
        "model": model,
        "dataset": dataset,
        "versions": versions(),
        "metadata": finite(scores.metadata),
    }
    try:
        (folder / DOCUMENT).write_text(json.dumps(document, allow_nan=False), encoding="utf-8")
    except TypeError as error:
        raise DataError(f"scores of {scores.scorer!r} have metadata that JSON cannot hold: {error}") from error
    (folder / "README.md").write_text(_card(scores, document, tables), encoding="utf-8")


def read_scores(folder: Path) -> Scores:
    """Scores from a copy of a repository.

    Raises:
        StoreError: it holds something else, or anything in it is not as it should be.
    """
    keys: dict[str, Any] = {"rows": int, "columns": list, "sha256": dict, "metadata": dict}
    document = read_document(folder, DOCUMENT, KIND, FORMAT, keys)
    what, rows, metadata = str(folder / ROWS), document["rows"], document["metadata"]
    table = read_table(folder, ROWS, document["sha256"], rows)
    known = {"row_id", "score", "standard_error", "per_query", "input_ids"}
    if document["columns"] != table.column_names or not {"row_id", "score"} <= set(table.column_names) <= known:
        raise StoreError(
            f"{what!r}: it has the columns {', '.join(table.column_names)}; expected {document['columns']}"
        )
    ids = ids_of(table, "row_id", what)
    values = column_of(table, "score", ("double",), what, missing=True).to_numpy().astype(np.float64)
    errors = matrix = asked = None
    if "standard_error" in table.column_names:
        errors = vectors_of(table, "standard_error", (), np.dtype(np.float64), what)
    if document["queries"] is not None:
        count = document["queries"]
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise StoreError(f"{str(folder / DOCUMENT)!r}: queries is {count!r:.80}, not a number of queries")
        asked = read_table(folder, QUERIES, document["sha256"], count)
        ids_of(asked, "query_id", str(folder / QUERIES))
    if "per_query" in table.column_names:
        if asked is None:
            raise StoreError(f"{what!r}: there are scores per query, but no queries")
        matrix = vectors_of(table, "per_query", (len(asked),), np.dtype(np.float64), what)
    _check_metadata(
        metadata, ids, None if asked is None else asked.column("query_id").to_pylist(), str(folder / DOCUMENT)
    )
    pool_tokens, query_tokens = (_tokens(one, name) for one, name in ((table, what), (asked, str(folder / QUERIES))))
    return Scores(values, ids, matrix, errors, metadata, pool_tokens, query_tokens)


def _check_metadata(metadata: dict[str, Any], ids: list[Any], queries: list[Any] | None, what: str) -> None:
    """What ``Scores`` reads of its metadata has the types that it relies on."""
    for key, kind in {"scorer": str, "meaning": str, "by_position": bool, "sample": list, "options": dict}.items():
        if key in metadata and not isinstance(metadata[key], kind):
            raise StoreError(f"{what!r}: metadata.{key} is {metadata[key]!r:.80}, not of the type {kind.__name__}")
    dropped = metadata.get("dropped", 0)
    if dropped is not None and (isinstance(dropped, bool) or not isinstance(dropped, int)):
        raise StoreError(f"{what!r}: metadata.dropped is {dropped!r:.80}, no number of rows")
    for one in metadata.get("sample", []):
        columns = one.get("columns") if isinstance(one, dict) else None
        good = isinstance(columns, dict) and all(isinstance(value, str) for value in columns.values())
        if not good or not isinstance(one.get("row_id"), str | int):
            raise StoreError(f"{what!r}: metadata.sample holds {one!r:.80}; expected row_id and hashes of columns")
    if metadata.get("by_position") and ids != list(range(len(ids))):
        raise StoreError(f"{what!r}: the rows are said to be known by position, but their ids are others")
    if metadata.get("query_ids") is not None and metadata["query_ids"] != queries:
        raise StoreError(f"{what!r}: metadata.query_ids are not the queries of {QUERIES}")


def _tokens(table: Any, what: str) -> list[list[int]] | None:
    if table is None or "input_ids" not in table.column_names:
        return None
    found = column_of(table, "input_ids", _TOKENS, what, missing=False).combine_chunks()
    if found.flatten().null_count:
        raise StoreError(f"{what!r}: column 'input_ids' has missing values")
    return found.to_pylist()


def _card(scores: Scores, document: dict[str, Any], tables: dict[str, Any]) -> str:
    metadata = scores.metadata
    pool, queries = metadata.get("pool") or {}, metadata.get("queries") or {}
    missing = int(np.isnan(scores.values).sum())
    facts = {
        "method": scores.scorer,
        "options": metadata.get("options", {}),
        "model": " ".join(filter(None, (document["model"], str(metadata.get("model") or "")))) or "not said",
        "hash of its weights": metadata.get("weights") or "not recorded",
        "dataset": document["dataset"] or "not said",
        "rows": f"{len(scores)}{f', {missing} of them without a score' if missing else ''}",
        "hash of the rows": pool.get("contents", "not recorded"),
        "rows are known by": "position" if scores.by_position else "their column row_id",
        "queries": document["queries"] or "none",
        "hash of the queries": queries.get("contents", "none"),
        "moments of the training": len(metadata.get("moments", [])) or "not recorded",
        "made with": ", ".join(f"{name} {version}" for name, version in document["versions"].items()),
    }
    intro = f"One number for each training row. **Higher = more helpful**, always. Of this method: {quoted(scores.meaning)}."
    described = {
        "row_id": "the row's id, or its position",
        "score": "null where the row has none",
        "standard_error": "Monte Carlo error of the score",
        "per_query": "the score for each query, in the order of the configuration `queries`",
        "input_ids": "the row's tokens",
    }
    listed = "\n".join(f"- `{name}`: {described[name]}" for name in tables[ROWS])
    use = (
        "```python\nfrom datasets import load_dataset\nfrom hfdataopt import Scores\n\n"
        'table = load_dataset("REPOSITORY", "scores")\n'
        'scores = Scores.from_hub("REPOSITORY")\nscores.join(dataset)  # checks that it is the dataset that was scored\n```'
    )
    configs = {"scores": ROWS, **({"queries": QUERIES} if QUERIES in tables else {})}
    title = f"Scores of training data by {quoted(scores.scorer)}"
    return data_card(title, intro, facts, [("Columns", listed), ("Use", use)], configs, ["data-attribution"])


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
