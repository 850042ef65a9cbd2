"""Command lines of tests: a flag that is given again takes the place of the first, as the command line itself refuses it twice."""

from collections.abc import Sequence
from typing import Any


def replaced(words: Sequence[Any], more: Sequence[Any]) -> list[Any]:
    """`words` without the flags (and their values) that `more` gives, then `more`."""
    again = {word for word in more if str(word).startswith("--")}
    kept: list[Any] = []
    dropping = False
    for word in words:
        if str(word).startswith("--"):
            dropping = word in again
        if not dropping:
            kept.append(word)
    return [*kept, *more]
