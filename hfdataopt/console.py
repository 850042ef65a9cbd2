"""What hfdataopt says to the person at the terminal: one line on stderr; ``HFDATAOPT_QUIET=1`` silences it."""

import os
import sys


def say(message: str) -> None:
    """Print one line to stderr, prefixed with the package's name."""
    if os.environ.get("HFDATAOPT_QUIET", "") in ("", "0"):
        print(f"hfdataopt: {message}", file=sys.stderr, flush=True)
