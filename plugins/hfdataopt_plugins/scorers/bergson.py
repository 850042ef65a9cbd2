"""Inner products of gradients by bergson, EleutherAI's library for data attribution: TracIn at one checkpoint.

The package hooks the model, makes each row's gradient, projects it at random and takes the products; this module gives it the
tokens of the rows. It computes the loss of causal language models, and of no others.
"""

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset

from hfdataopt.attribution.reader import custom_loss
from hfdataopt.attribution.scorer import Result, Scorer
from hfdataopt.attribution.view import View
from hfdataopt.errors import OptionError
from hfdataopt.gradients.losses import find_task
from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt_plugins.scorers._copies import copy_of, linear_modules, need, one_process, scored

READS = {"input_ids", "attention_mask", "labels", "row_id"}
INSTALL = (
    "pip install --no-deps bergson torchopt  (it asks for torchvision, torchaudio and bitsandbytes, which are not used here)",
    "pip install jaxtyping ml_dtypes natsort petname simple-parsing optree",
)


@dataclass
class Bergson(Scorer):
    """Inner product of each row's gradient with each query's, both projected at random.

    Args:
        projection: rows and columns that each layer's gradient is projected to; 0 keeps it whole.
        normalize: cosines instead of inner products.
        layers: linear layers, as in ``tracin``; None takes all but the LM head.
        seed: of the projection.
    """

    name: ClassVar[str] = "bergson"
    default_when: ClassVar[Any] = "epoch"
    combine: ClassVar[Any] = "learning-rate-sum"

    projection: int = 16
    normalize: bool = False
    layers: str | list[str] | None = field(default=None, kw_only=True)
    seed: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "projection", at_least=0)
        check_range(self, "seed", at_least=0)

    def check(self, view: View) -> None:
        one_process(view)
        need("bergson", self.name, INSTALL)
        linear_modules(view, self.layers)
        if find_task(view.model) != "causal":
            raise OptionError(
                f"{self.name}: bergson reads causal language models, and the model is a {type(view.model).__name__}; use 'tracin'"
            )
        for side in ("pool", "queries"):
            (batch,) = view.batches(side, [0])
            if unknown := sorted(set(batch) - READS):
                raise OptionError(
                    f"{self.name}: bergson hands the model its tokens only, but rows of the {side} have {', '.join(unknown)}; use "
                    "'tracin'"
                )
            with torch.no_grad():
                if custom_loss(view.model, {name: x for name, x in batch.items() if name != "row_id"}) is not None:
                    raise OptionError(f"{self.name}: a plugin computes the loss of this model; use 'tracin'")
        view.check_labels()

    def score(self, view: View) -> Result:
        need("bergson", self.name, INSTALL)
        from bergson.score.score_writer import InMemorySequenceScoreWriter
        from bergson.score.scorer import Scorer as Products

        model, modules = copy_of(view), linear_modules(view, self.layers)
        queries = self._collect(view, model, "queries", modules, None)
        if self.normalize:
            norm = (
                torch.stack([part.square().sum(1) for part in queries.values()]).sum(0).sqrt().clamp_min(1e-12)[:, None]
            )
            queries = {name: part / norm for name, part in queries.items()}
        writer = InMemorySequenceScoreWriter(len(view.pool), len(view.rows("queries")))
        products = Products(queries, list(queries), writer, view.device, torch.float32, unit_normalize=self.normalize)
        self._collect(view, model, "pool", modules, products)
        facts = {"projection": self.projection, "bergson": _version()}
        return Result(matrix=scored(view, torch.as_tensor(writer.scores)), metadata=facts)

    def _collect(self, view: View, model: Any, side: str, modules: list[str], scorer: Any) -> dict[str, torch.Tensor]:
        """Gradients by module ``[rows, d]`` of a side, or with a scorer none: they are scored as they are made."""
        from bergson import CollectorComputer, GradientProcessor, IndexConfig, InMemoryCollector

        rows = _tokens(view, side)
        with tempfile.TemporaryDirectory() as folder:
            config = IndexConfig(
                run_path=str(Path(folder) / "run"),
                projection_dim=self.projection,
                include_bias=True,
                loss_reduction="sum",
            )
            config.partial_run_path.mkdir()
            collector = InMemoryCollector(
                model=model,
                target_modules=set(modules),
                data=rows,
                cfg=config,
                scorer=scorer,
                processor=GradientProcessor(
                    projection_dim=self.projection or None, projection_seed=self.seed, include_bias=True
                ),
            )
            places = list(range(len(rows)))
            batches = [places[start : start + view.batch_size] for start in range(0, len(rows), view.batch_size)]
            with _quiet():
                CollectorComputer(
                    model, rows, collector=collector, batches=batches, cfg=config
                ).run_with_collector_hooks()
        return {name: part.float() for name, part in collector.gradients.items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the package's lines on standard output."""
    logger = logging.getLogger("CollectorComputer")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _tokens(view: View, side: str) -> Dataset:
    """``input_ids`` and ``labels`` of a side's rows, without padding."""
    rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for batch in view.batches(side):
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        for name, found in rows.items():
            found.extend(row[kept].tolist() for row, kept in zip(batch[name], mask, strict=True))
    return Dataset.from_dict(rows)


def _version() -> str:
    from importlib.metadata import version

    return version("bergson")


@hookimpl
def register_scorers(register: Callable[..., None]) -> None:
    register(Bergson)
