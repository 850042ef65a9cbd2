"""Components that break one promise each, and four that break none."""

import os
import random
from dataclasses import dataclass, field
from itertools import count
from typing import Any, ClassVar

import numpy as np
import torch

from hfdataopt import Candidate, PointwiseScorer, PromptOptimizer, Scorer, TextFilter
from hfdataopt.generation import Completion
from hfdataopt.generation.generator import Generator, check_refused, open_jobs, table
from hfdataopt.prompting.budget import BudgetSpent
from hfdataopt.testing import tiny

BROKEN: dict[str, dict[str, tuple[type, str]]] = {"scorer": {}, "filter": {}, "optimizer": {}, "generator": {}}


def breaks(kind: str, check: str, says: str) -> Any:
    """Register a class as one that fails this check with these words."""

    def register(cls: type) -> type:
        BROKEN[kind][check] = (cls, says)
        return cls

    return register


# -- scorers


def margins(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """How much more the model believes in the label than in the other one."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs).logits
    return (logits[:, 1] - logits[:, 0]) * (2 * batch["labels"] - 1)


@dataclass
class GoodScorer(Scorer):
    """The margin of the label."""

    name: ClassVar[str] = "margin"
    meaning: ClassVar[str] = "suspicion"
    needs_queries: ClassVar[bool] = False

    power: float = 1.0

    def read(self, view: Any) -> np.ndarray:
        return view.per_row("pool", "margins", lambda batch: self.score_batch(view.model, batch)).numpy()

    def score_batch(self, model: Any, batch: dict[str, Any]) -> torch.Tensor:
        return margins(model, batch) * self.power

    def score(self, view: Any) -> Any:
        return self.read(view)


@breaks("scorer", "options-are-fields", "extra=2.0 has no annotation, and so is no option. Write `extra: float = 2.0`")
@dataclass
class ScorerWithoutAnnotation(GoodScorer):
    """No annotation."""

    extra = 2.0


@breaks("scorer", "options-are-checked", "power=object() is taken without a word; it takes float")
@dataclass
class ScorerUnchecked(GoodScorer):
    """Types are not checked."""

    def __post_init__(self) -> None:
        pass


@breaks("scorer", "meaning", "does not say what a high score means")
@dataclass
class ScorerWithoutMeaning(PointwiseScorer):
    """No meaning."""

    name: ClassVar[str] = "nothing-said"

    def score_batch(self, model: Any, batch: dict[str, Any]) -> Any:
        return margins(model, batch)


@breaks("scorer", "pickles", "cannot be sent to another process")
@dataclass
class ScorerWithLambda(GoodScorer):
    """A lambda."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.function = lambda value: value


@breaks(
    "scorer", "one-score-per-row", "cannot score 14 rows: DataError: scorer 'margin' returned values of shape (13,)"
)
@dataclass
class ScorerOfFewer(GoodScorer):
    """A row is missing."""

    def score(self, view: Any) -> Any:
        return self.read(view)[:-1]


@breaks("scorer", "finite", "1 of 14 rows got NaN or infinity, for example row 'row 2'")
@dataclass
class ScorerOfNothing(GoodScorer):
    """A row has none."""

    def score(self, view: Any) -> Any:
        return np.where([row == "row 2" for row in view.pool.ids], np.nan, self.read(view))


@breaks("scorer", "deterministic", "two equal runs gave other scores. Draw from numpy.random.default_rng(self.seed)")
@dataclass
class ScorerOfChance(GoodScorer):
    """Draws without a seed."""

    def score(self, view: Any) -> Any:
        return self.read(view) + np.random.default_rng().normal(size=len(view.pool))


@breaks("scorer", "batch-size", "scores with batch_size=1 are not those with batch_size=5")
@dataclass
class ScorerOfBatches(GoodScorer):
    """Depends on the number of rows of a batch."""

    def score_batch(self, model: Any, batch: dict[str, Any]) -> Any:
        return margins(model, batch) * (1 if len(batch["labels"]) in (4, 5) else 2)


@breaks("scorer", "row-order", "with the pool in another order, scores differ")
@dataclass
class ScorerOfPlaces(GoodScorer):
    """Depends on the position."""

    def score(self, view: Any) -> Any:
        return self.read(view) + np.arange(len(view.pool)) / 100


@breaks("scorer", "padding", "with seven more pad tokens in each batch, scores differ")
@dataclass
class ScorerOfPadding(GoodScorer):
    """Depends on padding that is longer than any row."""

    def score_batch(self, model: Any, batch: dict[str, Any]) -> Any:
        mask = batch["attention_mask"]
        return margins(model, batch) + (mask.shape[1] - mask.sum(1).max())


@breaks("scorer", "untouched", "left a gradient in classifier.bias")
@dataclass
class ScorerThatLeavesGradients(GoodScorer):
    """A gradient is left."""

    def score(self, view: Any) -> Any:
        view.model.classifier.bias.grad = torch.zeros(2)
        return self.read(view)


@breaks("scorer", "keeps-no-state", "an instance that had scored half of the pool before gives other scores")
@dataclass
class ScorerThatRemembers(GoodScorer):
    """The first mean is kept."""

    def score(self, view: Any) -> Any:
        values = self.read(view)
        self.mean = getattr(self, "mean", values.mean())
        return values - self.mean


@breaks("scorer", "resumable", "begun again gave other scores than one that was not")
@dataclass
class ScorerThatGoesOnBadly(GoodScorer):
    """What is left of a killed run is counted twice."""

    def score(self, view: Any) -> Any:
        seen = view.folder is not None and (view.folder / "seen").exists()
        if view.folder is not None:
            view.folder.mkdir(parents=True, exist_ok=True)
            (view.folder / "seen").touch()
        return self.read(view) + seen


@breaks("scorer", "reads-target", "one query gives the very scores that all of them give. Use view.queries")
@dataclass
class ScorerThatIgnoresQueries(GoodScorer):
    """No query is read."""

    needs_queries: ClassVar[bool] = True


@breaks("scorer", "higher-is-helpful", "return minus a measure of suspicion, such as a loss")
@dataclass
class ScorerUpsideDown(GoodScorer):
    """The sign is wrong."""

    def score(self, view: Any) -> Any:
        return -self.read(view)


@breaks("scorer", "in-a-trainer", "a training with it as a callback ends with other weights than one without")
@dataclass
class ScorerThatTrains(GoodScorer):
    """Weights change, but only in a training."""

    def score(self, view: Any) -> Any:
        if view.moment.step:
            view.model.classifier.bias.data.add_(1)
        return self.read(view)


# -- filters


@dataclass(frozen=True)
class GoodFilter(TextFilter):
    """Minus the number of words."""

    name: ClassVar[str] = "brevity"
    meaning: ClassVar[str] = "a shorter text"

    power: float = 1.0

    def score(self, batch: Any) -> np.ndarray:
        return -(np.array([len(text.split()) for text in batch.texts], float) ** self.power)


@breaks("filter", "options-are-fields", "extra=2.0 has no annotation")
@dataclass(frozen=True)
class FilterWithoutAnnotation(GoodFilter):
    """No annotation."""

    extra = 2.0


@breaks("filter", "options-are-checked", "In __post_init__, call super().__post_init__(), which checks types")
@dataclass(frozen=True)
class FilterUnchecked(GoodFilter):
    """Types are not checked."""

    def __post_init__(self) -> None:
        pass


@breaks("filter", "meaning", "does not say what a high score means")
@dataclass(frozen=True)
class FilterWithoutMeaning(TextFilter):
    """No meaning."""

    name: ClassVar[str] = "nothing-said"

    def score(self, batch: Any) -> np.ndarray:
        return np.array([float(len(text)) for text in batch.texts])


@breaks("filter", "pickles", "a fitted copy cannot be sent to another process")
@dataclass(frozen=True)
class FilterWithLambda(GoodFilter):
    """A lambda."""

    function: Any = field(default=None, init=False, repr=False, compare=False)

    def learn(self, pool: Any, target: Any) -> None:
        self.set(function=lambda value: value)


@breaks("filter", "one-score-per-row", "score returned shape [6] for 7 rows")
@dataclass(frozen=True)
class FilterOfFewer(GoodFilter):
    """A row is missing."""

    def score(self, batch: Any) -> np.ndarray:
        return super().score(batch)[:-1]


@breaks("filter", "finite", "rows got NaN or infinity, for example row 'row ")
@dataclass(frozen=True)
class FilterOfInfinity(GoodFilter):
    """Some are infinite."""

    def score(self, batch: Any) -> np.ndarray:
        return np.where([len(text) % 2 for text in batch.texts], -np.inf, super().score(batch))


@breaks("filter", "deterministic", "two equal fits gave other scores. Draw as a function of a seed and the row")
@dataclass(frozen=True)
class FilterOfChance(GoodFilter):
    """Draws without a seed."""

    def score(self, batch: Any) -> np.ndarray:
        return np.random.default_rng().normal(size=len(batch))


@breaks("filter", "batch-size", "scores with batch_size=30 are not those with batch_size=7")
@dataclass(frozen=True)
class FilterOfBatches(GoodFilter):
    """Depends on the size of the batch."""

    def score(self, batch: Any) -> np.ndarray:
        return super().score(batch) * (2 if len(batch) == 30 else 1)


@breaks("filter", "row-order", "fitted and run on the rows in another order, scores differ")
@dataclass(frozen=True)
class FilterOfTheFirstRow(GoodFilter):
    """Depends on which row comes first."""

    first: str = field(default="", init=False, repr=False, compare=False)

    def learn(self, pool: Any, target: Any) -> None:
        self.set(first=next(pool.texts()))

    def score(self, batch: Any) -> np.ndarray:
        return np.array([float(text == self.first) for text in batch.texts])


@breaks("filter", "keeps-no-state", "the copy that was fitted before scores differently")
@dataclass(frozen=True)
class FilterThatShares(GoodFilter):
    """All copies share one table."""

    TABLE: ClassVar[dict[str, float]] = {}

    def learn(self, pool: Any, target: Any) -> None:
        self.TABLE["rows"] = float(len(list(pool.texts())))

    def score(self, batch: Any) -> np.ndarray:
        return super().score(batch) / self.TABLE["rows"]


@breaks("filter", "untouched", "draws from the global random state of numpy.random, or seeds it")
@dataclass(frozen=True)
class FilterThatSeeds(GoodFilter):
    """The global state is seeded."""

    def score(self, batch: Any) -> np.ndarray:
        np.random.seed(0)  # noqa: NPY002 - that is the fault
        return super().score(batch)


@breaks("filter", "version-in-fingerprint", "a higher version has the same fingerprint")
@dataclass(frozen=True)
class FilterOfTheSameVersion(GoodFilter):
    """Its version is not sent along."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("version", "code")}


@breaks("filter", "same-on-a-stream", "on a stream of the same rows, scores differ")
@dataclass(frozen=True)
class FilterOfStreams(GoodFilter):
    """A stream is something else."""

    more: float = field(default=0.0, init=False, repr=False, compare=False)

    def learn(self, pool: Any, target: Any) -> None:
        self.set(more=float(pool.streaming))

    def score(self, batch: Any) -> np.ndarray:
        return super().score(batch) + self.more


@breaks("filter", "same-with-num-proc", "with num_proc=2, scores differ")
@dataclass(frozen=True)
class FilterOfProcesses(GoodFilter):
    """Another process is something else."""

    process: int = field(default=0, init=False, repr=False, compare=False)

    def learn(self, pool: Any, target: Any) -> None:
        self.set(process=os.getpid())

    def score(self, batch: Any) -> np.ndarray:
        return super().score(batch) + (os.getpid() != self.process)


@breaks("filter", "reads-target", "another target gives the very same scores")
@dataclass(frozen=True)
class FilterThatIgnoresTheTarget(GoodFilter):
    """No target is read."""

    needs_target: ClassVar[bool] = True

    def score(self, batch: Any) -> np.ndarray:
        return np.array([float(sum(word in tiny.GOOD for word in text.split())) for text in batch.texts])


@breaks("filter", "higher-is-helpful", "rows on the target's topic score")
@dataclass(frozen=True)
class FilterUpsideDown(GoodFilter):
    """The sign is wrong."""

    needs_target: ClassVar[bool] = True

    words: tuple[str, ...] = field(default=(), init=False, repr=False, compare=False)

    def learn(self, pool: Any, target: Any) -> None:
        self.set(words=tuple(sorted({word for text in target.texts() for word in text.split()})))

    def score(self, batch: Any) -> np.ndarray:
        return -np.array([float(sum(word in self.words for word in text.split())) for text in batch.texts])


# -- optimizers


@dataclass
class GoodOptimizer(PromptOptimizer):
    """Other wordings of the best instruction so far."""

    name: ClassVar[str] = "wordings"
    needs = ("proposer",)

    most: int = 20

    def start(self, task: Any) -> None:
        super().start(task)
        self.seen: set[str] = set()

    def texts(self, n: int, services: Any) -> list[str]:
        if self.task.start and not self.seen:
            return list(self.task.start)[:n]
        about = self.best.instruction if self.best else "Do the task."
        return services.propose([{"role": "user", "content": f"In other words: {about}"}], n)

    def ask(self, n: int, pending: Any = (), services: Any = None) -> Any:
        if len(self.seen) >= self.most:
            return []
        found = {one.key: one for one in map(Candidate, self.texts(n, services)) if one.key not in self.seen}
        self.seen |= set(found)
        return list(found.values())


@breaks("optimizer", "options-are-fields", "extra=2.0 has no annotation")
@dataclass
class OptimizerWithoutAnnotation(GoodOptimizer):
    """No annotation."""

    extra = 2.0


@breaks("optimizer", "options-are-checked", "most=object() is taken without a word; it takes int")
@dataclass
class OptimizerUnchecked(GoodOptimizer):
    """Types are not checked."""

    def __post_init__(self) -> None:
        pass


@breaks("optimizer", "meaning", "OptimizerWithoutDocstring has no docstring")
@dataclass
class OptimizerWithoutDocstring(GoodOptimizer):
    pass


@breaks("optimizer", "pickles", "cannot be sent to another process")
@dataclass
class OptimizerWithLambda(GoodOptimizer):
    """A lambda."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.function = lambda value: value


@breaks("optimizer", "asks-as-agreed", "was asked for at most 3 and gave 4. Return no more than n")
@dataclass
class OptimizerOfTooMany(GoodOptimizer):
    """One more where three are asked for."""

    def ask(self, n: int, pending: Any = (), services: Any = None) -> Any:
        return super().ask(n + (n == 3), pending, services)


@breaks("optimizer", "deterministic", "two searches with seed 0 ask for other things from question 1 on")
@dataclass
class OptimizerOfChance(GoodOptimizer):
    """Draws without a seed."""

    def texts(self, n: int, services: Any) -> list[str]:
        return [f"aim 0.5 {random.SystemRandom().random()}" for _ in range(n)]


@breaks("optimizer", "keeps-no-state", "asks for other things than a new one. Set all state anew in start(task)")
@dataclass
class OptimizerThatRemembers(GoodOptimizer):
    """What was seen in another search is kept."""

    def start(self, task: Any) -> None:
        seen = getattr(self, "seen", set())
        super().start(task)
        self.seen = seen


@breaks("optimizer", "untouched", "draws from the global random state of random")
@dataclass
class OptimizerThatDraws(GoodOptimizer):
    """The global state is drawn from."""

    def tell(self, trials: Any) -> None:
        super().tell(trials)
        random.random()


@breaks("optimizer", "nothing-twice", "on items of which it was told the rewards")
@dataclass
class OptimizerThatRepeats(GoodOptimizer):
    """The start is asked for again at the end."""

    most: int = 6

    def ask(self, n: int, pending: Any = (), services: Any = None) -> Any:
        found = super().ask(n, pending, services)
        if not found and not pending and not self.again:
            self.again = True
            return [Candidate(self.task.start[0])]
        return found

    def start(self, task: Any) -> None:
        super().start(task)
        self.again = False


@breaks("optimizer", "any-order", "raised KeyError when outcomes came in another order")
@dataclass
class OptimizerThatCountsOnTheOrder(GoodOptimizer):
    """Outcomes must come as they were asked for."""

    def start(self, task: Any) -> None:
        super().start(task)
        self.waiting: list[str] = []

    def ask(self, n: int, pending: Any = (), services: Any = None) -> Any:
        found = super().ask(n, pending, services)
        self.waiting += [one.key for one in found]
        return found

    def tell(self, trials: Any) -> None:
        super().tell(trials)
        for trial in trials:
            if trial.candidate.key in self.waiting and self.waiting.pop(0) != trial.candidate.key:
                raise KeyError(trial.candidate.key)


@breaks("optimizer", "failed-trials", "raised ValueError when a third of the trials had no reward")
@dataclass
class OptimizerThatNeedsRewards(GoodOptimizer):
    """NaN is an error."""

    def tell(self, trials: Any) -> None:
        super().tell(trials)
        for trial in trials:
            round(100 * trial.score)


@breaks("optimizer", "budget", "went on asking the proposer after its budget was spent")
@dataclass
class OptimizerThatInsists(GoodOptimizer):
    """The end of the budget is not believed."""

    def texts(self, n: int, services: Any) -> list[str]:
        for _ in range(150):
            try:
                return super().texts(n, services)
            except BudgetSpent:
                continue
        return []


@breaks("optimizer", "best", "Let best be the first of leaders(1)")
@dataclass
class OptimizerOfAnotherBest(GoodOptimizer):
    """The best is the second of the leaders."""

    @property
    def best(self) -> Candidate | None:
        return next(iter(self.leaders(2)[::-1]), None)


@breaks("optimizer", "higher-is-helpful", "is worse than the average of the")
@dataclass
class OptimizerUpsideDown(GoodOptimizer):
    """The worst is the best."""

    def leaders(self, n: int) -> list[Candidate]:
        known = [trial for trial in self.trials if not np.isnan(trial.score)]
        keys = {trial.candidate.key: trial.candidate for trial in sorted(known, key=lambda trial: trial.score)}
        return list(keys.values())[:n]


@breaks("optimizer", "resumable", "after an interruption the search ends with other")
@dataclass
class OptimizerOfTheProcess(GoodOptimizer):
    """With real models it counts how often it was called in this process."""

    CALLS: ClassVar[Any] = count()

    def texts(self, n: int, services: Any) -> list[str]:
        found = super().texts(n, services)
        return [f"{text} {next(self.CALLS)}" for text in found] if hasattr(services, "_requests") else found


# -- generators


@dataclass
class GoodGenerator(Generator):
    """Words of the prompt, drawn."""

    name: ClassVar[str] = "parrot"

    words: int = 4

    def describe(self) -> dict[str, Any]:
        return {"kind": "parrot", "words": self.words}

    def draw(self, prompt: str, key: str | int, sample: int, seed: int) -> str:
        return " ".join(random.Random(f"{seed}/{key}/{sample}").choices(prompt.split(), k=self.words))

    def complete(self, prompt: str, key: str | int, sample: int, seed: int) -> Completion:
        return Completion(self.draw(prompt, key, sample, seed))

    def generate(
        self,
        prompts: Any,
        n: int,
        *,
        keys: Any,
        seed: int = 0,
        have: Any = None,
        on_done: Any = None,
        admit: Any = None,
        allowed: Any = None,
    ) -> Any:
        jobs = open_jobs(self.name, prompts, n, keys, 1.0, have)
        made: dict[Any, Completion] = {}
        for index, sample in jobs:
            if admit is None or admit(index, sample):
                made[index, sample] = self.complete(prompts[index], keys[index], sample, seed)
                if on_done is not None:
                    on_done(index, sample, made[index, sample])
        check_refused(self.name, len(jobs) - len(made), len(made))
        return table(prompts, n, have, made)


@breaks("generator", "options-are-fields", "extra=2.0 has no annotation")
@dataclass
class GeneratorWithoutAnnotation(GoodGenerator):
    """No annotation."""

    extra = 2.0


@breaks("generator", "options-are-checked", "words=object() is taken without a word; it takes int")
@dataclass
class GeneratorUnchecked(GoodGenerator):
    """Types are not checked."""

    def __post_init__(self) -> None:
        pass


@breaks("generator", "meaning", "GeneratorWithoutDocstring has no docstring")
@dataclass
class GeneratorWithoutDocstring(GoodGenerator):
    pass


@breaks("generator", "one-completion-per-prompt", "returned 1 completions of 'row 0', of which 2 were asked for")
@dataclass
class GeneratorOfFewer(GoodGenerator):
    """One completion, whatever n is."""

    def generate(self, prompts: Any, n: int, **options: Any) -> Any:
        return [row[:1] for row in super().generate(prompts, n, **options)]


@breaks("generator", "deterministic", "two equal calls gave other completions")
@dataclass
class GeneratorOfChance(GoodGenerator):
    """Draws without a seed."""

    def draw(self, *_: Any) -> str:
        return str(random.SystemRandom().random())


@breaks("generator", "seed", "another seed gives the very same completions")
@dataclass
class GeneratorWithoutSeed(GoodGenerator):
    """The seed is not read."""

    def draw(self, prompt: str, key: str | int, sample: int, seed: int) -> str:
        return super().draw(prompt, key, sample, 0)


@breaks("generator", "batch-size", "a prompt alone has other completions than among others")
@dataclass
class GeneratorOfBatches(GoodGenerator):
    """Says how many prompts there are."""

    def generate(self, prompts: Any, n: int, **options: Any) -> Any:
        self.many = len(prompts) > 1
        return super().generate(prompts, n, **options)

    def draw(self, *given: Any) -> str:
        return super().draw(*given) + " and others" * self.many


@breaks("generator", "row-order", "with the prompts in another order, completions differ")
@dataclass
class GeneratorOfPlaces(GoodGenerator):
    """The key of the first of several prompts enters."""

    def generate(self, prompts: Any, n: int, *, keys: Any, **options: Any) -> Any:
        self.first = keys[0] if len(keys) > 1 else "row 0"
        return super().generate(prompts, n, keys=keys, **options)

    def draw(self, *given: Any) -> str:
        return super().draw(*given) + f" {self.first}"


@breaks("generator", "untouched", "draws from the global random state of random")
@dataclass
class GeneratorThatDraws(GoodGenerator):
    """The global state is drawn from."""

    def draw(self, *given: Any) -> str:
        random.random()
        return super().draw(*given)


@breaks("generator", "resumable", "Call on_done(index, sample, completion) once for each new completion")
@dataclass
class GeneratorThatKeepsQuiet(GoodGenerator):
    """Completions are not told while others are at hand."""

    def generate(self, prompts: Any, n: int, *, have: Any = None, on_done: Any = None, **options: Any) -> Any:
        return super().generate(prompts, n, have=have, on_done=None if have else on_done, **options)


@breaks("generator", "budget", "returned though completions were refused")
@dataclass
class GeneratorThatInsists(GoodGenerator):
    """What is refused is made."""

    def generate(self, prompts: Any, n: int, *, admit: Any = None, **options: Any) -> Any:
        return super().generate(prompts, n, **options)


@breaks("generator", "usage", "counted 0 tokens of the prompt 'row 0', which then took 3")
@dataclass
class GeneratorThatCountsBadly(GoodGenerator):
    """Prompts cost nothing before they are sent."""

    def count_tokens(self, prompt: Any) -> int:
        return 0

    def complete(self, *given: Any) -> Completion:
        return Completion(super().draw(*given), prompt_tokens=3, completion_tokens=4)


@breaks("generator", "describes-itself", "describe() differs from call to call")
@dataclass
class GeneratorWithAnAddress(GoodGenerator):
    """Its description has a time."""

    TIMES: ClassVar[Any] = count()

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "time": next(self.TIMES)}


GOOD = {"scorer": GoodScorer, "filter": GoodFilter, "optimizer": GoodOptimizer, "generator": GoodGenerator}
