"""What a prompt optimizer is: it asks for candidates to be tried and is told what came of it; no model lives inside."""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from hfdataopt.errors import DataError, OptionError
from hfdataopt.options import check_options
from hfdataopt.prompting.candidate import Candidate, Duel, Query, RowId, Trial, Vote
from hfdataopt.prompting.meta_prompts import Example, Messages, Mistake

# "examples" are rows with answers, "rows" may have none; "likelihood" is a scored model that is local.
Role = Literal["proposer", "encoder", "white_box", "examples", "rows", "likelihood"]


@dataclass(frozen=True)
class Item:
    """A row of the dataset, as an optimizer sees it.

    Attributes:
        prompt: as the dataset has it: text, or messages.
        input: the prompt as text, for meta-prompts.
        output: the wanted answer, None where the dataset has none.
        columns: the row's other columns.
    """

    id: RowId
    prompt: Any
    input: str
    output: str | None
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """What an optimizer knows before it begins.

    Attributes:
        items: the common validation items, in the order in which all candidates meet them.
        examples: further items, for demonstrations; never scored unless asked for by id.
        start: the user's own instructions, the present one first; may be empty.
        seed: of every draw.
        calls: completions that the search may spend; None = no limit. Votes for a preference method.
        parallel: candidates that are asked for at a time.
    """

    items: tuple[Item, ...]
    examples: tuple[Item, ...] = ()
    start: tuple[str, ...] = ()
    seed: int = 0
    calls: int | None = None
    parallel: int = 1

    def rng(self, *names: Any) -> random.Random:
        """A random generator of its own for each use, the same in every run with this seed."""
        return random.Random("/".join(map(str, (self.seed, *names))))

    def numpy_rng(self, *names: Any) -> np.random.Generator:
        """As :meth:`rng`, for arrays."""
        return np.random.default_rng(self.rng(*names).getrandbits(64))

    def item(self, id_: RowId) -> Item:
        """The item or example of that id."""
        for one in (*self.items, *self.examples):
            if one.id == id_:
                return one
        raise DataError(f"no item has the id {id_!r}")

    def demonstrations(self, count: int, *names: Any) -> list[Example]:
        """``count`` examples (or all there are) drawn without replacement; ``names`` tells one draw from another."""
        known = [one for one in self.examples if one.output is not None]
        drawn = self.rng("demonstrations", *names).sample(known, min(count, len(known)))
        return [Example(one.input, str(one.output)) for one in drawn]


class Services(Protocol):
    """Models that an optimizer may use; the host provides, counts and records them.

    All raise :class:`hfdataopt.prompting.budget.BudgetSpent` where the budget does not allow the call: let it pass.
    """

    def propose(self, messages: Messages, n: int = 1, temperature: float | None = None) -> list[str]:
        """``n`` sampled answers of the proposer, fewer where the budget ends between. The same messages again give further draws."""
        ...

    def propose_each(self, messages: Sequence[Messages], temperature: float | None = None) -> list[str]:
        """One sampled answer to each of several questions, at the same time; fewer where the budget ends between."""
        ...

    def embed(self, texts: Sequence[Any]) -> np.ndarray:
        """Features ``[n, d]`` float32 of texts, or of images, by the encoder."""
        ...

    @property
    def soft_prompt_width(self) -> int:
        """Size of the white-box model's token embeddings."""
        ...

    @property
    def soft_prompt_scale(self) -> float:
        """Root mean square of the entries of the white-box model's token embeddings."""
        ...

    def decode(self, soft_prompts: np.ndarray, messages: Messages) -> list[str]:
        """What the white-box model continues ``messages`` with (greedy), with each of ``soft_prompts [n, tokens, width]`` in front."""
        ...

    def hidden(self, soft_prompts: np.ndarray, messages: Messages) -> np.ndarray:
        """Last hidden state at the last position ``[n, h]`` float32 of the same inputs."""
        ...

    def sample(self, item: RowId, n: int) -> list[str]:
        """``n`` sampled answers of the scored model to an item with no instruction; each counts as a call."""
        ...

    def log_likelihood(
        self, candidates: Sequence[Candidate], items: Sequence[Item], outputs: Sequence[str]
    ) -> np.ndarray:
        """Log-likelihood in nats ``[candidates, items]`` of the outputs under the scored model, which must be local.

        Each counts as a call.
        """
        ...


