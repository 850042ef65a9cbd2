"""Exemplars: the model's own right answers, shown as demonstrations (bootstrapped few-shot, as in DSPy; which of them and in
which order: Lu et al., 2022; with any instruction optimizer before it: Wan et al., 2024)."""

import dataclasses
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hfdataopt.errors import OptionError
from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt.plugins import get_optimizer
from hfdataopt.prompting.candidate import Candidate, Exemplar, Query
from hfdataopt.prompting.optimizer import Item, PromptOptimizer, Role, check_optimizer
from hfdataopt.prompting.rounds import Rounds, RoundsOptimizer, rungs_of

UNLIMITED = 6  # rounds, where the budget does not count completions
SPARE = 2  # more right answers are collected than are shown
Traces = Generator[list[Query], None, list[Exemplar]]


@dataclass
class Exemplars(RoundsOptimizer):
    """Answers with full reward to example rows are collected; then sets of them are tried, and the best is changed by one.

    The answers are the model's own, so that the dataset needs none. Example rows are never scored, and one whose prompt is also
    that of a scored item is not shown: no item is its own exemplar.

    Args:
        count: exemplars in a prompt; 0 = none.
        base: an optimizer, or the name of one, that looks for the instruction first.
        base_options: options of the base, where it is a name.
        share: part of the budget that the base gets.
        instruction: where there is no base; by default the user's present one, else none.
        full_reward: what a right answer gets.
        batch: sets per round.
    """

    name: ClassVar[str] = "exemplars"

    count: int = 3
    base: Any = None
    base_options: dict[str, Any] = field(default_factory=dict)
    share: float = 0.6
    instruction: str | None = None
    full_reward: float = 1.0
    batch: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "count", at_least=0)
        check_range(self, "share", above=0, below=1)
        check_range(self, "batch", at_least=1)
        if self.base is not None and self.instruction is not None:
            raise OptionError("exemplars: give base= or instruction=, not both; a base looks for the instruction")
        if self.base_options and not isinstance(self.base, str):
            raise OptionError("exemplars: base_options are for a base that is given by name; set them on the instance")
        self._base: PromptOptimizer | None = None
        if self.base is not None:
            named = get_optimizer(self.base, **self.base_options) if isinstance(self.base, str) else self.base
            try:
                self._base = check_optimizer(named)
            except OptionError as error:
                raise OptionError(f"exemplars: base={self.base!r:.80} cannot be it: {error}") from error
            if self._base.feedback != "rewards":
                raise OptionError(
                    f"exemplars: the base {self._base.name!r} learns from preferences; it takes one of rewards"
                )

    @property
    def needs(self) -> tuple[Role, ...]:
        own: tuple[Role, ...] = ("rows",) if self.count else ()
        return tuple(dict.fromkeys((*own, *(self._base.needs if self._base else ()))))

    def least_calls(self) -> int:
        return len(self.task.items) + self.count + len(self.task.items) if self.count else len(self.task.items)

    def plan_in_words(self) -> str:
        items = len(self.task.items)
        return f"the instruction and one set of exemplars on {items} items each, and {self.count} examples to answer"

    def start(self, task: Any) -> None:
        super().start(task)
        if self._base is not None:
            share = self.share if self.count else 1.0
            calls = None if task.calls is None else int(task.calls * share)
            self._base.start(dataclasses.replace(task, calls=calls))

    def search(self) -> Rounds:
        items = len(self.task.items)
        if self._base is not None:
            yield from self.run_base(self._base)
        plain = Candidate(self.found_instruction(), origin="start")
        yield from self.score([plain], items)
        traces = (yield from self.collect_traces(plain)) if self.count else []
        best, rounds = plain, 0
        while traces and self.left and (self.task.calls is not None or rounds < UNLIMITED):
            new = self.new_sets(plain, best, traces, rounds)
            # The new ones first: equal scores on few items shall not end them.
            size = min(len(new), max(1, self.left // max(1, items // 2)))
            trials = yield from self.halve([*new[:size], best], rungs_of(size + 1, items, max(2, -(-items // 4)), 2))
            if not new or not trials:
                break
            best = self.leaders(1)[0]
            rounds += 1

    def run_base(self, base: PromptOptimizer) -> Rounds:
        """The base's search; it ends where its share is spent."""
        allowed = base.task.calls
        while asked := base.ask(self.task.parallel, (), self.services):
            queries = [one if isinstance(one, Query) else Query(one) for one in asked]
            prices = [self.cost(q.candidate, len(self.task.items) if q.items is None else q.items) for q in queries]
            if allowed is not None and self.paid + sum(prices) > allowed:
                break
            told = len(self.trials)
            yield queries
            order = [query.candidate.key for query in queries]
            base.tell(sorted(self.trials[told:], key=lambda trial: order.index(trial.candidate.key)))

    def found_instruction(self) -> str:
        if self._base is not None:
            best = self._base.best
            return "" if best is None else best.instruction
        if self.instruction is not None:
            return self.instruction
        return self.task.start[0] if self.task.start else ""

    def collect_traces(self, plain: Candidate) -> Traces:
        """Right answers of the model to example rows, with this instruction, at most half of the budget that is left."""
        asked = {text_of(item) for item in self.task.items}
        rows = [item for item in self.task.examples if text_of(item) not in asked]
        self.rng("rows").shuffle(rows)
        wanted = self.count + SPARE
        found: list[Exemplar] = []
        spend = self.paid + self.left // 2
        while rows and len(found) < wanted:
            size = min(wanted - len(found), len(rows), max(0, spend - self.paid))
            if not size:
                break
            now, rows = rows[:size], rows[size:]
            told = len(self.trials)
            yield [Query(plain, tuple(row.id for row in now))]
            by_id = {row.id: row for row in now}
            for trial in self.trials[told:]:
                for id_, reward, answer in zip(trial.items, trial.rewards, trial.answers, strict=True):
                    if reward >= self.full_reward:
                        found.append(Exemplar(text_of(by_id[id_]), answer))
        return found

    def new_sets(self, plain: Candidate, best: Candidate, traces: list[Exemplar], round_: int) -> list[Candidate]:
        """Sets in random order in the first round; later the best with one exemplar exchanged, or with two in each other's place."""
        size = min(self.count, len(traces))
        found: list[Candidate] = []
        for attempt in range(20 * self.batch):
            rng = self.rng("sets", round_, attempt)
            shown = list(best.exemplars)
            unused = [one for one in traces if one not in shown]
            if not shown:
                shown = rng.sample(traces, size)
            elif unused and (len(shown) < 2 or rng.random() < 0.5):
                shown[rng.randrange(len(shown))] = rng.choice(unused)
            elif len(shown) > 1:
                one, other = rng.sample(range(len(shown)), 2)
                shown[one], shown[other] = shown[other], shown[one]
            made = Candidate(plain.instruction, tuple(shown), parents=(best.key,), origin="exemplars")
            if self.is_new(made):
                found.append(made)
            if len(found) == self.batch:
                break
        return found


def text_of(item: Item) -> str:
    """The prompt as text: itself, or what the user's messages say."""
    if isinstance(item.prompt, str):
        return item.prompt
    said = [str(message["content"]) for message in item.prompt if message["role"] == "user"]
    return "\n\n".join(said)


@hookimpl
def register_optimizers(register: Callable[..., None]) -> None:
    register(Exemplars)
