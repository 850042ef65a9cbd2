"""Instruction induction (Honovich et al. 2022), with the tasks that InstructZero and INSTINCT added: loaders and metrics.

Two things differ from the released code on purpose. Its cut after the first sentence also cuts decimals (``2.5`` became
``2``) and it drops signs; here numbers survive. Its references of ``rhymes`` hold the input itself, so that an echo scored
1.0; here the input is no reference.
"""

import random
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

from hfdataopt.errors import DataError
from hfdataopt.prompting.tasks.files import PROMPT, needed, read_rows
from hfdataopt.rewards.metric import MetricReward, reward_from_metric
from hfdataopt.rewards.texts import needed_column, text_of

WHO = "instruction induction"

TASKS = (
    "active_to_passive",
    "antonyms",
    "ascii_word_recognition",
    "auto_categorization",
    "auto_debugging",
    "cause_and_effect",
    "common_concept",
    "cs_algorithms",
    "diff",
    "first_word_letter",
    "informal_to_formal",
    "larger_animal",
    "letters_list",
    "negation",
    "num_to_verbal",
    "object_counting",
    "odd_one_out",
    "orthography_starts_with",
    "periodic_elements",
    "rhymes",
    "second_word_letter",
    "sentence_similarity",
    "sentiment",
    "singular_to_plural",
    "sum",
    "synonyms",
    "taxonomy_animal",
    "translation_en-de",
    "translation_en-es",
    "translation_en-fr",
    "word_in_context",
    "word_sorting",
    "word_unscrambling",
)
"""The documented tasks; any other file of the same layout loads too, with exact match."""

MULTIPLE_CHOICE = (
    "causal_judgment",
    "disambiguation_qa",
    "epistemic_reasoning",
    "implicatures",
    "logical_fallacy_detection",
    "movie_recommendation",
    "navigate",
    "presuppositions_as_nli",
    "question_selection",
    "ruin_names",
    "snarks",
    "sports_understanding",
    "winowhy",
)
"""Tasks of BIG-bench in the same layout whose output is one of several given ones."""

_FEATURES = Features(
    {
        "prompt": Value("string"),
        "input": Value("string"),
        "answer": Value("string"),
        "references": List(Value("string")),
        "task": Value("string"),
    }
)
_MARK = re.compile(f"[{re.escape(string.punctuation)}]")
_NUMBER_MARK = re.compile(r"(?<!\S)-(?=\.?\d)|\.(?=\d)")  # a sign, a decimal point


def load_instruction_induction(folder: str | Path, task: str, *, seed: int = 0) -> tuple[Dataset, Dataset | None]:
    """The examples to induce an instruction from, and those to test it on.

    Args:
        folder: holds ``induce/TASK.json`` and ``execute/TASK.json`` as published.
        task: one of :data:`TASKS`, or the name of another file of the same layout.
        seed: of the order of the two sentences in ``cause_and_effect``; an order is a function of seed and example.

    Returns:
        Datasets with the columns ``prompt`` (``Input: x``, new line, ``Output:``), ``input``, ``answer`` (the file's own
        output, or the first reference), ``references`` (all that count as right) and ``task``. The second is None where
        there is no file to test on (``ascii_word_recognition``, ``cs_algorithms``).

    Raises:
        DataError: a file that is not there or has another layout; file and example are named.
    """
    root = Path(folder)
    induce = _load(root / "induce" / f"{task}.json", task, seed)
    execute = root / "execute" / f"{task}.json"
    return induce, _load(execute, task, seed) if execute.is_file() else None


def _load(path: Path, task: str, seed: int) -> Dataset:
    rows = []
    for key, example in read_rows(path, WHO).items():
        where = f"example {key!r} of {str(path)!r}"
        text, references = _example(example, task, f"{seed}/{path.parent.name}/{key}", where)
        if not references:
            raise DataError(f"{WHO}: {where} has no reference besides its input; leave it out")
        row = {"prompt": PROMPT.format(text), "input": text, "answer": references[0]}
        rows.append({**row, "references": references, "task": task})
    return Dataset.from_list(rows, features=_FEATURES)


