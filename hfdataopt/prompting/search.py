"""One run of a search: what its loops share, and how each step is told."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState

from hfdataopt.console import say
from hfdataopt.errors import DataError
from hfdataopt.prompting.apply import ApplyPrompt
from hfdataopt.prompting.budget import Budget, calls_of
from hfdataopt.prompting.candidate import Candidate, RowId, Trial, Vote
from hfdataopt.prompting.config import PromptConfig
from hfdataopt.prompting.items import Split
from hfdataopt.prompting.ledger import Ledger
from hfdataopt.prompting.optimizer import Item, PromptOptimizer
from hfdataopt.prompting.planning import Reserve
from hfdataopt.prompting.result import describe
from hfdataopt.prompting.services import HostServices, Requests
from hfdataopt.prompting.tracking import write_table

WHO = "PromptTrainer"
Ended = tuple[Any, str]  # status and reason of a result
LINES_APART = 10  # logged steps between two printed lines while the best stays the same


class Search:
    """What the loops share.

    Attributes:
        reserve: what is kept for the end.
        each: calls that a completion of the scored model costs.
        trials, votes, history: of the result.
        trackers: of ``report_to``.
    """

    def __init__(
        self,
        config: PromptConfig,
        optimizer: PromptOptimizer,
        model: Any,
        split: Split,
        items: Mapping[RowId, Item],
        requests: Requests,
        services: HostServices,
        reserve: Reserve,
        callbacks: Sequence[Any],
        trainer: Any,
    ) -> None:
        self.config, self.optimizer, self.model, self.split, self.items = config, optimizer, model, split, items
        self.requests, self.services, self.reserve = requests, services, reserve
        self.each = calls_of(model)
        self.trials: list[Trial] = []
        self.votes: list[Vote] = []
        self.history: list[dict[str, Any]] = []
        self.trackers: list[Any] = []
        self.state = TrainerState(max_steps=config.max_steps or 0)
        self.control = TrainerControl()
        self._callbacks, self._trainer = callbacks, trainer
        self._too_long: set[str] = set()
        self._said: str | None = None  # the best that was printed last

    @property
    def budget(self) -> Budget:
        return self.requests.budget

    @property
    def ledger(self) -> Ledger:
        return self.requests.ledger

    def rounds(self, one_round: Callable[[], bool]) -> Ended:
        """Ask and tell until nothing is left to ask or to spend; how it ended."""
        while True:
            if ended := self.ended():
                return ended
            if not one_round():
                return "finished", "the optimizer has nothing more to ask"

    def ended(self) -> Ended | None:
        """Why no further round may begin; None where one may."""
        if self.control.should_training_stop:
            return "finished", "a callback stopped it"
        if self.config.max_steps is not None and self.state.global_step >= self.config.max_steps:
            return "finished", f"max_steps={self.config.max_steps}"
        out = self.budget.out_of(
            time=False
        )  # the time counts where something is sent, so that a restart finds all again
        return ("budget", out) if out else None

    def step(
        self, best: tuple[Candidate, float] | None, rows: list[dict[str, Any]], told: dict[str, Any], **logs: float
    ) -> None:
        """A round was told: the table of prompts, history, trackers and callbacks.

        Args:
            best: so far, and its score or NaN.
            rows: of the table.
            told: keywords of callbacks, ``trials`` or ``votes``.
        """
        self.state.global_step += 1
        step, spent = self.state.global_step, self.budget.spent
        if self.config.output_dir is not None and rows:
            write_table(Path(self.config.output_dir), step, [{"step": step, **row} for row in rows])
        entry = {"step": step, "calls": spent.calls, "judge_calls": spent.judge_calls, "tokens": spent.tokens, **logs}
        if best is not None:
            entry["best_score"] = best[1]
        entry = {name: value for name, value in entry.items() if not math.isnan(value)}
        self.history.append(entry)
        every = self.config.logging_steps
        if every and step % every == 0:
            line = ", ".join(f"{name} {value:.4g}" for name, value in entry.items())
            key = best and best[0].key
            if key != self._said or step % (LINES_APART * every) == 0:
                say(line + (f"; best {describe(best[0])}" if best else ""))
                self._said = key
            numbers = entry | {"tokens": spent.tokens, "proposer_calls": spent.proposer_calls, "cost": spent.cost}
            self.log(numbers)
            self.event("on_log", logs=numbers)
        candidate = None if best is None else best[0]
        shown = None if candidate is None else candidate.instruction
        self.event("on_step_end", best=candidate, best_prompt=shown, spent=spent, **told)

    def fits(self, candidate: Candidate, items: Sequence[Item]) -> bool:
        """Whether a local model can read these items' prompts; a candidate that is too long is said once."""
        check = getattr(self.model, "check", None)
        if not callable(check):
            return True
        try:
            check([ApplyPrompt.of(candidate).render(item.prompt) for item in items], [item.id for item in items])
        except DataError as error:
            if candidate.key not in self._too_long:
                say(f"{WHO}: {describe(candidate)} cannot be tried: {error}")
            self._too_long.add(candidate.key)
            return False
        return True

    def log(self, numbers: dict[str, float]) -> None:
        """Hand numbers to the trackers."""
        shown = {name: value for name, value in numbers.items() if name != "step"}
        for tracker in self.trackers:
            tracker.log(shown, step=self.state.global_step)

    def event(self, name: str, **more: Any) -> None:
        """Tell the callbacks."""
        for callback in self._callbacks:
            keywords = {"model": getattr(self.model, "model", self.model), "prompt_trainer": self._trainer, **more}
            found = getattr(callback, name)(self.config, self.state, self.control, **keywords)
            self.control = self.control if found is None else found
