"""ProTeGi: errors are turned into reasons, reasons into rewritten instructions; a beam keeps the best (Pryzant et al., 2023)."""

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import ClassVar, Literal

from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt.prompting import meta_prompts
from hfdataopt.prompting.candidate import Candidate, Query, Trial
from hfdataopt.prompting.meta_prompts import Mistake
from hfdataopt.prompting.rounds import InducingRounds, Rounds, Scored, ranked, rewritten, rungs_of

Selection = Generator[list[Query], None, list[Candidate]]
UNLIMITED = 6  # rounds, where the budget does not count completions


@dataclass
class ProTeGi(InducingRounds):
    """Beam search with textual gradients.

    A round expands each instruction of the beam: some of its mistakes, one reason for them, rewritten instructions, these
    in other words. Which of the old and the new ones form the next beam is decided on few items each.

    Args:
        pool_size: induced instructions to begin with, beside the user's own.
        beam: instructions that a round begins with.
        gradients: sets of mistakes, each with its reason, per instruction and round.
        errors: mistakes in a set.
        rewrites: instructions per reason.
        rephrasings: of each rewritten instruction.
        selection: ``ucb`` gives the next few items to the instruction of the largest upper confidence bound; ``halving``
            gives the better half twice the items.
        block: items at a time, and those of the first halving; None = a quarter of them, at least 2.
        confidence: factor of the bound, mean + confidence sqrt(ln t / items seen).
    """

    name: ClassVar[str] = "protegi"

    pool_size: int = 4
    beam: int = 1
    gradients: int = 1
    errors: int = 4
    rewrites: int = 1
    rephrasings: int = 0
    selection: Literal["ucb", "halving"] = "halving"
    block: int | None = None
    confidence: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("pool_size", "beam", "gradients", "errors", "rewrites", "block"):
            check_range(self, option, at_least=1)
        for option in ("rephrasings", "confidence"):
            check_range(self, option, at_least=0)

    @property
    def block_size(self) -> int:
        items = len(self.task.items)
        return min(items, self.block or max(2, -(-items // 4)))

    def least_calls(self) -> int:
        return len(self.task.items) + self.block_size

    def plan_in_words(self) -> str:
        return f"one instruction on all {len(self.task.items)} items and a rewritten one on {self.block_size}"

    def search(self) -> Rounds:
        beam = yield from self.select(self.pool(max(2, self.pool_size)))
        rounds = 0
        while beam and self.left >= self.block_size:
            new = self.expand(beam, rounds)
            if not new or (self.task.calls is None and rounds >= UNLIMITED):
                break
            beam = yield from self.select([*new, *beam])
            rounds += 1

    def expand(self, beam: list[Candidate], round_: int) -> list[Candidate]:
        """Rewritten for each of several sets of mistakes, and these rephrased; only rephrased where there are no mistakes."""
        sets: list[tuple[Candidate, list[Mistake]]] = []
        for place, parent in enumerate(beam):
            made = self.mistakes(self.known(parent))
            for gradient in range(self.gradients if made else 0):
                rng = self.rng("errors", round_, place, gradient)
                sets.append((parent, rng.sample(made, min(self.errors, len(made)))))
        reasons = self.answers([meta_prompts.criticise(one.instruction, shown) for one, shown in sets])
        asks = [
            rewritten(parent, reason.strip(), shown)
            for (parent, shown), reason in zip(sets, reasons, strict=False)
            for _ in range(self.rewrites)
        ]
        found = self.propose(asks)
        found += self.vary(list(found), self.rephrasings * len(found))
        return found or self.vary(beam, len(beam))

    def select(self, candidates: list[Candidate]) -> Selection:
        """The next beam, best first; the best of it is tried on all items."""
        if self.selection == "halving":
            rungs = rungs_of(len(candidates), len(self.task.items), self.block_size, 2)
            trials = yield from self.halve(candidates, rungs)
        else:
            trials = ranked((yield from self.ucb(candidates)))
        beam = [trial.candidate for trial in trials[: self.beam]]
        yield from self.score(beam[:1], len(self.task.items))
        return beam

    def ucb(self, candidates: list[Candidate]) -> Scored:
        """Blocks of items, each to the largest bound; half of what it would take to try all candidates on all items."""
        items = len(self.task.items)
        spend = min(self.left, sum(self.cost(one, items) for one in candidates) / 2)
        until = self.paid + spend
        while self.paid < until:
            trials = [self.known(one) for one in candidates]
            open_ = [trial for trial in trials if len(trial.items) < items]
            total = sum(len(trial.items) for trial in trials)
            open_.sort(key=lambda trial: -self.bound(trial, total))
            before = self.paid
            for trial in open_[:1]:
                seen = min(items, len(trial.items) + self.block_size)
                yield from self.score([trial.candidate], seen)
            if self.paid == before:
                break
        return [self.known(one) for one in candidates if self.cost(one, items) < items]

    def bound(self, trial: Trial, total: int) -> float:
        """Upper confidence bound of the mean; infinite where nothing is known."""
        seen = len(trial.items)
        if not seen or math.isnan(trial.score):
            return math.inf if not seen else -math.inf
        return trial.score + self.confidence * math.sqrt(math.log(total) / seen)


@hookimpl
def register_optimizers(register: Callable[..., None]) -> None:
    register(ProTeGi)
