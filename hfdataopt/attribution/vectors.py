"""The vectors of a side, made from gradients: one for each row, or for a query the weighted sum over its samples."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from hfdataopt.attribution import reader
from hfdataopt.attribution.rows import shuffled
from hfdataopt.gradients import Basis, Source, per_example_gradients, per_example_loss

if TYPE_CHECKING:
    from hfdataopt.attribution.reader import Reader
    from hfdataopt.attribution.samples import Samples


def mean_loss(model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """``of=`` the loss of each row, averaged over its labelled tokens (0 for a row without any)."""
    total, tokens = per_example_loss(model, batch, custom_loss=reader.custom_loss)
    return total / tokens.clamp(min=1).to(total), tokens


class Vectors:
    """Where the vectors of a side come from: its rows, or weighted samples that belong to its rows.

    Attributes:
        key: JSON values that tell the vectors from others of the same rows.
    """

    def __init__(self, view: "Reader", side: str, of: Any, precondition: Any = None, samples: "Samples | None" = None):
        self.view, self.side, self.of, self.precondition, self.samples = view, side, of, precondition, samples
        self.key: dict[str, Any] = {}
        if precondition is not None:
            self.key["precondition"] = precondition.key
        if samples is not None:
            self.key["samples"] = samples.key
        self.rows_per_shard = (
            reader.ROWS_PER_SHARD if samples is None else max(1, reader.ROWS_PER_SHARD // samples.largest)
        )

    def batches(self, positions: list[int]) -> Iterator[dict[str, Any]]:
        """Batches of the examples of some rows, with little padding."""
        if self.samples is None:
            return self.view.batches(self.side, self.view.rows(self.side).by_length(positions))
        return self.samples.batches(self.samples.of(positions), self.view.batch_size, self.view.device)

    def owner(self, row_id: Any) -> int:
        """Position of the row that an example belongs to."""
        if self.samples is not None:
            return self.samples.owner(row_id)
        return self.view.rows(self.side).positions[row_id]

    def weights(self, row_ids: Sequence[Any]) -> torch.Tensor:
        """Weight of each example in the vector of its row."""
        if self.samples is None:
            return torch.ones(len(row_ids))
        return torch.tensor([self.samples.weight(row) for row in row_ids])

    def sample(self, count: int, seed: int, others_than: int = 0) -> Source:
        """Up to ``count`` examples drawn by (seed, id), if possible others than the first ``others_than`` of the same draw."""
        ids: Sequence[Any] = self.view.rows(self.side).ids if self.samples is None else self.samples.ids
        order = shuffled(ids, seed)
        chosen = sorted(order[others_than : others_than + count] or order[:count])
        if self.samples is None:
            batches = self.view.batches(self.side, chosen)
        else:
            batches = self.samples.batches([ids[i] for i in chosen], self.view.batch_size, self.view.device)
        named = [{**batch, "row_id": [f"{self.side}:{row}" for row in batch["row_id"]]} for batch in batches]
        return Source(named, of=self.of, precondition=self.precondition)

    def features(
        self, basis: Basis, positions: list[int], layers: Any, dtype: str | None, on_nonfinite: str
    ) -> dict[str, torch.Tensor]:
        """``features [rows, columns, d]``, ``loss_sum [rows, columns]`` and ``tokens [rows]`` of rows by position.

        A row without any example, a query none of whose samples weighs, has the vector 0.
        """
        where = {position: index for index, position in enumerate(positions)}
        features, loss_sum = [torch.zeros(len(positions), basis.size)], [torch.zeros(len(positions))]  # by column
        tokens = torch.zeros(len(positions), dtype=torch.long)
        for part in per_example_gradients(
            self.view.model,
            self.batches(positions),
            of=self.of,
            basis=basis,
            precondition=self.precondition,
            on_nonfinite=on_nonfinite,  # type: ignore[arg-type]
            **self.view.engine_options(layers, dtype),
        ):
            if part.column == len(features):
                features.append(torch.zeros(len(positions), basis.size))
                loss_sum.append(torch.zeros(len(positions)))
            index = torch.tensor([where[self.owner(row)] for row in part.row_ids], dtype=torch.long)
            features[part.column].index_add_(0, index, part.features)
            loss_sum[part.column].index_add_(0, index, self.weights(part.row_ids) * part.loss_sum)
            if part.column == 0:
                tokens.index_add_(0, index, part.tokens.long())
            for row in part.skipped:
                for column in (*features, *loss_sum):
                    column[where[self.owner(row)]] = float("nan")
        joined = [torch.stack(x, 1) if len(x) > 1 else x[0].unsqueeze(1) for x in (features, loss_sum)]
        return {"features": joined[0], "loss_sum": joined[1], "tokens": tokens}
