"""The contract of a scorer: a dataclass whose fields are its hyperparameters and whose ``score(view)`` ranks the pool.

A scorer says *what* is computed at one moment; *where* it runs (inside a Trainer, on saved checkpoints) and how several
moments are combined is the host's business. It keeps no state between moments, so a killed run can resume from disk.

- :class:`Scorer`: ``score(view) -> [rows]`` or ``[rows, queries]`` or :class:`Result`
- :class:`PointwiseScorer`: only ``score_batch(model, batch) -> [batch]``; needs no queries
- :class:`GradientScorer`: the options every gradient scorer has
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from hfdataopt.errors import DataError
from hfdataopt.options import check_options, check_range

if TYPE_CHECKING:
    import torch

    from hfdataopt.attribution.view import View

When = Literal["train_begin", "epoch", "save", "train_end"]
Combine = Literal["last", "mean", "learning-rate-sum"]
MEANINGS: dict[str, str] = {
    "helpfulness": "higher = more helpful to the queries",
    "suspicion": "suspicion stored negated: the lowest rows look mislabelled or unusual; the highest are merely unsuspicious",
    "chance": "random: a baseline, not a judgement",
}


@dataclass
class Result:
    """What a scorer returns for one moment.

    Attributes:
        values: ``[rows]``, higher = more helpful. None with a ``matrix``: its mean over the queries is taken.
        matrix: ``[rows, queries]`` or None.
        standard_errors: ``[rows]``, Monte Carlo error of ``values``, or None for a method without sampling.
        metadata: JSON-serialisable facts to be kept and reported.
    """

    values: Any = None
    matrix: Any = None
    standard_errors: Any = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, returned: Any, rows: int, queries: int, who: str) -> "Result":
        """A checked result in float64 from what ``score`` returned: ``[rows]``, ``[rows, queries]`` or a Result."""
        result = returned if isinstance(returned, cls) else cls(values=returned)
        values, matrix = _float64(result.values), _float64(result.matrix)
        if values is not None and values.ndim == 2 and matrix is None:
            values, matrix = None, values
        if values is None and matrix is not None and matrix.ndim == 2:
            values = mean_over_queries(matrix)
        if values is None or values.shape != (rows,) or (matrix is not None and matrix.shape != (rows, queries)):
            got = None if values is None else values.shape
            raise DataError(
                f"scorer {who!r} returned values of shape {got}"
                + ("" if matrix is None else f" and a matrix of shape {matrix.shape}")
                + f"; expected [{rows}] or [{rows}, {queries}]"
            )
        errors = _float64(result.standard_errors)
        if errors is not None and errors.shape != (rows,):
            raise DataError(f"scorer {who!r} returned standard errors of shape {errors.shape}; expected [{rows}]")
        return cls(values, matrix, errors, result.metadata)


def mean_over_queries(matrix: np.ndarray) -> np.ndarray:
    """Mean of ``[rows, queries]`` over the queries: ``[rows]``. A query that no row has a score for is left out; NaN if all are."""
    scored = ~np.isnan(matrix).all(axis=0)
    return matrix[:, scored].mean(axis=1) if scored.any() else np.full(len(matrix), np.nan)


def _float64(value: Any) -> np.ndarray | None:
    if value is None:
        return None
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value, dtype=np.float64)


@dataclass
class Scorer:
    """Base of every scorer. Subclasses are dataclasses and set the class attributes.

    Class attributes:
        name: lower-case words joined by dashes.
        meaning: ``helpfulness``, ``suspicion`` or ``chance``, or a sentence on what a high score says; printed by every report.
        default_when: the moment it is taken at when ``when=None``.
        combine: how several moments become one score.
        needs_queries: whether it reads validation data.
        query_form: ``examples`` are tokenized with their labels; of ``prompts`` only the column ``prompt`` is needed, and the
            other columns are for reward functions.
        retrains: whether it trains models of its own, which a callback inside a training cannot; it runs by ``attribute``.
    """

    name: ClassVar[str]
    meaning: ClassVar[str] = "helpfulness"
    default_when: ClassVar[When] = "train_end"
    combine: ClassVar[Combine] = "last"
    needs_queries: ClassVar[bool] = True
    retrains: ClassVar[bool] = False
    query_form: ClassVar[Literal["examples", "prompts"]] = "examples"

    @property
    def scores_each_query(self) -> bool:
        """Whether a matrix of scores is returned, as groups of queries need."""
        return self.needs_queries

    def __post_init__(self) -> None:
        check_options(self)

    def check(self, view: "View") -> None:
        """Raise before training starts whatever can be known by then: labels, layers, options that do not fit."""

    def check_optimizer(self, view: "View") -> None:
        """Raise before anything is scored where ``view.optimizer``, live or a checkpoint's, cannot be what is needed."""

    def prepare(self, view: "View") -> None:
        """Called once before the first moment, with the run's folder: what needs no particular weights can be made now."""

    def score(self, view: "View") -> Any:
        """Scores of all pool rows at one moment: ``[rows]``, ``[rows, queries]`` or a :class:`Result`."""
        raise NotImplementedError(f"{type(self).__name__} must implement score(view)")


