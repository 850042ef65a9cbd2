"""Near-duplicates by MinHash and locality-sensitive hashing (Broder 1997), each verified by its exact Jaccard similarity."""

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from hfdataopt.errors import MissingDependencyError
from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt.selection.filter import WholeFilter
from hfdataopt.selection.keys import keys_of
from hfdataopt.selection.source import Source
from hfdataopt.selection.words import words

MISSES = (0.02, 0.98)  # weights of false and missed candidates: false ones only cost their verification


@dataclass(frozen=True)
class NearDuplicates(WholeFilter):
    """Whether a row nearly repeats one that comes before it: ``keep=threshold(0)`` keeps one row of each kind.

    Rows are taken in the order of their ids (without ids, of the dataset). A row is a duplicate when the Jaccard similarity of its
    shingles to those of an earlier row that is no duplicate itself is at least ``similarity``. Its score is minus the largest such
    similarity, and 0 for every other row. MinHash only proposes pairs, with a probability that rises with their similarity (at
    the default 0.98 for a pair just as similar); no pair below counts.

    Memory is a few hundred bytes per row, and the shingles (8 bytes each) of rows that some other row may resemble.

    Args:
        similarity: Jaccard similarity from which rows are duplicates.
        shingle: how many words (or characters) in a row make a shingle; a text with fewer is one shingle.
        unit: ``words`` in lower case, without punctuation, or ``characters`` as they are.
        permutations: length of a MinHash.
        seed: of the permutations.
    """

    name: ClassVar[str] = "near-duplicates"
    meaning: ClassVar[str] = "no near-duplicate of an earlier row (0), else minus the similarity to it"

    similarity: float = 0.8
    shingle: int = 5
    unit: Literal["words", "characters"] = "words"
    permutations: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "similarity", above=0, at_most=1)
        check_range(self, "shingle", at_least=1)
        check_range(self, "permutations", at_least=2)
        check_range(self, "seed", at_least=0, below=2**32)

    def shingles(self, text: str) -> np.ndarray:
        """``[shingles]`` uint64, ascending: the hashes of the distinct shingles; at least one."""
        parts = words(text) if self.unit == "words" else text
        between = " " if self.unit == "words" else ""
        starts = range(max(1, len(parts) - self.shingle + 1))
        return np.unique(keys_of([between.join(parts[i : i + self.shingle]) for i in starts] if parts else [text]))

    def score_all(self, pool: Source, target: Source | None) -> np.ndarray:
        bands, ids = self._bands(pool)
        order = np.array(sorted(range(len(ids)), key=ids.__getitem__)) if pool.with_ids else np.arange(len(ids))
        shared = np.stack([_shared(band) for band in bands.T], axis=1)
        scores = np.zeros(len(bands))
        waiting = order[shared[order].any(axis=1)]  # all other rows resemble none
        # per band: its value -> the kept rows that have it
        first: list[defaultdict[int, list[int]]] = [defaultdict(list) for _ in bands.T]
        kept: dict[int, np.ndarray] = {}
        done = 0
        for batch in pool.at(waiting) if len(waiting) else ():
            rows = waiting[done : done + len(batch)].tolist()
            done += len(batch)
            for row, text, missing in zip(rows, batch.texts, batch.missing, strict=True):
                if missing:
                    continue
                mine, keys = np.flatnonzero(shared[row]).tolist(), bands[row].tolist()
                found = self.shingles(text)
                near = {other for band in mine for other in first[band].get(keys[band], ())}
                nearest = max((jaccard(found, kept[other]) for other in near), default=0.0)
                if nearest >= self.similarity:
                    scores[row] = -nearest
                else:
                    kept[row] = found
                    for band in mine:
                        first[band][keys[band]].append(row)
        return scores

    def _bands(self, pool: Source) -> tuple[np.ndarray, list[Any]]:
        """``[rows, bands]`` uint64, equal where all values of a band of the MinHash are, and the row ids (none without)."""
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError as error:
            raise MissingDependencyError(f"{self.name}: needs datasketch; pip install 'hfdataopt[filters]'") from error
        state = random.getstate()  # it draws a name for itself from the global state (datasketch 2.0)
        hashing = MinHashLSH(self.similarity, self.permutations, weights=MISSES)
        random.setstate(state)
        count, width = hashing.b, hashing.r
        empty = MinHash(self.permutations, self.seed, hashfunc=int)
        bands: list[np.ndarray] = []
        ids: list[Any] = []
        for batch in pool.batches():
            digests = np.empty((len(batch), self.permutations), dtype=np.uint64)
            for row, text in enumerate(batch.texts):
                minhash = empty.copy()
                minhash.update_batch((self.shingles(text) >> np.uint64(32)).tolist())
                digests[row] = minhash.digest()
            cut = digests[:, : count * width].reshape(len(batch), count, width)
            bands.append(_fold(cut))
            ids.extend(batch.ids if pool.with_ids else [None] * len(batch))
        return np.concatenate(bands), ids


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """Shared elements over all, of two sorted arrays of distinct elements."""
    both = len(np.intersect1d(left, right, assume_unique=True))
    return both / (len(left) + len(right) - both)


def _fold(values: np.ndarray) -> np.ndarray:
    """``[..., width]`` uint64 to ``[...]``: one hash for the last axis."""
    factors = np.random.default_rng(0).integers(2**63, size=values.shape[-1], dtype=np.uint64) * np.uint64(
        2
    ) + np.uint64(1)
    return (values * factors).sum(axis=-1, dtype=np.uint64)


def _shared(keys: np.ndarray) -> np.ndarray:
    """``[rows]`` bool: whether another row has the same key."""
    order = np.argsort(keys)
    same = keys[order][1:] == keys[order][:-1]
    found = np.zeros(len(keys), dtype=bool)
    found[order[1:][same]] = True
    found[order[:-1][same]] = True
    return found


@hookimpl
def register_filters(register: Callable[..., None]) -> None:
    register(NearDuplicates)
