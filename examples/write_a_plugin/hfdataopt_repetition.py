"""Repetition: texts that say the same again and again, as crawled pages and degenerate generations do.

Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights from Training Gopher", appendix A.1.1: the share of
characters that lie in word n-grams which occur more than once. MassiveText drops a page above 0.15 for n = 5, 0.14 for n = 6, ...
"""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

import hfdataopt
from hfdataopt.options import check_range

WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Repetition(hfdataopt.TextFilter):
    """Minus the share of a text's characters, in words, that lie in n-grams of words which it has more than once.

    ``keep=threshold(-0.15)`` with ``ngram=5`` is one of MassiveText's rules.

    Args:
        ngram: how many words are a repetition; MassiveText takes 5 to 10.
    """

    name: ClassVar[str] = "repetition"
    meaning: ClassVar[str] = "a text that repeats fewer of its phrases; 0 for none"

    ngram: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "ngram", at_least=1)

    def score(self, batch: Any) -> np.ndarray:
        """``[rows]``, from -1 to 0."""
        return np.array([-self.repeated(text) for text in batch.texts])

    def repeated(self, text: str) -> float:
        """The share of characters in repeated n-grams; an overlap counts once."""
        words = WORD.findall(text.lower())
        grams = [tuple(words[place : place + self.ngram]) for place in range(len(words) - self.ngram + 1)]
        often = Counter(grams)
        inside = {place + i for place, gram in enumerate(grams) if often[gram] > 1 for i in range(self.ngram)}
        return sum(len(words[place]) for place in inside) / max(1, sum(map(len, words)))


@hfdataopt.hookimpl
def register_filters(register: Any) -> None:
    register(Repetition)
