"""What hfdataopt says to the person at the terminal: one line on stderr; ``HFDATAOPT_QUIET=1`` silences it."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def say(message: str) -> None:
    """Print one line to stderr, prefixed with the package's name."""
    if os.environ.get("HFDATAOPT_QUIET", "") in ("", "0"):
        print(f"hfdataopt: {message}", file=sys.stderr, flush=True)


_WARNED: dict[Any, Any] = {}


def warn(message: str) -> None:
    """A ``UserWarning`` of one line, once per message: Python shows no line of source, since the place it names is no file."""
    warnings.warn_explicit(message, UserWarning, "hfdataopt", 0, registry=_WARNED)


@contextmanager
def quiet() -> Iterator[None]:
    """Say nothing inside, unless the person set ``HFDATAOPT_QUIET`` themselves."""
    before = os.environ.get("HFDATAOPT_QUIET")
    os.environ.setdefault("HFDATAOPT_QUIET", "1")
    try:
        yield
    finally:
        if before is None:
            del os.environ["HFDATAOPT_QUIET"]
