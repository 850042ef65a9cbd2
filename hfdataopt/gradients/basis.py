"""Bases: what of a per-example gradient is stored.

- ``exact``: every entry, block after block, each ``G [rows, columns]`` row by row
- ``eigen``: entries of ``L^T G R`` with L and R leading eigenvectors of the second moments of the output gradients and
  of the activations (Choe et al. 2024, arXiv 2405.13954, there called PCA initialisation); which entries of which block
  are kept is decided over all blocks together, see :mod:`hfdataopt.gradients.fit`
- ``random``: ``L^T G R`` with Gaussian L and R; dot products and norms are right in expectation
- ``sketch``: a tensor sketch (Pham and Pagh 2013): entry (i, j) goes, with the sign ``s_i s_j``, into bucket ``h_i + h_j`` modulo
  the number of buckets d. Right in expectation too, with a variance in 1 / d; that of ``random`` is in 1 / sqrt(d), for it has
  only l directions for the rows and r for the columns of ``d = l r``

A basis is fitted once per checkpoint and used for pool and queries alike, so that their features can be multiplied.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hfdataopt.errors import OptionError, StoreError
from hfdataopt.files import write_whole
from hfdataopt.gradients.blocks import Block
from hfdataopt.gradients.capture import Captured, complete
from hfdataopt.gradients.factors import Uses, is_index, materialise

BasisKind = Literal["exact", "eigen", "random", "sketch"]
KINDS = ("exact", "eigen", "random", "sketch")
# Of a sketch from the factors, on a CPU: what an entry of a side and a bucket cost, when an entry of the gradient costs 1.
FACTOR_COSTS = (30, 250)


@dataclass(frozen=True)
class Part:
    """Basis of one block. ``left [rows, l]`` and ``right [columns, r]``, None for the identity; ``keep`` are the
    entries kept of the flattened ``[l, r]`` matrix, None for all. Of a sketch ``left [rows]`` and ``right [columns]`` are
    int64: bucket b with its sign as b + 1 or -(b + 1)."""

    left: Tensor | None
    right: Tensor | None
    keep: Tensor | None
    size: int

    def to(self, device: torch.device, seen: dict[int, Tensor]) -> "Part":
        """The same part with its tensors on ``device``; ``seen`` keeps tensors that parts share shared."""
        left, right, keep = (
            None if x is None else seen.setdefault(id(x), x.to(device)) for x in (self.left, self.right, self.keep)
        )
        return Part(left, right, keep, self.size)


@dataclass
class Basis:
    """A fitted basis: save it, load it, pass it as ``basis=``.

    ``layers`` describes the blocks it is for. ``sample`` are the row ids it was fitted on. ``metadata`` holds
    whatever the caller wants to travel with it (JSON values).
    """

    kind: BasisKind
    layers: list[list[Any]]
    parts: list[Part]
    seed: int = 0
    sample: list[str | int] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.offsets = [0]
        for part in self.parts:
            self.offsets.append(self.offsets[-1] + part.size)
        self._moved: dict[torch.device, list[Part]] = {}

    @property
    def size(self) -> int:
        """Floats per row, d."""
        return self.offsets[-1]

    @property
    def hash(self) -> str:
        """SHA-256 of everything that changes a feature."""
        digest = hashlib.sha256(json.dumps([self.kind, self.layers, self.offsets, self._owners()]).encode())
        for name, tensor in sorted(self._tensors().items()):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    @classmethod
    def exact(cls, blocks: Sequence[Block]) -> "Basis":
        """All entries."""
        parts = [Part(None, None, None, block.size) for block in blocks]
        return cls("exact", _describe(blocks), parts)

    @classmethod
    def random(cls, blocks: Sequence[Block], floats_per_row: int, seed: int) -> "Basis":
        """Two Gaussian matrices per block, with entries of variance 1 / their number of columns.

        They are drawn on the CPU from (seed, block name, side): the same on every device, whatever else was drawn.
        """
        if sum(block.size for block in blocks) <= floats_per_row:
            return cls.exact(blocks)
        _check_budget(blocks, floats_per_row)
        share = floats_per_row // len(blocks)
        parts = []
        for block in blocks:
            side = int(share**0.5)
            left = min(block.rows, side)
            right = min(block.columns, share // left)
            left = min(block.rows, share // right)
            matrices = [
                None if rank == size else _gaussian(size, rank, f"{seed}/{block.name}/{name}")
                for name, size, rank in (("left", block.rows, left), ("right", block.columns, right))
            ]
            parts.append(Part(matrices[0], matrices[1], None, left * right))
        return cls("random", _describe(blocks), parts, seed=seed)

    @classmethod
    def sketch(cls, blocks: Sequence[Block], floats_per_row: int, seed: int, norms: Sequence[float]) -> "Basis":
        """Buckets for each block in proportion to ``norms``, those of its gradients, or all of its entries where they are fewer; drawn
        as :meth:`random` is."""
        if sum(block.size for block in blocks) <= floats_per_row:
            return cls.exact(blocks)
        _check_budget(blocks, floats_per_row)
        parts = []
        for block, share in zip(blocks, _shares([block.size for block in blocks], norms, floats_per_row), strict=True):
            if share == block.size:
                parts.append(Part(None, None, None, share))
                continue
            left, right = (
                _signed_buckets(size, share, f"{seed}/{block.name}/sketch/{name}")
                for name, size in (("left", block.rows), ("right", block.columns))
            )
            parts.append(Part(left, right, None, share))
        return cls("sketch", _describe(blocks), parts, seed=seed)

    def check(self, blocks: Sequence[Block]) -> None:
        """``OptionError`` unless this basis was made for exactly these blocks."""
        wanted = _describe(blocks)
        if wanted != self.layers:
            mine, theirs = {json.dumps(x) for x in self.layers}, {json.dumps(x) for x in wanted}
            raise OptionError(
                f"basis: it was made for {len(mine)} blocks, the model and layers= now give {len(theirs)}; only in the "
                f"basis: {sorted(mine - theirs)[:3]}, only now: {sorted(theirs - mine)[:3]}. Fit a basis for this "
                f"model "
                "and these layers, or pass the layers= it was fitted with"
            )

    def on(self, device: torch.device) -> list[Part]:
        """The parts on ``device``, moved once."""
        if device not in self._moved:
            seen: dict[int, Tensor] = {}
            self._moved[device] = [part.to(device, seen) for part in self.parts]
        return self._moved[device]

    def project(
        self, index: int, block: Block, captured: Sequence[Captured], seen: "SharedRight | None" = None
    ) -> Tensor:
        """Features ``[batch, size of the part]`` of block ``index`` from its factors.

        ``seen`` carries the last projected input from block to block: query, key and value layers read the same one.
        """
        part = self.on(captured[0].left.device)[index]
        if part.left is None and part.right is None:
            return materialise(complete(block, captured), block.rows, block.columns).flatten(1)
        if self.kind == "sketch":
            return _sketch(complete(block, captured), block, part)
        total: Tensor | None = None
        for left, right, bias in captured:
            if part.right is None:
                ((_, right),) = complete(block, [Captured(left, right, bias)])
                small_right = _dense(right, block.columns).transpose(1, 2)
            else:
                small_right = seen.get(right, part.right) if seen is not None else _times(right, part.right)
                if bias is not None and not block.vector:
                    small_right = small_right + part.right[block.inputs + bias].unsqueeze(-1)
            if part.left is None and is_index(left):
                product = materialise([(left, small_right.transpose(1, 2))], block.rows, small_right.shape[1])
            else:
                small_left = left.float().transpose(1, 2) if part.left is None else _times(left, part.left)
                product = torch.bmm(small_left, small_right.transpose(1, 2))
            total = product if total is None else total.add_(product)
        assert total is not None
        flat = total.flatten(1)
        return flat if part.keep is None else flat.index_select(1, part.keep)

    def project_matrix(self, index: int, gradient: Tensor) -> Tensor:
        """Features of block ``index`` from materialised gradients ``[batch, rows, columns]``."""
        part = self.on(gradient.device)[index]
        if self.kind == "sketch" and part.left is not None and part.right is not None:
            return _sketch_matrix(gradient, part.left, part.right, part.size)
        if part.left is not None:
            gradient = torch.matmul(part.left.T, gradient)
        if part.right is not None:
            gradient = torch.matmul(gradient, part.right)
        flat = gradient.flatten(1)
        return flat if part.keep is None else flat.index_select(1, part.keep)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``basis.safetensors`` and ``basis.json`` into ``folder``; the JSON file last, by renaming."""
        path = Path(folder)
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_whole(path / "basis.safetensors", save(self._tensors()))
            write_whole(path / "basis.json", json.dumps(self._header() | {"hash": self.hash}, indent=1).encode())
        except (OSError, SafetensorError) as error:
            raise StoreError(f"basis: cannot write to {path}: {error}; free space or choose another folder") from error

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Basis":
        """Read what :meth:`save` wrote. ``StoreError`` when it is missing, incomplete or altered."""
        path = Path(folder)
        try:
            header = json.loads((path / "basis.json").read_text())
            with safe_open(path / "basis.safetensors", framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            parts = [
                Part(tensors.get(f"{index}.left"), tensors.get(f"{owner}.right"), tensors.get(f"{index}.keep"), size)
                for index, (owner, size) in enumerate(zip(header["right"], header["sizes"], strict=True))
            ]
            basis = cls(header["kind"], header["layers"], parts, header["seed"], header["sample"], header["metadata"])
            same = basis.hash == header["hash"]
            basis._check_buckets()
        except Exception as error:
            raise StoreError(
                f"basis: {path} holds no readable basis ({error}); delete the folder and fit again"
            ) from error
        if not same:
            raise StoreError(f"basis: the files in {path} do not belong together; delete the folder and fit again")
        return basis

    def _check_buckets(self) -> None:
        """``ValueError`` where a part of a sketch has a bucket that is not there."""
        for part in self.parts if self.kind == "sketch" else ():
            for side in (part.left, part.right):
                if side is not None and not (int(side.abs().min()) >= 1 and int(side.abs().max()) <= part.size):
                    raise ValueError("a bucket of a sketch is out of range")

    def _header(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "layers": self.layers,
            "sizes": [part.size for part in self.parts],
            "right": self._owners(),
            "seed": self.seed,
            "sample": self.sample,
            "metadata": self.metadata,
        }

    def _owners(self) -> list[int]:
        """For each part, the first part that has the same right matrix."""
        first: dict[int, int] = {}
        return [first.setdefault(id(part.right), index) for index, part in enumerate(self.parts)]

    def _tensors(self) -> dict[str, Tensor]:
        owners = self._owners()
        return {
            f"{index}.{side}": tensor.cpu().contiguous()
            for index, part in enumerate(self.parts)
            for side in ("left", "right", "keep")
            if (tensor := getattr(part, side)) is not None and (side != "right" or owners[index] == index)
        }


def _describe(blocks: Sequence[Block]) -> list[list[Any]]:
    described: list[list[Any]] = json.loads(json.dumps([block.describe() for block in blocks]))
    return described


def _check_budget(blocks: Sequence[Block], floats_per_row: int) -> None:
    if floats_per_row < len(blocks):
        raise OptionError(
            f"floats_per_row={floats_per_row} is less than one float for each of the {len(blocks)} blocks; raise "
            f"it, or "
            "choose fewer layers"
        )


def _generator(key: str) -> torch.Generator:
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big"))


def _gaussian(size: int, rank: int, key: str) -> Tensor:
    return torch.randn(size, rank, generator=_generator(key)) / rank**0.5


def _shares(sizes: Sequence[int], norms: Sequence[float], total: int) -> list[int]:
    """``total`` divided in proportion to the norms, at least 1 and at most the size each, in lengths that transform fast."""
    shares = [1.0] * len(sizes)
    left, open_ = float(total - len(sizes)), set(range(len(sizes)))
    while open_ and left > 0:
        whole = sum(norms[i] for i in open_)
        wanted = {i: left * (norms[i] / whole if whole > 0 else 1 / len(open_)) for i in open_}
        full = {i for i in open_ if shares[i] + wanted[i] >= sizes[i]}
        for i in full or open_:
            added = min(wanted[i], sizes[i] - shares[i])
            shares[i] += added
            left -= added
        open_ = open_ - full if full else set()
    return [size if share >= size else _smooth(int(share + 1e-6)) for size, share in zip(sizes, shares, strict=True)]


def _smooth(length: int) -> int:
    """The largest number up to ``length`` without a prime factor above 5."""
    for found in range(length, 0, -1):
        rest = found
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return found
    raise AssertionError(length)


def _signed_buckets(size: int, buckets: int, key: str) -> Tensor:
    generator = _generator(key)
    chosen = torch.randint(buckets, (size,), generator=generator) + 1
    return chosen * (2 * torch.randint(2, (size,), generator=generator) - 1)


def _sketch(uses: Uses, block: Block, part: Part) -> Tensor:
    """Sketch ``[batch, buckets]`` of a block's gradients: of the factors, convolved by Fourier transforms, or of the gradients
    where these are cheaper to make."""
    assert part.left is not None
    assert part.right is not None
    by_factors = FACTOR_COSTS[0] * (block.rows + block.columns) + FACTOR_COSTS[1] * part.size
    if by_factors > block.rows * block.columns:
        return _sketch_matrix(materialise(uses, block.rows, block.columns), part.left, part.right, part.size)
    spectrum: Tensor | None = None
    for left, right in uses:
        one, other = (
            torch.fft.rfft(_bucketed(x, y, part.size), dim=-1) for x, y in ((left, part.left), (right, part.right))
        )
        product = (one * other).sum(1)
        spectrum = product if spectrum is None else spectrum.add_(product)
    return torch.fft.irfft(spectrum, n=part.size)


def _sketch_matrix(gradient: Tensor, left: Tensor, right: Tensor, buckets: int) -> Tensor:
    """Sketch ``[batch, buckets]`` of gradients ``[batch, rows, columns]``."""
    where = (left.abs()[:, None] + right.abs() - 2) % buckets
    signed = gradient * (left.sign()[:, None] * right.sign())
    return gradient.new_zeros(len(gradient), buckets).index_add_(1, where.flatten(), signed.flatten(1))


def _bucketed(side: Tensor, buckets: Tensor, count: int) -> Tensor:
    """Count sketch ``[batch, positions, count]`` of one side of the factors."""
    if is_index(side):
        chosen = buckets[side]
        zeros = torch.zeros(*side.shape, count, device=side.device)
        return zeros.scatter_(-1, (chosen.abs() - 1).unsqueeze(-1), chosen.sign().float().unsqueeze(-1))
    signed = side.float() * buckets.sign()
    return signed.new_zeros(*side.shape[:-1], count).index_add_(-1, buckets.abs() - 1, signed)


def _dense(side: Tensor, size: int) -> Tensor:
    return torch.nn.functional.one_hot(side, size).float() if is_index(side) else side.float()


def _times(side: Tensor, matrix: Tensor) -> Tensor:
    """``(side @ matrix)^T`` for each example, ``[batch, r, positions]``, over the rows of ``matrix`` that the side has
    (the rows of biases come after them)."""
    if is_index(side):
        return matrix[side].transpose(1, 2)
    batch, positions, size = side.shape
    # In this order the long dimension is last: thin products are up to twice as fast that way on a CPU.
    product = matrix[:size].T @ side.reshape(-1, size).float().T
    return product.view(-1, batch, positions).transpose(0, 1)


class SharedRight:
    """The projection of one input, kept while the next blocks may read the same tensor through the same matrix."""

    def __init__(self) -> None:
        self._given: Tensor | None = None  # held, so that its memory is not given to another tensor meanwhile
        self._matrix: Tensor | None = None
        self._product: Tensor | None = None

    def get(self, given: Tensor, matrix: Tensor) -> Tensor:
        """``(given @ matrix)^T`` for each example."""
        if self._product is None or self._matrix is not matrix or not same_tensor(self._given, given):
            self._given, self._matrix, self._product = given, matrix, _times(given, matrix)
        return self._product


def same_tensor(one: Tensor | None, other: Tensor) -> bool:
    """Whether two live tensors are the same memory, seen the same way."""
    return (
        one is not None
        and one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.dtype == other.dtype
    )
