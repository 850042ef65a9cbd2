"""Kernels between pool and queries of a classification task, for the scorers that regress on them.

- ``hidden``: inner products of pooled last hidden states
- ``entk``: the empirical neural tangent kernel, inner products of the gradients of a logit (FreeShap, section 4)
- ``sum``: the mean of both

Kernels are built in float64 from float32 features. Every kernel, also one alone, is divided by its mean diagonal, so that
a ridge is in units of the mean diagonal; ``normalize`` then gives each row a diagonal of 1. The mean of two such kernels has
a mean diagonal, or a diagonal, of 1 again. The factors are in the metadata (``kernel_scale``).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from hfdataopt.attribution.probe import fit_linear_probe
from hfdataopt.attribution.rows import shuffled
from hfdataopt.attribution.scorer import GradientScorer
from hfdataopt.attribution.task import (
    ClassLabels,
    Head,
    Pooling,
    body_of,
    combinations_of,
    model_head,
    probe_head,
    prompt_head,
    read_labels,
    resolve_head,
)
from hfdataopt.errors import OptionError
from hfdataopt.gradients import find_blocks
from hfdataopt.shapley import loo_ridge

if TYPE_CHECKING:
    from hfdataopt.attribution.view import View


SMALLEST_BASIS = 512
"""Floats per row and logit at least, when ``floats_per_row`` is divided among the logits of many classes (above 16 at the
default)."""


@dataclass(frozen=True)
class TaskKernel:
    """Kernels and labels of the rows that have finite features.

    Attributes:
        kernel: ``[m, m]``, or ``[c, m, m]`` with one per class, float64.
        cross: ``[m, t]`` or ``[c, m, t]``; None without queries.
        query_diagonal: ``[t]`` or ``[c, t]``, each query's kernel with itself; None without queries.
        labels, query_labels: class indices ``[m]`` and ``[t]``.
        rows: positions ``[m]`` of these rows in the pool, in an order that is a function of their ids.
    """

    kernel: torch.Tensor
    cross: torch.Tensor | None
    query_diagonal: torch.Tensor | None
    labels: torch.Tensor
    query_labels: torch.Tensor | None
    rows: torch.Tensor

    def ridge(self, given: float | str) -> float:
        """The absolute ridge: the one given, or the minimiser of the leave-one-out error for ``"auto"``."""
        if given != "auto":
            return float(given)
        return loo_ridge(self.kernel, torch.nn.functional.one_hot(self.labels).double())

    def scatter(self, values: Any, rows: int) -> Any:
        """Values of the kernel's rows ``[m, ...]`` as values of all pool rows ``[rows, ...]``, NaN for the others."""
        if values is None:
            return None
        values = torch.as_tensor(values, dtype=torch.float64)
        full = torch.full((rows, *values.shape[1:]), float("nan"), dtype=torch.float64)
        full[self.rows] = values
        return full


