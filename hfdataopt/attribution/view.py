"""What a scorer sees at one moment: the model as it is, pool and queries, and the engines, each result kept on disk.

Work is done in shards of rows. With a folder every finished shard is on disk, so a killed run repeats less than one; with
several processes the shards are divided among them and read back by all.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from hfdataopt.attribution.processes import Processes
from hfdataopt.attribution.quiet import reseed
from hfdataopt.attribution.rows import Rows, draw
from hfdataopt.attribution.task import Pooling, check_targets, pooled_features
from hfdataopt.console import say
from hfdataopt.errors import DataError, OptionError, StoreError
from hfdataopt.gradients import (
    Basis,
    GradientStore,
    MemoryLimit,
    find_blocks,
    fit_basis,
    gradient_norms,
    gram,
    kept_share,
    per_example_gradients,
    per_example_loss,
    weights_hash,
)
from hfdataopt.gradients.capture import refuse_reentrant
from hfdataopt.gradients.engine import name_rows
from hfdataopt.plugins import host
from hfdataopt.statistics import rank_correlation

if TYPE_CHECKING:
    from hfdataopt.attribution.run import Moment
    from hfdataopt.gradients import ShardedArray

ROWS_PER_SHARD = 256
BASIS_ROWS = 128  # of the pool, and as many of the queries
PRECISION_ROWS = 32  # of the pool, on which half precision is compared with float32
SHARE_ROWS = 32  # of each side, on which the kept share of the gradient norm is measured


class GradientFeatures(NamedTuple):
    """Features ``[rows, columns, d]`` float32, target sums ``[rows, columns]`` (nats for a loss), labelled tokens ``[rows]``.
    A target that is one number per row has one column.

    ``features`` is memory-mapped where it is on disk: slices read what they need.
    """

    features: "np.ndarray | ShardedArray"
    loss_sum: torch.Tensor
    tokens: torch.Tensor

    def blocks(self, rows: int = 4096) -> Iterator[torch.Tensor]:
        """The features in blocks of rows, columns side by side: ``[rows, columns * d]`` float64."""
        for start in range(0, len(self.features), rows):
            yield torch.from_numpy(np.array(self.features[start : start + rows], dtype=np.float64)).flatten(1)

    def columns(self) -> torch.Tensor:
        """All features, ``[rows, columns, d]`` float32."""
        return torch.from_numpy(np.array(self.features))

    def whole(self) -> torch.Tensor:
        """All features, float64."""
        return torch.cat(list(self.blocks()))


def _in_order(values: torch.Tensor, order: list[int], positions: list[int]) -> torch.Tensor:
    """Values of the rows in ``order`` as values of the rows in ``positions``."""
    where = {position: place for place, position in enumerate(order)}
    return values[[where[position] for position in positions]]


def _tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


def write_json(file: Path, document: Any, who: str) -> None:
    """Write a file as a whole, by renaming; ``StoreError`` where that is not possible."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(file.name + ".tmp")
        temporary.write_text(json.dumps(document, indent=1, allow_nan=False))
        os.replace(temporary, file)
    except OSError as error:
        raise StoreError(f"{who}: {str(file)!r} cannot be written: {error}") from error


def custom_loss(model: Any, batch: dict[str, Any]) -> Any:
    """What a plugin's ``per_example_loss`` hook says of this model; None when no plugin knows it."""
    return host().hook.per_example_loss(model=model, batch=batch)