def _example(example: dict[str, Any], task: str, key: str, where: str) -> tuple[str, list[str]]:
    """Input and references, the file's own output first."""

    def read(name: str) -> Any:
        return needed(example, name, WHO, where)

    if task == "cause_and_effect":
        pair = [read("cause"), read("effect")]
        if random.Random(key).random() < 0.5:
            pair.reverse()
        return f"Sentence 1: {pair[0]} Sentence 2: {pair[1]}", [read("cause")]
    if task == "common_concept":
        return ", ".join(read("items")), _first(example.get("concept"), read("all_common_concepts"))
    text = str(read("input"))
    if task == "rhymes":
        found = _first(example.get("output"), read("other_rhymes"))
        return text, [word for word in found if normalise(word) != normalise(text)]
    if task.startswith("translation_"):
        return text, _first(example.get("output"), read("possible_translations"))
    output = read("output")
    return text, [str(one) for one in (output if isinstance(output, list) else [output])]


def _first(output: str | None, references: Sequence[str]) -> list[str]:
    return sorted(references, key=lambda reference: reference != output)


def normalise(text: str, lower: bool = True) -> str:
    """The first sentence of the first line: no "and", no marks but those of numbers, a space for each hyphen."""
    for dropped in (" and ", "Sentence 1:", "Sentence 2:"):
        text = text.replace(dropped, " ")
    text = text.strip().split("\n")[0]
    text = re.split(r"\.(?!\d)", text)[0]
    text = text.lower() if lower else text
    kept = {match.start() for match in _NUMBER_MARK.finditer(text)}

    def without(match: re.Match[str]) -> str:
        if match.start() in kept:
            return match[0]
        return " " if match[0] == "-" else ""

    return " ".join(_MARK.sub(without, text).split())


def _best(score: Callable[[str, str], float], prediction: str, references: Sequence[str], lower: bool = True) -> float:
    """The best score over references of normalised texts; what is all marks is compared as it is."""

    def plain(text: str) -> str:
        return normalise(text, lower) or text.strip()

    return max(float(score(plain(prediction), plain(reference))) for reference in references)


def f1(prediction: str, references: Sequence[str]) -> float:
    """F1 of the words shared, in [0, 1]; articles count, unlike in :func:`hfdataopt.rewards.token_f1`."""

    def score(found: str, wanted: str) -> float:
        one, other = Counter(found.split()), Counter(wanted.split())
        return 2 * (one & other).total() / max(one.total() + other.total(), 1)

    return _best(score, prediction, references)


def exact_set(prediction: str, references: Sequence[str]) -> float:
    """1.0 if the words are the same, in whatever order and number."""
    return _best(lambda found, wanted: set(found.split()) == set(wanted.split()), prediction, references)


def contains(prediction: str, references: Sequence[str]) -> float:
    """1.0 if a reference is a part of the prediction, as whole words."""
    return _best(_whole_words, prediction, references)


def multiple_choice(prediction: str, references: Sequence[str]) -> float:
    """As :func:`contains`, but upper and lower case differ. (The released code takes parts of words too: A in "An".)"""
    return _best(_whole_words, prediction, references, lower=False)


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 if the texts are the same."""
    return _best(lambda found, wanted: found == wanted, prediction, references)


def _whole_words(found: str, wanted: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", found) is not None


_METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "common_concept": f1,
    "informal_to_formal": f1,
    "orthography_starts_with": exact_set,
    "taxonomy_animal": exact_set,
    "synonyms": contains,
    **dict.fromkeys(MULTIPLE_CHOICE, multiple_choice),
}


def metric_of(task: str) -> Callable[[str, Sequence[str]], float]:
    """The metric of a task, ``(prediction, references) -> [0, 1]``: exact match where no other is published."""
    return _METRICS.get(task, exact_match)


def reward_for(task: str) -> MetricReward:
    """The metric of a task as a reward function of TRL's signature, which reads the column ``references``."""
    return reward_from_metric(metric_of(task), reference_column="references")


def instruction_induction_score(completions: Sequence[Any], **columns: Any) -> list[float]:
    """A reward function for rows of several tasks: each by the metric of its ``task``, against its ``references``."""
    who = "instruction_induction_score"
    references, tasks = needed_column(columns, "references", who), needed_column(columns, "task", who)
    names = [tasks] * len(completions) if isinstance(tasks, str) else tasks
    rows = zip(completions, references, names, strict=True)
    return [metric_of(task)(text_of(completion), wanted) for completion, wanted, task in rows]
