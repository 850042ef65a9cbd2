"""Writing a file so that it is seen whole or not at all: under a temporary name, flushed to disk, then renamed."""

import contextlib
import os
from pathlib import Path


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
