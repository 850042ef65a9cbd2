"""Files that survive a killed run: written whole or not at all, or line by line; and checksums, so that damage is found.

The checksums are against accidents (a bad disk, a copy that broke off), not against somebody who wants to mislead.
"""

import contextlib
import hashlib
import itertools
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hfdataopt.errors import StoreError


def no_link(path: str, flags: int) -> int:
    """An ``opener`` for files that are added to or emptied: a folder of others may hold a link to a file elsewhere.

    Raises:
        OSError: the file is a symbolic link.
    """
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def write_whole(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` in one step; what stood there stays until then.

    Raises:
        OSError: it cannot be written; nothing of it is left behind.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.unlink(missing_ok=True)
        with partial.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):  # a read-only folder: there is nothing of ours in it
            partial.unlink(missing_ok=True)
        raise


def sealed(content: bytes, of: str = "") -> bytes:
    """A safetensors file with a CRC-32 of everything else in it in its header, and of what it belongs to."""
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), memoryview(content)[8 + length :]
    text = json.dumps({"__metadata__": {"crc32": _crc(header, [of.encode(), data])}, **header}).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, data])


def is_intact(path: Path, of: str = "") -> bool:
    """Whether a file is there, and holds what :func:`sealed` made, for the same purpose."""
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > os.fstat(stream.fileno()).st_size:
                return False
            header = json.loads(stream.read(length))
            told = header.pop("__metadata__")["crc32"]
            return told == _crc(header, itertools.chain([of.encode()], iter(lambda: stream.read(1 << 20), b"")))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def _crc(header: Any, data: Iterable[Any]) -> str:
    crc = zlib.crc32(json.dumps(header, sort_keys=True).encode())
    for part in data:
        crc = zlib.crc32(part, crc)
    return f"{crc:08x}"


def with_checksum(document: dict[str, Any]) -> dict[str, Any]:
    """A JSON object and a checksum of it, for :func:`without_checksum`."""
    return {**document, "checksum": _checksum(document)}


def without_checksum(document: Any) -> dict[str, Any]:
    """The JSON object that was given to :func:`with_checksum`.

    Raises:
        ValueError: it is another one now.
    """
    if not isinstance(document, dict) or document.pop("checksum", None) != _checksum(document):
        raise ValueError("it is damaged: it does not agree with its checksum")
    return document


def _checksum(document: dict[str, Any]) -> str:
    as_read = json.loads(json.dumps(document))
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()[:16]


class JsonLines:
    """JSON objects appended to a file one by one, each with a CRC-32; what a killed run cut short, or is damaged, is passed over.

    Raises:
        StoreError: it cannot be written.
    """

    def __init__(self, file: Path, who: str):
        self.file, self.who = file, who
        self._cut: bool | None = None  # whether the file ends in the middle of a line; None: not looked at yet

    def read(self) -> Iterator[dict[str, Any]]:
        """What is in the file; nothing where there is none."""
        for line in self.file.read_bytes().splitlines() if self.file.is_file() else ():
            with contextlib.suppress(ValueError, RecursionError):
                document = json.loads(line)
                if isinstance(document, dict) and document.pop("crc32", None) in (None, _crc_of_line(document)):
                    yield document

    def replace(self, documents: Iterable[dict[str, Any]]) -> None:
        """Write these in place of all that is there, in one step."""
        try:
            write_whole(self.file, b"".join(map(_line, documents)))
        except OSError as error:
            raise StoreError(f"{self.who}: {str(self.file)!r} cannot be written: {error}") from error
        self._cut = False

    def append(self, document: dict[str, Any]) -> None:
        line = _line(document)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            if self._cut is None:
                self._cut = self.file.is_file() and not self.file.read_bytes().endswith(b"\n")
            with open(self.file, "ab", opener=no_link) as stream:
                stream.write(b"\n" + line if self._cut else line)
            self._cut = False
        except OSError as error:
            self._cut = None
            raise StoreError(f"{self.who}: {str(self.file)!r} cannot be written: {error}") from error


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps({**document, "crc32": _crc_of_line(document)}, allow_nan=False).encode() + b"\n"


def _crc_of_line(document: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(document).encode()):08x}"
