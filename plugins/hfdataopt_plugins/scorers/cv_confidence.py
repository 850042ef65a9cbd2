"""Cross-validated confidence: the probability of a row's own label by a linear probe fitted on the other folds.

This is the quantity that cleanlab ranks by ("self-confidence"; Northcutt et al., JAIR 2021), here on frozen features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from hfdataopt.attribution.probe import cross_validated_confidence
from hfdataopt.attribution.scorer import Result, Scorer
from hfdataopt.attribution.task import Pooling, read_labels
from hfdataopt.attribution.view import View
from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range


@dataclass
class CvConfidence(Scorer):
    """Out-of-fold probability of each row's given label; low = probably mislabelled. Of a preference pair, in a ``RewardTrainer``: the
    probability that the chosen answer is the better one, from the difference of the hidden states.

    Args:
        folds: of the cross-validation, drawn by (seed, row id).
        inverse_penalty: of the logistic regression on unit vectors, scikit-learn's ``C``.
        pooling: how hidden states become one vector.
        seed: of the folds.
    """

    name: ClassVar[str] = "cv-confidence"
    meaning: ClassVar[Any] = "suspicion"
    default_when: ClassVar[Any] = "train_begin"
    needs_queries: ClassVar[bool] = False

    folds: int = 5
    inverse_penalty: float = 1.0
    pooling: Pooling = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "folds", at_least=2)
        check_range(self, "inverse_penalty", above=0)
        check_range(self, "seed", at_least=0)

    def check(self, view: View) -> None:
        if not view.pool.pairs:
            read_labels(view.model, view.pool, None, self.name)

    def score(self, view: View) -> Result:
        labels = None if view.pool.pairs else read_labels(view.model, view.pool, None, self.name).pool
        features = view.embeddings("pool", self.pooling)
        return Result(
            cross_validated_confidence(
                features,
                labels,
                view.pool.ids,
                folds=self.folds,
                seed=self.seed,
                inverse_penalty=self.inverse_penalty,
            )
        )


@hookimpl
def register_scorers(register: Callable[..., None]) -> None:
    register(CvConfidence)
