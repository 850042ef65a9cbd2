"""Metrics of one prediction against one reference, or the best over several: plain functions, no dependency.

Each takes ``(prediction, reference)``, a reference being a string (or what ``str`` makes of it) or a list of them.
"""

import re
import string
from collections import Counter
from collections.abc import Callable
from typing import Any

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(prediction: str, reference: Any) -> float:
    """1.0 if the texts are the same but for white space around them, else 0.0."""
    return _best(lambda answer: float(prediction.strip() == answer.strip()), reference)


def accuracy(prediction: str, reference: Any) -> float:
    """1.0 if the prediction states the label, else 0.0: as numbers where both are (``7.0`` is ``7``), else normalised."""

    def score(label: str) -> float:
        one, other = _number(prediction), _number(label)
        if one is not None and other is not None:
            return float(one == other)
        return float(normalise(prediction) == normalise(label))

    return _best(score, reference)


def token_f1(prediction: str, reference: Any) -> float:
    """F1 of the words shared after :func:`normalise`, in [0, 1] (Rajpurkar et al. 2016, SQuAD).

    Two texts without words agree (1.0); one without words against one with words does not (0.0), as in SQuAD 2.0.
    """

    def score(answer: str) -> float:
        found, wanted = normalise(prediction).split(), normalise(answer).split()
        if not found or not wanted:
            return float(found == wanted)
        return 2 * sum((Counter(found) & Counter(wanted)).values()) / (len(found) + len(wanted))

    return _best(score, reference)


def normalise(text: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no English articles, single spaces."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split())


def _best(score: Callable[[str], float], reference: Any) -> float:
    answers = reference if isinstance(reference, list | tuple) else [reference]
    if not answers or None in answers:
        raise ValueError(f"the reference is {reference!r}; give a string or a list of strings")
    return max(score(str(answer)) for answer in answers)


def _number(text: str) -> float | None:
    try:
        return float(text.strip().replace(",", ""))
    except ValueError:
        return None
