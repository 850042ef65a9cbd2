"""What a scorer sees at one moment: everything a :class:`Reader` has, and per-example gradients of pool and queries."""

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from hfdataopt.attribution.reader import Reader, as_tensor, custom_loss, in_order, write_json
from hfdataopt.attribution.rows import draw
from hfdataopt.attribution.vectors import Vectors
from hfdataopt.errors import DataError, OptionError
from hfdataopt.files import with_checksum, without_checksum
from hfdataopt.gradients import (
    Basis,
    find_blocks,
    fit_basis,
    gradient_norms,
    gram,
    kept_share,
)
from hfdataopt.gradients.capture import refuse_reentrant
from hfdataopt.statistics import rank_correlation

if TYPE_CHECKING:
    from hfdataopt.attribution.samples import Samples
    from hfdataopt.gradients import ShardedArray

BASIS_ROWS = 128  # of the pool, and as many of the queries
PRECISION_ROWS = 32  # of the pool, on which half precision is compared with float32
WHOLE_GRADIENTS = 16 * 2**30  # bytes of whole query gradients held at once, at most
SHARE_ROWS = 32  # of each side, on which the kept share of the gradient norm is measured


class GradientFeatures(NamedTuple):
    """Features ``[rows, columns, d]`` float32, target sums ``[rows, columns]`` (nats for a loss), labelled tokens ``[rows]``.
    A target that is one number per row has one column. ``basis`` made the features.

    ``features`` is memory-mapped where it is on disk: slices read what they need.
    """

    features: "np.ndarray | ShardedArray"
    loss_sum: torch.Tensor
    tokens: torch.Tensor
    basis: Basis

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


