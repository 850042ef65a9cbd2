"""Fitting an eigen basis, and measuring what a basis keeps.

Two passes over a sample of rows. The first accumulates, in float64, the second moments of each block's activations
(with 1 for the bias) and output gradients over the positions that carry a gradient, so that padding does not count;
their leading eigenvectors are the candidate directions. The second measures the mean square of every candidate entry of
``L^T G R`` over the sample. The ``floats_per_row`` largest entries of all blocks together are kept: blocks, and
directions within a block, get room in proportion to the gradient they carry.

The sample may come from several sources, such as preconditioned gradients of a pool and plain ones of queries. Each has
second moments of its own: of a preconditioned one those of the gradients themselves, ``sum G G^T`` and ``sum G^T G``,
since its directions are not those of the factors. The sources count alike, whatever their scales: in each block their
moments are divided by their traces, and their energies by the sum over all candidate entries.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hfdataopt.errors import DataError, OptionError
from hfdataopt.gradients.basis import KINDS, Basis, BasisKind, Part, _check_budget, _describe, same_tensor
from hfdataopt.gradients.batches import Batch, RowId, choose_rows, nonfinite_error, take_rows
from hfdataopt.gradients.blocks import Block, Layers
from hfdataopt.gradients.capture import Captured, complete
from hfdataopt.gradients.factors import finite_rows, is_index, squared_norms, used_positions
from hfdataopt.gradients.losses import CustomLoss, Logit, Target
from hfdataopt.gradients.precondition import Precondition, preconditioned
from hfdataopt.gradients.runner import MemoryLimit, OnNonfinite, Runner, Weights

# A side longer than this (a vocabulary) gets coordinates instead of eigenvectors: no [size, size] matrix is made.
LONGEST_SIDE = 16384
# Bytes of float64 second moments held at once; blocks beyond it are fitted in further passes over the sample.
MOMENT_BYTES = 4 * 2**30


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
    and ``random`` do not look at the batches. An ``exact`` basis results whenever the whole gradient has at most
    ``floats_per_row`` entries. The other options are those of :func:`hfdataopt.gradients.per_example_gradients`.

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
    samples = [_sample(source, rows if rows is None else max(1, rows // len(sources)), seed) for source in sources]
    sample = [row for chosen in samples for row in chosen]
    if not sample:
        raise DataError("fit_basis: no rows arrived; pass batches of the pool and the queries")

    def sweep(accumulators: Sequence[_Accumulator]) -> None:
        for runner, source, chosen, accumulator in zip(runners, sources, samples, accumulators, strict=True):
            bad = _sweep(runner, take_rows(source.batches, chosen), accumulator)
            if bad and on_nonfinite == "error":
                raise nonfinite_error(bad)

    cap = _rank_cap(blocks, floats_per_row)
    parts: list[Part | None] = [None] * len(blocks)
    for group in _groups(blocks, len(sources)):
        moments = [_Moments(group, source.precondition) for source in sources]
        sweep(moments)
        directions = _Directions(cap)
        for index in group:
            parts[index] = directions.part(blocks[index], [m.take(index) for m in moments if index in m.left])
    candidate = Basis("eigen", _describe(blocks), [part for part in parts if part is not None], seed=seed)
    energies = [_Energy(candidate, source.precondition) for source in sources]
    sweep(energies)
    totals = [energy.total.cpu() for energy in energies if energy.total is not None and (energy.total > 0).any()]
    if not totals:
        raise DataError(f"fit_basis: the gradient of all {len(sample)} sampled rows is zero; are all labels ignored?")
    energy = sum((total / total.sum() for total in totals[1:]), totals[0] / totals[0].sum())
    return Basis("eigen", _describe(blocks), _keep_largest(candidate, energy, floats_per_row), seed=seed, sample=sample)


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
        warnings.warn(
            f"gradients: the basis keeps {result:.2f} of the squared gradient norm of the {name}; raise floats_per_row "
            f"({basis.size} now), or fit the basis on rows like these",
            stacklevel=2,
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


class _Accumulator:
    """A collector that adds up over batches, and leaves out rows that are not finite.

    When a batch fails for want of memory, its rows come again in smaller batches: the blocks that it had already handed
    over are not counted twice.
    """

    def __init__(self) -> None:
        self.bad: list[Tensor] = []

    def add(self, index: int, block: Block, captured: list[Captured]) -> None:
        raise NotImplementedError


class _Pass:
    def __init__(self, accumulator: _Accumulator, size: int, failed: Any) -> None:
        self.accumulator = accumulator
        self.ok = torch.ones(size, dtype=torch.bool)
        self.done: set[int] = set() if failed is None else set(failed.done)

    def __call__(self, index: int, block: Block, captured: list[Captured]) -> None:
        if index in self.done:
            return
        ok = finite_rows([(left, right) for left, right, _ in captured])
        if not ok.all():
            self.ok &= ok.cpu()
            captured = [Captured(left[ok], right[ok], bias) for left, right, bias in captured]
        self.accumulator.add(index, block, captured)
        self.done.add(index)


def _sweep(runner: Runner, batches: Iterable[Batch], accumulator: _Accumulator) -> list[RowId]:
    """Run the batches; returns the ids of rows that are not finite."""
    bad: list[RowId] = []
    for piece in runner.pieces(batches, lambda size, failed: _Pass(accumulator, size, failed)):
        ok = piece.collector.ok & torch.isfinite(piece.loss_sum)
        bad += [row for row, good in zip(piece.row_ids, ok.tolist(), strict=True) if not good]
    return bad


class _Moments(_Accumulator):
    """Second moments of both sides of the blocks in ``group``, of one source; a vector for sides longer than LONGEST_SIDE
    or one-hot."""

    def __init__(self, group: Sequence[int], precondition: Precondition) -> None:
        super().__init__()
        self.group = set(group)
        self.precondition = precondition
        self.left: dict[int, Tensor] = {}
        self.right: dict[int, Tensor] = {}
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    def add(self, index: int, block: Block, captured: list[Captured]) -> None:
        if index not in self.group:
            return
        if self.precondition is not None:
            gradient = preconditioned(block, captured, self.precondition)
            self._plus(
                index,
                _second_moment(gradient.transpose(1, 2).reshape(-1, block.rows), block.rows),
                _second_moment(gradient.reshape(-1, block.columns), block.columns),
            )
            return
        for (left, right), (_, given, _) in zip(complete(block, captured), captured, strict=True):
            mask = used_positions(left, right)
            new_left = _second_moment(left[mask], block.rows)
            self._plus(index, new_left, self._right_moment(given, right, mask, block.columns))

    def take(self, index: int) -> tuple[Tensor, Tensor]:
        """Both moments of a block, which are then no longer held."""
        return self.left.pop(index), self.right.pop(index)

    def _plus(self, index: int, left: Tensor, right: Tensor) -> None:
        self.left[index] = _plus(self.left.get(index), left)
        self.right[index] = _plus(self.right.get(index), right)

    def _right_moment(self, given: Tensor, right: Tensor, mask: Tensor, size: int) -> Tensor:
        """Second moment of ``right``; the one before, if it was of the same tensor (query, key and value layers)."""
        if self._last is not None:
            last_given, last_mask, moment = self._last
            if same_tensor(last_given, given) and len(moment) == size and torch.equal(last_mask, mask):
                return moment
        moment = _second_moment(right[mask], size)
        self._last = (given, mask, moment)
        return moment


class _Directions:
    """The candidate parts of blocks: up to ``cap`` leading directions on each side."""

    def __init__(self, cap: int) -> None:
        self.cap = cap
        self._vectors: list[tuple[Tensor, Tensor]] = []

    def part(self, block: Block, moments: Sequence[tuple[Tensor, Tensor]]) -> Part:
        """The part of a block from both moments of each source that has a gradient in it."""
        if not moments:
            return Part(torch.zeros(block.rows, 1), torch.zeros(block.columns, 1), None, 1)
        left, right = (_alike([pair[side] for pair in moments]) for side in (0, 1))
        small_left, small_right = leading(left, self.cap), self._right_vectors(right)
        return Part(small_left, small_right, None, small_left.shape[1] * small_right.shape[1])

    def _right_vectors(self, moment: Tensor) -> Tensor:
        """Leading eigenvectors; the very tensor of an earlier block whose inputs had the same second moment."""
        for known, vectors in self._vectors:
            if known.shape == moment.shape and torch.equal(known, moment):
                return vectors
        self._vectors.append((moment, leading(moment, self.cap)))
        return self._vectors[-1][1]


class _Energy(_Accumulator):
    """Sum over rows of the square of each feature, ``[d]`` float64."""

    def __init__(self, basis: Basis, precondition: Precondition) -> None:
        super().__init__()
        self.basis = basis
        self.precondition = precondition
        self.total: Tensor | None = None

    def add(self, index: int, block: Block, captured: list[Captured]) -> None:
        features = _features(self.basis, index, block, captured, self.precondition)
        if self.total is None:
            self.total = features.new_zeros(self.basis.size, dtype=torch.float64)
        self.total[self.basis.offsets[index] : self.basis.offsets[index + 1]] += features.double().square().sum(0)


class _Share(_Accumulator):
    """Squared norm of the features and of the gradients."""

    def __init__(self, basis: Basis, precondition: Precondition) -> None:
        super().__init__()
        self.basis = basis
        self.precondition = precondition
        self.kept = self.whole = 0.0

    def add(self, index: int, block: Block, captured: list[Captured]) -> None:
        kept = _features(self.basis, index, block, captured, self.precondition).double().square().sum()
        if self.precondition is None:
            whole = squared_norms(complete(block, captured), block.rows, block.columns).sum()
        else:
            whole = preconditioned(block, captured, self.precondition).double().square().sum()
        self.kept += float(kept)
        self.whole += float(whole)


def _features(basis: Basis, index: int, block: Block, captured: list[Captured], precondition: Precondition) -> Tensor:
    if precondition is None:
        return basis.project(index, block, captured)
    return basis.project_matrix(index, preconditioned(block, captured, precondition))


def leading(moment: Tensor, cap: int) -> Tensor:
    """Up to ``cap`` leading eigenvectors ``[size, r]`` of a second moment, float32; coordinates for a diagonal one.

    Signs are fixed (largest component positive), directions without any variance left out.
    """
    if moment.dim() == 1:
        order = moment.sort(descending=True, stable=True).indices[:cap]
        order = order[moment[order] > 0]
        matrix = moment.new_zeros((len(moment), max(1, len(order))), dtype=torch.float32)
        matrix[order, torch.arange(len(order), device=moment.device)] = 1
        return matrix
    values, vectors = torch.linalg.eigh(moment)
    kept = values.flip(0)[:cap] > values[-1] * 1e-12
    vectors = vectors.flip(1)[:, :cap][:, kept] if kept.any() else vectors[:, -1:]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return (vectors * largest.sign()).float()


def _second_moment(side: Tensor, size: int) -> Tensor:
    if is_index(side):
        return torch.bincount(side, minlength=size).double()
    side = side.double()
    return side.square().sum(0) if size > LONGEST_SIDE else side.T @ side


def _alike(moments: Sequence[Tensor]) -> Tensor:
    """The moments of several sources added up, each divided by its trace; the moment of a single one as it is."""
    if len(moments) == 1:
        return moments[0]
    total: Tensor | None = None
    for moment in moments:
        trace = moment.sum() if moment.dim() == 1 else moment.trace()
        total = _plus(total, moment / trace.clamp_min(1e-300))
    assert total is not None
    return total


def _plus(total: Tensor | None, new: Tensor) -> Tensor:
    if total is None:
        return new
    if total.dim() == new.dim():
        return total + new  # not in place: blocks may share the tensor
    # A weight used both as an embedding and as a head: only the diagonal is at hand for one of them.
    return (total if total.dim() == 1 else total.diagonal()) + (new if new.dim() == 1 else new.diagonal())


def _rank_cap(blocks: Sequence[Block], floats_per_row: int) -> int:
    """Most directions per side: twice what an even division would give, which bounds the cost of projecting."""
    cap = max(2, round(2 * (floats_per_row / len(blocks)) ** 0.5))
    return cap if cap < 16 else cap - cap % 16  # widths that matrix products are fast at


def _groups(blocks: Sequence[Block], sources: int = 1) -> list[list[int]]:
    """Blocks divided so that the moments of one group, of all sources, fit into MOMENT_BYTES."""
    groups: list[list[int]] = [[]]
    used = 0
    for index, block in enumerate(blocks):
        size = sources * sum(
            8 * (side * side if side <= LONGEST_SIDE else side) for side in (block.rows, block.columns)
        )
        if groups[-1] and used + size > MOMENT_BYTES:
            groups.append([])
            used = 0
        groups[-1].append(index)
        used += size
    return groups


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
