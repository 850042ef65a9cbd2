"""Checked reading of what came from a repository: a JSON document and parquet of plain types."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from hfdataopt.errors import StoreError

LARGEST_DOCUMENT = 1 << 30  # bytes
_ID_TYPES = ("int64", "string", "large_string")


def read_document(folder: Path, name: str, kind: str, formats: int, keys: dict[str, Any]) -> dict[str, Any]:
    """The document ``name``, whose ``keys`` have these types.

    Raises:
        StoreError: it is not there, cannot be read, or is of another kind or format.
    """
    file = folder / name
    try:
        if file.stat().st_size > LARGEST_DOCUMENT:
            raise StoreError(f"{str(file)!r} has {file.stat().st_size:,} bytes; that is no document of ours")
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{str(file)!r} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(found, dict) or found.get("kind") != kind:
        raise StoreError(f"{str(file)!r} is not of the kind {kind!r}")
    if found.get("format") != formats:
        raise StoreError(f"{str(file)!r} has format {found.get('format')!r}; this version reads format {formats}")
    for key, wanted in keys.items():
        value = found.get(key)
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is int):
            raise StoreError(f"{str(file)!r}: {key} is {value!r:.80}, not of the type {wanted.__name__}")
    return found


def read_table(folder: Path, name: str, hashes: dict[str, Any], rows: int) -> Any:
    """The parquet file ``name``, a name of our own and none from a document, which must have this hash and so many rows.

    Raises:
        StoreError: it is missing, changed, no parquet, or has another number of rows.
    """
    import pyarrow
    import pyarrow.parquet

    file = folder / name
    try:
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != hashes.get(name):
            raise StoreError(f"{str(file)!r} is not the file that the document was written with")
        parquet = pyarrow.parquet.ParquetFile(file)
        if parquet.metadata.num_rows != rows:
            raise StoreError(f"{str(file)!r} has {parquet.metadata.num_rows} rows; the document says {rows}")
        return parquet.read()
    except (OSError, pyarrow.ArrowException, ValueError) as error:
        raise StoreError(f"{str(file)!r} cannot be read: {type(error).__name__}: {error}") from error


def ids_of(table: Any, column: str, what: str) -> list[Any]:
    """A column of ids: all int or all str, unique, none missing."""
    found = column_of(table, column, _ID_TYPES, what, missing=False).to_pylist()
    if len(set(found)) != len(found):
        raise StoreError(f"{what}: column {column!r} has an id twice")
    return found


def column_of(table: Any, column: str, types: tuple[str, ...], what: str, *, missing: bool) -> Any:
    """A column that has one of these arrow types, and no nulls unless ``missing``."""
    if column not in table.column_names:
        raise StoreError(f"{what}: there is no column {column!r}; there are: {', '.join(table.column_names)}")
    found = table.column(column)
    if str(found.type) not in types:
        raise StoreError(f"{what}: column {column!r} has the type {found.type}; expected {' or '.join(types)}")
    if not missing and found.null_count:
        raise StoreError(f"{what}: column {column!r} has {found.null_count} missing values")
    return found


def vectors_of(table: Any, column: str, shape: tuple[int, ...], dtype: Any, what: str) -> np.ndarray:
    """A column of numbers, or of lists of a fixed length, as an array ``[rows, *shape]``.

    Raises:
        StoreError: another type or length, or missing values.
    """
    import pyarrow

    inner = pyarrow.from_numpy_dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64))
    wanted = pyarrow.list_(inner, size) if shape else inner
    if column not in table.column_names:
        raise StoreError(f"{what}: there is no column {column!r}; there are: {', '.join(table.column_names)}")
    found = table.column(column).combine_chunks()
    same = found.type == inner if not shape else pyarrow.types.is_fixed_size_list(found.type)
    if not same or (shape and (found.type.list_size, found.type.value_type) != (size, inner)):
        raise StoreError(f"{what}: column {column!r} has the type {found.type}; expected {wanted}")
    flat = found.flatten() if shape else found
    if found.null_count or flat.null_count:
        raise StoreError(f"{what}: column {column!r} has missing values")
    return np.array(flat.to_numpy(zero_copy_only=False), dtype=dtype).reshape(len(table), *shape)
