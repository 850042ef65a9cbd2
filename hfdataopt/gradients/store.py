"""Numbers per row on disk: written as they are made, memory-mapped when read, resumable.

A store is a folder::

    manifest.json            what the numbers are: the caller's manifest, rows, rows per shard, hash of the row ids
    row_ids.json             the row ids, in order
    shard-00000.safetensors  arrays by name, each [rows of the shard, ...]

Shard ``k`` holds rows ``k * rows_per_shard`` to ``(k + 1) * rows_per_shard``. A file appears under its name only when
it is complete (temporary name, fsync, rename), so a killed run repeats less than one shard, and several processes may
write different shards of one store. Each carries a CRC-32, and one that is damaged counts as missing. Nothing is ever pickled.
"""

import errno
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from hfdataopt.errors import DataError, OptionError, StoreError
from hfdataopt.files import is_intact, sealed, write_whole

_FORMAT = 1
_LONGEST_HEADER = 100_000_000  # bytes, as safetensors itself allows
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_TORCH_DTYPES = {torch.from_numpy(np.empty(0, dtype)).dtype for dtype in _DTYPES.values()}


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over name, shape, dtype and a checksum of every parameter and buffer in the state dict.

    The checksum adds up all bits in integer arithmetic, weighted by position: any changed entry changes it, and it is
    the same on every device and for every number of threads.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}{checksum(tensor.detach())};".encode())
    return digest.hexdigest()


def checksum(tensor: Tensor) -> int:
    """All bits of a tensor added up in integer arithmetic, weighted by position, modulo 2**64."""
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    bits = tensor.contiguous().reshape(-1).view(integer)
    total = 0
    for start in range(0, len(bits), 1 << 22):  # bounds the memory of the int64 copy
        part = bits[start : start + (1 << 22)].long() + 0x1234567
        place = torch.arange(start, start + len(part), device=part.device)
        total += int((part * (place * 0x9E3779B1 + 1 | 1)).sum())  # wraps modulo 2**64, which is wanted
    return total % (1 << 64)


