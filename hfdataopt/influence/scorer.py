"""Influence as a scorer: the options, what is checked before training, and the scores at one moment."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import load_file, save

from hfdataopt.attribution.reader import custom_loss
from hfdataopt.attribution.rows import draw
from hfdataopt.attribution.scorer import GradientScorer, Result
from hfdataopt.attribution.view import GradientFeatures, View
from hfdataopt.errors import DataError, OptionError, StoreError
from hfdataopt.files import is_intact, sealed, write_whole
from hfdataopt.gradients import Basis, find_blocks, gradient_norms, name_rows, take_rows
from hfdataopt.gradients.batches import nonfinite_error
from hfdataopt.influence.features import Features, inner_products, inverse_products, row_blocks
from hfdataopt.influence.gauss_newton import GaussNewton, check_model
from hfdataopt.influence.iterative import POWER_STEPS, Solution, conjugate_gradients, largest_eigenvalue, lissa
from hfdataopt.influence.kfac import kfac_basis
from hfdataopt.options import check_range

if TYPE_CHECKING:
    from hfdataopt.attribution.samples import Samples

KFAC_ROWS = 2048  # of the pool, that the whole eigenbasis of a small model is fitted on
GIB = 2**30
# What each solver reads beside the options that all have; None stands for its default.
SOLVER_OPTIONS: dict[str, dict[str, Any]] = {
    "identity": {},
    "datainf": {"damping": 0.1},
    "ekfac": {"damping": 0.1},
    "cg": {"damping": 0.1, "iterations": 100, "curvature_rows": 128, "tolerance": 1e-3},
    "lissa": {"damping": 0.1, "iterations": 100, "curvature_rows": 128},
}


@dataclass
class InfluenceScorer(GradientScorer):
    """Influence of rows on vectors of the queries: :meth:`influence` is everything but the choice of these vectors.

    Args:
        solver: how (H + damping)^-1 is applied. ``identity``: not at all (TracIn). ``datainf``, ``ekfac``: in closed form per
            layer, on stored features. ``cg``, ``lissa``: iterations with exact Gauss-Newton products on the model.
        damping: of ``datainf`` and ``ekfac`` in units of each layer's mean eigenvalue (its mean squared gradient entry), of
            ``cg`` and ``lissa`` in units of the largest eigenvalue; None is 0.1.
        iterations: of ``cg``, at most, and the depth of ``lissa``; None is 100.
        tolerance: of ``cg``: relative residual at which a query is solved; None is 0.001.
        curvature_rows: of ``cg`` and ``lissa``: pool rows, drawn by (seed, id), that the curvature is of; None is 128.
        per_query: False solves only for the mean of the queries' vectors, and keeps no scores of single queries.
        basis: None takes whole gradients for ``cg`` and ``lissa``, and for ``ekfac`` and ``datainf`` where those of pool and
            queries fit into ``memory_gib``, else ``eigen``: of what it drops the curvature is least and the inverse largest.
        memory_gib: the most that vectors as long as the whole gradient (``cg``, ``lissa``, ``basis="exact"``) may take.
    """

    basis: Literal["eigen", "random", "sketch", "exact"] | None = field(default=None, kw_only=True)  # type: ignore[assignment]
    solver: Literal["identity", "datainf", "ekfac", "cg", "lissa"] = field(default="ekfac", kw_only=True)
    damping: float | None = field(default=None, kw_only=True)
    iterations: int | None = field(default=None, kw_only=True)
    tolerance: float | None = field(default=None, kw_only=True)
    curvature_rows: int | None = field(default=None, kw_only=True)
    per_query: bool = field(default=True, kw_only=True)
    memory_gib: float = field(default=8.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "damping", above=0)
        check_range(self, "iterations", at_least=1)
        check_range(self, "tolerance", above=0, below=1)
        check_range(self, "curvature_rows", at_least=1)
        check_range(self, "memory_gib", above=0)
        takes = SOLVER_OPTIONS[self.solver]
        for option in SOLVER_OPTIONS["cg"]:
            if option not in takes and getattr(self, option) is not None:
                raise OptionError(f"{self.name}: {option} is not an option of solver={self.solver!r}; leave it out")
        if self.iterative and self.basis not in (None, "exact"):
            raise OptionError(
                f"{self.name}: solver={self.solver!r} works on whole gradients, but basis={self.basis!r} was given; leave basis "
                "out, or use solver='ekfac' or 'datainf'"
            )
        if self.solver == "ekfac" and self.basis in ("random", "sketch"):
            raise OptionError(
                f"{self.name}: solver='ekfac' is diagonal only in the eigenbasis, but basis={self.basis!r} was given; leave basis out, "
                "or use solver='datainf'"
            )

    @property
    def scores_each_query(self) -> bool:
        return self.per_query

    @property
    def iterative(self) -> bool:
        """Whether the solver multiplies with the curvature on the model."""
        return self.solver in ("cg", "lissa")

    def setting(self, option: str) -> Any:
        """The value of an option of the solver, or its default."""
        value = getattr(self, option)
        return SOLVER_OPTIONS[self.solver][option] if value is None else value

    def basis_for(self, view: View) -> str:
        """The basis asked for; else whole gradients where they are needed or, for closed forms, where all of them fit into
        ``memory_gib``: what a truncated basis drops are directions of little curvature, which weigh most in an inverse."""
        if self.basis is not None:
            return self.basis
        if self.iterative:
            return "exact"
        if self.solver == "identity":
            return "eigen"
        return "exact" if self._bytes(view, with_pool=True) <= self.memory_gib * GIB else "eigen"

    def check(self, view: View) -> None:
        exact = self.basis_for(view) == "exact"
        view.check_gradients(self.layers, None if exact else self.floats_per_row)
        view.check_labels()
        if self.iterative:
            check_model(view.model, self.layers)
            (batch,) = view.batches("pool", [0])
            with torch.no_grad():
                if custom_loss(view.model, {key: x for key, x in batch.items() if key != "row_id"}) is not None:
                    raise OptionError(
                        f"{self.name}: a plugin computes the loss of this model (per_example_loss), so its curvature is not known; "
                        "use solver='ekfac' or 'datainf', which need gradients only"
                    )
        if exact and self.solver != "identity":
            self._check_memory(view)

    def influence(self, view: View, *, target: str = "loss", samples: "Samples | None" = None) -> Result:
        """Influence of every pool row on every query's vector; ``target`` and ``samples``: see ``View.gradients``."""
        options = {**self.gradient_options(), "basis": self.basis_for(view)}
        vectors: dict[str, Any] = {"target": target, "samples": samples, **options}
        facts = {
            "solver": self.solver,
            "basis_kind": options["basis"],
            "damping": None if self.solver == "identity" else self.setting("damping"),
        }
        if self.solver == "identity":
            products = view.gradient_products(**vectors)
            if self.per_query:
                return Result(matrix=products, metadata=facts)
            return Result(
                Result.of(products, len(view.pool), len(view.rows("queries")), self.name).values, metadata=facts
            )
        if self.solver == "ekfac" and options["basis"] == "exact":
            vectors["basis"] = self._eigenbasis(view)
        found = view.gradients("queries", **vectors)
        if self.iterative:
            products, solved = self._iterate(view, found, vectors)
            facts |= solved
        else:
            products = self._closed_form(found, view.gradients("pool", **vectors))
        return Result(matrix=products, metadata=facts) if self.per_query else Result(products[:, 0], metadata=facts)

    def _closed_form(self, queries: GradientFeatures, pool: GradientFeatures) -> torch.Tensor:
        solver: Any = self.solver
        right = self._right_sides(queries.features)
        offsets, damping = queries.basis.offsets, self.setting("damping")
        return inner_products(pool.features, inverse_products(pool.features, right, offsets, solver, damping))

    def _right_sides(self, queries: Features) -> torch.Tensor:
        """The vectors to solve for, ``[q, d]`` float64: of each query, or the mean of those that are finite."""
        if self.per_query:
            return torch.cat(list(row_blocks(queries)))
        total: Any = 0.0
        count = 0
        for block in row_blocks(queries):
            finite = torch.isfinite(block).all(1)
            total, count = total + block[finite].sum(0), count + int(finite.sum())
        return (total / count).unsqueeze(0)

    def _eigenbasis(self, view: View) -> Basis:
        """All of the Kronecker-factored eigenvectors, fitted on rows of the pool."""
        options = {"rows": KFAC_ROWS, "layers": self.layers, "dtype": self.dtype, "seed": self.seed}

        def fit() -> Basis:
            basis = kfac_basis(
                view.model,
                list(view.batches("pool", view.pool.by_length(draw(view.pool.ids, KFAC_ROWS, self.seed)))),
                on_nonfinite=self.on_nonfinite,
                **view.engine_options(self.layers, self.dtype),
            )
            basis.metadata["kept_share"] = {"pool": 1.0, "queries": 1.0}  # a rotation of the whole gradient
            return basis

        return view.basis_of("kfac", options, fit)

    # -- cg and lissa

    def _iterate(
        self, view: View, queries: GradientFeatures, vectors: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        right = self._right_sides(queries.features)
        solution, largest = self._solve(view, right)
        iterations, residuals = solution.iterations.tolist(), solution.residuals
        finite = residuals[torch.isfinite(residuals)]
        worst = float(finite.max()) if len(finite) else float("nan")
        if self.solver == "cg":
            late = (residuals > self.setting("tolerance")).nonzero().flatten().tolist()
            if late:
                named = f": {name_rows([view.rows('queries').ids[place] for place in late])}" if self.per_query else ""
                view.say(
                    f"{len(late)} of {len(right)} systems did not reach tolerance={self.setting('tolerance')} in "
                    f"{self.setting('iterations')} iterations (worst residual {worst:.2g}); raise iterations or damping{named}"
                )
        elif not worst < 0.1:
            view.say(
                f"LiSSA of depth {self.setting('iterations')} left a residual of {worst:.2g}; raise iterations or damping, or use "
                "solver='cg'"
            )
        facts = {
            "curvature_rows": min(self.setting("curvature_rows"), len(view.pool)),
            "largest_eigenvalue": largest,
            "iterations": iterations,
            "residuals": [None if x != x else x for x in residuals.tolist()],
        }
        shared = {"of": "loss", "precondition": None, **vectors}
        return view._streamed_products(solution.vectors, False, shared), facts

    def _solve(self, view: View, right: torch.Tensor) -> tuple[Solution, float]:
        """The solution and the largest eigenvalue: made by the main process, from disk where it was solved before this
        moment was interrupted."""
        options = {name: self.setting(name) for name in SOLVER_OPTIONS[self.solver]}
        described = json.dumps([self.solver, options, self.seed, self.layers, view.weights, view.pool.contents])
        key = hashlib.sha256(described.encode() + right.numpy().tobytes()).hexdigest()[:8]
        file = None if view.folder is None else view.folder / f"solution-{key}.safetensors"

        def solve() -> tuple[Solution, float] | None:
            if file is None:
                return self._solve_now(view, right)
            if not is_intact(file):
                solution, largest = self._solve_now(view, right)
                data = save({**vars(solution), "largest": torch.tensor(largest, dtype=torch.float64)})
                try:
                    write_whole(file, sealed(data))
                except OSError as error:
                    raise StoreError(f"{self.name}: {str(file)!r} cannot be written: {error}") from error
            return None

        solved = view.processes.run_on_main(solve)
        if solved is not None:
            return solved
        assert file is not None
        tensors = load_file(file)
        return Solution(tensors["vectors"], tensors["iterations"], tensors["residuals"]), float(tensors["largest"])

    def _solve_now(self, view: View, right: torch.Tensor) -> tuple[Solution, float]:
        matrix = GaussNewton(view.model, self._curvature_batches(view), layers=self.layers, memory=view.memory)
        iterations = self.setting("iterations")
        bar = view.progress(f"products for {self.solver}", POWER_STEPS + iterations, unit="product")

        def product(x: torch.Tensor) -> torch.Tensor:
            bar.update(1)
            return matrix.product(x)

        largest = largest_eigenvalue(product, matrix.size, self.seed)
        if not largest > 0:
            raise DataError(
                f"{self.name}: the loss has no curvature on the {matrix.rows} rows drawn; raise curvature_rows"
            )
        damping = self.setting("damping") * largest
        if self.solver == "cg":
            solution = conjugate_gradients(
                product, right, damping, tolerance=self.setting("tolerance"), max_iterations=iterations
            )
        else:
            solution = lissa(product, right, damping, depth=iterations, scale=1.1 * (largest + damping))
        bar.close()
        return solution, largest

    def _curvature_batches(self, view: View) -> list[dict[str, Any]]:
        """The rows drawn for the curvature, those left out whose gradient is not finite."""
        positions = view.pool.by_length(draw(view.pool.ids, self.setting("curvature_rows"), self.seed))
        batches = list(view.batches("pool", positions))
        good, bad = set(), []
        for part in gradient_norms(view.model, batches, **view.engine_options(self.layers, self.dtype)):
            finite = torch.isfinite(part.squared_norm) & torch.isfinite(part.loss_sum)
            for row, fine in zip(part.row_ids, finite.tolist(), strict=True):
                good.add(row) if fine else bad.append(row)
        if bad and self.on_nonfinite == "error":
            raise nonfinite_error(bad)
        return list(take_rows(batches, good))

    def _bytes(self, view: View, with_pool: bool) -> int:
        """What vectors as long as the whole gradient take."""
        size = sum(block.size for block in find_blocks(view.model, self.layers))
        queries = len(view.rows("queries"))
        solved = queries if self.per_query else 1
        # The queries' float32 gradients; for those solved for, seven float64 vectors of cg or lissa, four of a closed form.
        needed = 4 * queries * size + (56 if self.iterative else 32) * solved * size
        return needed + 4 * len(view.pool) * size * with_pool

    def _check_memory(self, view: View) -> None:
        needed = self._bytes(view, with_pool=not self.iterative and view.folder is None)
        size = sum(block.size for block in find_blocks(view.model, self.layers))
        queries = len(view.rows("queries"))
        if needed > self.memory_gib * GIB:
            fix = ["choose fewer layers (layers='last:2', or LoRA)", "fewer queries"]
            fix += ["per_query=False, which solves for the queries' mean only"] if self.per_query else []
            raise OptionError(
                f"{self.name}: {queries} queries with gradients of {size:,} entries need about {needed / GIB:.1f} GiB, more than "
                f"memory_gib={self.memory_gib:g}; {', '.join(fix)}, solver='ekfac' with basis='eigen', or raise memory_gib"
            )