@dataclass
class KernelScorer(GradientScorer):
    """The options of every scorer that regresses on a kernel between rows.

    Args:
        kernel: ``entk``, ``hidden`` or ``sum`` (see the module).
        head: whose logits the eNTK differentiates: ``auto`` is ``prompt`` for language models and ``probe`` for
            classifiers; ``model`` is the classifier's own head, which is untrained at the beginning of a fresh run.
        logit: which logit: a class index as the paper does (it takes 0), or None: the difference of the two logits of a
            binary task, and the mean of the kernels of all logits otherwise.
        per_class: one kernel per class, each regressing its own target, instead of one for all.
        normalize: divide by the row norms, so that every row has kernel 1 with itself.
        floats_per_row: size of a row's projected gradients, divided among the logits that are differentiated; each of them
            gets 512 at least, so that with many classes (above 16 at the default) a row takes more.
        pooling: how hidden states become one vector: ``mean``, ``first`` or ``last`` real token, or ``answer``, where a
            language model predicts the label; ``auto`` is ``answer`` for language models, ``last`` for other models
            that attend causally, and ``mean`` for the rest.
    """

    default_when: ClassVar[Any] = "train_begin"

    kernel: Literal["entk", "hidden", "sum"] = field(default="entk", kw_only=True)
    head: Literal["auto", "probe", "prompt", "model"] = field(default="auto", kw_only=True)
    logit: int | None = field(default=None, kw_only=True)
    per_class: bool = field(default=False, kw_only=True)
    normalize: bool = field(default=True, kw_only=True)
    pooling: Pooling = field(default="auto", kw_only=True)
    layers: str | list[str] | None = field(default="last:2", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_class and (self.logit is not None or self.kernel == "hidden"):
            raise OptionError(
                f"{self.name}: per_class=True takes one gradient kernel per class; it does not go with logit= or kernel='hidden'"
            )

    def check(self, view: "View") -> None:
        labels = self._labels(view)
        resolve_head(self.head, view.model, labels, self.name)
        if self.logit is not None and not 0 <= self.logit < labels.count:
            raise OptionError(
                f"{self.name}: logit={self.logit} is not among the {labels.count} classes of the pool (0 to {labels.count - 1})"
            )
        if self.kernel != "hidden":
            floats = None if self.basis == "exact" else self._floats_per_logit(len(self._coefficients(labels.count)[0]))
            view.check_gradients(self.layers, floats)

    def _labels(self, view: "View") -> ClassLabels:
        return read_labels(view.model, view.pool, view.queries if self.needs_queries else None, self.name)

    def build(self, view: "View") -> TaskKernel:
        """The kernel of the task at this moment."""
        labels = self._labels(view)
        head_name = resolve_head(self.head, view.model, labels, self.name)
        view.facts["head"] = head_name
        if head_name == "model" and view.moment.fresh:
            view.say(
                "head='model' before any training step: if the classification head is fresh, its logits say nothing yet"
            )
        sides = ["pool", *(["queries"] if view.queries is not None else [])]
        pooled: dict[str, torch.Tensor] = {}
        if self.kernel in ("hidden", "sum") or head_name == "probe":
            # A query that cannot be read is an error always: the rows are judged by all of them.
            skip = {"pool": self.on_nonfinite, "queries": "error"}
            pooled = {side: view.embeddings(side, self.pooling, skip[side], self.dtype) for side in sides}
        kernels: dict[str, Pieces] = {}
        if self.kernel in ("entk", "sum"):
            head = self._head(head_name, labels, pooled)
            names, coefficients = self._coefficients(labels.count)
            options = {**self.gradient_options(), "layers": self._layers(view, head_name)}
            options["floats_per_row"] = self._floats_per_logit(len(names))
            features = {
                side: view.gradients(
                    side,
                    target=f"{head_name}-{self.pooling}-logits-{'-'.join(names)}",
                    of=combinations_of(head, coefficients),
                    **{**options, "on_nonfinite": self.on_nonfinite if side == "pool" else "error"},
                ).columns()
                for side in sides
            }
            kernels["entk"] = _inner_products(features, stack=self.per_class)
        if self.kernel in ("hidden", "sum"):
            bias = float(pooled["pool"][torch.isfinite(pooled["pool"]).all(1)].std())
            with_bias = {side: torch.cat([x, x.new_full((len(x), 1), bias)], 1)[:, None] for side, x in pooled.items()}
            kernels["hidden"] = _inner_products(with_bias, stack=False)
        finite = torch.ones(len(view.pool), dtype=torch.bool)
        for piece in kernels.values():
            good = torch.isfinite(piece.pool.diagonal(dim1=-2, dim2=-1))
            finite = finite & (good if good.ndim == 1 else good.all(0))
        # In an order of the ids, so that permutations drawn over these rows do not depend on the order of the pool.
        rows = torch.tensor([row for row in shuffled(view.pool.ids, 0) if finite[row]], dtype=torch.long)
        kept = {name: piece.keep(rows) for name, piece in kernels.items()}
        scale = {name: piece.unit_scale() for name, piece in kept.items()}
        view.facts["kernel_scale"] = scale
        merged = _mean([piece.scaled(scale[name]) for name, piece in kept.items()], self.normalize)
        view.facts["kernel_rows"] = len(rows)
        return TaskKernel(merged.pool, merged.cross, merged.queries, labels.pool[rows], labels.queries, rows)

    def _layers(self, view: "View", head: str) -> list[str] | str | None:
        """The layers to read; under a probe only those inside the body, since the model's own head is not called."""
        if head != "probe":
            return self.layers
        inside = {id(module) for module in body_of(view.model).modules()}
        modules = dict(view.model.named_modules())
        names = [use.module for block in find_blocks(view.model, self.layers) for use in block.uses]
        kept = [name for name in names if id(modules[name]) in inside]
        if not kept:
            raise OptionError(f"{self.name}: layers={self.layers!r} selects only the head, which head='probe' replaces")
        return kept

    def _floats_per_logit(self, logits: int) -> int:
        return max(SMALLEST_BASIS, self.floats_per_row // logits)

    def _coefficients(self, classes: int) -> tuple[list[str], torch.Tensor]:
        """Names and coefficients ``[columns, classes]`` of the combinations of logits that are differentiated."""
        eye = torch.eye(classes, dtype=torch.float64)
        if self.logit is not None:
            return [str(self.logit)], eye[[self.logit]]
        if classes == 2 and not self.per_class:
            return ["difference"], eye[[1]] - eye[[0]]
        return [str(k) for k in range(classes)], eye

    def _head(self, name: str, labels: ClassLabels, pooled: dict[str, torch.Tensor]) -> Head:
        if name == "prompt":
            return prompt_head(labels.classes)
        if name == "model":
            return model_head(labels.classes)
        finite = torch.isfinite(pooled["pool"]).all(1)
        return probe_head(fit_linear_probe(pooled["pool"][finite], labels.pool[finite], labels.count), self.pooling)


@dataclass(frozen=True)
class Pieces:
    """One kernel: pool x pool, pool x queries, and the queries' diagonal; with a leading class dimension if stacked."""

    pool: torch.Tensor
    cross: torch.Tensor | None
    queries: torch.Tensor | None

    def keep(self, rows: torch.Tensor) -> "Pieces":
        pool = self.pool[..., rows, :][..., rows]
        return Pieces(pool, None if self.cross is None else self.cross[..., rows, :], self.queries)

    def unit_scale(self) -> float:
        """The factor that makes the mean diagonal 1."""
        return 1.0 / float(self.pool.diagonal(dim1=-2, dim2=-1).mean().clamp_min(1e-300))

    def scaled(self, factor: float) -> "Pieces":
        scale = lambda x: None if x is None else x * factor  # noqa: E731
        return Pieces(self.pool * factor, scale(self.cross), scale(self.queries))


def _inner_products(features: dict[str, torch.Tensor], *, stack: bool) -> Pieces:
    """Gram matrices in float64 of features ``[rows, columns, d]``: one per column (``stack``), or their mean."""

    def join(
        products: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], a: torch.Tensor, b: torch.Tensor
    ) -> torch.Tensor:
        if stack:
            return torch.stack([products(a[:, k].double(), b[:, k].double()) for k in range(a.shape[1])])
        return products(a.flatten(1).double(), b.flatten(1).double()) / a.shape[1]

    def gram(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a @ b.T

    def squares(a: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return a.square().sum(1)

    pool, queries = features["pool"], features.get("queries")
    if queries is None:
        return Pieces(join(gram, pool, pool), None, None)
    return Pieces(join(gram, pool, pool), join(gram, pool, queries), join(squares, queries, queries))


def _mean(pieces: list[Pieces], normalize: bool) -> Pieces:
    """The mean of kernels; with ``normalize`` each row's kernel with itself is made 1 in each of them first."""
    if normalize:
        pieces = [_cosine(piece) for piece in pieces]

    def mean(parts: list[torch.Tensor]) -> torch.Tensor:
        return sum(parts[1:], start=parts[0]) / len(parts)

    cross = [piece.cross for piece in pieces if piece.cross is not None]
    queries = [piece.queries for piece in pieces if piece.queries is not None]
    return Pieces(
        mean([piece.pool for piece in pieces]), mean(cross) if cross else None, mean(queries) if queries else None
    )


def _cosine(piece: Pieces) -> Pieces:
    rows = piece.pool.diagonal(dim1=-2, dim2=-1).clamp_min(1e-300).rsqrt()
    pool = piece.pool * rows[..., :, None] * rows[..., None, :]
    if piece.cross is None or piece.queries is None:
        return Pieces(pool, None, None)
    columns = piece.queries.clamp_min(1e-300).rsqrt()
    return Pieces(pool, piece.cross * rows[..., :, None] * columns[..., None, :], torch.ones_like(piece.queries))
