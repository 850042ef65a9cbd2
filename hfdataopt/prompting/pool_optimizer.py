"""Searches over a pool: of instructions that a proposer writes, or of soft prompts that are decoded when they are chosen.

A surrogate knows every row of the pool by its features. New candidates are scored on the first few common items; what is left of
the budget then takes the leaders to more items. Scores of candidates that met different items are brought to one scale first.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch

from hfdataopt.errors import OptionError
from hfdataopt.options import check_range
from hfdataopt.prompting import meta_prompts
from hfdataopt.prompting.budget import BudgetSpent
from hfdataopt.prompting.candidate import Candidate, Query, RowId, Trial
from hfdataopt.prompting.optimizer import PromptOptimizer, Role, Services, Task
from hfdataopt.prompting.pool import propose_pool

CHUNK = 256  # soft prompts that exist at a time
SIZES = {"soft": 10_000, "text": 100}
FRUITLESS = 20  # times in a row that chosen soft prompts decode to instructions that are known
ROWS = 8  # of soft prompts of one instruction, those that a surrogate learns from
PROMOTED = 3  # candidates that share what is kept for more items


class Observation(NamedTuple):
    """What was told of a row: its score as if on all items, on how many it is known, and the variance of its noise."""

    row: int
    score: float
    items: int
    noise: float


@dataclass
class PoolOptimizer(PromptOptimizer):
    """Base of optimizers whose surrogate chooses from a pool.

    A subclass says what the features of a soft prompt are and how rows are chosen (:meth:`choose`).

    Attributes:
        pool: ``soft`` = points of a scrambled Sobol sequence, projected to soft prompts of a white-box model, which decodes
            those that are chosen; ``text`` = instructions of the proposer, known by their embeddings.
        pool_size: None = 10,000 soft prompts, or 100 instructions.
        demonstrations: examples that an instruction is induced from; drawn anew for each of a text pool.
        rephrase: share of a text pool's proposals that say an instruction of the pool in other words.
        growth: rephrasings of the leader that join a text pool before each choice.
        intrinsic_dim: of the points; tokens: of a soft prompt.
        scale: ``embeddings`` = soft prompts are centred and as large as token embeddings; ``none`` = as the projection leaves
            them (the papers').
        initial: candidates drawn at random at first; None = by the budget, 4 to 40.
        first_items: items that a new candidate is scored on; None = by the budget; all where there is no budget.
        kept: share of the budget that takes the leaders to more items.
    """

    chooses_items: ClassVar[bool] = True
    lookahead: ClassVar[int] = 7  # soft prompts that are decoded beside those that are needed

    pool: Literal["soft", "text"] = "soft"
    pool_size: int | None = None
    demonstrations: int = 5
    rephrase: float = 0.0
    growth: int = 0
    intrinsic_dim: int = 10
    tokens: int = 5
    scale: Literal["embeddings", "none"] = "embeddings"
    initial: int | None = None
    first_items: int | None = None
    kept: float = 0.35
    features: np.ndarray | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("pool_size", "intrinsic_dim", "tokens", "initial", "first_items"):
            check_range(self, name, at_least=1)
        for name in ("demonstrations", "growth"):
            check_range(self, name, at_least=0)
        check_range(self, "rephrase", at_least=0, at_most=1)
        check_range(self, "kept", at_least=0, below=1)
        if self.pool == "soft":
            check_range(self, "demonstrations", at_least=1)
            for name in ("growth", "rephrase"):
                if getattr(self, name):
                    raise OptionError(
                        f"{self.name}: {name}={getattr(self, name)} is of pool='text'; pool='soft' has none"
                    )

    @property
    def needs(self) -> tuple[Role, ...]:
        if self.pool == "soft":
            return ("white_box", "examples")
        return ("proposer", "encoder", "examples") if self.demonstrations else ("proposer", "encoder")

    # -- for the methods

    def choose(self, n: int, available: np.ndarray, pending: Sequence[int]) -> list[int]:
        """Up to ``n`` rows of the pool to try, best first, of those that are ``available [N]``.

        ``pending`` rows are under way. Something has been told before.
        """
        raise NotImplementedError

    def believed(self, rows: Sequence[int]) -> np.ndarray:
        """What the surrogate says that rows score ``[rows]``."""
        raise NotImplementedError

    def merits(self, observed: Sequence[Observation]) -> np.ndarray:
        """What observed candidates are believed to score: their own scores, drawn to the surrogate's.

        Each candidate deviates from the surrogate by an effect of its own; how large these are is what is left of the deviations
        beyond the noise of so many items (empirical Bayes).
        """
        scores = np.array([one.score for one in observed])
        noise = np.array([one.noise for one in observed])
        believed = self.believed([one.row for one in observed])
        own = max(float(np.mean((scores - believed) ** 2 - noise)), 0.0)
        return believed + (scores - believed) * (own + 1e-12) / (own + noise + 1e-12)

    def rewards_of(self, row: int) -> dict[RowId, float]:
        """By item, what was told of a row's candidate."""
        candidate = self._candidates[row]
        return {} if candidate is None else self._rewards.get(candidate.key, {})

    def soft_features(self, points: np.ndarray, soft_prompts: np.ndarray, services: Services) -> np.ndarray:
        """Features of a few soft prompts ``[n, tokens, width]`` made of ``points [n, intrinsic_dim]``."""
        return points

    def items_of_new(self) -> int:
        """Items that a new candidate is scored on."""
        most = len(self.task.items)
        if self.first_items is not None or self.task.calls is None:
            return self.first_items or most
        return min(most, max(2, int(math.sqrt(self.task.calls) / 3)))

    def chosen(self, rows: Sequence[int]) -> None:
        """Rows were taken in this order; some may have turned out to be known instructions."""

    def observed(self) -> list[Observation]:
        """All that was told, by row; a row for each of the first ``ROWS`` soft prompts of the same instruction."""
        keys = [key for key in self._rewards if self._rewards[key] and key in self._rows]
        scores, variance = comparable([self._rewards[key] for key in keys])
        return sorted(
            Observation(row, float(score), len(self._rewards[key]), variance / len(self._rewards[key]))
            for key, score in zip(keys, scores, strict=True)
            for row in self._rows[key][:ROWS]
        )

    def relative_noise(self, observed: Sequence[Observation]) -> np.ndarray:
        """How noisy scores are beside each other ``[t]``, for a surrogate; what it cannot explain counts as one test of all items."""
        return np.array([1 / one.items + 1 / len(self.task.items) for one in observed])

    # -- asking and telling

    def plan(self, task: Task) -> str:
        before = copy.copy(self)
        before.task = task
        new = f"new candidates are tried on {before.items_of_new()} of {len(task.items)} items"
        if task.calls is None:
            return new
        most = math.ceil(before._exploring() / before.items_of_new())
        return f"{new}, at most about {most} of them; {task.calls - int(before._exploring())} calls take the leaders to more items"

    def start(self, task: Task) -> None:
        super().start(task)
        self.features = None
        self.points: np.ndarray | None = None  # [N, intrinsic_dim] of a soft pool
        self._candidates: list[Candidate | None] = []  # per row; None = not decoded yet
        self._unreadable: set[int] = set()
        self._rows: dict[str, list[int]] = {}  # by key of the candidate
        self._rewards: dict[str, dict[RowId, float]] = {}
        self._asked: dict[str, int] = {}  # items that were asked for
        self._grown = 0
        self._order: list[int] = []  # of the random ones
        if self.first_items is not None and self.first_items > len(task.items):
            raise OptionError(
                f"{self.name}: first_items={self.first_items}, but there are only {len(task.items)} items"
            )

    def ask(self, n: int, pending: Sequence[Query] = (), services: Services | None = None) -> list[Query]:
        """New candidates on the first items, or leaders on more; none when pool or budget have no more."""
        assert services is not None
        if self.features is None:
            self._open(services)
        waiting = {query.candidate.key for query in pending}
        if self._spent() < self._exploring():
            return self._new(n, waiting, services) or self._promote(n, waiting, None)
        return self._promote(n, waiting, PROMOTED) or self._new(n, waiting, services) or self._promote(n, waiting, None)

    def tell(self, trials: Sequence[Trial]) -> None:
        super().tell(trials)
        for trial in trials:
            known = self._rewards.setdefault(trial.candidate.key, {})
            for item, reward in zip(trial.items, trial.rewards.tolist(), strict=True):
                if not math.isnan(reward):
                    known[item] = reward
            self._asked[trial.candidate.key] = max(self._asked.get(trial.candidate.key, 0), len(trial.items))

    def leaders(self, n: int) -> list[Candidate]:
        """Those on the most items first, and the best of them by :meth:`merits`."""
        by_key = {trial.candidate.key: trial.candidate for trial in self.trials}
        order = self._ranked()
        return [by_key[key] for key in sorted(order, key=lambda key: -len(self._rewards[key]))[:n]]

    def _ranked(self) -> list[str]:
        """Keys of what was told, best first."""
        observed = {self._key(one.row): one for one in self.observed()}
        merits = self.merits(list(observed.values())) if observed else np.zeros(0)
        others = [key for key in self._rewards if self._rewards[key] and key not in observed]
        score = dict(zip(observed, merits.tolist(), strict=True))
        score |= dict(zip(others, comparable([self._rewards[key] for key in others])[0].tolist(), strict=True))
        return sorted(score, key=lambda key: -score[key])

    def _key(self, row: int) -> str:
        candidate = self._candidates[row]
        assert candidate is not None
        return candidate.key

    def _spent(self) -> int:
        return sum(self._asked.values())

    def _exploring(self) -> float:
        """Completions that go to new candidates."""
        return math.inf if self.task.calls is None else (1 - self.kept) * self.task.calls

    def _initial(self) -> int:
        size = len(self._candidates)
        if self.initial is None:
            count = 40 if self.task.calls is None else int(self._exploring() / self.items_of_new() / 2)
            return min(max(4, min(40, count)), size)
        if self.initial > size:
            raise OptionError(
                f"{self.name}: the pool has {size} candidates, fewer than the initial design: lower initial={self.initial}, or "
                f"raise pool_size={self.pool_size or SIZES[self.pool]}"
            )
        return self.initial

    def _new(self, n: int, waiting: set[str], services: Services) -> list[Query]:
        """Candidates that were never asked."""
        found: list[Query] = []
        fruitless = 0
        while len(found) < n and fruitless < FRUITLESS:
            waiting |= {query.candidate.key for query in found}
            rows, most = self._choose(n - len(found), waiting, services)
            if not rows:
                break
            self._decode(rows, services)
            taken: list[int] = []
            most += len(found)
            before = len(found)
            for row in rows:
                if len(found) == most:
                    break
                taken.append(row)
                candidate = self._candidates[row]
                items = int(min(self.items_of_new(), self._left()))
                if candidate is not None and candidate.key not in self._asked and items > 0:
                    self._asked[candidate.key] = items
                    found.append(Query(candidate, items))
            self.chosen(taken)
            fruitless = fruitless + 1 if len(found) == before else 0
        return found

    def _choose(self, n: int, waiting: set[str], services: Services) -> tuple[list[int], int]:
        """Rows in the order in which they are to be tried, and how many new candidates may come of them."""
        tried, initial = len(self._asked), self._initial()
        more = self.lookahead if self.pool == "soft" else 0
        if tried < initial or not self.observed():
            most = max(1, min(n, initial - tried))
            return [row for row in self._order if self._free(row)][: most + more], most
        self._grow(n, services)
        available = np.array([self._free(row) for row in range(len(self._candidates))])
        count = min(n + more, int(available.sum()))
        pending = [row for key in waiting for row in self._rows.get(key, [])[:1]]
        return (self.choose(count, available, pending) if count else []), n

    def _left(self) -> float:
        """Completions that the budget still has."""
        return math.inf if self.task.calls is None else self.task.calls - self._spent()

    def _free(self, row: int) -> bool:
        candidate = self._candidates[row]
        return row not in self._unreadable and (candidate is None or candidate.key not in self._asked)

    def _promote(self, n: int, waiting: set[str], most: int | None) -> list[Query]:
        """The ``most`` best (None = all) on twice as many items, those with the fewest first."""
        left = self._left()
        by_key = {trial.candidate.key: trial.candidate for trial in self.trials}
        leaders = [key for key in self._ranked() if key not in waiting][:most]
        found: list[Query] = []
        for key in sorted(leaders, key=lambda key: self._asked[key]):
            have = self._asked[key]
            items = int(min(2 * have, len(self.task.items), have + left))
            if items > have and len(found) < n:
                left -= items - have
                self._asked[key] = items
                found.append(Query(by_key[key], items))
        return found

    # -- the pool

    def _open(self, services: Services) -> None:
        size = self.pool_size or SIZES[self.pool]
        if self.pool == "text":
            self._add_texts(
                propose_pool(
                    self.task,
                    services,
                    size,
                    demonstrations=self.demonstrations,
                    rephrase=self.rephrase,
                    who=self.name,
                ),
                services,
            )
        else:
            self.messages = meta_prompts.induce(self.task.demonstrations(self.demonstrations, self.name, "soft"))
            seed = self.task.rng(self.name, "points").getrandbits(31)
            engine = torch.quasirandom.SobolEngine(self.intrinsic_dim, scramble=True, seed=seed)
            self.points = engine.draw(size, dtype=torch.float64).numpy()
            shape = self.intrinsic_dim, self.tokens * services.soft_prompt_width
            self._projection = self.task.numpy_rng(self.name, "projection").uniform(-1, 1, shape)
            if self.scale == "embeddings":
                size_now = float(np.sqrt(np.mean(self.soft_prompts(self.points[:CHUNK]) ** 2)))
                self._projection *= services.soft_prompt_scale / size_now
            chunks = [self.points[first : first + CHUNK] for first in range(0, size, CHUNK)]
            self.features = np.concatenate(
                [self.soft_features(chunk, self.soft_prompts(chunk), services) for chunk in chunks]
            )
            self._candidates = [None] * size
        self._order = list(range(len(self._candidates)))
        self.task.rng(self.name, "initial").shuffle(self._order)

    def soft_prompts(self, points: np.ndarray) -> np.ndarray:
        """Soft prompts ``[n, tokens, width]`` float32 of ``points [n, intrinsic_dim]``."""
        centre = 0.5 if self.scale == "embeddings" else 0.0
        return ((points - centre) @ self._projection).reshape(len(points), self.tokens, -1).astype(np.float32)

    def _decode(self, rows: Sequence[int], services: Services) -> None:
        """The instructions of soft prompts that have none yet."""
        new = [row for row in rows if self._candidates[row] is None]
        if not new or self.points is None:
            return
        answers = services.decode(self.soft_prompts(self.points[new]), self.messages)
        for row, answer in zip(new, answers, strict=True):
            text = meta_prompts.read_instruction(answer)
            if text is None:
                self._unreadable.add(row)
                continue
            candidate = Candidate(text, latent=tuple(self.points[row].tolist()), origin="soft prompt")
            self._candidates[row] = candidate
            self._rows.setdefault(candidate.key, []).append(row)

    def add_points(self, points: np.ndarray) -> list[int]:
        """Put further points ``[n, intrinsic_dim]`` into a soft pool whose features they are; their rows."""
        assert self.points is not None
        first = len(self._candidates)
        self.features = self.points = np.concatenate([self.points, points])
        self._candidates += [None] * len(points)
        return list(range(first, len(self._candidates)))

    def _add_texts(self, candidates: Sequence[Candidate], services: Services) -> None:
        features = services.embed([candidate.instruction for candidate in candidates])
        for candidate in candidates:
            self._rows[candidate.key] = [len(self._candidates)]
            self._candidates.append(candidate)
        self.features = features if self.features is None else np.concatenate([self.features, features])

    def _grow(self, n: int, services: Services) -> None:
        """Put rephrasings of the leader into the pool; after the proposer's budget the pool stays as it is."""
        by_key = {trial.candidate.key: trial.candidate for trial in self.trials}
        leader = by_key[self._ranked()[0]]
        found: dict[str, Candidate] = {}
        try:
            answers = (
                services.propose(meta_prompts.rephrase(leader.instruction), n * self.growth) if self.growth else []
            )
        except BudgetSpent:
            answers = []
        for answer in answers:
            text = meta_prompts.read_instruction(answer)
            if text is not None:
                one = Candidate(text, parents=(leader.key,), origin="rephrase")
                if one.key not in self._rows:
                    found[one.key] = one
        if found:
            self._add_texts(list(found.values()), services)


def comparable(rewards: Sequence[dict[RowId, float]]) -> tuple[np.ndarray, float]:
    """Mean rewards ``[t]`` as if all had met all items, and the variance of a reward beside them.

    Least squares of a candidate's effect plus an item's effect, where effects of items are shrunk as if each had met one more
    candidate on which it did nothing.
    """
    if not rewards:
        return np.zeros(0), 0.0
    items = list(dict.fromkeys(item for one in rewards for item in one))
    table = np.array([[one.get(item, np.nan) for item in items] for one in rewards])
    known = ~np.isnan(table)
    filled = np.where(known, table, 0.0)
    effects = np.zeros(len(items))
    for _ in range(50):
        scores = (filled - effects * known).sum(1) / known.sum(1)
        effects = (filled - scores[:, None] * known).sum(0) / (known.sum(0) + 1)
    left = (filled - (scores[:, None] + effects) * known) ** 2
    freedom = max(int(known.sum()) - len(rewards) - len(items) + 1, 1)
    return scores + effects.mean(), float(left.sum()) / freedom
