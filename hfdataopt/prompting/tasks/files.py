"""Rows of the published files: JSON lines, and JSON with ``metadata`` and ``examples``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hfdataopt.errors import DataError, MissingDependencyError, OptionError

PROMPT = "Input: {}\nOutput:"


def read_rows(path: Path, who: str) -> dict[str, dict[str, Any]]:
    """Rows by name: the number of the line, or the key under ``examples``, in the order of the file.

    Raises:
        DataError: no such file, no JSON, or another layout.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"{who}: {str(path)!r} cannot be read ({type(error).__name__}); give the file's place"
        ) from None
    try:
        if path.suffix == ".jsonl":
            lines = enumerate(text.split("\n"), start=1)
            rows: Any = {str(place): json.loads(line) for place, line in lines if line.strip()}
        else:
            document = json.loads(text)
            rows = document.get("examples") if isinstance(document, dict) else None
    except json.JSONDecodeError as error:
        raise DataError(f"{who}: {str(path)!r} is no JSON: {error}") from None
    if not isinstance(rows, dict) or not rows or not all(isinstance(row, dict) for row in rows.values()):
        raise DataError(
            f"{who}: {str(path)!r} holds no rows; it must be JSON lines (.jsonl), or an object whose 'examples' is an object "
            "of examples"
        )
    return rows


def needed(row: Mapping[str, Any], key: str, who: str, where: str) -> Any:
    """``row[key]``; ``DataError`` where it is not there."""
    if row.get(key) is None:
        raise DataError(f"{who}: {where} has no {key!r}; it has {', '.join(row)}")
    return row[key]


def rows_of(source: str | Path, split: str, who: str) -> dict[str, dict[str, Any]]:
    """Rows of a file, of ``folder/split.jsonl`` or ``.json``, or of a dataset of the Hub, by name."""
    path = Path(source)
    if path.is_dir():
        found = [path / f"{split}{ending}" for ending in (".jsonl", ".json") if (path / f"{split}{ending}").is_file()]
        if not found:
            raise DataError(f"{who}: {str(path)!r} holds no {split}.jsonl or {split}.json")
        return read_rows(found[0], who)
    if path.is_file() or path.suffix in (".json", ".jsonl"):
        return read_rows(path, who)
    from datasets import load_dataset

    name, _, configuration = str(source).partition(":")
    try:
        dataset = load_dataset(name, configuration or None, split=split)
    except Exception as error:
        raise DataError(
            f"{who}: {str(source)!r} is no file or folder here, and as a dataset of the Hub (id or id:configuration) its split "
            f"{split!r} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    return {str(place): dict(row) for place, row in enumerate(dataset)}


def pillow(who: str) -> Any:
    """The package PIL; ``MissingDependencyError`` without it."""
    try:
        import PIL.Image
        import PIL.ImageDraw
    except ImportError as error:
        raise MissingDependencyError(f"{who} needs Pillow; pip install 'hfdataopt[images]'") from error
    return PIL


def one_of(value: str, allowed: tuple[str, ...], who: str, option: str) -> None:
    """``OptionError`` unless the value is allowed."""
    if value not in allowed:
        raise OptionError(f"{who}: {option}={value!r} is not known; choose {', '.join(allowed)}")
