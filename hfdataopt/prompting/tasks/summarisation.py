"""Summaries of dialogues, such as SAMSum (Gliwa et al. 2019), and ROUGE (Lin 2004) as reward functions."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset

from hfdataopt.console import say
from hfdataopt.errors import DataError
from hfdataopt.prompting.tasks.files import PROMPT, one_of, rows_of
from hfdataopt.rewards.metric import MetricReward, reward_from_metric

WHO = "summarisation"


def load_summarisation(
    source: str | Path, *, split: str = "train", dialogue: str = "dialogue", summary: str = "summary"
) -> Dataset:
    """Dialogues and their summaries as rows of ``prompt``, ``input``, ``answer`` and ``references``.

    Args:
        source: a file of JSON lines or of JSON with ``examples``, a folder of them named by split, or the id of a dataset
            of the Hub (``id:configuration`` where it has several).
        split: ``train``, ``validation`` or ``test``; of no meaning for a file.
        dialogue, summary: the names of the columns, such as ``input`` and ``output`` in the files of INSTINCT.
    """
    rows, found = [], rows_of(source, split, WHO)
    for name, row in found.items():
        for column in (dialogue, summary):
            if column not in row:
                raise DataError(f"{WHO}: row {name!r} of {str(source)!r} has no {column!r}; it has {', '.join(row)}")
        text, short = ((row[column] or "").replace("\r\n", "\n").strip() for column in (dialogue, summary))
        if text and short:
            rows.append({"prompt": PROMPT.format(text), "input": text, "answer": short, "references": [short]})
    if not rows:
        raise DataError(f"{WHO}: no row of {str(source)!r} has words in both {dialogue!r} and {summary!r}")
    if len(rows) < len(found):
        say(f"{WHO}: {len(found) - len(rows)} of {len(found)} rows have no dialogue or no summary; they are left out")
    return Dataset.from_list(rows)


def rouge_1(prediction: str, reference: str | Sequence[str]) -> float:
    """ROUGE-1, the F1 of words; the best over several references."""
    return _best(lambda found, wanted: _overlap(found, wanted, 1), prediction, reference)


def rouge_2(prediction: str, reference: str | Sequence[str]) -> float:
    """ROUGE-2, the F1 of pairs of neighbouring words; the best over several references."""
    return _best(lambda found, wanted: _overlap(found, wanted, 2), prediction, reference)


def rouge_l(prediction: str, reference: str | Sequence[str]) -> float:
    """ROUGE-L, the F1 of the longest common subsequence of words of the whole texts; the best over several references."""
    return _best(_subsequence, prediction, reference)


def rouge_reward(kind: Literal["1", "2", "L"] = "L") -> MetricReward:
    """ROUGE-1, -2 or -L in [0, 1] as a reward function of TRL's signature, which reads the column ``references``."""
    metrics = {"1": rouge_1, "2": rouge_2, "L": rouge_l}
    one_of(kind, tuple(metrics), "rouge_reward", "kind")
    return reward_from_metric(metrics[kind], reference_column="references")


def _best(score: Callable[[list[str], list[str]], float], prediction: str, reference: Any) -> float:
    references = [reference] if isinstance(reference, str) else reference
    return max(score(_words(prediction), _words(one)) for one in references)


def _words(text: str) -> list[str]:
    """Runs of letters and digits in lower case, not stemmed: rouge_score's on ASCII, whole words in other alphabets."""
    return re.findall(r"[^\W_]+", text.lower())


def _overlap(found: list[str], wanted: list[str], n: int) -> float:
    one, other = (Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in (found, wanted))
    return 2 * (one & other).total() / max(one.total() + other.total(), 1)


def _subsequence(found: list[str], wanted: list[str]) -> float:
    row = [0] * (len(wanted) + 1)
    for word in found:
        diagonal = 0
        for place, other in enumerate(wanted, start=1):
            above = row[place]
            row[place] = diagonal + 1 if word == other else max(above, row[place - 1])
            diagonal = above
    return 2 * row[-1] / max(len(found) + len(wanted), 1)
