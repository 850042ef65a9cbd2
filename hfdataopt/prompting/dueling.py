"""Searches that choose pairs from a fixed set of arms: instructions, image prompts, or answers to an item."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from hfdataopt.errors import DataError, OptionError
from hfdataopt.options import check_range
from hfdataopt.prompting.candidate import Candidate, Duel, Vote
from hfdataopt.prompting.optimizer import PreferenceOptimizer, Role, Services, Task
from hfdataopt.prompting.pool import propose_pool

Pair = tuple[int, int]


@dataclass
class DuelingOptimizer(PreferenceOptimizer):
    """Base of methods that choose pairs of arms; a subclass says which (:meth:`choose`) and ranks them (:meth:`ranking`).

    Each duel is on the next item, so that a pair that comes again is judged on other answers.

    Args:
        pool: the instructions to choose among, or the texts to be drawn; None = ``task.start`` and others by the proposer.
        pool_size: of a proposed pool.
        demonstrations: examples that an instruction is induced from; 0 = rephrasings of ``task.start`` only.
        rephrase: share of rephrasings in the pool.
        initial: random pairs to begin with.
        repeats: whether a pair comes again, on another item: ``no``, ``later`` (when all pairs were asked as often), or ``free``.
            One that was skipped, or is too long for the model, never does.
    """

    pool: list[str] | None = None
    pool_size: int = 50
    demonstrations: int = 5
    rephrase: float = 0.0
    initial: int = 5
    repeats: Literal["no", "later", "free"] = "later"
    candidates: list[Candidate] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "pool_size", at_least=2)
        check_range(self, "demonstrations", at_least=0)
        check_range(self, "rephrase", at_least=0, at_most=1)
        check_range(self, "initial", at_least=1)
        if self.pool is not None and len(dict.fromkeys(self.pool)) < 2:
            raise OptionError(f"{self.name}: pool={self.pool!r} must hold at least two different instructions")

    @property
    def needs(self) -> tuple[Role, ...]:
        if self.pool is not None:
            return ()
        return ("proposer", "examples") if self.demonstrations and self.rephrase < 1 else ("proposer",)

    def start(self, task: Task) -> None:
        super().start(task)
        self.candidates = []
        self._place: dict[str, int] = {}
        self._ranked: list[float] | None = None

    def ask(self, n: int, pending: Sequence[Duel] = (), services: Services | None = None) -> Sequence[Duel]:  # type: ignore[override]
        """Up to ``n`` pairs; none = no pair may be asked any more."""
        self.prepare(services)
        waiting = [pair for duel in pending if (pair := self._pair(duel)) is not None]
        counts = Counter(_sorted(pair) for pair in waiting)
        never = set(counts)
        for vote in self.votes:
            if (pair := self._pair(vote.duel)) is not None:
                counts[_sorted(pair)] += 1
                if vote.comparison.outcome == "skip" or vote.unread:
                    never.add(_sorted(pair))
        chosen: list[Pair] = []
        while len(chosen) < n:
            closed = self._closed(counts, never)
            group = self.group(counts, closed)
            if not group:
                break
            number = len(self.votes) + len(pending) + len(chosen)
            if number < self.initial or not self.trained()[0]:
                pairs = [self.draw(group, closed, number)]
            else:
                pairs = self.choose(n - len(chosen), group, closed, waiting + chosen, number)
            for pair in pairs:
                chosen.append(pair)
                never.add(_sorted(pair))
                counts[_sorted(pair)] += 1
        return [Duel(self.candidates[i], self.candidates[j], self.candidates[i].item) for i, j in chosen]

    def _closed(self, counts: Counter[Pair], never: set[Pair]) -> set[Pair]:
        """Pairs that must not come now."""
        if self.repeats == "free":
            return set(never)
        places = math.comb(len(self.candidates), 2)
        for often in itertools.count(1):
            closed = never | {pair for pair, count in counts.items() if count >= often}
            if self.repeats == "no" or len(closed) < places or len(never) == places:
                return closed
        raise AssertionError

    def tell(self, votes: Sequence[Vote]) -> None:  # type: ignore[override]
        super().tell(votes)
        self._ranked = None

    def forget(self, vote: Vote) -> None:
        super().forget(vote)
        self._ranked = None

    # -- for the methods

    def prepare(self, services: Services | None) -> None:
        """Make the arms, the first time."""
        if self.candidates:
            return
        if self.pool is not None:
            texts = dict.fromkeys([*self.task.start, *self.pool])
            self.add([Candidate(text, origin="pool") for text in texts])
            return
        assert services is not None
        self.add(
            propose_pool(
                self.task,
                services,
                self.pool_size,
                demonstrations=self.demonstrations,
                rephrase=self.rephrase,
                who=self.name,
            )
        )

    def add(self, arms: Iterable[Candidate]) -> None:
        for arm in arms:
            self._place.setdefault(arm.key, len(self.candidates))
            self.candidates.append(arm)

    def group(self, counts: Counter[Pair], closed: set[Pair]) -> list[int]:
        """Arms of which the next pair is made; none = no pair is open.

        Args:
            counts: how often pairs were asked.
        """
        everything = range(len(self.candidates))
        return list(everything) if open_pairs(everything, closed) else []

    def choose(self, n: int, group: list[int], closed: set[Pair], waiting: list[Pair], number: int) -> list[Pair]:
        """One to ``n`` pairs of arms of ``group`` that are not ``closed``, which has an open pair.

        Args:
            waiting: pairs whose votes are still under way; closed too.
            number: how many questions came before, for draws.
        """
        raise NotImplementedError

    def ranking(self) -> list[float]:
        """A number per arm, the higher the better, from the votes so far; -inf for arms that cannot be the best."""
        raise NotImplementedError

    def draw(self, group: Sequence[int], closed: set[Pair], number: int) -> Pair:
        """A random open pair, in random order."""
        rng = self.task.rng(self.name, "pair", number)
        return tuple(rng.sample(rng.choice(open_pairs(group, closed)), 2))  # type: ignore[return-value]

    def trained(self) -> tuple[list[Pair], list[float]]:
        """Pairs and outcomes (1 = the first) of the votes that teach something."""
        known = [(self._pair(vote.duel), vote.comparison.target) for vote in self.votes]
        kept = [(pair, target) for pair, target in known if pair is not None and target is not None]
        return [pair for pair, _ in kept], [target for _, target in kept]

    def _pair(self, duel: Duel) -> Pair | None:
        first, second = self._place.get(duel.first.key), self._place.get(duel.second.key)
        return None if first is None or second is None else (first, second)

    @property
    def best(self) -> Candidate | None:
        """The arm of the highest rank; before any vote the first one, which is the user's own where there is one."""
        return next(iter(self.leaders(1)), None)

    def leaders(self, n: int) -> list[Candidate]:
        if self.candidates and self._ranked is None:
            self._ranked = self.ranking() if self.trained()[0] else [-float(i) for i in range(len(self.candidates))]
        ranked = self._ranked or []
        order = sorted((i for i, rank in enumerate(ranked) if rank > -math.inf), key=lambda i: (-ranked[i], i))
        return [self.candidates[i] for i in order[:n]]