class View:
    """What ``Scorer.score`` gets.

    Attributes:
        model: the live model, in eval mode; a scorer must not change it.
        pool, queries: :class:`Rows`; ``queries`` is None for a scorer that needs none.
        moment: step, epoch and learning rate.
        optimizer: the live optimizer, a :class:`Checkpoint`, or None.
        folder: where this moment's shards are kept, or None.
        facts: JSON-serialisable facts that go into the metadata of the scores.
        memory: the batch size that fitted into memory, where ``batch_size`` did not.
        half_precision: what was found by comparing with float32, by target; shared by the moments of a run.
    """

    def __init__(
        self,
        model: Any,
        pool: Rows,
        queries: Rows | None,
        *,
        moment: "Moment",
        optimizer: Any,
        folder: Path | None,
        batch_size: int,
        processing_class: Any,
        autocast: str | None,
        processes: Processes,
        name: str,
        weights: str | None = None,
        memory: MemoryLimit | None = None,
        half_precision: dict[str, Any] | None = None,
    ):
        self.model, self.pool, self.queries = model, pool, queries
        self.moment, self.optimizer, self.folder = moment, optimizer, folder
        self.batch_size, self.processing_class, self.autocast = batch_size, processing_class, autocast
        self.processes, self.name = processes, name
        self.facts: dict[str, Any] = {"precision": self.precision()}
        self.memory = memory or MemoryLimit()
        self.half_precision = {} if half_precision is None else half_precision
        self._weights = weights
        self._bases: dict[str, Basis] = {}

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
            moved = {
                name: value.to(self.device) if isinstance(value, torch.Tensor) else value
                for name, value in rows.batch(chunk).items()
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
            return {"values": _in_order(torch.cat(parts), order, positions)}

        manifest = {"kind": what, "dtype": self.precision(dtype), **(manifest or {})}
        return _tensor(self._sharded(side, what, manifest, shard)["values"])

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

    # -- gradients

    def check_labels(self) -> None:
        """Raise where the labels of pool or queries do not fit the model: missing, another type, NaN, out of range."""
        for rows in (self.pool, self.queries):
            if rows is not None:
                check_targets(self.model, rows, self.name, self.batch_size)

    def check_gradients(self, layers: Any, floats_per_row: int | None = None) -> None:
        """Raise what can be known before training: no layer selected, fewer floats than layers, reentrant checkpointing."""
        blocks = find_blocks(self.model, layers)
        if floats_per_row is not None and floats_per_row < len(blocks):
            raise OptionError(
                f"{self.name}: floats_per_row={floats_per_row} is less than one float for each of the {len(blocks)} layers; "
                "raise it, or choose fewer layers"
            )
        refuse_reentrant(dict(self.model.named_modules()))

    def gradients(
        self,
        side: str,
        *,
        target: str = "loss",
        of: Any = "loss",
        basis: str = "eigen",
        floats_per_row: int = 8192,
        layers: Any = None,
        dtype: str | None = None,
        on_nonfinite: str = "error",
        seed: int = 0,
    ) -> GradientFeatures:
        """Per-example gradients of a side: features ``[rows, columns, d]`` float32, target sums and token counts.

        Args:
            target: names what is differentiated, for the store.
            of: ``"loss"``, ``"logit"`` or a callable ``(model, batch) -> (value [b] or [b, columns], tokens [b])``.

        A row skipped for a non-finite gradient has NaN features.
        """
        engine_dtype = self._engine_dtype(dtype)
        self.facts["precision"] = self.precision(dtype)
        fitted = self._basis(target, of, basis, floats_per_row, layers, engine_dtype, on_nonfinite, seed)
        self._compare_precision(target, of, layers, engine_dtype)
        rows = self.rows(side)

        def shard(positions: list[int]) -> dict[str, torch.Tensor]:
            where = {rows.ids[position]: index for index, position in enumerate(positions)}
            parts = list(
                per_example_gradients(
                    self.model,
                    self.batches(side, rows.by_length(positions)),
                    of=of,
                    basis=fitted,
                    layers=layers,
                    dtype=engine_dtype,
                    on_nonfinite=on_nonfinite,  # type: ignore[arg-type]
                    custom_loss=custom_loss,
                    memory=self.memory,
                )
            )
            columns = 1 + max(part.column for part in parts)
            features = torch.full((len(positions), columns, fitted.size), float("nan"))
            loss_sum = torch.full((len(positions), columns), float("nan"))
            tokens = torch.zeros(len(positions), dtype=torch.long)
            for part in parts:
                index = [where[row] for row in part.row_ids]
                features[index, part.column] = part.features
                loss_sum[index, part.column] = part.loss_sum
                tokens[index] = part.tokens.long()
            return {"features": features, "loss_sum": loss_sum, "tokens": tokens}

        manifest = {
            "kind": "gradients",
            "target": target,
            "basis": fitted.hash,
            "dtype": self.precision(dtype),
            "layers": fitted.layers,
        }
        arrays = self._sharded(side, f"gradients-{target}", manifest, shard, tuple(GradientFeatures._fields))
        loss_sum, tokens = _tensor(arrays["loss_sum"]), _tensor(arrays["tokens"])
        self.finite_rows(side, loss_sum, "the gradient", on_nonfinite)
        return GradientFeatures(arrays["features"], loss_sum, tokens)

    def gradient_products(self, *, of: Any = "loss", target: str = "loss", **options: Any) -> torch.Tensor:
        """Inner products of pool and query gradients ``[rows, queries]`` float64; exact ones when ``basis="exact"``.

        Rows and columns skipped for a non-finite gradient are NaN.
        """
        if options.get("basis") != "exact":
            queries = self.gradients("queries", of=of, target=target, **options).whole().T
            pool = self.gradients("pool", of=of, target=target, **options)
            return torch.cat([block @ queries for block in pool.blocks()])
        good = {side: torch.isfinite(self._squared_norms(side, of, target, options)[0]) for side in ("pool", "queries")}
        columns = torch.nonzero(good["queries"]).flatten().tolist()
        engine = self._engine_options(of, options)

        def shard(positions: list[int]) -> dict[str, torch.Tensor]:
            products = torch.full((len(positions), len(good["queries"])), float("nan"), dtype=torch.float64)
            places = [place for place, position in enumerate(positions) if good["pool"][position]]
            if places and columns:
                rows = list(self.batches("pool", [positions[place] for place in places]))
                products[torch.tensor(places)[:, None], torch.tensor(columns)] = gram(
                    self.model, rows, list(self.batches("queries", columns)), **engine
                )
            return {"values": products}

        manifest = {
            "kind": "products",
            "target": target,
            "queries": self.rows("queries").contents,
            "layers": options.get("layers"),
            "dtype": self.precision(options.get("dtype")),
        }
        return _tensor(self._sharded("pool", f"products-{target}", manifest, shard)["values"])

    def squared_gradient_norms(
        self, side: str, *, of: Any = "loss", target: str = "loss", **options: Any
    ) -> torch.Tensor:
        """Squared norm of each row's gradient ``[rows]`` float64; exact when ``basis="exact"``, else of the projection.

        NaN for a row without labelled tokens, and for one skipped for a non-finite gradient.
        """
        norms, tokens = self._squared_norms(side, of, target, options)
        labelled = self.labelled_rows(side, tokens)
        return torch.where(labelled, norms, torch.full_like(norms, float("nan")))

    def _squared_norms(
        self, side: str, of: Any, target: str, options: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Squared gradient norms, NaN where one was skipped, and numbers of labelled tokens."""
        if options.get("basis") != "exact":
            features = self.gradients(side, of=of, target=target, **options)
            return torch.cat([block.square().sum(1) for block in features.blocks()]), features.tokens
        engine = self._engine_options(of, options)
        self._compare_precision(target, of, options.get("layers"), engine["dtype"])

        def shard(positions: list[int]) -> dict[str, torch.Tensor]:
            order = self.rows(side).by_length(positions)
            parts = list(gradient_norms(self.model, self.batches(side, order), **engine))
            norms, losses, tokens = (
                torch.cat([getattr(part, name) for part in parts]) for name in ("squared_norm", "loss_sum", "tokens")
            )
            norms = torch.where(torch.isfinite(losses), norms, torch.full_like(norms, float("nan")))
            return {name: _in_order(x, order, positions) for name, x in (("values", norms), ("tokens", tokens.long()))}

        names = ("values", "tokens")
        manifest = {
            "kind": "norms",
            "arrays": list(names),
            "target": target,
            "layers": options.get("layers"),
            "dtype": self.precision(options.get("dtype")),
        }
        arrays = self._sharded(side, f"norms-{target}", manifest, shard, names)
        norms, tokens = (_tensor(arrays[name]) for name in names)
        self.facts["precision"] = self.precision(options.get("dtype"))
        finite = self.finite_rows(side, norms, "the gradient", options.get("on_nonfinite", "error"))
        return torch.where(finite, norms, torch.full_like(norms, float("nan"))), tokens

    def _engine_options(self, of: Any, options: dict[str, Any]) -> dict[str, Any]:
        """The keyword arguments of the exact functions of :mod:`hfdataopt.gradients`."""
        return {
            "of": of,
            "layers": options.get("layers"),
            "dtype": self._engine_dtype(options.get("dtype")),
            "custom_loss": custom_loss,
            "memory": self.memory,
        }

    def _basis(
        self,
        target: str,
        of: Any,
        kind: str,
        floats_per_row: int,
        layers: Any,
        dtype: str | None,
        on_nonfinite: str,
        seed: int,
    ) -> Basis:
        """One basis per moment and target, fitted on a sample of pool and queries, on disk where there is a folder."""
        described = json.dumps([target, kind, floats_per_row, layers, dtype, seed])
        if described in self._bases:
            return self._bases[described]
        name = f"basis-{target}-{hashlib.sha256(described.encode()).hexdigest()[:8]}"
        folder = None if self.folder is None else self.folder / name

        def fit() -> Basis:
            if folder is not None and (folder / "basis.json").is_file():
                return Basis.load(folder)
            sides = ["pool", *(["queries"] if self.queries is not None else [])]
            sample = [
                {**batch, "row_id": [f"{side}:{row}" for row in batch["row_id"]]}
                for side in sides
                for batch in self.batches(side, draw(self.rows(side).ids, BASIS_ROWS, seed))
            ]
            shared: dict[str, Any] = {
                "of": of,
                "layers": layers,
                "dtype": dtype,
                "custom_loss": custom_loss,
                "memory": self.memory,
            }
            basis = fit_basis(
                self.model,
                sample,
                kind=kind,  # type: ignore[arg-type]
                floats_per_row=floats_per_row,
                seed=seed,
                rows=None,
                on_nonfinite=on_nonfinite,  # type: ignore[arg-type]
                **shared,
            )
            basis.metadata["kept_share"] = {side: self._kept_share(side, basis, seed, shared) for side in sides}
            if folder is not None:
                basis.save(folder)
            return basis

        fitted = self.processes.run_on_main(fit)
        self._bases[described] = fitted
        self.facts.setdefault("basis", {})[target] = {
            "kind": fitted.kind,
            "floats": fitted.size,
            "hash": fitted.hash,
            "kept_share": fitted.metadata.get("kept_share"),
        }
        return fitted

    def _compare_precision(self, target: str, of: Any, layers: Any, dtype: str | None) -> None:
        """In half precision: how far inner products of sampled gradients are from those in float32; said once per run, kept."""
        half_weights = any(parameter.dtype != torch.float32 for parameter in self.model.parameters())
        if dtype in (None, "float32") or half_weights:
            return
        if target not in self.half_precision:
            self.half_precision[target] = self.processes.run_on_main(
                lambda: self._precision_against_float32(target, of, layers, str(dtype))
            )
        self.facts.setdefault("half_precision", {})[target] = self.half_precision[target]

    def _precision_against_float32(
        self, target: str, of: Any, layers: Any, dtype: str
    ) -> dict[str, float | None] | None:
        """Relative difference and rank correlation (None where it is not defined); None where no gradient is finite."""
        file = None if self.folder is None else self.folder / f"half-precision-{target}.json"
        if file is not None and file.is_file():  # compared before this moment was interrupted
            return json.loads(file.read_text())

        def first_column(model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
            values, tokens = of(model, batch)
            return (values[:, 0] if values.ndim == 2 else values), tokens

        shared: dict[str, Any] = {
            "of": first_column if callable(of) else of,
            "layers": layers,
            "custom_loss": custom_loss,
            "memory": self.memory,
        }

        def compare() -> dict[str, float | None] | None:
            sample = draw(self.pool.ids, PRECISION_ROWS, seed=0)
            norms = [
                torch.cat(
                    [
                        part.squared_norm
                        for part in gradient_norms(self.model, self.batches("pool", sample), dtype=name, **shared)
                    ]
                )
                for name in (dtype, "float32")
            ]
            usable = torch.isfinite(norms[0]) & torch.isfinite(norms[1])
            rows = list(self.batches("pool", [position for position, good in zip(sample, usable, strict=True) if good]))
            if not rows:
                return None
            half, full = (gram(self.model, rows, dtype=name, **shared) for name in (dtype, "float32"))
            distance = float((half - full).norm() / full.norm().clamp_min(1e-300))
            correlation = rank_correlation(half, full)
            return {
                "relative_difference": distance,
                "rank_correlation": None if math.isnan(correlation) else correlation,
            }

        found = compare()
        if found is not None:
            correlation = found["rank_correlation"]
            ranks = "" if correlation is None else f" (rank correlation {correlation:.3f})"
            self.say(
                f"gradients of the {target} in {dtype}: inner products of {min(PRECISION_ROWS, len(self.pool))} sampled rows differ "
                f"from float32 by {found['relative_difference']:.2%}{ranks}; dtype='float32' avoids it"
            )
        if file is not None:
            write_json(file, found, self.name)
        return found

    def _kept_share(self, side: str, basis: Basis, seed: int, shared: dict[str, Any]) -> float | None:
        rows = self.rows(side)
        fitted_on = set(draw(rows.ids, BASIS_ROWS, seed))
        others = [position for position in range(len(rows)) if position not in fitted_on]
        positions = [others[i] for i in draw([rows.ids[p] for p in others], SHARE_ROWS, seed)] or sorted(fitted_on)[
            :SHARE_ROWS
        ]
        share = kept_share(self.model, basis, list(self.batches(side, positions)), rows=None, name=side, **shared)
        return None if share != share else round(share, 4)

    # -- shards

    def _sharded(
        self,
        side: str,
        what: str,
        manifest: dict[str, Any],
        compute: Callable[[list[int]], dict[str, torch.Tensor]],
        names: tuple[str, ...] = ("values",),
    ) -> dict[str, Any]:
        """``compute`` on every shard of rows, and the shards joined by name; from disk where they are there."""
        rows = self.rows(side)
        shards = [
            list(range(start, min(start + ROWS_PER_SHARD, len(rows)))) for start in range(0, len(rows), ROWS_PER_SHARD)
        ]
        bar = self._progress(f"{what} ({side})", len(rows))
        if self.folder is None:
            parts = []
            for positions in shards:
                parts.append(compute(positions))
                bar.update(len(positions))
            bar.close()
            return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
        manifest = {**manifest, "weights": self.weights, "model": type(self.model).__name__, "rows": rows.contents}
        name = f"{what}-{side}-{hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:8]}"
        folder = self.folder / name

        def prepare() -> list[int]:
            return GradientStore.open_or_create(folder, manifest, rows.ids, ROWS_PER_SHARD).missing_shards()

        missing = self.processes.run_on_main(prepare)
        store = GradientStore.open_or_create(folder, manifest, rows.ids, ROWS_PER_SHARD)

        def compute_mine() -> None:
            for index in missing[self.processes.index :: self.processes.count]:
                store.write(index, compute(shards[index]))
                bar.update(len(shards[index]))

        self.processes.together(compute_mine)
        bar.close()
        return {name: store.read(name) for name in names}

    def _progress(self, what: str, total: int) -> Any:
        from tqdm.auto import tqdm

        return tqdm(
            total=total,
            desc=f"{self.name}: {what}",
            unit="row",
            leave=False,
            delay=2,
            disable=not self.processes.is_main,
        )
