"""Fitting an eigen basis, and measuring what a basis keeps.

Two passes over a sample of rows. The first accumulates, in float64, the second moments of each block's activations
(with 1 for the bias) and output gradients over the positions that carry a gradient, so that padding does not count;
their leading eigenvectors are the candidate directions. The second measures the mean square of every candidate entry of
``L^T G R`` over the sample. The ``floats_per_row`` largest entries of all blocks together are kept: blocks, and
directions within a block, get room in proportion to the gradient they carry.

The sample may come from several sources, such as preconditioned gradients of a pool and plain ones of queries. Each has
second moments of its own: of a preconditioned one those of the gradients themselves, ``sum G G^T`` and ``sum G^T G``,
since its directions are not those of the factors, and half of their weight is on what differs between rows: what the
momentum adds to every row shifts all products alike. The sources count alike, whatever their scales: in each block their
moments are divided by their traces, and their energies by the sum over all candidate entries.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hfdataopt.console import warn
from hfdataopt.errors import DataError, OptionError
from hfdataopt.gradients.basis import KINDS, Basis, BasisKind, Part, _check_budget, _describe
from hfdataopt.gradients.batches import Batch, RowId, choose_rows, nonfinite_error, take_rows
from hfdataopt.gradients.blocks import Block, Layers
from hfdataopt.gradients.capture import Captured, complete
from hfdataopt.gradients.factors import squared_norms
from hfdataopt.gradients.losses import CustomLoss, Logit, Target
from hfdataopt.gradients.precondition import Precondition, preconditioned
from hfdataopt.gradients.runner import MemoryLimit, OnNonfinite, Runner, Weights
from hfdataopt.gradients.second_moments import _Accumulator, _Directions, _groups, _half_centred, _Moments, _sweep

# Rows that the norms of blocks are taken of, for a sketch.
NORM_ROWS = 64


@dataclass(frozen=True)
class Source:
    """Rows of one kind: batches with the target, weights and precondition of their gradients. ``of=None`` takes that of
    the call."""

    batches: Iterable[Batch]
    of: str | Target | None = None
    weights: Weights = None
    precondition: Precondition = None


def fit_basis(
    model: nn.Module,
    batches: Iterable[Batch] | Source | Sequence[Source],
    *,
    of: str | Target = "loss",
    logit: Logit = None,
    layers: Layers = None,
    floats_per_row: int = 8192,
    kind: BasisKind = "eigen",
    seed: int = 0,
    rows: int | None = 256,
    dtype: str | torch.dtype | None = None,
    weights: Weights = None,
    precondition: Precondition = None,
    on_nonfinite: OnNonfinite = "error",
    custom_loss: CustomLoss | None = None,
    memory: MemoryLimit | None = None,
) -> Basis:
    """A basis for the gradients of ``model``.

    ``batches`` is read twice, and holds pool and query rows alike (their ids must differ); ``rows`` of them, chosen by
    (seed, row id), are the sample; None takes all. Where pool and queries differ in target, weights or precondition, pass
    a list with a :class:`Source` for each: ``rows`` is then divided evenly among them, and they count alike. ``exact``
    and ``random`` do not look at the batches, ``sketch`` once at no more than ``NORM_ROWS`` of the sample. An ``exact`` basis
    results whenever the whole gradient has at most ``floats_per_row`` entries. The other options are those of
    :func:`hfdataopt.gradients.per_example_gradients`.

    Raises ``DataError`` when the sample is empty, has no gradient at all, or (unless ``on_nonfinite="skip"``) a row
    of it is not finite.
    """
    if kind not in KINDS:
        raise OptionError(f"kind={kind!r} arrived; it must be one of {', '.join(KINDS)}")
    sources = _sources("fit_basis", batches, weights, precondition)
    shared: dict[str, Any] = {
        "logit": logit,
        "layers": layers,
        "dtype": dtype,
        "custom_loss": custom_loss,
        "memory": memory or MemoryLimit(),
    }
    runners = [
        Runner(model, of=of if source.of is None else source.of, weights=source.weights, **shared) for source in sources
    ]
    blocks = runners[0].blocks
    if kind == "exact" or sum(block.size for block in blocks) <= floats_per_row:
        return Basis.exact(blocks)
    if kind == "random":
        return Basis.random(blocks, floats_per_row, seed)
    _check_budget(blocks, floats_per_row)
    _check_rereadable("fit_basis", sources)
    if kind == "sketch":  # norms need fewer rows than directions
        rows = min(rows or NORM_ROWS, NORM_ROWS)
    samples = [_sample(source, rows if rows is None else max(1, rows // len(sources)), seed) for source in sources]
    sample = [row for chosen in samples for row in chosen]
    if not sample:
        raise DataError("fit_basis: no rows arrived; pass batches of the pool and the queries")

    def sweep(accumulators: Sequence[_Accumulator]) -> None:
        for runner, source, chosen, accumulator in zip(runners, sources, samples, accumulators, strict=True):
            bad = _sweep(runner, take_rows(source.batches, chosen), accumulator)
            if bad and on_nonfinite == "error":
                raise nonfinite_error(bad)

    if kind == "sketch":
        norms = [_Norms(source.precondition) for source in sources]
        sweep(norms)
        shares = torch.stack([accumulator.shares(len(blocks)) for accumulator in norms]).sum(0)
        if not shares.sum() > 0:
            raise _no_gradient(sample)
        sketch = Basis.sketch(blocks, floats_per_row, seed, shares.tolist())
        sketch.sample = sample
        return sketch
    cap = _rank_cap(blocks, floats_per_row)
    parts: list[Part | None] = [None] * len(blocks)
    for group in _groups(blocks, len(sources), sum(source.precondition is not None for source in sources)):
        moments = [_Moments(group, source.precondition) for source in sources]
        sweep(moments)
        directions = _Directions(cap)
        for index in group:
            parts[index] = directions.part(blocks[index], [m.take(index) for m in moments if index in m.left])
    candidate = Basis("eigen", _describe(blocks), [part for part in parts if part is not None], seed=seed)
    energies = [_Energy(candidate, source.precondition) for source in sources]
    sweep(energies)
    found = [energy for accumulator in energies if (energy := accumulator.energy()) is not None]
    if not found:
        raise _no_gradient(sample)
    kept = _keep_largest(candidate, torch.stack(found).sum(0), floats_per_row)
    return Basis("eigen", _describe(blocks), kept, seed=seed, sample=sample)


def kept_share(
    model: nn.Module,
    basis: Basis,
    batches: Iterable[Batch] | Source,
    *,
    of: str | Target = "loss",
    logit: Logit = None,
    layers: Layers = None,
    rows: int | None = 64,
    seed: int = 0,
    dtype: str | torch.dtype | None = None,
    weights: Weights = None,
    precondition: Precondition = None,
    custom_loss: CustomLoss | None = None,
    memory: MemoryLimit | None = None,
    name: str = "rows",
) -> float:
    """Share of the squared gradient norm that ``basis`` keeps, over a sample of ``batches`` (or of one source; after its
    precondition): 1 for ``exact``.

    The sample leaves out the rows that the basis was fitted on where others are there. For ``random`` it is the ratio
    of the feature's norm to the gradient's, 1 in expectation, and says nothing of quality. Warns below 0.5 for
    ``eigen``; ``name`` says in the warning which side it is (pool, queries). NaN when no row has a gradient.
    """
    if basis.kind == "exact":
        return 1.0
    (source,) = sources = _sources("kept_share", batches, weights, precondition)
    _check_rereadable("kept_share", sources)
    runner = Runner(
        model,
        of=of if source.of is None else source.of,
        logit=logit,
        layers=layers,
        weights=source.weights,
        dtype=dtype,
        custom_loss=custom_loss,
        memory=memory,
    )
    basis.check(runner.blocks)
    ids = [row for batch in take_rows(source.batches, None) for row in batch["row_id"]]
    sample = choose_rows(ids, rows or len(ids), seed=seed, exclude=basis.sample) or choose_rows(
        ids, rows or len(ids), seed=seed
    )
    share = _Share(basis, source.precondition)
    _sweep(runner, take_rows(source.batches, sample), share)
    result = share.kept / share.whole if share.whole > 0 else float("nan")
    if basis.kind == "eigen" and result < 0.5:
        warn(
            f"gradients: the basis keeps {result:.2f} of the squared gradient norm of the {name}; raise floats_per_row "
            f"({basis.size} now), or fit the basis on rows like these"
        )
    return result


def _sources(
    who: str, batches: Iterable[Batch] | Source | Sequence[Source], weights: Weights, precondition: Precondition
) -> list[Source]:
    """What arrived as sources: batches alone are one."""
    given: list[Any] = (
        [batches] if isinstance(batches, Source) else list(batches) if isinstance(batches, list | tuple) else []
    )
    if not any(isinstance(source, Source) for source in given):
        sources = [Source(batches, None, weights, precondition)]  # type: ignore[arg-type]
    elif weights is not None or precondition is not None or not all(isinstance(source, Source) for source in given):
        raise OptionError(f"{who}: a Source holds its own weights and precondition, and is not mixed with batches")
    else:
        sources = given
    return sources


def _check_rereadable(who: str, sources: Sequence[Source]) -> None:
    for source in sources:
        if iter(source.batches) is source.batches:
            raise OptionError(
                f"{who} reads the batches twice, but a one-time iterator arrived; pass a list or a data loader"
            )
        if isinstance(source.weights, Sequence | Tensor):
            raise OptionError(f"{who} takes weights by row id (a mapping) or from the batch key 'weights'")


def _sample(source: Source, count: int | None, seed: int) -> list[RowId]:
    ids = [row for batch in take_rows(source.batches, None) for row in batch["row_id"]]
    return ids if count is None else choose_rows(ids, count, seed=seed)


def _no_gradient(sample: Sequence[RowId]) -> DataError:
    return DataError(f"fit_basis: the gradient of all {len(sample)} sampled rows is zero; are all labels ignored?")


class _Energy(_Accumulator):
    """For each feature the rows seen, the sum and the sum of squares over them, float64, of one source."""

    def __init__(self, basis: Basis, precondition: Precondition) -> None:
        super().__init__()
        self.basis = basis
        self.precondition = precondition
        self.sums: Tensor | None = None

    def add(self, index: int, block: Block, captured: list[Captured]) -> None:
        features = _features(self.basis, index, block, captured, self.precondition).double()
        if self.sums is None:
            self.sums = features.new_zeros(3, self.basis.size)
        place = slice(self.basis.offsets[index], self.basis.offsets[index + 1])
        self.sums[0, place] += len(features)
        self.sums[1, place] += features.sum(0)
        self.sums[2, place] += features.square().sum(0)

    def energy(self) -> Tensor | None:
        """``[d]`` on the CPU: the share of each candidate entry in the squared norm, for a preconditioned source averaged
        with that in the variance; None without any gradient."""
        if self.sums is None or not (self.sums[2] > 0).any():
            return None
        rows, total, squares = self.sums.cpu()
        energy = squares if self.precondition is None else _half_centred(squares, total.square() / rows.clamp_min(1))
        return energy / energy.sum()


class _Norms(_Accumulator):
    """Sum over rows of the squared norm of each block's gradient, of one source."""

    def __init__(self, precondition: Precondition) -> None:
        super().__init__()
        self.precondition = precondition
        self.squares: dict[int, float] = {}

    def add(self, index: int, block: Block, captured: list[Captured]) -> None:
        self.squares[index] = self.squares.get(index, 0.0) + _squared_norm(block, captured, self.precondition)

    def shares(self, count: int) -> Tensor:
        """Norms ``[blocks]`` over their sum; zeros where there is no gradient at all."""
        norms = torch.tensor([self.squares.get(index, 0.0) for index in range(count)], dtype=torch.float64).sqrt()
        return norms / norms.sum().clamp_min(1e-300)


