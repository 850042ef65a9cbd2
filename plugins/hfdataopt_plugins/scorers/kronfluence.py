"""EK-FAC influence by kronfluence (Grosse et al., "Studying Large Language Model Generalization with Influence Functions", 2023).

The package fits the factors and takes the inner products; this module gives it the model, the collated rows and the loss of each
row, and turns its scores the right way round. The Fisher is the empirical one, of the given labels.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch

from hfdataopt.attribution.reader import custom_loss
from hfdataopt.attribution.scorer import Result, Scorer
from hfdataopt.attribution.view import View
from hfdataopt.errors import DataError
from hfdataopt.gradients import losses
from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt_plugins.scorers._copies import copy_of, linear_modules, need, one_process, scored

INSTALL = (
    "pip install --no-deps kronfluence einconv  (it asks for torchvision, which it imports in no code that is used here)",
    "pip install einops opt-einsum",
)


@dataclass
class Kronfluence(Scorer):
    """Influence of each row on each query's loss, through the inverse of kronfluence's curvature.

    Args:
        strategy: ``ekfac``, ``kfac`` or ``diagonal``; ``identity`` is none (the gradients' inner product).
        damping: added to the eigenvalues; None is a tenth of each layer's mean eigenvalue, as in ``influence``.
        query_rank: rank that query gradients are cut to, to hold many of them at once; None keeps them whole.
        layers: linear layers, as in ``influence``; None takes all but the LM head.
    """

    name: ClassVar[str] = "kronfluence"
    default_when: ClassVar[Any] = "train_end"

    strategy: Literal["ekfac", "kfac", "diagonal", "identity"] = "ekfac"
    damping: float | None = field(default=None, kw_only=True)
    query_rank: int | None = field(default=None, kw_only=True)
    layers: str | list[str] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "damping", above=0)
        check_range(self, "query_rank", at_least=1)

    def check(self, view: View) -> None:
        one_process(view)
        need("kronfluence.analyzer", self.name, INSTALL)
        linear_modules(view, self.layers)
        view.check_labels()

    def score(self, view: View) -> Result:
        analyzer_module = need("kronfluence.analyzer", self.name, INSTALL)
        from kronfluence.arguments import FactorArguments, ScoreArguments
        from kronfluence.utils.dataset import DataLoaderKwargs

        task = _task(linear_modules(view, self.layers))
        model = analyzer_module.prepare_model(copy_of(view), task)
        factors = FactorArguments(
            strategy=self.strategy,
            use_empirical_fisher=True,
            covariance_max_examples=None,
            lambda_max_examples=None,
        )
        scores = ScoreArguments(damping_factor=self.damping, query_gradient_low_rank=self.query_rank)
        sides = {side: _Places(view, side) for side in ("pool", "queries")}
        with tempfile.TemporaryDirectory() as folder:
            analyzer = analyzer_module.Analyzer(
                "run",
                model,
                task,
                cpu=view.device.type == "cpu",
                log_level=40,
                disable_tqdm=True,
                output_dir=folder,
            )
            loaders = {side: DataLoaderKwargs(collate_fn=places.collate) for side, places in sides.items()}
            analyzer.set_dataloader_kwargs(loaders["pool"])
            size = {"per_device_batch_size": view.batch_size, "factor_args": factors}
            analyzer.fit_all_factors("factors", sides["pool"], dataloader_kwargs=loaders["pool"], **size)
            analyzer.compute_pairwise_scores(
                "scores",
                "factors",
                query_dataset=sides["queries"],
                train_dataset=sides["pool"],
                per_device_query_batch_size=view.batch_size,
                per_device_train_batch_size=view.batch_size,
                score_args=scores,
            )
            matrix = analyzer.load_pairwise_scores("scores")["all_modules"].T.contiguous()
        if matrix.shape != (len(view.pool), len(view.rows("queries"))):
            raise DataError(f"{self.name}: kronfluence returned scores of shape {list(matrix.shape)}")
        facts = {"strategy": self.strategy, "damping": self.damping, "kronfluence": _version()}
        return Result(matrix=scored(view, matrix), metadata=facts)


class _Places(torch.utils.data.Dataset[Any]):
    """Positions of a side's rows, and their number as an index; a batch of them is collated as everywhere."""

    def __init__(self, view: View, side: str) -> None:
        self.view, self.side = view, side

    def __len__(self) -> int:
        return len(self.view.rows(self.side))

    def __getitem__(self, place: int) -> tuple[str, int]:
        return self.side, place

    def collate(self, places: list[tuple[str, int]]) -> dict[str, Any]:
        (side,) = {side for side, _ in places}
        (batch,) = self.view.batches(side, [place for _, place in places])
        return {name: value for name, value in batch.items() if name != "row_id"}


def _task(modules: list[str]) -> Any:
    from kronfluence.task import Task

    class RowLoss(Task):
        """The summed loss of the rows of a batch, for training rows and queries alike."""

        def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> torch.Tensor:
            return losses.per_example_loss(model, batch, custom_loss=custom_loss)[0].sum()

        def compute_measurement(self, batch: Any, model: Any) -> torch.Tensor:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return modules

        def get_attention_mask(self, batch: Any) -> Any:
            return batch.get("attention_mask")

    return RowLoss()


def _version() -> str:
    from importlib.metadata import version

    return version("kronfluence")


@hookimpl
def register_scorers(register: Callable[..., None]) -> None:
    register(Kronfluence)
