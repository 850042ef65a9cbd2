"""A person at the terminal as a judge."""

import sys
import unicodedata
from collections.abc import Sequence
from typing import Any, TextIO

from hfdataopt.prompting.candidate import Comparison
from hfdataopt.prompting.judges.judge import Decision, Judge, Question, texts_of
from hfdataopt.rewards.texts import transcript

KEYS = "1 or 2 = the better one, t = tie, s = skip, u = undo, q = stop"
_WORDS = {
    "1": Comparison(0, "preferred"),
    "2": Comparison(1, "preferred"),
    "t": Comparison(None, "tie"),
    "s": Comparison(None, "skip"),
}


class TerminalJudge(Judge):
    """Shows two answers and reads a key, then Enter. ``q``, or the end of the input, means that nobody will answer any more.

    Args:
        input, output: by default stdin and stderr.
    """

    interactive = True

    def __init__(self, input: TextIO | None = None, output: TextIO | None = None) -> None:
        self._input, self._output = input, output

    def begin(self, complete: Any, state: Any) -> None:
        super().begin(complete, state)
        self._given: list[tuple[Question, Comparison]] = []
        self._gone = False

    def submit(self, questions: Sequence[Question]) -> None:
        waiting = {question.id for question in self._waiting}  # one whose vote was taken back stands in front already
        self._waiting.extend(question for question in questions if question.id not in waiting)

    def collect(self) -> list[Decision]:
        if not self._waiting or self._gone:
            return []
        question = self._waiting[0]
        self._show(question)
        while True:
            self._say(f"{len(self._given) + 1}. {KEYS}: ", end="")
            line = (self._input or sys.stdin).readline()
            key = line.strip().lower()
            if not line or key == "q":
                self._gone = True
                return []
            if key in _WORDS:
                self._given.append((self._waiting.pop(0), _WORDS[key]))
                return [Decision(question.id, _WORDS[key])]
            if key == "u" and self._given:
                before, word = self._given.pop()
                self._waiting.insert(0, before)
                return [Decision(before.id, word, undo=True)]
            self._say("there is nothing to undo" if key == "u" else f"{visible(key)!r:.40} is no answer")

    def kept(self, decision: Decision) -> None:
        """Of an earlier run: its questions are not shown again, and its words can be taken back."""
        words = {question.id: question for question, _ in self._given}
        waiting = {question.id: question for question in self._waiting}
        if not decision.undo and decision.question in waiting:
            self._waiting.remove(waiting[decision.question])
            self._given.append((waiting[decision.question], decision.comparison))
        elif decision.undo and decision.question in words:
            self._given = [one for one in self._given if one[0].id != decision.question]
            self._waiting.insert(0, words[decision.question])

    def _show(self, question: Question) -> None:
        first, second = texts_of(question, "TerminalJudge")
        for title, text in (("Prompt", transcript(question.prompt)), ("Answer 1", first), ("Answer 2", second)):
            self._say(f"\n{title}\n" + "\n".join(f"  | {line}" for line in visible(text).split("\n")))

    def _say(self, text: str, end: str = "\n") -> None:
        print(text, end=end, file=self._output or sys.stderr, flush=True)

    def describe(self) -> dict[str, Any]:
        return {"kind": "terminal"}


def visible(text: str) -> str:
    """Text that cannot drive a terminal or turn its own direction: controls but tab and newline, and format characters, escaped."""
    shown = []
    for character in text:
        hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        safe = character in "\n\t\u200c\u200d"  # joiners are part of scripts and of emoji
        shown.append(character.encode("unicode_escape").decode() if hidden and not safe else character)
    return "".join(shown)
