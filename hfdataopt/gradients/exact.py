"""Exact dot products and norms of per-example gradients, without storing the gradients of all rows.

Per block the cheaper of two forms is taken: gradients made whole (``rows * columns`` products per pair), or inner
products between positions (``T * U * (rows + columns)`` per pair, for short inputs and long sides). The gradients of as
many columns as memory allows are held; the rows stream past them. Sums over blocks are float64.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hfdataopt.errors import OptionError
from hfdataopt.gradients.batches import Batch, RowId, batch_positions, batch_size, nonfinite_error
from hfdataopt.gradients.blocks import Block, Layers
from hfdataopt.gradients.capture import Captured, complete
from hfdataopt.gradients.factors import Uses, finite_rows, materialise, pair_products, squared_norms
from hfdataopt.gradients.losses import CustomLoss, Logit, Target
from hfdataopt.gradients.precondition import Precondition, preconditioned
from hfdataopt.gradients.runner import MemoryLimit, Piece, Runner, Weights


def gram(
    model: nn.Module,
    rows: Sequence[Batch],
    columns: Sequence[Batch] | None = None,
    *,
    of: str | Target = "loss",
    logit: Logit = None,
    layers: Layers = None,
    weights: Weights = None,
    precondition: Precondition = None,
    dtype: str | torch.dtype | None = None,
    custom_loss: CustomLoss | None = None,
    memory: MemoryLimit | None = None,
    memory_bytes: int = 2**30,
) -> Tensor:
    """Dot products ``<G_i, G_j>`` of the gradients of all rows with those of all columns: ``[n, m]`` float64 on the
    CPU.

    ``rows`` and ``columns`` are batches (lists or data loaders: they may be read several times), in the order of the
    result; without ``columns``, the rows against themselves. ``memory_bytes`` bounds what is held of the columns; with
    less, the rows are run more often. Other options as in :func:`hfdataopt.gradients.per_example_gradients`;
    ``weights`` here must come by row id or with the batches.

    Raises ``DataError`` naming the rows whose gradient is not finite.
    """
    for name, batches in (("rows", rows), ("columns", columns)):
        if batches is not None and iter(batches) is batches:
            raise OptionError(
                f"gram: {name} is an iterator that can be read once; pass a list of batches or a data loader"
            )
    if isinstance(weights, Sequence | Tensor):
        raise OptionError("gram takes weights by row id (a mapping) or from the batch key 'weights'")

    runner = Runner(
        model, of=of, logit=logit, layers=layers, weights=weights, dtype=dtype, custom_loss=custom_loss, memory=memory
    )
    chunks = _chunks(runner.blocks, rows if columns is None else columns, memory_bytes)
    parts = []
    for chunk in chunks:
        part: Tensor | None = None
        for group in _groups(runner.blocks, chunk, memory_bytes):
            held = _Held(runner.blocks, group, memory_bytes, precondition)
            _check(list(runner.pieces(chunk.batches, held.collector)))
            if columns is None and len(chunks) == 1:
                new = held.against_itself()
            else:
                pieces = runner.pieces(rows, held.row)
                products = []
                for piece in pieces:
                    _check([piece])
                    products.append(piece.collector.products.cpu())
                new = torch.cat(products) if products else torch.zeros(0, held.size, dtype=torch.float64)
            part = new if part is None else part + new
        assert part is not None
        parts.append(part)
    return torch.cat(parts, dim=1) if parts else torch.zeros(0, 0, dtype=torch.float64)


@dataclass
class ExampleNorms:
    """Exact squared gradient norms ``squared_norm [b]`` (float64), ``loss_sum [b]`` and ``tokens [b]`` of a batch."""

    row_ids: list[RowId]
    squared_norm: Tensor
    loss_sum: Tensor
    tokens: Tensor


def gradient_norms(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    of: str | Target = "loss",
    logit: Logit = None,
    layers: Layers = None,
    weights: Weights = None,
    precondition: Precondition = None,
    dtype: str | torch.dtype | None = None,
    custom_loss: CustomLoss | None = None,
    memory: MemoryLimit | None = None,
) -> Iterator[ExampleNorms]:
    """Squared norm of every row's gradient over the tracked layers, batch by batch, without storing gradients.

    Not finite where the gradient is not. Options as in :func:`hfdataopt.gradients.per_example_gradients`.
    """
    runner = Runner(
        model, of=of, logit=logit, layers=layers, weights=weights, dtype=dtype, custom_loss=custom_loss, memory=memory
    )
    for piece in runner.pieces(batches, lambda size, failed: _Norms(size, precondition)):
        _one_column(piece)
        yield ExampleNorms(piece.row_ids, piece.collector.total, piece.loss_sum, piece.tokens)


class _Norms:
    def __init__(self, size: int, precondition: Precondition) -> None:
        self.total = torch.zeros(size, dtype=torch.float64)
        self.precondition = precondition

    def __call__(self, index: int, block: Block, captured: list[Captured]) -> None:
        if self.precondition is None:
            new = squared_norms(complete(block, captured), block.rows, block.columns)
        else:
            new = preconditioned(block, captured, self.precondition).double().square().sum(dim=(1, 2))
        self.total += new.cpu()


@dataclass
class _Chunk:
    """Column batches held at once, with their largest size and length."""

    batches: list[Batch] = field(default_factory=list)
    size: int = 0
    length: int = 1


class _Gradients:
    """Gradients of the rows of one batch, block by block: ``[b, rows * columns]``, or factors."""

    def __init__(self, held: "_Held", size: int) -> None:
        self.held = held
        self.size = size
        self.ok = torch.ones(size, dtype=torch.bool)
        self.whole: dict[int, Tensor] = {}
        self.factors: dict[int, Uses] = {}

    def take(self, index: int, block: Block, captured: list[Captured]) -> Tensor | Uses:
        self.ok &= finite_rows([(left, right) for left, right, _ in captured]).cpu()
        if self.held.precondition is not None:
            return preconditioned(block, captured, self.held.precondition).flatten(1)
        uses = complete(block, captured)
        positions = max(left.shape[1] for left, _ in uses)
        if self.held.whole(index, block, self.size, positions):
            return materialise(uses, block.rows, block.columns).flatten(1)
        return uses


class _Column(_Gradients):
    """Keeps the gradients of a batch of columns."""

    def __call__(self, index: int, block: Block, captured: list[Captured]) -> None:
        if index in self.held.group:
            taken = self.take(index, block, captured)
            if isinstance(taken, Tensor):
                self.whole[index] = taken
            else:
                self.factors[index] = taken


class _Row(_Gradients):
    """Multiplies the gradients of a batch of rows with all columns held."""

    def __init__(self, held: "_Held", size: int) -> None:
        super().__init__(held, size)
        self.products = torch.zeros(size, held.size, dtype=torch.float64)

    def __call__(self, index: int, block: Block, captured: list[Captured]) -> None:
        if index in self.held.group:
            taken = self.take(index, block, captured)
            self.products = self.products + self.held.products(index, block, taken).cpu()


class _Held:
    """The gradients of the columns of one chunk, for one group of blocks."""

    def __init__(
        self, blocks: Sequence[Block], group: Sequence[int], memory_bytes: int, precondition: Precondition
    ) -> None:
        self.blocks = blocks
        self.group = set(group)
        self.memory_bytes = memory_bytes
        self.precondition = precondition
        self.columns: list[_Column] = []
        self._form: dict[int, bool] = {}

    @property
    def size(self) -> int:
        """Columns held."""
        return sum(column.size for column in self.columns)

    def collector(self, size: int, failed: Any) -> _Column:
        if failed is not None:
            self.columns.remove(failed)
        self.columns.append(_Column(self, size))
        return self.columns[-1]

    def row(self, size: int, failed: Any) -> "_Row":
        return _Row(self, size)

    def whole(self, index: int, block: Block, size: int, positions: int) -> bool:
        """Whether the gradients of a block are made whole: decided at its first batch, the same for rows and
        columns."""
        if index not in self._form:
            cheap = block.size <= positions * positions * (block.rows + block.columns)
            self._form[index] = cheap and 4 * size * block.size <= self.memory_bytes
        return self._form[index]

    def products(self, index: int, block: Block, taken: Tensor | Uses) -> Tensor:
        """``[b, columns held]`` float64."""
        parts = []
        for column in self.columns:
            size = len(taken) if isinstance(taken, Tensor) else len(taken[0][0])
            if index in column.whole and isinstance(taken, Tensor):
                parts.append((taken @ column.whole[index].T).double())
            elif index in column.factors and not isinstance(taken, Tensor):
                parts.append(pair_products(taken, column.factors[index]).double())
            else:  # a batch without any gradient in this block
                parts.append(torch.zeros(size, column.size, dtype=torch.float64, device=_device(taken)))
        return torch.cat(parts, dim=1)

    def against_itself(self) -> Tensor:
        """``[columns held, columns held]``."""
        result = []
        for column in self.columns:
            total = torch.zeros(column.size, self.size, dtype=torch.float64)
            kept: dict[int, Tensor | Uses] = {**column.whole, **column.factors}
            for index, taken in kept.items():
                total += self.products(index, self.blocks[index], taken).cpu()
            result.append(total)
        return torch.cat(result) if result else torch.zeros(0, 0, dtype=torch.float64)


def _device(taken: Tensor | Uses) -> torch.device:
    return taken.device if isinstance(taken, Tensor) else taken[0][0].device


def _check(pieces: Iterable[Any]) -> None:
    bad: list[RowId] = []
    for piece in pieces:
        _one_column(piece)
        ok = piece.collector.ok & torch.isfinite(piece.loss_sum)
        bad += [row for row, good in zip(piece.row_ids, ok.tolist(), strict=True) if not good]
    if bad:
        raise nonfinite_error(bad)


def _one_column(piece: Piece) -> None:
    if piece.column:
        raise OptionError("exact products and norms take a target with one column: value [b]; call once per column")


def _block_bytes(block: Block, size: int, length: int) -> int:
    """Upper bound of what one block of a batch takes, in float32."""
    return 4 * size * min(block.size, length * (block.rows + block.columns))


def _chunks(blocks: Sequence[Block], batches: Iterable[Batch], memory_bytes: int) -> list[_Chunk]:
    """Column batches divided so that all blocks of a chunk fit into memory, or one batch to a chunk."""
    chunks: list[_Chunk] = []
    for batch in batches:
        inputs = {key: x for key, x in batch.items() if key not in ("row_id", "weights")}
        size = batch_size(inputs)
        length = batch_positions(inputs, size) // max(1, size)
        if chunks:
            last = chunks[-1]
            joined = sum(_block_bytes(block, last.size + size, max(last.length, length)) for block in blocks)
            if joined <= memory_bytes:
                last.batches.append(batch)
                last.size, last.length = last.size + size, max(last.length, length)
                continue
        chunks.append(_Chunk([batch], size, length))
    return chunks


def _groups(blocks: Sequence[Block], chunk: _Chunk, memory_bytes: int) -> list[list[int]]:
    """Blocks divided so that a chunk's gradients of one group fit into memory, or one block to a group."""
    groups: list[list[int]] = [[]]
    used = 0
    for index, block in enumerate(blocks):
        needed = _block_bytes(block, chunk.size, chunk.length)
        if groups[-1] and used + needed > memory_bytes:
            groups.append([])
            used = 0
        groups[-1].append(index)
        used += needed
    return groups
