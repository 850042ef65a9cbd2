"""Files that survive a killed run: written whole or not at all, or line by line."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hfdataopt.errors import StoreError


def write_whole(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` in one step; what stood there stays until then.

    Raises:
        OSError: it cannot be written; nothing of it is left behind.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):  # a read-only folder: there is nothing of ours in it
            partial.unlink(missing_ok=True)
        raise


class JsonLines:
    """JSON objects appended to a file one by one; a line that a killed run cut short is passed over.

    Raises:
        StoreError: it cannot be written.
    """

    def __init__(self, file: Path, who: str):
        self.file, self.who = file, who
        self._cut: bool | None = None  # whether the file ends in the middle of a line; None: not looked at yet

    def read(self) -> Iterator[dict[str, Any]]:
        """What is in the file; nothing where there is none."""
        for line in self.file.read_bytes().splitlines() if self.file.is_file() else ():
            with contextlib.suppress(ValueError):
                yield json.loads(line)

    def append(self, document: dict[str, Any]) -> None:
        line = json.dumps(document, allow_nan=False).encode() + b"\n"
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            if self._cut is None:
                self._cut = self.file.is_file() and not self.file.read_bytes().endswith(b"\n")
            with self.file.open("ab") as stream:
                stream.write(b"\n" + line if self._cut else line)
            self._cut = False
        except OSError as error:
            self._cut = None
            raise StoreError(f"{self.who}: {str(self.file)!r} cannot be written: {error}") from error
