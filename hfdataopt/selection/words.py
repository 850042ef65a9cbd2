"""Words of a text and their counts in hashed buckets, the same in every process."""

import re
from collections.abc import Sequence

import numpy as np

from hfdataopt.selection.keys import keys_of

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Lower-case words."""
    return _WORD.findall(text.lower())


def hashed_counts(texts: Sequence[str], buckets: int) -> np.ndarray:
    """``[texts, buckets]`` float64: how many words of each text fall into each bucket."""
    counts = np.zeros((len(texts), buckets))
    for row, text in enumerate(texts):
        found = words(text)
        if found:
            np.add.at(counts[row], (keys_of(found) % np.uint64(buckets)).astype(np.intp), 1)
    return counts