class View(Reader):
    """What ``Scorer.score`` gets.

    Attributes:
        half_precision: what was found by comparing with float32, by target; shared by the moments of a run.
    """

    def __init__(self, *arguments: Any, half_precision: dict[str, Any] | None = None, **named: Any):
        super().__init__(*arguments, **named)
        self.half_precision = {} if half_precision is None else half_precision
        self._bases: dict[str, Basis] = {}

    def check_whole_gradients(self, layers: Any) -> None:
        """Raise where the whole gradients of all queries, held in float32 and float64, are more than memory should hold."""
        size, queries = sum(block.size for block in find_blocks(self.model, layers)), len(self.rows("queries"))
        needed = 12 * size * queries
        if needed > WHOLE_GRADIENTS:
            raise OptionError(
                f"{self.name}: basis='exact' keeps {queries} query vectors of {size:,} entries, {needed / 2**30:.1f} GiB (at most "
                f"{WHOLE_GRADIENTS / 2**30:.0f}); take basis='eigen', fewer layers (layers='last:2', or LoRA) or fewer queries"
            )

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
        basis: str | Basis = "eigen",
        floats_per_row: int = 8192,
        layers: Any = None,
        dtype: str | None = None,
        on_nonfinite: str = "error",
        seed: int = 0,
        precondition: Any = None,
        samples: "Samples | None" = None,
    ) -> GradientFeatures:
        """Per-example gradients of a side: features ``[rows, columns, d]`` float32, target sums and token counts.

        Both sides must be asked for with the same arguments, for they share a basis.

        Args:
            target: names what is differentiated, for the store.
            of: ``"loss"``, ``"logit"`` or a callable ``(model, batch) -> (value [b] or [b, columns], tokens [b])``.
            basis: ``"eigen"``, ``"random"``, ``"sketch"``, ``"exact"``, or a fitted one (see :meth:`basis_of`), which needs no ``floats_per_row``.
            precondition: changes each gradient of the pool before it is projected; its ``key`` tells it from others.
            samples: the vector of a query is then the weighted sum of the gradients of its samples' losses (a policy
                gradient), and its target sum the weighted sum of their losses.

        A row skipped for a non-finite gradient has NaN features.
        """
        engine_dtype = self._engine_dtype(dtype)
        self.facts["precision"] = self.precision(dtype)
        vectors = self._vectors(of, precondition, samples)
        if isinstance(basis, Basis):
            fitted = basis
            self._note_basis(target, fitted)
        else:
            fitted = self._basis(target, vectors, basis, floats_per_row, layers, engine_dtype, on_nonfinite, seed)
        self._compare_precision(target, of, layers, engine_dtype)
        mine = vectors[side]

        def shard(positions: list[int]) -> dict[str, torch.Tensor]:
            return mine.features(fitted, positions, layers, engine_dtype, on_nonfinite)

        manifest = {
            "kind": "gradients",
            "target": target,
            "basis": fitted.hash,
            "dtype": self.precision(dtype),
            "layers": fitted.layers,
            **mine.key,
        }
        names = ("features", "loss_sum", "tokens")
        arrays = self.sharded(side, f"gradients-{target}", manifest, shard, names, mine.rows_per_shard)
        loss_sum, tokens = as_tensor(arrays["loss_sum"]), as_tensor(arrays["tokens"])
        self.finite_rows(side, loss_sum, "the gradient", on_nonfinite)
        return GradientFeatures(arrays["features"], loss_sum, tokens, fitted)

    def _vectors(self, of: Any, precondition: Any, samples: "Samples | None") -> dict[str, Vectors]:
        vectors = {"pool": Vectors(self, "pool", of, precondition)}
        if self.queries is not None:
            vectors["queries"] = Vectors(self, "queries", of if samples is None else "loss", None, samples)
        return vectors

    def gradient_products(
        self,
        *,
        of: Any = "loss",
        target: str = "loss",
        normalize: bool = False,
        precondition: Any = None,
        samples: "Samples | None" = None,
        **options: Any,
    ) -> torch.Tensor:
        """Inner products of pool and query vectors ``[rows, queries]`` float64; exact ones when ``basis="exact"``.

        With ``normalize`` cosines; a vector of norm 0 has none. NaN are rows and columns skipped for a non-finite gradient,
        those without a cosine, and preconditioned rows without labelled tokens. ``precondition`` and ``samples``: see
        :meth:`gradients`.
        """
        if options.get("basis") == "exact" and precondition is None and samples is None:
            products = self._exact_products(of, target, options)
            if normalize:
                for dimension, side in enumerate(("pool", "queries")):
                    norms = self._squared_norms(side, of, target, options)[0].sqrt()
                    products /= norms.unsqueeze(1 - dimension)
            return products.masked_fill(~torch.isfinite(products), float("nan"))
        shared = {"of": of, "target": target, "precondition": precondition, "samples": samples, **options}
        queries = self.gradients("queries", **shared).whole()
        if normalize:
            queries = queries / queries.norm(dim=1, keepdim=True)
        if options.get("basis") == "exact":
            return self._streamed_products(queries, normalize, shared)
        pool = self.gradients("pool", **shared)
        products = torch.cat([_products(block, queries, normalize) for block in pool.blocks()])
        return self._without_unlabelled(products, pool.loss_sum, pool.tokens, precondition)

    def _without_unlabelled(
        self, products: torch.Tensor, loss_sum: torch.Tensor, tokens: torch.Tensor, precondition: Any
    ) -> torch.Tensor:
        """NaN for rows without labelled tokens where gradients are preconditioned: what is left is the same momentum in all."""
        if precondition is None:
            return products
        skipped = ~torch.isfinite(loss_sum).all(1)  # said before
        labelled = self.labelled_rows("pool", tokens.masked_fill(skipped, 1))
        return products.masked_fill(~labelled[:, None], float("nan"))

    def _streamed_products(self, queries: torch.Tensor, normalize: bool, shared: dict[str, Any]) -> torch.Tensor:
        """Products of whole pool gradients with query vectors ``[queries, d]``; the gradients themselves are not kept."""
        dtype, layers = self._engine_dtype(shared.get("dtype")), shared.get("layers")
        vectors = self._vectors(shared["of"], shared["precondition"], shared["samples"])
        pool, basis = vectors["pool"], Basis.exact(find_blocks(self.model, layers))
        names, on_nonfinite = ("values", "loss_sum", "tokens"), shared.get("on_nonfinite", "error")

        def shard(positions: list[int]) -> dict[str, torch.Tensor]:
            parts: dict[str, list[torch.Tensor]] = {name: [] for name in names}
            for start in range(0, len(positions), self.batch_size):
                part = positions[start : start + self.batch_size]
                arrays = pool.features(basis, part, layers, dtype, on_nonfinite)
                arrays["values"] = _products(arrays["features"].double().flatten(1), queries, normalize)
                for name in names:
                    parts[name].append(arrays[name])
            return {name: torch.cat(found) for name, found in parts.items()}

        manifest = {
            "kind": "products",
            "arrays": list(names),
            "target": shared["target"],
            "queries": hashlib.sha256(queries.numpy().tobytes()).hexdigest()[:16],
            "layers": layers,
            "normalize": normalize,
            "dtype": self.precision(shared.get("dtype")),
            **pool.key,
        }
        arrays = self.sharded("pool", f"products-{shared['target']}", manifest, shard, names)
        products, loss_sum, tokens = (as_tensor(arrays[name]) for name in names)
        self.finite_rows("pool", loss_sum, "the gradient", on_nonfinite)
        return self._without_unlabelled(products, loss_sum, tokens, shared["precondition"])

    def _exact_products(self, of: Any, target: str, options: dict[str, Any]) -> torch.Tensor:
        """Inner products from the factors of the gradients, none of which is made."""
        good = {side: torch.isfinite(self._squared_norms(side, of, target, options)[0]) for side in ("pool", "queries")}
        columns = torch.nonzero(good["queries"]).flatten().tolist()
        engine = {"of": of, **self.engine_options(options.get("layers"), options.get("dtype"))}

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
        return as_tensor(self.sharded("pool", f"products-{target}", manifest, shard)["values"])

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
        engine = {"of": of, **self.engine_options(options.get("layers"), options.get("dtype"))}
        self._compare_precision(target, of, options.get("layers"), engine["dtype"])

        def shard(positions: list[int]) -> dict[str, torch.Tensor]:
            order = self.rows(side).by_length(positions)
            parts = list(gradient_norms(self.model, self.batches(side, order), **engine))
            norms, losses, tokens = (
                torch.cat([getattr(part, name) for part in parts]) for name in ("squared_norm", "loss_sum", "tokens")
            )
            norms = torch.where(torch.isfinite(losses), norms, torch.full_like(norms, float("nan")))
            return {name: in_order(x, order, positions) for name, x in (("values", norms), ("tokens", tokens.long()))}

        names = ("values", "tokens")
        manifest = {
            "kind": "norms",
            "arrays": list(names),
            "target": target,
            "layers": options.get("layers"),
            "dtype": self.precision(options.get("dtype")),
        }
        arrays = self.sharded(side, f"norms-{target}", manifest, shard, names)
        norms, tokens = (as_tensor(arrays[name]) for name in names)
        self.facts["precision"] = self.precision(options.get("dtype"))
        finite = self.finite_rows(side, norms, "the gradient", options.get("on_nonfinite", "error"))
        return torch.where(finite, norms, torch.full_like(norms, float("nan"))), tokens

    def _basis(
        self,
        target: str,
        vectors: dict[str, Vectors],
        kind: str,
        floats_per_row: int,
        layers: Any,
        dtype: str | None,
        on_nonfinite: str,
        seed: int,
    ) -> Basis:
        """One basis per moment and target, fitted on a sample of pool and queries."""
        keys = [one.key for one in vectors.values() if one.key]

        def fit() -> Basis:
            shared = self.engine_options(layers, dtype)
            samples = [one.sample(BASIS_ROWS, seed) for one in vectors.values()]
            unlike = any(
                one.precondition or one.samples for one in vectors.values()
            )  # of other scales: each counts alike
            basis = fit_basis(
                self.model,
                samples if unlike else [batch for source in samples for batch in source.batches],
                of=vectors["pool"].of,
                kind=kind,  # type: ignore[arg-type]
                floats_per_row=floats_per_row,
                seed=seed,
                rows=None,
                on_nonfinite=on_nonfinite,  # type: ignore[arg-type]
                **shared,
            )
            basis.metadata["kept_share"] = {
                side: self._kept_share(one, basis, seed, shared) for side, one in vectors.items()
            }
            return basis

        fitted = self.basis_of(target, [kind, floats_per_row, layers, dtype, seed, *keys], fit)
        self._note_basis(target, fitted)
        return fitted

    def basis_of(self, name: str, options: Any, fit: Callable[[], Basis]) -> Basis:
        """What ``fit`` gives to the main process, once per moment, ``name`` and ``options`` (JSON); on disk where there is a folder."""
        described = json.dumps([name, options])
        if described not in self._bases:
            key = hashlib.sha256(described.encode()).hexdigest()[:8]
            folder = None if self.folder is None else self.folder / f"basis-{name}-{key}"

            def load_or_fit() -> Basis:
                if folder is not None and (folder / "basis.json").is_file():
                    return Basis.load(folder)
                basis = fit()
                if folder is not None:
                    basis.save(folder)
                return basis

            self._bases[described] = self.processes.run_on_main(load_or_fit)
        return self._bases[described]

    def _note_basis(self, target: str, fitted: Basis) -> None:
        self.facts.setdefault("basis", {})[target] = {
            "kind": fitted.kind,
            "floats": fitted.size,
            "hash": fitted.hash,
            "kept_share": fitted.metadata.get("kept_share"),
        }

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
            with contextlib.suppress(OSError, ValueError):  # damaged
                return without_checksum(json.loads(file.read_text()))["found"]

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
            write_json(file, with_checksum({"found": found}), self.name)
        return found

    def _kept_share(self, vectors: Vectors, basis: Basis, seed: int, shared: dict[str, Any]) -> float | None:
        sample = vectors.sample(SHARE_ROWS, seed, others_than=BASIS_ROWS)
        share = kept_share(
            self.model,
            basis,
            sample,
            rows=None,
            name=vectors.side,
            **shared,
        )
        if (
            basis.kind in ("random", "sketch") and share < 0.1
        ):  # 1 in expectation: projectors on GPUs have been seen to return zeros
            raise DataError(
                f"{self.name}: the random projection keeps {share:.2g} of the squared gradient norm of the {vectors.side}, where about "
                "1 is expected; the device computes wrong products, or nearly all gradients are 0"
            )
        return None if share != share else round(share, 4)


def _products(block: torch.Tensor, queries: torch.Tensor, normalize: bool) -> torch.Tensor:
    if normalize:
        block = block / block.norm(dim=1, keepdim=True)
    return block @ queries.T
