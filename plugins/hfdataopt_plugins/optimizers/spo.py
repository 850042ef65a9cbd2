"""SPO: a prompt improved step by step by a judge's word alone (Xiang et al., 2025)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt.prompting import meta_prompts
from hfdataopt.prompting.candidate import Candidate, Duel, Vote
from hfdataopt.prompting.optimizer import PreferenceOptimizer, Role, Services, Task
from hfdataopt.prompting.pool import propose_pool

FRUITLESS = 12  # proposals in a row without a new instruction, after which the search is over


class Round(NamedTuple):
    """A revision and what it is compared with."""

    revision: Candidate
    against: Candidate


@dataclass
class Spo(PreferenceOptimizer):
    """The proposer revises the best instruction, given its answers; the revision takes its place by a majority of the votes.

    It begins with the first of ``task.start``, else with one that is induced from examples. A vote that was skipped or could
    not be read is no rejection: another item is asked about instead, while there are some.

    Args:
        comparisons: items on which a revision is compared; ties are half a vote for each.
        shown: answers of the best instruction that the proposer sees.
        requirements: what good answers are like, in the user's words.
    """

    name: ClassVar[str] = "spo"
    experimental: ClassVar[str] = "no better than random pairs on the shipped model (8 tasks, 50 to 400 votes)"

    comparisons: int = 4
    shown: int = 3
    requirements: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "comparisons", at_least=1)
        check_range(self, "shown", at_least=0)

    @property
    def needs(self) -> tuple[Role, ...]:
        return ("proposer",)

    def start(self, task: Task) -> None:
        super().start(task)
        self._first: Candidate | None = None
        self._rounds: list[Round] = []

    def ask(self, n: int, pending: Sequence[Duel] = (), services: Services | None = None) -> Sequence[Duel]:  # type: ignore[override]
        """Up to ``n`` duels of the present revision; none while it waits for its last votes, or when no new one can be found."""
        assert services is not None
        if self._first is None:
            self._first = propose_pool(self.task, services, 1, who=self.name)[0]
        while True:
            best, now = self._state()
            if now is None:
                now = self._revise(best, services)
                if now is None:
                    return []
                self._rounds.append(now)
            waiting = [duel for duel in pending if _of(duel, now)]
            votes = [vote for vote in self.votes if _of(vote.duel, now)]
            asked = {duel.item for duel in [*waiting, *(vote.duel for vote in votes)]}
            known = sum(vote.comparison.target is not None for vote in votes)
            free = [item.id for item in self._items() if item.id not in asked]
            wanted = min(n, self.comparisons - known - len(waiting), len(free))
            if wanted > 0 or waiting:
                return [Duel(now.revision, now.against, id_) for id_ in free[: max(wanted, 0)]]

    @property
    def best(self) -> Candidate | None:
        return self._state()[0] if self._first is not None else None

    def leaders(self, n: int) -> list[Candidate]:
        """The best, and those that it and its ancestors took the place of."""
        found: list[Candidate] = []
        if self.best is not None:
            found = [self.best]
            for round_ in reversed(self._rounds):
                if round_.revision == found[-1]:
                    found.append(round_.against)
        return found[:n]

    def _state(self) -> tuple[Candidate, Round | None]:
        """The best instruction by the votes there are, and the round that is open; rounds that a vote taken back refutes go."""
        assert self._first is not None
        best = self._first
        for place, round_ in enumerate(self._rounds):
            if round_.against != best:
                del self._rounds[place:]
                break
            accepted = self.accepts([vote for vote in self.votes if _of(vote.duel, round_)])
            if accepted is None:
                return best, round_
            best = round_.revision if accepted else best
        return best, None

    def accepts(self, votes: Sequence[Vote]) -> bool | None:
        """Whether a revision takes the place of the best; None while votes are missing and items are left."""
        targets = [target for vote in votes if (target := vote.comparison.target) is not None]
        if len(targets) < self.comparisons and len(votes) < len(self.task.items):
            return None
        return sum(targets) > len(targets) / 2

    def _items(self) -> list:
        """The common items, in an order of its own for each round."""
        items = list(self.task.items)
        self.task.rng(self.name, "items", len(self._rounds)).shuffle(items)
        return items

    def _revise(self, best: Candidate, services: Services) -> Round | None:
        answers: dict[str, str] = {}
        for vote in reversed(self.votes):
            for candidate, answer in zip((vote.duel.first, vote.duel.second), vote.answers, strict=True):
                if candidate == best and vote.duel.item is not None and len(answers) < self.shown:
                    answers.setdefault(self.task.item(vote.duel.item).input, answer)
        messages = meta_prompts.revise(best.instruction, list(answers.items()), self.requirements)
        seen = {self._first, *(round_.revision for round_ in self._rounds)}
        for _ in range(FRUITLESS):
            text = meta_prompts.read_instruction(services.propose(messages, 1)[0])
            if text is not None and Candidate(text) not in seen:
                return Round(Candidate(text, parents=(best.key,), origin="revise"), best)
        return None


def _of(duel: Duel, round_: Round) -> bool:
    return duel.first == round_.revision and duel.second == round_.against


@hookimpl
def register_optimizers(register: Callable[..., None]) -> None:
    register(Spo)