class _Share(_Accumulator):
    """Squared norm of the features and of the gradients."""

    def __init__(self, basis: Basis, precondition: Precondition) -> None:
        super().__init__()
        self.basis = basis
        self.precondition = precondition
        self.kept = self.whole = 0.0

    def add(self, index: int, block: Block, captured: list[Captured]) -> None:
        kept = _features(self.basis, index, block, captured, self.precondition).double().square().sum()
        self.kept += float(kept)
        self.whole += _squared_norm(block, captured, self.precondition)


def _squared_norm(block: Block, captured: list[Captured], precondition: Precondition) -> float:
    """Of the gradients of all rows together."""
    if precondition is None:
        return float(squared_norms(complete(block, captured), block.rows, block.columns).sum())
    return float(preconditioned(block, captured, precondition).double().square().sum())


def _features(basis: Basis, index: int, block: Block, captured: list[Captured], precondition: Precondition) -> Tensor:
    if precondition is None:
        return basis.project(index, block, captured)
    return basis.project_matrix(index, preconditioned(block, captured, precondition))


def _rank_cap(blocks: Sequence[Block], floats_per_row: int) -> int:
    """Most directions per side: twice what an even division would give, which bounds the cost of projecting."""
    cap = max(2, round(2 * (floats_per_row / len(blocks)) ** 0.5))
    return cap if cap < 16 else cap - cap % 16  # widths that matrix products are fast at


