"""Zero-shot chain of thought (Kojima et al. 2022): word problems, and a second call that extracts the answer."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from hfdataopt.errors import DataError, GenerationError, OptionError, Refused
from hfdataopt.generation.completion import Completion
from hfdataopt.generation.generator import (
    TOKENS_PER_MESSAGE,
    Admit,
    Allowed,
    Have,
    Job,
    OnDone,
    RowId,
    TwoCalls,
    open_jobs,
    table,
)
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
class ChainOfThought(TwoCalls):
    """A generator that lets another one reason, and asks it a second time for the answer.

    The second call gets the prompt, the reasoning and the sentence ``extract``. The completion's text is reasoning,
    sentence and answer, so that a reward function reads the end (:func:`reasoning_score`). It has no token ids. Its tokens
    are those of both calls.

    Prompts are worked off in groups of the inner generator's ``concurrency`` or ``batch_size``, so that a run that is
    killed loses at most the reasoning of one group; a search keeps every answer.

    Attributes:
        generator: answers both calls. A search's proposer should be this one, not the chain of thought.
        extract: the sentence that the answer follows: ``NUMBER``, or ``LETTER`` for multiple choice.
    """

    generator: Any
    extract: str = NUMBER

    def __post_init__(self) -> None:
        if not callable(getattr(self.generator, "generate", None)):
            raise OptionError(
                f"{WHO}: generator={self.generator!r:.80} has no generate(); give one of hfdataopt.generation"
            )
        if not isinstance(self.extract, str) or not self.extract.strip():
            raise OptionError(f"{WHO}: extract={self.extract!r} must be a sentence")

    @property
    def model(self) -> Any:
        """The inner generator's model, whose weights tell runs apart."""
        return getattr(self.generator, "model", None)

    @property
    def max_new_tokens(self) -> int | None:
        """The most tokens of both calls together."""
        most = self.generator.max_new_tokens
        return None if most is None else 2 * most

    def count_tokens(self, prompt: Any) -> int:
        """The most tokens of the prompts of both calls together, as far as the inner generator knows its limit."""
        more = self.generator.count_tokens(self.extract) + 2 * TOKENS_PER_MESSAGE
        return 2 * self.generator.count_tokens(prompt) + (self.generator.max_new_tokens or 0) + more

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
        admit: Admit | None = None,
        allowed: Allowed | None = None,
    ) -> list[list[Completion]]:
        """``[prompts][n]`` completions; see :class:`~hfdataopt.generation.generator.Generator`.

        ``admit`` is asked before the first call, ``on_done`` is called when the answer to the second is there. Where some
        first calls fail or are refused, those that arrived are brought to their end before the error is raised.
        """
        jobs = open_jobs(WHO, prompts, n, keys, 1.0, have)
        wanted = sorted({index for index, _ in jobs})
        for index in wanted:
            check_prompt(prompts[index], WHO, keys[index])
        made: dict[Job, Completion] = {}
        failure: Exception | None = None
        at_once = getattr(self.generator, "concurrency", None) or getattr(self.generator, "batch_size", None) or 1
        size = max(at_once // n, 1)
        for start in range(0, len(wanted), size):
            group = wanted[start : start + size]
            reasons: dict[Job, Completion] = {}
            try:
                self.generator.generate(
                    [prompts[index] for index in group],
                    n,
                    keys=[keys[index] for index in group],
                    seed=seed,
                    have={(group.index(i), s): one for (i, s), one in (have or {}).items() if i in group},
                    on_done=lambda place, sample, one, group=group, to=reasons: to.update(
                        {(group[place], sample): one}
                    ),
                    allowed=allowed,
                    **({} if admit is None else {"admit": lambda p, s, group=group, ask=admit: ask(group[p], s)}),
                )
            except (GenerationError, Refused) as error:
                failure = error
            self._extract(prompts, keys, seed, reasons, made, on_done, allowed)
            if isinstance(failure, GenerationError):
                break
        if failure is not None:
            raise failure
        return table(prompts, n, have, made)

    def _extract(
        self,
        prompts: Sequence[Any],
        keys: Sequence[RowId],
        seed: int,
        reasons: Mapping[Job, Completion],
        made: dict[Job, Completion],
        on_done: OnDone | None,
        allowed: Allowed | None,
    ) -> None:
        """The second calls, for the reasoning that arrived."""
        jobs = sorted(reasons)
        seconds = [self.second(prompts[index], reasons[index, sample]) for index, sample in jobs]

        def answered(place: int, _: int, answer: Completion) -> None:
            job = jobs[place]
            made[job] = self.joined(prompts[job[0]], reasons[job], answer)
            if on_done is not None:
                on_done(*job, made[job])

        if jobs:
            names = [f"{keys[index]!r}/{sample}/answer" for index, sample in jobs]
            self.generator.generate(seconds, 1, keys=names, seed=seed, on_done=answered, allowed=allowed)

    def second(self, prompt: Any, first: Completion) -> Any:
        text = first.text.rstrip()
        if isinstance(prompt, str):
            return f"{prompt}{text}\n{self.extract}"
        return [*prompt, {"role": "assistant", "content": text}, {"role": "user", "content": self.extract}]

    def _prompt_tokens(self, prompt: Any, completion: Completion) -> int:
        known = completion.prompt_tokens
        return self.generator.count_tokens(prompt) if known is None else known

    def joined(self, prompt: Any, first: Completion, last: Completion) -> Completion:
        text = f"{first.text.rstrip()}\n{self.extract} {last.text.lstrip()}"
        into = self._prompt_tokens(prompt, first) + self._prompt_tokens(self.second(prompt, first), last)
        out = [one.completion_tokens if one.token_ids is None else len(one.token_ids) for one in (first, last)]
        tokens = None if None in out else sum(count or 0 for count in out)
        finished = first.finished and last.finished
        return Completion(text, finished=finished, prompt_tokens=into, completion_tokens=tokens)


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
