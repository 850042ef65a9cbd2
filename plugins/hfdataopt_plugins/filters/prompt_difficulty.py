"""How near a prompt's success rate is to the one that teaches most, by the rewards of earlier epochs (MoPPS)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from hfdataopt.attribution.rows import ROW_ID
from hfdataopt.errors import DataError, OptionError
from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt.selection.filter import Filter
from hfdataopt.selection.source import Batch, check_columns
from hfdataopt.selection.success_rates import LEAST_PRIOR, MOST_PRIOR, beta_draws, count, update


@dataclass(frozen=True)
class PromptDifficulty(Filter):
    """``-|p - rate|``, where p is drawn from the Beta posterior of a prompt's success rate (Qu et al. 2025), or is its mean.

    For use before an epoch; :class:`hfdataopt.selection.prompt_sampler.PromptSampler` does the same within one. A prompt
    without rewards has the prior as its posterior.

    Args:
        rewards: a column of past rewards, a list of numbers (one group) or a list of such lists (a group per epoch, oldest first).
        successes, trials: instead, columns of counts; ``PromptSampler.counts`` makes them.
        success: a reward of at least this is a success; None: rewards lie in [0, 1] and are successes in parts.
        rate: the success rate that is asked for.
        estimate: ``sampled`` from the posterior (Thompson sampling: what is uncertain gets its turn), or its ``mean``.
        prior: alpha and beta before any reward.
        discount: how much of what was known lasts from a group to the next, for a model that changes; 1 forgets nothing.
        seed: draws are a function of (seed, row id); give each epoch another.
    """

    name: ClassVar[str] = "prompt-difficulty"
    meaning: ClassVar[str] = "a success rate nearer to rate="
    draws: ClassVar[bool] = True

    rewards: str | None = None
    successes: str | None = None
    trials: str | None = None
    success: float | None = None
    rate: float = 0.5
    estimate: Literal["sampled", "mean"] = "sampled"
    prior: tuple[float, float] = (1.0, 1.0)
    discount: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "rate", at_least=0, at_most=1)
        check_range(self, "prior", at_least=LEAST_PRIOR, at_most=MOST_PRIOR)
        check_range(self, "discount", above=0, at_most=1)
        counts = [self.successes, self.trials]
        if (self.rewards is None) == (counts == [None, None]) or counts.count(None) == 1:
            raise OptionError(
                f"{self.name}: give either rewards=, or both of successes= and trials= (columns); got rewards={self.rewards!r}, "
                f"successes={self.successes!r}, trials={self.trials!r}"
            )
        if self.rewards is None and (self.success is not None or self.discount != 1):
            raise OptionError(f"{self.name}: success= and discount= go with rewards=; counts are taken as they are")

    def reads(self, columns: Sequence[str], what: str) -> tuple[str, ...]:
        wanted = [name for name in (self.rewards, self.successes, self.trials) if name is not None]
        wanted += [] if ROW_ID in columns else ["prompt"]
        check_columns(wanted, columns, self.name, what)
        return tuple(wanted)

    def scores(self, batch: Batch) -> np.ndarray:
        return super().scores(self._of_prompts(batch))

    def score(self, batch: Batch) -> np.ndarray:
        alpha, beta = self.posterior(batch)
        p = beta_draws(self.seed, batch.keys, alpha, beta) if self.estimate == "sampled" else alpha / (alpha + beta)
        return -np.abs(p - self.rate)

    def posterior(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Alpha and beta, ``[rows]`` each."""
        rows = [self._counts(batch, place) for place in range(len(batch))]
        found = []
        for groups in rows:
            alpha, beta = self.prior
            for successes, trials in groups:
                alpha, beta = update(alpha, beta, successes, trials, self.prior, self.discount)
            found.append((alpha, beta))
        alphas, betas = np.array(found, dtype=np.float64).T
        return alphas, betas

    def _counts(self, batch: Batch, place: int) -> list[tuple[float, float]]:
        """Successes and trials of each group of a row, oldest first."""
        if self.rewards is None:
            successes, trials = (batch[name or ""][place] for name in (self.successes, self.trials))
            if successes is None and trials is None:
                return []
            numbers = all(
                isinstance(v, int | float | np.number) and not isinstance(v, bool) for v in (successes, trials)
            )
            if not numbers or not 0 <= successes <= trials:
                raise DataError(
                    f"{self.name}: {batch.name_of(place)} has {self.successes}={successes!r} of {self.trials}={trials!r}; they must be "
                    "numbers, the first from 0 to the second"
                )
            return [(float(successes), float(trials))]
        value = batch[self.rewards][place]
        value = [] if value is None else value
        if isinstance(value, str) or not hasattr(value, "__len__"):
            raise DataError(f"{self.name}: column {self.rewards!r} must hold lists of rewards; got {str(value)[:60]!r}")
        nested = any(hasattr(one, "__len__") for one in value)
        groups = [group for group in value if group is not None] if nested else [value]
        try:
            counts = [count(group, self.success, self.name, batch.name_of(place)) for group in groups]
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{self.name}: the rewards of {batch.name_of(place)} must be numbers; got {str(value)[:60]!r}"
            ) from error
        return [(successes, trials) for successes, trials in counts if trials]

    def _of_prompts(self, batch: Batch) -> Batch:
        """The same rows, known by their prompt alone; a prompt may have no rewards yet."""
        return Batch(batch.columns, tuple(n for n in ("prompt",) if n in batch.read), batch.with_ids, batch.who)


@hookimpl
def register_filters(register: Callable[..., None]) -> None:
    register(PromptDifficulty)