def open_pairs(group: Iterable[int], closed: set[Pair]) -> list[Pair]:
    """Pairs ``(i, j)``, ``i < j``, of a group that are not closed."""
    return [pair for pair in itertools.combinations(sorted(group), 2) if pair not in closed]


def _sorted(pair: Pair) -> Pair:
    return (min(pair), max(pair))


@dataclass
class FeaturedDuels(DuelingOptimizer):
    """Base of methods that rank arms by a surrogate on their features, which :meth:`make_surrogate` makes.

    Args:
        features: of an arm's text, or of the images that votes have shown of it; arms that were not drawn yet count as average
            ones.
    """

    features: Literal["text", "image"] = "text"

    @property
    def needs(self) -> tuple[Role, ...]:
        return (*super().needs, "encoder")

    def start(self, task: Task) -> None:
        super().start(task)
        self._texts: np.ndarray | None = None
        self._images: dict[str, np.ndarray] = {}
        self._surrogate: Any = None
        self._fitted = False

    def make_surrogate(self) -> Any:
        """A surrogate that was not fitted yet."""
        raise NotImplementedError

    def prepare(self, services: Services | None) -> None:
        super().prepare(services)
        assert services is not None
        known = 0 if self._texts is None else len(self._texts)
        if self.features == "text" and known < len(self.candidates):
            new = services.embed([self.content(arm) for arm in self.candidates[known:]])
            self._fitted = False
            self._texts = new if self._texts is None else np.concatenate([self._texts, new])
        elif self.features == "image":
            shown = dict.fromkeys(answer for vote in self.votes for answer in vote.answers)
            if paths := [path for path in shown if path not in self._images]:
                vectors = services.embed([_opened(path, self.name) for path in paths])
                self._fitted = False
                self._images |= dict(zip(paths, vectors, strict=True))

    def content(self, arm: Candidate) -> str:
        """The text of an arm that is embedded."""
        return arm.instruction

    def matrix(self) -> np.ndarray:
        """Features ``[arms, d]``."""
        if self.features == "text":
            assert self._texts is not None
            return self._texts
        drawn: list[list[np.ndarray]] = [[] for _ in self.candidates]
        for vote in self.votes:
            for place, path in zip(self._pair(vote.duel) or (), vote.answers, strict=False):
                if path in self._images:
                    drawn[place].append(self._images[path])
        means = [np.mean(vectors, axis=0) if vectors else None for vectors in drawn]
        average = np.mean([mean for mean in means if mean is not None] or [np.zeros(1)], axis=0)
        return np.stack([average if mean is None else mean for mean in means])

    def posterior(self) -> Any:
        """Means and variances of all arms after the votes so far; choosing uses them up."""
        return self._fit().posterior(self.matrix())

    def _fit(self) -> Any:
        """The surrogate of the votes so far."""
        from hfdataopt.bandits.arms import ArmSurrogate

        if self._fitted:
            return self._surrogate
        x = self.matrix()
        self._surrogate = self._surrogate or self.make_surrogate()
        pairs, outcomes = self.trained()
        if isinstance(self._surrogate, ArmSurrogate):
            self._surrogate.fit_pairs(x, pairs, outcomes)
        else:
            rows = sorted({arm for pair in pairs for arm in pair})
            places = {arm: place for place, arm in enumerate(rows)}
            local = [(places[first], places[second]) for first, second in pairs]
            self._surrogate.fit_pairs(x[rows], local, outcomes)
        self._fitted = True
        return self._surrogate

    def tell(self, votes: Sequence[Vote]) -> None:  # type: ignore[override]
        super().tell(votes)
        self._fitted = False

    def forget(self, vote: Vote) -> None:
        super().forget(vote)
        self._fitted = False

    def ranking(self) -> list[float]:
        return self._fit().mean(self.matrix()).tolist()

    def mask(self, group: Iterable[int]) -> list[bool]:
        """``[arms]``, True for those of ``group``, as acquisitions take it."""
        members = set(group)
        return [arm in members for arm in range(len(self.candidates))]


def _opened(path: str, who: str) -> Any:
    from hfdataopt.prompting.tasks.files import pillow

    try:
        with pillow(who).Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise DataError(f"{who}: features='image', but the answer {path!r:.80} is no image file: {error}") from error
