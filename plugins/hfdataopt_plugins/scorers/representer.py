"""Representer points: a prediction as a sum over training rows of the last layer's dual weights times similarity.

Yeh et al., "Representer Point Selection for Explaining Deep Neural Networks", NeurIPS 2018, theorem 3.1: with the last
layer refit under an L2 penalty, the logit of class j for query t is sum_i alpha_ij f_i . f_t.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from hfdataopt.attribution.scorer import Result, Scorer
from hfdataopt.attribution.task import Pooling, model_head, prompt_head, read_labels
from hfdataopt.attribution.view import View
from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range


@dataclass
class Representer(Scorer):
    """Contribution of each row to the logit of each query's own label.

    What is explained is a last layer refit on the features that ``pooling`` takes. The model's own head may read others (BERT's
    pooler, say): its probabilities are then the targets, and the refit only comes as close to them as these features allow.

    Args:
        l2: penalty of the refit; the objective is the mean cross-entropy + l2 * |W|^2.
        targets: ``model`` refits to the model's own probabilities, as the paper does; ``labels`` to the given labels.
        pooling: how hidden states become one vector.
    """

    name: ClassVar[str] = "representer"
    default_when: ClassVar[Any] = "train_end"

    l2: float = 0.003
    targets: Literal["model", "labels"] = "model"
    pooling: Pooling = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "l2", above=0)  # without a penalty there is no representer theorem

    def check(self, view: View) -> None:
        read_labels(view.model, view.pool, view.queries, self.name)

    def score(self, view: View) -> Result:
        labels = read_labels(view.model, view.pool, view.queries, self.name)
        assert labels.queries is not None
        pool, queries = (_with_bias(view.embeddings(side, self.pooling)) for side in ("pool", "queries"))
        wanted = torch.nn.functional.one_hot(labels.pool, labels.count).double()
        if self.targets == "model":
            head = prompt_head(labels.classes) if labels.words else model_head(labels.classes)
            logits = view.per_row("pool", "logits", lambda batch: head(view.model, batch), {"classes": labels.classes})
            wanted = logits.double().softmax(1)
        weight = _refit(pool, wanted, self.l2)
        alpha = (wanted - (pool @ weight.T).softmax(1)) / (2 * self.l2 * len(pool))
        matrix = alpha[:, labels.queries] * (pool @ queries.T)
        return Result(
            matrix=matrix,
            metadata={"stationarity": float((weight - alpha.T @ pool).norm() / weight.norm().clamp_min(1e-300))},
        )


def _with_bias(features: torch.Tensor) -> torch.Tensor:
    return torch.cat([features.double(), features.new_ones(len(features), 1, dtype=torch.float64)], 1)


def _refit(features: torch.Tensor, wanted: torch.Tensor, l2: float) -> torch.Tensor:
    """``argmin_W mean CE(W f, wanted) + l2 |W|^2``: ``[c, d]`` by L-BFGS in float64; alpha is exact only at the minimum."""
    weight = torch.zeros(wanted.shape[1], features.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight],
        max_iter=2000,
        tolerance_grad=1e-10,
        tolerance_change=1e-16,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(features @ weight.T, wanted) + l2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return weight.detach()


@hookimpl
def register_scorers(register: Callable[..., None]) -> None:
    register(Representer)
