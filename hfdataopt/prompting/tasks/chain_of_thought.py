"""Zero-shot chain of thought (Kojima et al. 2022): word problems, and a second call that extracts the answer."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from datasets import Dataset

from hfdataopt.errors import DataError, GenerationError, OptionError
from hfdataopt.generation.completion import Completion
from hfdataopt.generation.generator import Generator, Have, Job, OnDone, RowId, table
from hfdataopt.generation.prompts import check_prompt
from hfdataopt.prompting.tasks.files import needed, rows_of
from hfdataopt.rewards.texts import needed_column, text_of

WHO = "chain of thought"
NUMBER = "Therefore, the answer (arabic numerals) is"
LETTER = "Therefore, among A through E, the answer is"
PROMPT = "Q: {}\nA:"

_NUMBER = re.compile(
    r"(?P<sign>(?<![\w.,)\]])[-−])?(?:[$€£](?P<inner>[-−])?)?"
    r"(?P<digits>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?P<exponent>[eE][+-]?\d+(?!\w))?"
)
_LETTER = r"[(\[]?([A-E])(?![\w'])"


def load_reasoning(source: str | Path, *, split: str = "train") -> Dataset:
    """Word problems as rows of ``prompt`` (``Q: x``, new line, ``A:``), ``input``, ``answer`` and ``references``.

    Args:
        source: a file of JSON lines or of JSON with ``examples``, a folder of them named by split, or the id of a dataset
            of the Hub (``openai/gsm8k:main``). Rows are ``input, output`` (SVAMP, and INSTINCT's files), ``question,
            answer`` (GSM8K, whose number stands behind ``####``) or ``question, options, correct`` (AQuA, a letter).
        split: of no meaning for a file.

    Raises:
        DataError: a row of another layout, or without an answer; it is named.
    """
    rows = []
    for name, row in rows_of(source, split, WHO).items():
        question, answer = _problem(row, f"row {name!r} of {str(source)!r}")
        rows.append({"prompt": PROMPT.format(question), "input": question, "answer": answer, "references": [answer]})
    return Dataset.from_list(rows)


def _problem(row: Mapping[str, Any], where: str) -> tuple[str, str]:
    if "correct" in row:
        options = " ".join(needed(row, "options", WHO, where))
        return f"{needed(row, 'question', WHO, where)}\nAnswer Choices: {options}", str(row["correct"]).strip()
    if "question" in row:
        question, solution = str(row["question"]), str(needed(row, "answer", WHO, where))
        answer = solution.rpartition("####")[2].strip()
    else:
        question, answer = str(needed(row, "input", WHO, where)), str(needed(row, "output", WHO, where)).strip()
    if _is_letter(answer) or last_number(answer) is not None:
        return question, answer
    raise DataError(f"{WHO}: {where} has the answer {answer!r}; it must be a number or a letter from A to E")


@dataclass
class ChainOfThought:
    """A generator that lets another one reason, and asks it a second time for the answer.

    The second call gets the prompt, the reasoning and the sentence ``extract``. The completion's text is reasoning,
    sentence and answer, so that a reward function reads the end (:func:`reasoning_score`). It has no token ids.

    Attributes:
        generator: answers both calls.
        extract: the sentence that the answer follows: ``NUMBER``, or ``LETTER`` for multiple choice.
    """

    generator: Generator
    extract: str = NUMBER
    on_policy: ClassVar[bool] = False
    calls_per_completion: ClassVar[int] = 2  # calls of the inner generator, which budgets count

    def __post_init__(self) -> None:
        if not callable(getattr(self.generator, "generate", None)):
            raise OptionError(
                f"{WHO}: generator={self.generator!r:.80} has no generate(); give one of hfdataopt.generation"
            )
        if not isinstance(self.extract, str) or not self.extract.strip():
            raise OptionError(f"{WHO}: extract={self.extract!r} must be a sentence")

    def describe(self) -> dict[str, Any]:
        """A JSON object of everything that changes the output, apart from the weights of a live model."""
        return {"kind": "chain-of-thought", "extract": self.extract, "generator": self.generator.describe()}

    def generate(
        self,
        prompts: Sequence[Any],
        n: int,
        *,
        keys: Sequence[RowId],
        seed: int = 0,
        have: Have | None = None,
        on_done: OnDone | None = None,
    ) -> list[list[Completion]]:
        """``[prompts][n]`` completions; see :class:`~hfdataopt.generation.generator.Generator`.

        ``on_done`` is called when the answer to the second call is there. Where some first calls fail, those that
        arrived are still brought to their end before the error is raised.
        """
        for prompt, key in zip(prompts, keys, strict=False):
            check_prompt(prompt, WHO, key)
        reasons: dict[Job, Completion] = {}

        def reasoned(index: int, sample: int, completion: Completion) -> None:
            reasons[index, sample] = completion

        failure: GenerationError | None = None
        try:
            self.generator.generate(prompts, n, keys=keys, seed=seed, have=have, on_done=reasoned)
        except GenerationError as error:
            failure = error
        jobs = sorted(reasons)
        made: dict[Job, Completion] = {}

        def answered(place: int, _: int, completion: Completion) -> None:
            job = jobs[place]
            made[job] = self._joined(reasons[job], completion)
            if on_done is not None:
                on_done(*job, made[job])

        if jobs:
            self.generator.generate(
                [self._second(prompts[index], reasons[index, sample]) for index, sample in jobs],
                1,
                keys=[f"{keys[index]!r}/{sample}/answer" for index, sample in jobs],
                seed=seed,
                on_done=answered,
            )
        if failure is not None:
            raise failure
        return table(prompts, n, have, made)

    def _second(self, prompt: Any, reasoning: Completion) -> Any:
        text = f"{reasoning.text.rstrip()}\n{self.extract}"
        if isinstance(prompt, str):
            return prompt + text
        return [
            *prompt,
            {"role": "assistant", "content": reasoning.text.rstrip()},
            {"role": "user", "content": self.extract},
        ]

    def _joined(self, reasoning: Completion, answer: Completion) -> Completion:
        text = f"{reasoning.text.rstrip()}\n{self.extract} {answer.text.lstrip()}"
        return Completion(text, finished=reasoning.finished and answer.finished)


def last_number(text: str) -> float | None:
    """The last number of a text, with commas between thousands, sign, currency and decimals; None without one.

    A hyphen is a sign only where nothing stands before it: ``10-4`` ends in 4, ``= -4`` in -4.
    """
    matches = list(_NUMBER.finditer(text))
    if not matches:
        return None
    found = matches[-1]
    value = float(found["digits"].replace(",", "") + (found["exponent"] or ""))
    return -value if found["sign"] or found["inner"] else value


def last_letter(text: str) -> str | None:
    """The letter from A to E that an answer names: behind "answer is", else the last before or in brackets, else the last
    one on its own; None without one."""
    for pattern in (
        rf"(?i:answer)(?:(?i:\s+is)|:)?:?\s*{_LETTER}",
        r"(?<!\w)([A-E])\)",
        rf"(?<!\w){_LETTER}(?!\s+[a-z])",
    ):
        if found := re.findall(pattern, text):
            return found[-1]
    return None


def reply_of(text: str) -> str:
    """What follows the last sentence of extraction; the whole text where there is none."""
    for sentence in (NUMBER, LETTER):
        _, found, reply = text.rpartition(sentence)
        if found:
            return f"answer is {reply.lstrip(' :')}" if sentence == LETTER else reply
    return text


def reasoning_score(completions: Sequence[Any], **columns: Any) -> list[float]:
    """A reward function: 1.0 where the answer of the completion is that of the column ``answer``, else 0.0.

    Numbers are compared as numbers (``18.00`` is ``18``); where the answer is a letter from A to E, letters. Behind a
    sentence of extraction only what follows it counts.
    """
    answers = needed_column(columns, "answer", "reasoning_score")
    return [_agree(reply_of(text_of(one)), str(answer)) for one, answer in zip(completions, answers, strict=True)]


def _agree(reply: str, answer: str) -> float:
    if _is_letter(answer):
        return float(last_letter(reply) == answer.strip())
    wanted = last_number(answer)
    if wanted is None:
        raise DataError(f"reasoning_score: the answer {answer!r} is neither a number nor a letter from A to E")
    return float(last_number(reply) == wanted)


def _is_letter(answer: str) -> bool:
    return re.fullmatch(r"[A-E]", answer.strip()) is not None
