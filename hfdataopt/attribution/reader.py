"""Reading rows through a model: batches in a fixed order, one number or vector per row, shards on disk.

Work is done in shards of rows. With a folder every finished shard is on disk, so a killed run repeats less than one; with
several processes the shards are divided among them and read back by all.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hfdataopt.attribution.moment import Moment
from hfdataopt.attribution.processes import Processes
from hfdataopt.attribution.quiet import reseed
from hfdataopt.attribution.rows import Rows
from hfdataopt.attribution.task import Pooling, check_inputs, check_targets, pooled_features
from hfdataopt.console import say
from hfdataopt.errors import DataError, StoreError
from hfdataopt.files import write_whole
from hfdataopt.gradients import GradientStore, MemoryLimit, per_example_loss, weights_hash
from hfdataopt.gradients.engine import name_rows
from hfdataopt.plugins import host

ROWS_PER_SHARD = 256


def in_order(values: torch.Tensor, order: list[int], positions: list[int]) -> torch.Tensor:
    """Values of the rows in ``order`` as values of the rows in ``positions``."""
    where = {position: place for place, position in enumerate(order)}
    return values[[where[position] for position in positions]]


def as_tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


def write_json(file: Path, document: Any, who: str) -> None:
    """Write a file as a whole, by renaming; ``StoreError`` where that is not possible."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(document, indent=1, allow_nan=False).encode())
    except OSError as error:
        raise StoreError(f"{who}: {str(file)!r} cannot be written: {error}") from error


def custom_loss(model: Any, batch: dict[str, Any]) -> Any:
    """What a plugin's ``per_example_loss`` hook says of this model; None when no plugin knows it."""
    return host().hook.per_example_loss(model=model, batch=batch)


