"""Second moments of gradients over a sample of rows, and the directions that lead in them.

Of plain gradients these are the moments of the factors, over the positions that carry a gradient; of preconditioned ones
those of the gradients themselves. All sums are float64.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from hfdataopt.gradients.basis import Part, same_tensor
from hfdataopt.gradients.batches import Batch, RowId
from hfdataopt.gradients.blocks import Block
from hfdataopt.gradients.capture import Captured, complete
from hfdataopt.gradients.factors import finite_rows, is_index, used_positions
from hfdataopt.gradients.precondition import Precondition, preconditioned
from hfdataopt.gradients.runner import Runner

# A side longer than this (a vocabulary) gets coordinates instead of eigenvectors: no [size, size] matrix is made.
LONGEST_SIDE = 16384
# Bytes of float64 second moments held at once; blocks beyond it are fitted in further passes over the sample.
MOMENT_BYTES = 4 * 2**30


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
        self._sum: dict[int, tuple[int, Tensor]] = {}  # rows and the sum of their gradients, of a preconditioned source
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    def add(self, index: int, block: Block, captured: list[Captured]) -> None:
        if index not in self.group:
            return
        if self.precondition is not None:
            gradient = preconditioned(block, captured, self.precondition)
            self._plus(index, *_both_moments(gradient))
            total = gradient.sum(0, dtype=torch.float64)
            rows, before = self._sum.get(index, (0, torch.zeros_like(total)))
            self._sum[index] = rows + len(gradient), before + total
            return
        for (left, right), (_, given, _) in zip(complete(block, captured), captured, strict=True):
            mask = used_positions(left, right)
            new_left = _second_moment(left[mask], block.rows)
            self._plus(index, new_left, self._right_moment(given, right, mask, block.columns))

    def take(self, index: int) -> tuple[Tensor, Tensor]:
        """Both moments of a block, which are then no longer held."""
        left, right = self.left.pop(index), self.right.pop(index)
        if index in self._sum:
            rows, total = self._sum.pop(index)
            both = _both_moments(total.unsqueeze(0))
            left, right = (_half_centred(m, common / rows) for m, common in zip((left, right), both, strict=True))
        return left, right

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


def _half_centred(moment: Tensor, common: Tensor) -> Tensor:
    """The mean of a moment and of what is left of it without the part that all rows have in common, each by its trace; the
    moment as it is where nothing but rounding is left."""
    centred = moment - common
    return moment if _trace(centred) <= 1e-9 * _trace(moment) else _alike([moment, centred])


def _trace(moment: Tensor) -> Tensor:
    return moment.sum() if moment.dim() == 1 else moment.trace()


def _both_moments(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """``sum G G^T`` and ``sum G^T G`` of gradients ``[b, rows, columns]``."""
    _, rows, columns = gradient.shape
    left = _second_moment(gradient.transpose(1, 2).reshape(-1, rows), rows)
    return left, _second_moment(gradient.reshape(-1, columns), columns)


def _alike(moments: Sequence[Tensor]) -> Tensor:
    """The mean of several moments, each divided by its trace; a single one as it is."""
    if len(moments) == 1:
        return moments[0]
    total: Tensor | None = None
    for moment in moments:
        total = _plus(total, moment / _trace(moment).clamp_min(1e-300) / len(moments))
    assert total is not None
    return total


def _plus(total: Tensor | None, new: Tensor) -> Tensor:
    if total is None:
        return new
    if total.dim() == new.dim():
        return total + new  # not in place: blocks may share the tensor
    # A weight used both as an embedding and as a head: only the diagonal is at hand for one of them.
    return (total if total.dim() == 1 else total.diagonal()) + (new if new.dim() == 1 else new.diagonal())


def _groups(blocks: Sequence[Block], sources: int = 1, whole: int = 0) -> list[list[int]]:
    """Blocks divided so that what is held of one group fits into MOMENT_BYTES: moments of each source, and for ``whole`` of
    them the sum of gradients."""
    groups: list[list[int]] = [[]]
    used = 0
    for index, block in enumerate(blocks):
        moments = sum(side * side if side <= LONGEST_SIDE else side for side in (block.rows, block.columns))
        size = 8 * (sources * moments + whole * block.size)
        if groups[-1] and used + size > MOMENT_BYTES:
            groups.append([])
            used = 0
        groups[-1].append(index)
        used += size
    return groups
