"""What a judge is: it is asked questions, and hands back decisions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hfdataopt.errors import DataError
from hfdataopt.prompting.candidate import Comparison, RowId
from hfdataopt.rewards.texts import text_of


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
    """A judge's word on a question.

    With ``undo`` the word given before, which ``comparison`` repeats, is taken back; the judge will decide on the question again.
    """

    question: str
    comparison: Comparison
    by: str = ""
    undo: bool = False


class Judge:
    """Base of judges. One that answers at once implements :meth:`decide` alone.

    Attributes:
        calls_per_question: how many requests or votes one question costs.
        interactive: a person answers, one question after the other, in an order of their own.
        recorded: all that it asks goes through ``complete``; on a restart it is asked again, and finds its answers there.
    """

    calls_per_question: int = 1
    interactive: bool = False
    recorded: bool = False
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
        """The decision is on disk; on a restart it is told so of those of the earlier run, after their questions were submitted."""

    def end(self, state: dict[str, Any]) -> None:
        """The search is over."""

    def describe(self) -> dict[str, Any]:
        """A JSON object that tells it from other judges."""
        return {"kind": type(self).__name__}


def texts_of(question: Question, who: str) -> tuple[str, str]:
    """The two answers as text; ``DataError`` for images."""
    try:
        first, second = (text_of(answer) for answer in question.answers)
    except TypeError as error:
        raise DataError(f"{who}: the answers to item {question.item!r} must be text: {error}") from error
    return first, second