@dataclass
class PromptOptimizer:
    """Base of optimizers that learn from rewards.

    A subclass is a dataclass; its fields are its options. State belongs into attributes that :meth:`start` sets, so that one
    instance can run several searches. It must not depend on anything but what it is told: a killed run is resumed by running it
    again on the answers that were kept.

    Attributes:
        chooses_items: whether its queries say on which items, so that ``PromptConfig.minibatch_size`` has nothing to cut.
        needs: roles without which it cannot run; a property where options decide.
        experimental: what was not shown of the method yet, in a few words; ``hfdataopt plugins`` lists it.
    """

    name: ClassVar[str] = ""
    feedback: ClassVar[Literal["rewards", "preferences"]] = "rewards"
    experimental: ClassVar[str] = ""
    chooses_items: ClassVar[bool] = False
    task: Task = field(init=False, repr=False, compare=False)
    trials: list[Trial] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def needs(self) -> tuple[Role, ...]:
        return ()

    def plan(self, task: Task) -> str:
        """What it will do with the budget, in a line; empty = nothing that is known before."""
        return ""

    def sampled_calls(self, items: int) -> int:
        """Completions to choose among, where answers to the items are sought; 0 where instructions are."""
        return 0

    def start(self, task: Task) -> None:
        """Begin a search; forget the one before."""
        self.task, self.trials = task, []

    def ask(
        self, n: int, pending: Sequence[Query] = (), services: Services | None = None
    ) -> Sequence[Candidate | Query]:
        """Up to ``n`` candidates to try, those of ``pending`` (asked, not told yet) not among them; none = the search is over.

        A candidate alone is tried on all common items.
        """
        raise NotImplementedError

    def tell(self, trials: Sequence[Trial]) -> None:
        """What came of candidates, in any order. An override calls ``super().tell``, by which :meth:`leaders` knows of them."""
        self.trials.extend(trials)

    @property
    def best(self) -> Candidate | None:
        """The best candidate so far; by default that of the highest mean among those with the most common items."""
        leaders = self.leaders(1)
        return leaders[0] if leaders else None

    def leaders(self, n: int) -> list[Candidate]:
        """The ``n`` best, best first. More items go before a higher mean; ties to the earlier."""
        common = {item.id: place for place, item in enumerate(self.task.items)}
        widest: dict[str, tuple[Trial, int, int]] = {}
        for order, trial in enumerate(self.trials):
            count = sum(item in common for item in trial.items)
            if count and not np.isnan(trial.score) and count >= widest.get(trial.candidate.key, (trial, 0, 0))[1]:
                widest[trial.candidate.key] = (trial, count, order)
        ranked = sorted(widest.values(), key=lambda one: (-one[1], -one[0].score, one[2]))
        return [trial.candidate for trial, _, _ in ranked[:n]]

    def mistakes(self, trial: Trial, below: float | None = None) -> list[Mistake]:
        """Items of a trial whose reward is under ``below`` (by default under the highest reward seen in any trial)."""
        if below is None:
            known = [trial.rewards[~np.isnan(trial.rewards)] for trial in self.trials] or [np.zeros(0)]
            rewards = np.concatenate(known)
            below = float(rewards.max()) if len(rewards) else 0.0
        found = []
        for id_, reward, answer in zip(trial.items, trial.rewards, trial.answers, strict=True):
            if reward < below:
                item = self.task.item(id_)
                found.append(Mistake(item.input, answer, item.output))
        return found


@dataclass
class PreferenceOptimizer(PromptOptimizer):
    """Base of optimizers that learn from comparisons: they ask for duels and are told votes."""

    feedback: ClassVar[Literal["rewards", "preferences"]] = "preferences"
    chooses_items: ClassVar[bool] = True  # a duel is on one item
    votes: list[Vote] = field(init=False, repr=False, compare=False)

    def start(self, task: Task) -> None:
        super().start(task)
        self.votes = []

    def ask(self, n: int, pending: Sequence[Duel] = (), services: Services | None = None) -> Sequence[Duel]:  # type: ignore[override]
        """Up to ``n`` duels, those of ``pending`` not among them; none = the search is over."""
        raise NotImplementedError

    def tell(self, votes: Sequence[Vote]) -> None:  # type: ignore[override]
        """Outcomes of duels, in any order; skipped and invalid ones too. An override calls ``super().tell``."""
        self.votes.extend(votes)

    def forget(self, vote: Vote) -> None:
        """A person took a vote back."""
        self.votes.remove(vote)

    @property
    def best(self) -> Candidate | None:
        raise NotImplementedError

    def leaders(self, n: int) -> list[Candidate]:
        """The ``n`` best, best first; by default the best alone."""
        return [] if self.best is None else [self.best][:n]


def check_optimizer(optimizer: Any) -> PromptOptimizer:
    """The optimizer itself; ``OptionError`` for a class or for anything else."""
    if (
        isinstance(optimizer, type)
        or not isinstance(optimizer, PromptOptimizer)
        or not dataclasses.is_dataclass(optimizer)
    ):
        raise OptionError(
            "PromptTrainer: the optimizer must be a name, or an instance of a dataclass that inherits from "
            f"hfdataopt.PromptOptimizer; got {optimizer!r:.200}"
        )
    return optimizer