@dataclass
class PointwiseScorer(Scorer):
    """A scorer that looks at one row at a time and needs no queries.

    Args:
        on_nonfinite: what to do with a row whose score is not finite: ``error``, or ``skip`` it (it gets no score).
    """

    needs_queries: ClassVar[bool] = False

    on_nonfinite: Literal["error", "skip"] = field(default="error", kw_only=True)

    def score_batch(self, model: Any, batch: dict[str, Any]) -> "torch.Tensor":
        """Scores ``[batch]`` of one collated batch; the model is in eval mode and no graph is kept."""
        raise NotImplementedError(f"{type(self).__name__} must implement score_batch(model, batch)")

    def score(self, view: "View") -> Any:
        return view.pointwise("pool", self.name, self.score_batch, self.on_nonfinite)


@dataclass
class GradientScorer(Scorer):
    """The options every scorer has that reads per-example gradients.

    Args:
        basis: ``eigen`` projects each layer's gradient onto leading eigenvectors of its activation and output-gradient
            covariances; ``random`` is the seeded two-sided projection other libraries use; ``sketch`` hashes the
            entries of each layer into signed buckets (unbiased as ``random``, with less variance); ``exact`` keeps all.
        floats_per_row: size of a projected gradient.
        layers: ``"last:2"``, ``"linear"``, a name pattern, or a list of them; None takes all linear layers but the LM head.
        dtype: precision of forward and backward; None takes the trainer's autocast.
        on_nonfinite: what to do with a row whose gradient is not finite: ``error``, or ``skip`` it (it gets no score).
        seed: of the sample that the basis is fitted on, and of every other draw.
    """

    basis: Literal["eigen", "random", "sketch", "exact"] = field(default="eigen", kw_only=True)
    floats_per_row: int = field(default=8192, kw_only=True)
    layers: str | list[str] | None = field(default=None, kw_only=True)
    dtype: Literal["float32", "bfloat16", "float16"] | None = field(default=None, kw_only=True)
    on_nonfinite: Literal["error", "skip"] = field(default="error", kw_only=True)
    seed: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "floats_per_row", at_least=1)
        check_range(self, "seed", at_least=0)

    def check(self, view: "View") -> None:
        view.check_gradients(self.layers, None if self.basis == "exact" else self.floats_per_row)
        view.check_labels()

    def gradient_options(self) -> dict[str, Any]:
        """The keyword arguments of ``View.gradients`` that these fields set."""
        return {
            name: getattr(self, name) for name in ("basis", "floats_per_row", "layers", "dtype", "on_nonfinite", "seed")
        }
