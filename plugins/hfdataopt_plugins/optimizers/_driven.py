"""Optimizers of other packages run their own loop. Here it runs in a thread that hands over one request at a time.

While the thread works the asking side waits, and the reverse, so that a search does the same each time: a killed one is resumed
by running the loop again on the answers that the ledger kept.
"""

import dataclasses
import math
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from hfdataopt.prompting.candidate import Candidate, Query, RowId
from hfdataopt.prompting.meta_prompts import Messages
from hfdataopt.prompting.optimizer import Task
from hfdataopt.prompting.rounds import InducingRounds, Rounds

JOIN_SECONDS = 30.0


class Ended(BaseException):
    """Raised in the loop when the search is over; no ``Exception``, since loops catch those and go on."""


class Told(NamedTuple):
    """What is known of a candidate on some items: a reward (0 where no reward function had an opinion) and answer of each."""

    rewards: list[float]
    answers: list[str]


class _Scoring(NamedTuple):
    candidate: Candidate
    items: tuple[RowId, ...]


class _Proposal(NamedTuple):
    messages: Messages
    temperature: float | None


class _Done(NamedTuple):
    error: BaseException | None


class Loop:
    """The loop's side: what a package calls in the place of models. May be called from several threads, one is served at a time.

    Attributes:
        first: candidate to begin with.
        paid: requests for scores so far that were not known already.
    """

    def __init__(self, task: Task, first: Candidate) -> None:
        self.task, self.first, self.paid = task, first, 0
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lock, self._over = threading.Lock(), threading.Event()

    def score(self, candidate: Candidate, items: Sequence[RowId]) -> Told:
        """Rewards and answers of a candidate on items or examples."""
        return self._request(_Scoring(candidate, tuple(items)))

    def propose(self, messages: Messages, temperature: float | None = None) -> str:
        """An answer of the proposer."""
        return self._request(_Proposal(messages, temperature))

    def _request(self, request: Any) -> Any:
        with self._lock:
            if self._over.is_set():
                raise Ended
            self._requests.put(request)
            reply = self._replies.get()
            if self._over.is_set():
                raise Ended
            return reply


class _Thread(threading.Thread):
    """Runs ``drive(loop)`` and says how it ended."""

    def __init__(self, optimizer: "DrivenOptimizer", loop: Loop) -> None:
        super().__init__(name=f"{optimizer.name}-search", daemon=True)
        # Options only: a search that nobody refers to any more can then be freed, which ends its thread.
        self._optimizer, self._loop = dataclasses.replace(optimizer), loop

    def run(self) -> None:
        try:
            self._optimizer.drive(self._loop)
        except Ended:
            error = None
        except BaseException as raised:
            error = raised
        else:
            error = None
        self._loop._requests.put(_Done(error))


@dataclass
class DrivenOptimizer(InducingRounds):
    """Base of optimizers that are another package's loop, :meth:`drive`. It begins with the user's instruction, else an induced one."""

    def drive(self, loop: Loop) -> None:
        """Run the package's search in a thread of its own, with ``loop`` as its models; its own result is not needed."""
        raise NotImplementedError

    def least_calls(self) -> int:
        return len(self.task.items)

    def plan_in_words(self) -> str:
        return f"the first instruction on all {len(self.task.items)} items"

    def search(self) -> Rounds:
        (first,) = self.pool(1)
        loop = Loop(self.task, first)
        thread = _Thread(self, loop)
        thread.start()
        try:
            while not isinstance(request := loop._requests.get(), _Done):
                if isinstance(request, _Proposal):
                    assert self.services is not None
                    (answer,) = self.services.propose_each([request.messages], request.temperature)
                    loop._replies.put(answer)
                    continue
                told = self._known.get(request.candidate.key, {})
                missing = tuple(item for item in dict.fromkeys(request.items) if item not in told)
                if missing:
                    if len(missing) > self.left:
                        return
                    loop.paid += 1
                    yield [Query(request.candidate, missing)]
                    told = self._known.get(request.candidate.key, {})
                    if any(item not in told for item in missing):
                        return
                pairs = [told[item] for item in request.items]
                loop._replies.put(Told([0.0 if math.isnan(r) else r for r, _ in pairs], [text for _, text in pairs]))
            if request.error is not None:
                raise request.error
        finally:
            loop._over.set()
            loop._replies.put(None)
            thread.join(JOIN_SECONDS)
