"""A run on disk: sums of finished chunks of permutations, so that a killed run goes on where it was.

Members: `RunFolder` (manifest.json, sums.safetensors, and chunks that workers finished early), `write_atomically`.
Files appear under their name only when complete; nothing is pickled. What cannot be written, or belongs to another run,
is a `StoreError`.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor

from hfdataopt.errors import StoreError
from hfdataopt.files import is_intact, sealed, write_whole
from hfdataopt.shapley._walk import Sums

FORMAT = 1


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that it is seen whole or not at all. Raises `StoreError`."""
    try:
        write_whole(path, content)
    except OSError as error:
        raise StoreError(
            f"cannot write {path} ({len(content)} bytes): {error.strerror or error}; "
            "free space or rights there, or pass another output_dir"
        ) from error


def write_sums(path: Path, sums: Sums) -> None:
    write_atomically(path, sealed(save({"count": np.array([sums.count]), **sums.arrays()})))


def read_sums(path: Path) -> Sums:
    """Raises `StoreError` where the file is not one of `write_sums`."""
    try:
        if not is_intact(path):
            raise OSError("it is damaged")
        arrays = load_file(path)
        return Sums(int(arrays.pop("count")[0]), **arrays)
    except (OSError, SafetensorError, TypeError, KeyError) as error:
        raise StoreError(f"cannot read {path}: {error}; delete it to compute its permutations again") from error


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's numbers and shape."""
    array = np.ascontiguousarray(tensor.cpu().numpy())
    total = hashlib.sha256(repr((array.dtype.str, array.shape)).encode())
    total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def chunk_path(folder: Path, first: int, last: int) -> Path:
    return folder / f"chunk-{first:08d}-{last:08d}.safetensors"


class RunFolder:
    """The folder of one run, described by `manifest` (plain JSON values)."""

    def __init__(self, folder: str | os.PathLike[str], manifest: dict[str, Any]) -> None:
        """Creates the folder, or takes it up where its manifest is the same. Raises `StoreError`."""
        self.path = Path(folder)
        manifest = json.loads(json.dumps({"format": FORMAT, "kind": "shapley", **manifest}))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            found = (self.path / "manifest.json").read_bytes() if (self.path / "manifest.json").exists() else None
        except OSError as error:
            raise StoreError(
                f"output_dir {self.path} cannot be used: {error.strerror or error}; pass another"
            ) from error
        if found is None:
            write_atomically(self.path / "manifest.json", json.dumps(manifest, indent=1).encode())
            return
        try:
            theirs = json.loads(found)
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{self.path / 'manifest.json'} is not JSON: {error}; pass an empty output_dir") from error
        if not isinstance(theirs, dict):
            raise StoreError(f"{self.path / 'manifest.json'} is not of a run; pass an empty output_dir")
        differs = sorted(key for key in manifest.keys() | theirs.keys() if manifest.get(key) != theirs.get(key))
        if differs:
            key = differs[0]
            raise StoreError(
                f"output_dir {self.path} holds another run: {', '.join(differs)} differ "
                f"({key}: there {theirs.get(key)!r}, here {manifest.get(key)!r}); pass another folder or empty this one"
            )

    def load(self, start: Sums, permutations: int) -> Sums:
        """The sums so far, or `start` where there are none. Raises `StoreError` when they hold more than
        `permutations`."""
        path = self.path / "sums.safetensors"
        sums = read_sums(path) if path.exists() else start
        if sums.count > permutations:
            raise StoreError(
                f"output_dir {self.path} holds {sums.count} permutations, {permutations} were asked; "
                f"pass permutations={sums.count} or more, or another folder"
            )
        return sums

    def save(self, sums: Sums) -> None:
        """Keeps the sums and drops the chunks of workers that are in them."""
        write_sums(self.path / "sums.safetensors", sums)
        for path in self.path.glob("chunk-*.safetensors"):
            if int(path.stem.split("-")[2]) <= sums.count:
                path.unlink(missing_ok=True)
