"""Judges: who says which of two answers is better.

The loop shows the two answers in a random order, once, and turns the word back; a judge never shuffles.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hfdataopt.errors import DataError, OptionError
from hfdataopt.prompting.candidate import Comparison, RowId
from hfdataopt.rewards.texts import text_of, transcript


@dataclass(frozen=True)
class Question:
    """Two answers to a prompt, in the order in which they are shown.

    Attributes:
        id: unique in the search.
        prompt: the item's own, without any instruction, as the dataset has it.
        answers: text, or images.
        item, columns: the row.
    """

    id: str
    prompt: Any
    answers: tuple[Any, Any]
    item: RowId
    columns: dict[str, Any] = field(default_factory=dict)


class Decision(NamedTuple):
    """A judge's word on a question; with ``undo`` the word given before is taken back."""

    question: str
    comparison: Comparison
    by: str = ""
    undo: bool = False


class Judge:
    """Base of judges. One that answers at once implements :meth:`decide` alone.

    Attributes:
        calls_per_question: how many requests or votes one question costs.
        interactive: a person answers, one question after the other, in an order of their own.
    """

    calls_per_question: int = 1
    interactive: bool = False
    needs_images: bool = False

    def begin(self, complete: Callable[..., list[str]], state: Callable[[], dict[str, Any]]) -> None:
        """The search begins.

        Args:
            complete: ``complete(generator, messages, keys)``, texts of a generator's answers; counted and kept.
            state: the search as a JSON object, to be shown (votes so far, best prompt).
        """
        self._waiting: list[Question] = []

    def decide(self, questions: Sequence[Question]) -> list[Comparison]:
        """One word per question, in the order shown."""
        raise NotImplementedError

    def submit(self, questions: Sequence[Question]) -> None:
        """Further questions to be answered."""
        self._waiting.extend(questions)

    def collect(self) -> list[Decision]:
        """At least one decision on questions that are waiting; none = nobody will answer any more."""
        waiting, self._waiting = self._waiting, []
        words = self.decide(waiting) if waiting else []
        if len(words) != len(waiting):
            raise DataError(f"{type(self).__name__}: {len(words)} words for {len(waiting)} questions")
        return [Decision(question.id, word) for question, word in zip(waiting, words, strict=True)]

    def kept(self, decision: Decision) -> None:
        """The decision is on disk."""

    def end(self, state: dict[str, Any]) -> None:
        """The search is over."""

    def describe(self) -> dict[str, Any]:
        """A JSON object that tells it from other judges."""
        return {"kind": type(self).__name__}


class CallableJudge(Judge):
    """A judge written for older TRL: ``judge(prompts, completions, shuffle_order=True) -> list[int]``, or an object with it.

    It gets texts and pairs of texts, and returns the index of the better one; -1 means that it could not say (``invalid``).
    """

    def __init__(self, judge: Any) -> None:
        self._judge = getattr(judge, "judge", judge)
        if isinstance(judge, type) or not callable(self._judge):
            raise OptionError(
                "PromptTrainer: a judge is a hfdataopt judge or judge(prompts, completions, shuffle_order=True) -> list[int]; "
                f"got {judge!r:.200}"
            )

    def decide(self, questions: Sequence[Question]) -> list[Comparison]:
        prompts = [transcript(question.prompt) for question in questions]
        pairs = [[text_of(answer) for answer in question.answers] for question in questions]
        words = self._judge(prompts, pairs, shuffle_order=False)
        if not isinstance(words, list | tuple) or len(words) != len(questions):
            raise DataError(
                f"judge: returned {words!r:.100} for {len(questions)} pairs; it must return a list with 0, 1 or -1 for each"
            )
        found = []
        for word, question in zip(words, questions, strict=True):
            if isinstance(word, bool) or word not in (0, 1, -1):
                raise DataError(f"judge: returned {word!r} for item {question.item!r}; it must be 0, 1 or -1")
            found.append(Comparison.of(None if word == -1 else int(word), otherwise="invalid"))
        return found

    def describe(self) -> dict[str, Any]:
        from hfdataopt.attribution.identity import fingerprint

        return {"kind": "callable", "judge": fingerprint(self._judge)}


def as_judge(judge: Any) -> Judge:
    """A judge of ours as it is; anything callable as :class:`CallableJudge`."""
    return judge if isinstance(judge, Judge) else CallableJudge(judge)
