"""OPRO: the proposer reads the best instructions so far with their scores and writes a better one (Yang et al., 2024)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt.prompting import meta_prompts
from hfdataopt.prompting.candidate import Candidate
from hfdataopt.prompting.rounds import Ask, InducingRounds, Rounds, ranked

UNLIMITED = 25  # steps, where the budget does not count completions
FINALISTS = 3  # instructions that are tried on all items at the end


@dataclass
class Opro(InducingRounds):
    """Steps of new instructions, each from a history in ascending order of its scores.

    Args:
        pool_size: induced instructions that the history begins with, the user's own among them.
        batch: instructions per step.
        history: how many of the best are shown.
        shown: examples of the task in each question, drawn anew for each.
        items: how many common items an instruction is scored on, so that all scores in a history are of the same items; None =
            as many as let the budget try at least 16 instructions, at least 4. The best are tried on all at the end.
        shuffle_scores: show each instruction with the score of another: the control that says whether scores are read.
    """

    name: ClassVar[str] = "opro"
    experimental: ClassVar[str] = "no better than random search on the shipped model (8 tasks, 60 to 400 calls)"

    pool_size: int = 4
    batch: int = 2
    history: int = 20
    shown: int = 3
    items: int | None = None
    shuffle_scores: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("pool_size", "batch", "history", "items"):
            check_range(self, option, at_least=1)
        check_range(self, "shown", at_least=0)

    @property
    def width(self) -> int:
        """Items that an instruction is scored on."""
        items = len(self.task.items)
        if self.items is None and self.task.calls is not None:
            return min(items, max(4, self.task.calls // 16))
        return min(items, self.items or items)

    def least_calls(self) -> int:
        return 2 * self.width

    def plan_in_words(self) -> str:
        return f"an instruction to begin with and a new one, on {self.width} items each"

    def search(self) -> Rounds:
        width, items = self.width, len(self.task.items)
        # The end is paid before the steps are.
        end = FINALISTS * (items - width) if self.left >= 4 * width + FINALISTS * (items - width) else 0
        first = self.pool(min(self.pool_size, max(1, (self.left - end) // width - 1)))
        tried = [trial.candidate for trial in (yield from self.score(first, width))]
        step = 0
        while tried and self.left - end >= width and (self.task.calls is not None or step < UNLIMITED):
            count = min(self.batch, (self.left - end) // width)
            new = self.collect(count, partial(self.better, tried, step))
            if not new:
                break
            tried += [trial.candidate for trial in (yield from self.score(new, width))]
            step += 1
        best = ranked([self.known(one, width) for one in tried])
        for trial in best[:FINALISTS]:
            yield from self.score([trial.candidate], items)

    def better(self, tried: list[Candidate], step: int, attempt: int) -> Ask:
        """The question for an instruction that would score higher."""
        history = self.scored(tried, step)
        shown = self.task.demonstrations(self.shown, self.name, step, attempt)
        return Ask(meta_prompts.improve([(one.instruction, score) for one, score in history], shown), "improve")

    def scored(self, tried: list[Candidate], step: int) -> list[tuple[Candidate, float]]:
        """The best instructions in ascending order of what is shown as their score."""
        trials = [trial for trial in (self.known(one, self.width) for one in tried) if not math.isnan(trial.score)]
        scores = [trial.score for trial in trials]
        if self.shuffle_scores:
            self.rng("scores", step).shuffle(scores)
        pairs = sorted(zip(trials, scores, strict=True), key=lambda pair: pair[1])
        return [(trial.candidate, score) for trial, score in pairs[-self.history :]]


@hookimpl
def register_optimizers(register: Callable[..., None]) -> None:
    register(Opro)