def _keep_largest(candidate: Basis, energy: Tensor, floats_per_row: int) -> list[Part]:
    """The candidate parts cut down to the ``floats_per_row`` entries with the most energy; at least one per block."""
    first = torch.tensor([int(energy[a:b].argmax()) + a for a, b in _spans(candidate)])
    ranked = energy.clone()
    ranked[first] = float("inf")
    chosen = ranked.sort(descending=True, stable=True).indices[:floats_per_row].sort().values
    widest: dict[int, int] = {}
    cut = []
    for part, (start, stop) in zip(candidate.parts, _spans(candidate), strict=True):
        keep = chosen[(chosen >= start) & (chosen < stop)] - start
        assert part.left is not None
        assert part.right is not None
        width = part.right.shape[1]
        rows, columns = keep // width, keep % width
        left = int(rows.max()) + 1
        widest[id(part.right)] = max(widest.get(id(part.right), 0), int(columns.max()) + 1)
        cut.append((part.left[:, :left].cpu().contiguous(), part.right, rows, columns))
    rights = {id(right): right[:, : widest[id(right)]].cpu().contiguous() for _, right, _, _ in cut}
    parts = []
    for small_left, right, rows, columns in cut:
        small_right = rights[id(right)]
        entries = rows * small_right.shape[1] + columns
        whole = len(entries) == small_left.shape[1] * small_right.shape[1]
        parts.append(Part(small_left, small_right, None if whole else entries, len(entries)))
    return parts


def _spans(basis: Basis) -> list[tuple[int, int]]:
    return list(zip(basis.offsets[:-1], basis.offsets[1:], strict=True))