class Reader:
    """Model, pool and queries at one moment, and everything that takes forward passes only.

    Attributes:
        model: the live model, in eval mode; a scorer must not change it.
        pool, queries: :class:`Rows`; ``queries`` is None for a scorer that needs none.
        moment: step, epoch and learning rate.
        optimizer: the live optimizer, a :class:`Checkpoint`, or None.
        folder: where this moment's shards are kept, or None.
        run_folder: where the run is kept, or None.
        shared: what the moments of a run share in memory.
        facts: JSON-serialisable facts that go into the metadata of the scores.
        memory: the batch size that fitted into memory, where ``batch_size`` did not.
    """

    def __init__(
        self,
        model: Any,
        pool: Rows,
        queries: Rows | None,
        *,
        moment: Moment,
        optimizer: Any,
        folder: Path | None,
        batch_size: int,
        processing_class: Any,
        autocast: str | None,
        processes: Processes,
        name: str,
        weights: str | None = None,
        memory: MemoryLimit | None = None,
        run_folder: Path | None = None,
        shared: dict[str, Any] | None = None,
    ):
        self.model, self.pool, self.queries = model, pool, queries
        self.moment, self.optimizer, self.folder = moment, optimizer, folder
        self.batch_size, self.processing_class, self.autocast = batch_size, processing_class, autocast
        self.processes, self.name = processes, name
        self.facts: dict[str, Any] = {"precision": self.precision()}
        self.memory = memory or MemoryLimit()
        self.run_folder = run_folder
        self.shared: dict[str, Any] = {} if shared is None else shared
        self._weights = weights

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def weights(self) -> str:
        """Hash of the model's weights, by which stores are recognised."""
        if self._weights is None:
            self._weights = weights_hash(self.model)
        return self._weights

    def rows(self, side: str) -> Rows:
        """The rows of ``"pool"`` or ``"queries"``."""
        rows = self.pool if side == "pool" else self.queries
        assert rows is not None, f"scorer {self.name!r} reads queries but declares needs_queries=False"
        return rows

    def batches(self, side: str, positions: Any = None) -> Iterator[dict[str, Any]]:
        """Collated batches on the model's device, in order; ``row_id`` holds the ids."""
        rows = self.rows(side)
        positions = range(len(rows)) if positions is None else positions
        for start in range(0, len(positions), self.batch_size):
            chunk = [int(position) for position in positions[start : start + self.batch_size]]
            ids = [rows.ids[position] for position in chunk]
            # A collator that draws (a masked LM's) draws the same for the same rows, also after a restart.
            reseed(int.from_bytes(hashlib.sha256(json.dumps(ids).encode()).digest()[:7], "big"))
            batch = rows.batch(chunk)
            check_inputs(self.model, batch, ids, f"{self.name}: the {side}")
            moved = {
                name: value.to(self.device) if isinstance(value, torch.Tensor) else value
                for name, value in batch.items()
            }
            yield {**moved, "row_id": ids}

    def say(self, message: str) -> None:
        """Print one line, from the main process."""
        if self.processes.is_main:
            say(f"{self.name}: {message}")

    def precision(self, dtype: str | None = None) -> str:
        """The dtype that forward and backward run in: ``dtype``, else the trainer's autocast, else the weights' own."""
        return dtype or self.autocast or str(next(self.model.parameters()).dtype).removeprefix("torch.")

    def _engine_dtype(self, dtype: str | None) -> str | None:
        """What the engine is asked for: None leaves a model with half-precision weights as it is."""
        half = any(parameter.dtype in (torch.bfloat16, torch.float16) for parameter in self.model.parameters())
        return dtype or self.autocast or (None if half else "float32")

    def engine_options(self, layers: Any = None, dtype: str | None = None) -> dict[str, Any]:
        """The keyword arguments that every function of :mod:`hfdataopt.gradients` takes."""
        return {
            "layers": layers,
            "dtype": self._engine_dtype(dtype),
            "custom_loss": custom_loss,
            "memory": self.memory,
        }

    # -- one number, or one vector, per row

    def per_row(
        self,
        side: str,
        what: str,
        function: Callable[[dict[str, Any]], torch.Tensor],
        manifest: dict[str, Any] | None = None,
        dtype: str | None = None,
    ) -> torch.Tensor:
        """``function(batch) -> [b, ...]`` for all rows of a side: ``[rows, ...]`` float32 on the CPU, kept as ``what``."""

        def shard(positions: list[int]) -> dict[str, torch.Tensor]:
            order = self.rows(side).by_length(positions)
            with torch.no_grad(), self._autocast(dtype):
                parts = list(self._forward(side, order, function))
            return {"values": in_order(torch.cat(parts), order, positions)}

        manifest = {"kind": what, "dtype": self.precision(dtype), **(manifest or {})}
        return as_tensor(self.sharded(side, what, manifest, shard)["values"])

    def _forward(
        self, side: str, positions: list[int], function: Callable[[dict[str, Any]], torch.Tensor]
    ) -> Iterator[torch.Tensor]:
        """``function`` of every batch, in order; batches that do not fit into memory are halved."""
        start = 0
        while start < len(positions):
            part = positions[start : start + min(self.batch_size, self.memory.rows or self.batch_size)]
            result = None
            try:
                (batch,) = self.batches(side, part)
                result = function(batch).detach().float().cpu()
            except torch.OutOfMemoryError:
                batch = None  # what the failed batch holds is freed before a smaller one is tried
            if result is None:
                self.memory.shrink(len(part), [self.rows(side).ids[position] for position in part], self.name)
                continue
            yield result
            start += len(part)

    def pointwise(
        self,
        side: str,
        what: str,
        score_batch: Callable[[Any, dict[str, Any]], torch.Tensor],
        on_nonfinite: str = "error",
    ) -> torch.Tensor:
        """``score_batch(model, batch) -> [b]`` for all rows: ``[rows]`` float32, NaN for a row that was skipped."""
        values = self.per_row(
            side, what, lambda batch: score_batch(self.model, {k: v for k, v in batch.items() if k != "row_id"})
        )
        finite = self.finite_rows(side, values, what, on_nonfinite)
        return torch.where(finite, values, torch.full_like(values, float("nan")))

    def finite_rows(self, side: str, values: torch.Tensor, what: str, on_nonfinite: str = "error") -> torch.Tensor:
        """Which rows of ``values [rows, ...]`` are finite: ``[rows]`` bool.

        Others are an error that names them, or (``on_nonfinite="skip"``) counted in the facts and said.
        """
        finite = torch.isfinite(values.reshape(len(values), -1)).all(1)
        bad = [self.rows(side).ids[position] for position in torch.nonzero(~finite).flatten().tolist()]
        if not bad:
            return finite
        found = f"{what} of {len(bad)} row(s) of the {side} is not finite: {name_rows(bad)}"
        if on_nonfinite != "skip":
            raise DataError(
                f"{self.name}: {found}; look at these rows (and at the precision: float32), leave them out of the {side}, or pass "
                "on_nonfinite='skip' where the scorer has this option"
            )
        self.say(f"{found}; {'they get no score' if side == 'pool' else 'they are left out'}")
        self.facts[f"skipped_{side}"] = len(bad)
        return finite

    def _autocast(self, dtype: str | None) -> Any:
        name = dtype or self.autocast
        wanted = getattr(torch, name) if name and name != "float32" else None
        return torch.autocast(self.device.type, dtype=wanted, enabled=wanted is not None)

    def embeddings(
        self, side: str, pooling: Pooling = "auto", on_nonfinite: str = "error", dtype: str | None = None
    ) -> torch.Tensor:
        """Pooled last hidden states ``[rows, d]`` float32 of a side; rows that are not finite only by ``"skip"``."""
        values = self.per_row(
            side,
            f"embeddings-{pooling}",
            lambda batch: pooled_features(self.model, batch, pooling),
            dtype=dtype,
        )
        self.finite_rows(side, values, "the hidden state", on_nonfinite)
        return values

    def losses(self, side: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss of each row, summed over its labelled tokens (nats), and their number: ``[rows]`` each."""

        def read(batch: dict[str, Any]) -> torch.Tensor:
            total, tokens = per_example_loss(self.model, batch, custom_loss=custom_loss)
            return torch.stack([total.float(), tokens.to(total).float()], 1)

        total, tokens = self.per_row(side, "loss", read, {"columns": ["loss", "tokens"]}).unbind(1)
        return total, tokens

    def labelled_rows(self, side: str, tokens: torch.Tensor) -> torch.Tensor:
        """Which rows have a labelled token, ``[rows]`` bool; the others are counted in the facts and said.

        Their loss and gradient are exactly 0, which would read as the best score there is.
        """
        labelled = tokens > 0
        empty = [self.rows(side).ids[position] for position in torch.nonzero(~labelled).flatten().tolist()]
        if empty:
            self.say(f"{len(empty)} row(s) of the {side} have no labelled tokens and get no score: {name_rows(empty)}")
            self.facts[f"unlabelled_{side}"] = len(empty)
        return labelled

    def check_labels(self) -> None:
        """Raise where the labels of pool or queries do not fit the model: missing, another type, NaN, out of range."""
        for rows in (self.pool, self.queries):
            if rows is not None and not rows.prompts:
                check_targets(self.model, rows, self.name, self.batch_size)

    # -- shards

    def sharded(
        self,
        side: str,
        what: str,
        manifest: dict[str, Any],
        compute: Callable[[list[int]], dict[str, torch.Tensor]],
        names: tuple[str, ...] = ("values",),
        rows_per_shard: int | None = None,
    ) -> dict[str, Any]:
        """``compute`` on every shard of rows, and the shards joined by name; from disk where they are there."""
        rows = self.rows(side)
        rows_per_shard = rows_per_shard or ROWS_PER_SHARD
        shards = [
            list(range(start, min(start + rows_per_shard, len(rows)))) for start in range(0, len(rows), rows_per_shard)
        ]
        bar = self.progress(f"{what} ({side})", len(rows))
        if self.folder is None:
            parts = []
            for positions in shards:
                parts.append(compute(positions))
                bar.update(len(positions))
            bar.close()
            whole = parts[0] if len(parts) == 1 else {x: torch.cat([part[x] for part in parts]) for x in parts[0]}
            return {name: tensor.numpy() for name, tensor in whole.items()}
        manifest = {**manifest, "weights": self.weights, "model": type(self.model).__name__, "rows": rows.contents}
        name = f"{what}-{side}-{hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:8]}"
        folder = self.folder / name

        def prepare() -> list[int]:
            return GradientStore.open_or_create(folder, manifest, rows.ids, rows_per_shard).missing_shards()

        missing = self.processes.run_on_main(prepare)
        store = GradientStore.open_or_create(folder, manifest, rows.ids, rows_per_shard)

        def compute_mine() -> None:
            for index in missing[self.processes.index :: self.processes.count]:
                store.write(index, compute(shards[index]))
                bar.update(len(shards[index]))

        self.processes.together(compute_mine)
        bar.close()
        return {name: store.read(name) for name in names}

    def progress(self, what: str, total: int, unit: str = "row") -> Any:
        """A progress bar of the main process, shown after two seconds."""
        from tqdm.auto import tqdm

        return tqdm(
            total=total,
            desc=f"{self.name}: {what}",
            unit=unit,
            leave=False,
            delay=2,
            disable=not self.processes.is_main,
        )
