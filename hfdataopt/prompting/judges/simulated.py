"""A simulated user, whose taste is a reward and who errs."""

import math
import random
from collections.abc import Sequence
from typing import Any

from hfdataopt.errors import OptionError
from hfdataopt.prompting.candidate import Comparison
from hfdataopt.prompting.judges.judge import Question
from hfdataopt.prompting.judges.reward import RewardJudge


class SimulatedJudge(RewardJudge):
    """Prefers the first answer with probability ``sigmoid(scale (r1 - r2) - ties)``, the second likewise; the rest is a tie.

    Without ties this is the Bradley-Terry model, with them Rao and Kupper's (1967). A draw depends on the seed and on the
    question's id only.

    Args:
        reward_funcs, reward_weights: see :class:`RewardJudge`.
        scale: log-odds per unit of reward. With rewards from 0 to 1, ``scale=1`` is close to a coin.
        ties: in log-odds; 0 = no ties.
    """

    def __init__(
        self,
        reward_funcs: Any,
        reward_weights: Sequence[float] | None = None,
        *,
        scale: float,
        ties: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(reward_funcs, reward_weights, ties=ties)
        if not 0 < scale < math.inf:
            raise OptionError(f"SimulatedJudge: scale={scale!r} must be a finite number above 0")
        self.scale, self.seed = float(scale), seed

    def _word(self, question: Question, difference: float) -> Comparison:
        draw = random.Random(f"{self.seed}/{question.id}").random()
        if draw < _sigmoid(self.scale * difference - self.ties):
            return Comparison.of(0)
        return Comparison.of(1 if draw >= _sigmoid(self.scale * difference + self.ties) else None)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"scale": self.scale, "seed": self.seed}


def _sigmoid(x: float) -> float:
    return 0.5 * (1 + math.tanh(x / 2))
