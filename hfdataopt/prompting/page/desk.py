"""Which pair is before whom, and which words were given and kept: the page without the web."""

import hashlib
import hmac
import io
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hfdataopt.errors import DataError
from hfdataopt.prompting.candidate import Comparison
from hfdataopt.prompting.judges import Decision, Question
from hfdataopt.rewards.texts import is_messages, text_of

WORDS = {
    "left": Comparison(0, "preferred"),
    "right": Comparison(1, "preferred"),
    "tie": Comparison(None, "tie"),
    "skip": Comparison(None, "skip"),
}
Result = Literal["counted", "already", "unknown", "later"]


@dataclass
class Pair:
    """A question as it lies on the desk.

    Attributes:
        key: what the page calls it; another one when the word was taken back, or when the question shows something else.
        prompt: turns, ``{"role": ..., "text": ...}``.
        answers: turns, or a PNG file.
        holder, until: who has it on screen, and when it may be given to somebody else.
        given: the word, once there is one; on disk where ``kept``.
    """

    question: Question
    key: str
    prompt: list[dict[str, str]]
    answers: tuple[list[dict[str, str]] | bytes, ...]
    holder: str = ""
    until: float = 0.0
    given: Decision | None = None
    kept: bool = False
    taking_back: bool = False


class Desk:
    """Lays one pair before each person and hands their words to the loop. Every method may be called from any thread.

    A person is named ``NAME-ID``; the id alone tells people apart. Until the first :meth:`collect` nobody is shown a pair or heard:
    the loop may still be telling which words were kept by an earlier run.

    Args:
        secret: enters the keys, so that no page can guess a pair that it was not shown.
        lease: seconds after which a pair goes to somebody else, counted from the last sign of its holder.
    """

    def __init__(self, secret: str, lease: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.secret, self.lease, self.clock = secret.encode(), lease, clock
        self.over = False
        self._changed = threading.Condition()
        self._pairs: dict[str, Pair] = {}
        self._undone: dict[str, int] = {}  # question id -> how often its word was taken back
        self._by: dict[str, list[str]] = {}  # person -> keys of the pairs whose words are kept, oldest first
        self._given: deque[Decision] = deque()
        self._state: dict[str, Any] = {}
        self._seen: dict[str, float] = {}
        self._told: set[str] = set()
        self._collecting = self._finished = False

    # -- the loop's side

    def submit(self, questions: Sequence[Question], state: dict[str, Any]) -> None:
        """Lay further questions on the desk."""
        pairs = [self._pair(question) for question in questions]
        with self._changed:
            self._state = state
            for pair in pairs:
                self._pairs.setdefault(pair.key, pair)
            self._changed.notify_all()

    def collect(self, state: dict[str, Any]) -> list[Decision]:
        """Wait for words; none = nobody will give any more."""
        with self._changed:
            self._state, self._collecting = state, True
            self._changed.notify_all()
            while not self._given and not self._finished:
                self._changed.wait(1.0)  # a limit, so that Ctrl-C is noticed on every system
            given = list(self._given)
            self._given.clear()
            return given

    def kept(self, decision: Decision) -> None:
        """A word is on disk: now its giver may see the next pair. So may one of an earlier run, which can then be undone."""
        with self._changed:
            self._state = {**self._state, "votes": (self._state.get("votes") or 0) + (-1 if decision.undo else 1)}
            pair = next((one for one in self._pairs.values() if one.question.id == decision.question), None)
            if pair is not None and not decision.undo:
                pair.given, pair.kept = decision, True
                self._by.setdefault(_id(decision.by), []).append(pair.key)
            elif pair is not None:
                self._open_again(pair)
            elif decision.undo:
                self._undone[decision.question] = self._undone.get(decision.question, 0) + 1
            self._changed.notify_all()

    def _open_again(self, pair: Pair) -> None:
        """Its giver gets it back at once, under a new key: a late copy of the old request must not count as the new word."""
        keys = self._by.get(_id(pair.given.by), []) if pair.given else []
        if pair.key in keys:
            keys.remove(pair.key)
        del self._pairs[pair.key]
        self._undone[pair.question.id] = self._undone.get(pair.question.id, 0) + 1
        again = Pair(pair.question, self._key(pair.question, pair.prompt, pair.answers), pair.prompt, pair.answers)
        if pair.given:
            for other in self._pairs.values():
                if other.holder == _id(pair.given.by):
                    other.holder = ""
            again.holder, again.until = _id(pair.given.by), self.clock() + self.lease
        self._pairs = {again.key: again, **self._pairs}

    def end(self, state: dict[str, Any], patience: float) -> None:
        """The search is over; returns when everybody who is there knows, or after ``patience`` seconds."""
        with self._changed:
            self._state, self.over = state, True
            self._changed.notify_all()
            there = {person for person, when in self._seen.items() if self.clock() - when < 2 * patience}
            self._changed.wait_for(lambda: there <= self._told, patience)

    # -- a person's side

    def look(self, person: str) -> dict[str, Any]:
        """What the page shows: the pair that is this person's, or None while there is no free one; how far the search is."""
        with self._changed:
            who, now = _id(person), self.clock()
            self._seen[who] = now
            if self.over:
                self._told.add(who)
                self._changed.notify_all()
            shut = self.over or self._finished or not self._collecting
            pair = None if shut else self._mine(who, now)
            if pair:
                pair.holder, pair.until = who, now + self.lease
            undo = next((key for key in reversed(self._by.get(who, ())) if not self._pairs[key].taking_back), None)
            return {
                "pair": pair and {"key": pair.key, "prompt": pair.prompt, "answers": list(map(_side, pair.answers))},
                "undo": None if self.over else undo,
                "over": self.over,
                "finished": self._finished,
                "votes": self._state.get("votes"),
                "of": self._state.get("of"),
                "best": self._state.get("best_prompt"),
            }

    def _mine(self, who: str, now: float) -> Pair | None:
        open_ = [pair for pair in self._pairs.values() if pair.given is None]
        held = [pair for pair in open_ if pair.holder == who]
        free = [pair for pair in open_ if not pair.holder or pair.until <= now]
        return next(iter(held or free), None)

    def vote(self, person: str, key: str, word: str, patience: float) -> Result:
        """Give a word; returns once it is on disk, or ``later`` after ``patience`` seconds: then ask again, it counts once.

        ``already``: another word on this pair came first. ``unknown``: there is no such pair any more.
        """
        with self._changed:
            pair = self._pairs.get(key)
            if not self._collecting:
                return "later"
            if pair is None:
                return "unknown"
            if pair.given is None and not self.over and not self._finished:
                pair.given = Decision(pair.question.id, WORDS[word], person)
                self._given.append(pair.given)
                self._changed.notify_all()
            given = pair.given
            self._changed.wait_for(lambda: pair.kept or self.over, patience)
            if given is None or (self.over and not pair.kept):
                return "unknown"
            if _id(given.by) != _id(person) or given.comparison != WORDS[word]:
                return "already"
            return "counted" if pair.kept else "later"

    def undo(self, person: str, key: str, patience: float) -> Result:
        """Take back this person's last word, which was on the pair ``key``; asking twice takes back one."""
        with self._changed:
            pair = self._pairs.get(key)
            if not self._collecting:
                return "later"
            if pair is None or pair.given is None or not pair.kept or self.over or _id(pair.given.by) != _id(person):
                return "unknown"
            if not pair.taking_back:
                pair.taking_back = True
                self._given.append(pair.given._replace(by=person, undo=True))
                self._changed.notify_all()
            self._changed.wait_for(lambda: key not in self._pairs or self.over, patience)
            return "counted" if key not in self._pairs else "unknown" if self.over else "later"

    def finish(self) -> None:
        """Nobody will give any more words."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def image(self, key: str, side: int) -> bytes | None:
        """The PNG file of an answer of a pair on the desk."""
        with self._changed:
            pair = self._pairs.get(key)
            answer = pair.answers[side] if pair else None
            return answer if isinstance(answer, bytes) else None

    # -- pairs

    def _pair(self, question: Question) -> Pair:
        prompt, answers = turns(question.prompt), tuple(_shown(answer) for answer in question.answers)
        return Pair(question, self._key(question, prompt, answers), prompt, answers)

    def _key(self, question: Question, prompt: Any, answers: tuple[Any, ...]) -> str:
        sides = [one.hex() if isinstance(one, bytes) else one for one in answers]
        content = json.dumps([question.id, self._undone.get(question.id, 0), prompt, sides])
        return hmac.new(self.secret, content.encode(), hashlib.sha256).hexdigest()[:32]


def _id(person: str) -> str:
    return person.rsplit("-", 1)[-1]


def _side(answer: list[dict[str, str]] | bytes) -> list[dict[str, str]] | None:
    return None if isinstance(answer, bytes) else answer


def turns(value: Any) -> list[dict[str, str]]:
    """A prompt or an answer, text or messages, as turns to be shown."""
    if isinstance(value, str):
        return [{"role": "", "text": value}]
    if not is_messages(value):
        raise DataError(f"the judging page shows text, messages and images; got {value!r:.200}")
    found = []
    for message in value:
        text = text_of([message])
        if message.get("tool_calls"):
            text = "\n".join(filter(None, [text, json.dumps(message["tool_calls"], ensure_ascii=False, default=str)]))
        found.append({"role": str(message.get("role", "")), "text": text})
    return found


def _shown(answer: Any) -> list[dict[str, str]] | bytes:
    if not callable(getattr(answer, "save", None)):
        return turns(answer)
    file = io.BytesIO()
    answer.save(file, format="PNG")
    return file.getvalue()