class ShardedArray:
    """An array ``[rows, ...]`` whose shards are memory-mapped files. Indexing reads only what it needs.

    ``array[i]``, ``array[a:b]``, ``array[[3, 1]]``, ``array[a:b, 0]`` give numpy arrays; ``numpy.asarray(array)`` reads everything.
    """

    def __init__(self, shards: Sequence[NDArray[Any]]) -> None:
        self.shards = list(shards)
        self.starts = np.cumsum([0, *(len(shard) for shard in self.shards)])
        self.shape: tuple[int, ...] = (int(self.starts[-1]), *self.shards[0].shape[1:])
        self.dtype = self.shards[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        whole = np.concatenate(self.shards)
        return whole if dtype is None else whole.astype(dtype)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        if isinstance(key, tuple):
            rows = self[key[0]]
            return rows[key[1:] if isinstance(key[0], int | np.integer) else (slice(None), *key[1:])]
        if isinstance(key, int | np.integer):
            return self[[int(key)]][0]
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step == 1:
                return self._range(start, max(start, stop))
            key = range(start, stop, step)
        places = np.asarray(key)
        if places.dtype == bool:
            if places.shape != (len(self),):
                raise IndexError(f"a mask of shape {list(places.shape)} does not fit {len(self)} rows")
            places = places.nonzero()[0]
        places = np.where(places < 0, places + len(self), places).astype(np.int64)
        if len(places) and (places.min() < 0 or places.max() >= len(self)):
            raise IndexError(f"index out of range for {len(self)} rows")
        result = np.empty((len(places), *self.shape[1:]), dtype=self.dtype)
        owner = np.searchsorted(self.starts, places, side="right") - 1
        for number in np.unique(owner):
            mine = owner == number
            result[mine] = self.shards[number][places[mine] - self.starts[number]]
        return result

    def _range(self, start: int, stop: int) -> NDArray[Any]:
        parts = [
            shard[max(start - first, 0) : max(stop - first, 0)]
            for shard, first in zip(self.shards, self.starts[:-1], strict=True)
            if first < stop and first + len(shard) > start
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else self.shards[0][:0]


class GradientStore:
    """A store that is open: see the module's docstring. Made by :meth:`open_or_create` or :meth:`open`."""

    def __init__(self, folder: Path, manifest: dict[str, Any], row_ids: list[str | int]) -> None:
        self.folder = folder
        self.manifest = manifest["of"]
        self.row_ids = row_ids
        self.rows_per_shard: int = manifest["rows_per_shard"]
        self._intact: set[int] = set()  # shards that were read through once, or written here
        made_of = [manifest[key] for key in ("of", "row_ids", "rows_per_shard")]
        self._key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()

    @classmethod
    def open_or_create(
        cls,
        folder: str | os.PathLike[str],
        manifest: Mapping[str, Any],
        row_ids: Sequence[str | int] | int,
        rows_per_shard: int = 1024,
    ) -> "GradientStore":
        """The store in ``folder``, made if there is none.

        ``manifest``: JSON values that say what the numbers are, for instance model, weights hash, layers, basis hash,
        precision, ``of``; all of them must agree with the store that is there. ``row_ids``: the ids in order, or how
        many rows there are, named by position.

        Raises ``StoreError`` naming what differs, or when the folder cannot be written.
        """
        path = Path(folder)
        if not isinstance(rows_per_shard, int) or rows_per_shard < 1:
            raise OptionError(f"store {path}: rows_per_shard={rows_per_shard!r} must be a whole number of at least 1")
        if not isinstance(row_ids, int | Sequence) or isinstance(row_ids, bool | str | bytes):
            raise DataError(f"store {path}: row ids are a list or their number; got {row_ids!r:.80}")
        ids: list[str | int] = list(range(row_ids)) if isinstance(row_ids, int) else list(row_ids)
        if not all(isinstance(value, int | str) for value in ids):
            raise DataError(f"store {path}: row ids are whole numbers or texts; got {ids!r:.80}")
        if len(set(ids)) != len(ids):
            raise DataError(
                f"store {path}: {len(ids) - len(set(ids))} row ids occur more than once; ids must be unique"
            )
        described = {
            "format": _FORMAT,
            "rows": len(ids),
            "rows_per_shard": rows_per_shard,
            "row_ids": hashlib.sha256(json.dumps(ids).encode()).hexdigest(),
        }
        try:
            wanted: dict[str, Any] = json.loads(json.dumps({**described, "of": dict(manifest)}))
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(f"store {path}: the manifest must be a dict of JSON values: {error}") from error
        if not (path / "manifest.json").exists():
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise _cannot_write(path, error) from error
            _write(path / "row_ids.json", json.dumps(ids).encode())
            _write(path / "manifest.json", json.dumps(wanted, indent=1).encode())
        _compare(path, _read_json(path / "manifest.json"), wanted)
        return cls(path, wanted, ids)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> "GradientStore":
        """The store in ``folder``, whatever it holds: look at ``.manifest`` and ``.row_ids``."""
        path = Path(folder)
        manifest, ids = _read_json(path / "manifest.json"), _read_json(path / "row_ids.json")
        form = manifest.get("format") if isinstance(manifest, dict) else None
        if form != _FORMAT:
            raise StoreError(f"store {path}: format {form!r:.80} arrived, this version reads {_FORMAT}")
        per_shard = manifest.get("rows_per_shard")
        if type(per_shard) is not int or per_shard < 1 or not isinstance(manifest.get("of"), dict):
            raise StoreError(f"store {path}: manifest.json is damaged; delete the folder and run again")
        if hashlib.sha256(json.dumps(ids).encode()).hexdigest() != manifest.get("row_ids") or not isinstance(ids, list):
            raise StoreError(
                f"store {path}: row_ids.json does not belong to manifest.json; delete the folder and run again"
            )
        return cls(path, manifest, ids)

    @property
    def shards(self) -> int:
        """Number of shards when complete."""
        return -(-len(self.row_ids) // self.rows_per_shard)

    def rows_of(self, shard: int) -> range:
        """Positions of the rows that a shard holds."""
        start = shard * self.rows_per_shard
        return range(start, min(start + self.rows_per_shard, len(self.row_ids)))

    def missing_shards(self) -> list[int]:
        """Shards that are not there yet, or are damaged: each shard is read through once."""
        return [shard for shard in range(self.shards) if not self._complete(shard)]

    def write(self, shard: int, arrays: Mapping[str, Tensor | NDArray[Any]]) -> None:
        """Write the arrays of one shard, each ``[rows of the shard, ...]``.

        Raises ``StoreError`` when the disk is full or read-only; shards written before stay, and the next run goes on.
        """
        if not 0 <= shard < self.shards:
            raise StoreError(f"store {self.folder}: there is no shard {shard}; there are {self.shards}, from 0 on")
        rows = len(self.rows_of(shard))
        try:
            tensors = {name: torch.as_tensor(array).detach().cpu().contiguous() for name, array in arrays.items()}
        except (TypeError, ValueError, RuntimeError) as error:
            raise StoreError(f"store {self.folder}: shard {shard} got something else than numbers: {error}") from error
        held: set[int] = set()
        for name, tensor in tensors.items():
            place = tensor.untyped_storage().data_ptr()
            if place in held:  # safetensors keeps no two names for the same memory
                tensors[name] = tensor.clone()
            held.add(place)
            if tensor.dtype not in _TORCH_DTYPES or not name or name == "__metadata__":
                raise StoreError(
                    f"store {self.folder}: the array {name!r} of {tensor.dtype} cannot be kept; a name and one of "
                    f"{', '.join(sorted(str(kind).removeprefix('torch.') for kind in _TORCH_DTYPES))} can"
                )
            if tensor.dim() < 1 or len(tensor) != rows:
                raise StoreError(
                    f"store {self.folder}: shard {shard} has {rows} rows, but {name!r} of shape "
                    f"{list(tensor.shape)} arrived"
                )
        _write(self._path(shard), sealed(save(tensors), self._whose(shard)))
        self._intact.add(shard)

    def arrays(self) -> list[str]:
        """Names of the arrays. ``StoreError`` when the first shard is missing."""
        if not self._complete(0):
            raise StoreError(
                f"store {self.folder}: the first shard is missing; run again with the same options to make it"
            )
        return sorted(_header(self._path(0))[0])

    def read(self, name: str = "features") -> ShardedArray:
        """One array over all rows, memory-mapped. ``StoreError`` when a shard is missing or lacks the array."""
        if missing := self.missing_shards():
            raise StoreError(
                f"store {self.folder}: {len(missing)} of {self.shards} shards are missing (first: {missing[0]}); "
                "run again with the same options to finish it"
            )
        return ShardedArray([self._map(shard, name) for shard in range(self.shards)])

    # -- the hub

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload features",
    ) -> str:
        """Upload a complete store as a dataset repository (parquet and a data card); its URL.

        Args:
            private, token, revision: as ``huggingface_hub`` takes them; a branch that is not there is made.
        """
        from hfdataopt.sharing.repository import upload
        from hfdataopt.sharing.store import DOCUMENT, write_store

        return upload(
            lambda folder: write_store(self, folder),
            repo_id,
            DOCUMENT,
            private=private,
            token=token,
            revision=revision,
            commit_message=commit_message,
        )

    @classmethod
    def from_hub(
        cls,
        repo_id: str,
        folder: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> "GradientStore":
        """The store of a dataset repository, written to ``folder`` (a call that was stopped goes on there).

        Nothing in it is executed.

        Raises:
            StoreError: it cannot be reached, or anything in it is not as it should be.
        """
        from hfdataopt.sharing.repository import download
        from hfdataopt.sharing.store import FILES, read_store

        return read_store(download(repo_id, FILES, token=token, revision=revision), folder)

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.safetensors"

    def _whose(self, shard: int) -> str:
        """What tells a shard from the others and from those of other stores."""
        return f"{self._key}/{shard}"

    def _complete(self, shard: int) -> bool:
        path = self._path(shard)
        try:
            header, offset = _header(path)
            if path.stat().st_size != offset + max((array.stop for array in header.values()), default=0):
                return False
        except (OSError, ValueError):
            return False
        if shard not in self._intact and is_intact(path, self._whose(shard)):
            self._intact.add(shard)
        return shard in self._intact

    def _map(self, shard: int, name: str) -> NDArray[Any]:
        path = self._path(shard)
        header, offset = _header(path)
        if name not in header:
            raise StoreError(f"store {self.folder}: no array {name!r}; there are {', '.join(sorted(header))}")
        found, rows = header[name], len(self.rows_of(shard))
        if found.shape[:1] != (rows,):
            raise StoreError(
                f"store {self.folder}: shard {shard} has {rows} rows, but {name!r} of shape {list(found.shape)}"
            )
        if 0 in found.shape:
            return np.empty(found.shape, dtype=found.dtype)
        return np.memmap(path, dtype=found.dtype, mode="r", offset=offset + found.start, shape=found.shape)


class _Array(NamedTuple):
    """Where an array lies in the data of a file."""

    dtype: Any
    shape: tuple[int, ...]
    start: int
    stop: int


def _header(path: Path) -> tuple[dict[str, _Array], int]:
    """The header of a safetensors file and where its data starts (8 bytes of length, JSON, data).

    Raises:
        OSError, ValueError: it cannot be read, or is none of ours.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(path.stat().st_size, _LONGEST_HEADER):
            raise ValueError(f"{path} is cut short, or its header is too long")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            return {str(name): _array(entry) for name, entry in header.items()}, 8 + length
        except (AttributeError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} has a damaged header") from error


def _array(entry: dict[str, Any]) -> _Array:
    """An entry of a header, whose bytes are as many as its shape needs."""
    start, stop = entry["data_offsets"]
    found = _Array(np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"]), start, stop)
    if not all(type(number) is int and number >= 0 for number in (*found.shape, start, stop)):
        raise ValueError("sizes and places must be whole numbers")
    if stop - start != math.prod(found.shape) * found.dtype.itemsize:
        raise ValueError("an array has another size than its shape")
    return found


def _write(path: Path, data: bytes) -> None:
    try:
        write_whole(path, data)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        what = "the disk is full, or a file size limit is reached; free space and run again: finished shards are kept"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        what = "the folder cannot be written; choose another output folder"
    else:
        what = "choose another output folder"
    return StoreError(f"store: cannot write {path} ({error.strerror}): {what}")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(
            f"store: {path} cannot be read ({error}); delete the folder {path.parent} and run again"
        ) from error


def _compare(path: Path, there: Any, wanted: dict[str, Any]) -> None:
    if not isinstance(there, dict) or not isinstance(there.get("of"), dict):
        raise StoreError(f"store {path}: manifest.json is damaged; delete the folder and run again")
    pairs = [(key, there.get(key), wanted[key]) for key in wanted if key != "of"]
    mine, theirs = wanted["of"], there["of"]
    pairs += [(key, theirs.get(key), mine.get(key)) for key in sorted({*mine, *theirs})]
    different = [f"{key} (stored {_short(old)}, now {_short(new)})" for key, old, new in pairs if old != new]
    if different:
        raise StoreError(
            f"store {path}: it was made for something else: {'; '.join(different)}. Choose another folder, delete "
            "this one, or go back to the model, rows and options it was made with"
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
