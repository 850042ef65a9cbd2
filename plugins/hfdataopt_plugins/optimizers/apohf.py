"""APOHF: prompts by preferences, with a neural dueling bandit (Lin et al., 2024): instructions, image prompts, answers."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from hfdataopt.errors import DataError, OptionError
from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import apply_preset, check_range
from hfdataopt.prompting.candidate import Candidate, RowId
from hfdataopt.prompting.dueling import FeaturedDuels, Pair, open_pairs
from hfdataopt.prompting.optimizer import Role, Services, Task
from hfdataopt.rewards.texts import transcript


@dataclass
class Apohf(FeaturedDuels):
    """The best arm against that of the largest upper confidence bound, by a surrogate of the votes on features of the arms.

    For images an instruction is the text that is drawn: give the texts as ``pool``, or one as ``start`` with ``rephrase=1``.

    Args:
        arms: ``prompts``, or ``responses``: answers of the scored model, of which the best of each item is sought
            (:attr:`best_per_item`). The items take turns and share one surrogate; all votes train it and count in its
            variance. A pair comes once.
        samples: answers per item.
        surrogate: ``arms`` (ridge Bradley-Terry on the features and an effect of each arm), ``linear`` (ridge Bradley-Terry
            on the features), ``rbf``, or ``mlp`` (the published network, with an initialisation and a ridge that work).
        acquisition: ``ucb``, or ``random`` pairs, the baseline.
        nu: width of the confidence bound in standard deviations.
        best_among: the best is one of ``all`` arms, or of those ``asked`` about.
        preset: ``papers`` is as the released code: N(0, 1) weights in two layers of 32, refitted without standardised
            targets, the diagonal of the matrix, ``nu`` inside the root and not divided by the ridge, the best among those
            asked about, pairs as often as they come. Unlike it, features are standardised, the exploration of
            ``responses`` takes all votes, and nothing is asked twice at a time.
    """

    name: ClassVar[str] = "apohf"

    arms: Literal["prompts", "responses"] = "prompts"
    samples: int = 8
    surrogate: Literal["arms", "linear", "rbf", "mlp"] = "arms"
    acquisition: Literal["ucb", "random"] = "ucb"
    nu: float = 1.0
    best_among: Literal["all", "asked"] = "all"
    preset: Literal["papers"] | None = None

    def __post_init__(self) -> None:
        if self.preset is not None:
            apply_preset(self, self.preset, {"surrogate": "mlp", "best_among": "asked", "repeats": "free"})
        super().__post_init__()
        check_range(self, "samples", at_least=2)
        check_range(self, "nu", at_least=0)
        if self.arms == "responses":
            own = {field.name: field.default for field in fields(self)}
            for option in ("pool", "pool_size", "rephrase", "demonstrations", "features"):
                if getattr(self, option) != own[option]:
                    raise OptionError(
                        f"apohf: arms='responses' chooses among sampled answers, which are texts; drop {option}"
                    )
        elif self.samples != type(self).samples:
            raise OptionError("apohf: samples are of arms='responses'; drop samples")

    @property
    def needs(self) -> tuple[Role, ...]:
        return ("encoder",) if self.arms == "responses" else super().needs

    def sampled_calls(self, items: int) -> int:
        return self.samples * items if self.arms == "responses" else 0

    def start(self, task: Task) -> None:
        super().start(task)
        self._groups: dict[RowId, list[int]] = {}

    def prepare(self, services: Services | None) -> None:
        if self.arms == "responses" and not self._groups:
            assert services is not None
            for item in self.task.items:
                answers = dict.fromkeys(services.sample(item.id, self.samples))
                first = len(self.candidates)
                self.add(Candidate(item=item.id, completion=answer, origin="sample") for answer in answers)
                self._groups[item.id] = list(range(first, len(self.candidates)))
            if all(len(group) < 2 for group in self._groups.values()):
                raise DataError(
                    f"apohf: all {self.samples} sampled answers to each item are the same text, so there is nothing to choose; "
                    "the scored model must draw its answers (temperature above 0)"
                )
        super().prepare(services)

    def content(self, arm: Candidate) -> str:
        if arm.item is None:
            return arm.instruction
        return f"{transcript(self.task.item(arm.item).prompt)}\n\n{arm.completion}"

    def group(self, counts: Counter[Pair], closed: set[Pair]) -> list[int]:
        """Of responses those of the item that was asked about least."""
        if self.arms == "prompts":
            return super().group(counts, closed)
        asked: Counter[RowId | None] = Counter()
        for (first, _), count in counts.items():
            asked[self.candidates[first].item] += count
        for item in sorted(self._groups, key=lambda item: asked[item]):
            if open_pairs(self._groups[item], closed):
                return self._groups[item]
        return []

    def choose(self, n: int, group: list[int], closed: set[Pair], waiting: list[Pair], number: int) -> list[Pair]:
        if self.acquisition == "random":
            return [self.draw(group, closed, number)]
        from hfdataopt.bandits import dueling_ucb

        posterior = self.posterior()
        # Of responses one at a time: the next pair is another item's.
        n = min(n, len(open_pairs(group, closed))) if self.arms == "prompts" else 1
        return dueling_ucb(
            posterior,
            n,
            nu=self.nu / posterior.ridge if self.preset else self.nu,
            papers=self.preset is not None,
            available=self.mask(group),
            asked=closed,
            pending=waiting,
        )

    def make_surrogate(self) -> Any:
        from hfdataopt.bandits import ArmSurrogate, LinearSurrogate, MLPSurrogate, RBFSurrogate

        if self.preset is not None:
            return MLPSurrogate(self.task.seed, widths=(32, 32), diagonal=True, preset=self.preset)
        kinds: dict[str, Any] = {"linear": LinearSurrogate, "rbf": RBFSurrogate, "mlp": MLPSurrogate}
        if self.surrogate in kinds:
            return kinds[self.surrogate](seed=self.task.seed)
        return ArmSurrogate(refresh=0.1)

    def ranking(self) -> list[float]:
        ranked = super().ranking()
        if self.best_among == "asked":
            known = {arm for pair in self.trained()[0] for arm in pair}
            ranked = [rank if arm in known else -float("inf") for arm, rank in enumerate(ranked)]
        return ranked

    @property
    def best_per_item(self) -> list[Candidate]:
        """With ``arms="responses"`` the best answer to each item; to one without votes the first that was sampled."""
        ranked = {arm.key: place for place, arm in enumerate(super().leaders(len(self.candidates)))}
        groups = ([self.candidates[arm] for arm in arms] for arms in self._groups.values())
        return [min(group, key=lambda arm: ranked.get(arm.key, len(ranked))) for group in groups]

    def leaders(self, n: int) -> list[Candidate]:
        """The best prompts; answers are no rivals across items, so of these the best of each of the first ``n`` items."""
        return super().leaders(n) if self.arms == "prompts" else self.best_per_item[:n]


@hookimpl
def register_optimizers(register: Callable[..., None]) -> None:
    register(Apohf)
