"""One chunk of random permutations: marginal contributions of every row, summed over the chunk.

Members: `Problem` (all a chunk needs; `build_problem`), `Sums` (what it adds up), `permutation`, `run_chunk`,
`full_utilities`, and `out_of_bag_sums` (margins of pool rows on their own labels, from the same factor).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hfdataopt.shapley._inputs import one_hot
from hfdataopt.shapley.prefix import FactorBlock, factor_blocks, running_predictions, stack_right
from hfdataopt.shapley.semivalues import position_weights
from hfdataopt.shapley.utilities import UserUtility, Utility, get_utility


def permutation(rows: int, seed: int, index: int) -> Tensor:
    """The `index`-th order of `rows` rows under `seed`, `[rows]` int64.

    Sorts raw Philox output, so it depends on nothing but its arguments: numpy keeps raw streams fixed between versions.
    """
    raw = np.random.Philox(np.random.SeedSequence([seed, index])).random_raw(rows)
    return torch.from_numpy(np.argsort(raw, kind="stable"))


@dataclass(frozen=True)
class Problem:
    """Kernels, labels and options of one run; every number in it is float64."""

    kernel: Tensor
    """`[k, n, n]`, k = 1 or c."""
    cross: Tensor
    """`[k, n, t]`."""
    targets: Tensor
    """`[n, c]`."""
    labels: Tensor
    """`[n]`."""
    query_labels: Tensor
    """`[t]`."""
    ridge: float
    utility: Utility
    weights: Tensor
    """`[n]`: what a marginal counts at each position."""
    seed: int = 0
    truncation: float | None = None
    guards: tuple[Utility, ...] = ()
    """Utilities that must all be near their full value before a permutation is truncated."""
    per_query: bool = False
    out_of_bag: bool = True
    batch_size: int = 1
    """Permutations factored together."""

    @property
    def rows(self) -> int:
        return self.kernel.shape[1]

    @property
    def classes(self) -> int:
        return self.targets.shape[1]

    @property
    def utilities(self) -> tuple[Utility, ...]:
        return (self.utility, *self.guards)

    @property
    def has_callable(self) -> bool:
        """Whether the utility is the user's function, which only this process knows."""
        return self.utility.is_callable

    @cached_property
    def two_classes(self) -> bool:
        """Whether the margin f_label - f_other is all that is needed: one running sum in place of two."""
        return self.classes == 2 and len(self.kernel) == 1 and all(one.of_margins for one in self.utilities)

    @cached_property
    def regressed(self) -> Tensor:
        """The targets walked: `[n, c]`, or for two classes the difference f_1 - f_0 `[n, 1]`."""
        return self.targets[:, 1:] - self.targets[:, :1] if self.two_classes else self.targets

    @cached_property
    def right(self) -> Tensor:
        """Right-hand sides `[k, n, q]`; for two classes the sign of each query's label is in its column already."""
        cross = self.cross * _signs(self.query_labels) if self.two_classes else self.cross
        return stack_right(cross, self.regressed)

    def values(self, utility: Utility, predictions: Tensor) -> Tensor:
        """Utility per prefix and query `[p, b, q]` of what `running_predictions` made of `right`."""
        if self.two_classes and utility.of_margins is not None:
            return utility.of_margins(predictions[:, 0])
        return utility.of_predictions(predictions)


def build_problem(
    kernel: Tensor, cross: Tensor, labels: Tensor, query_labels: Tensor, options: dict[str, Any]
) -> Problem:
    """A `Problem` from checked tensors and plain options, as a worker process receives them."""

    def utility(name: str | UserUtility) -> Utility:
        return get_utility(name, options["classes"], query_labels, first_wins=options["first_wins"])

    return Problem(
        kernel,
        cross,
        one_hot(labels, options["classes"]),
        labels,
        query_labels,
        options["ridge"],
        utility(options["utility"]),
        position_weights(kernel.shape[1], options["weights"], options["beta"]).to(kernel.device),
        seed=options["seed"],
        truncation=options["truncation"],
        guards=tuple(utility(name) for name in options["guards"]),
        per_query=options["per_query"],
        out_of_bag=options["out_of_bag"],
        batch_size=options["batch_size"],
    )


def _signs(labels: Tensor) -> Tensor:
    return (2 * labels - 1).double()


@dataclass
class Sums:
    """Sums over `count` permutations; sums of chunks add up."""

    count: int
    values: np.ndarray
    """`[n]`: weighted marginals."""
    squares: np.ndarray
    """`[n]`: their squares."""
    steps: np.ndarray
    """`[1]`: prefixes evaluated."""
    bag: np.ndarray
    """`[n]`: margins of each row's own label over prefixes that do not hold it."""
    bag_count: np.ndarray
    """`[n]`: how many such prefixes."""
    matrix: np.ndarray
    """`[n, t]` marginals per query, or `[0, 0]`."""

    @classmethod
    def zeros(cls, rows: int, queries: int, per_query: bool) -> Sums:
        matrix = np.zeros((rows, queries) if per_query else (0, 0))
        return cls(0, np.zeros(rows), np.zeros(rows), np.zeros(1), np.zeros(rows), np.zeros(rows), matrix)

    def add(self, other: Sums) -> None:
        self.count += other.count
        for name in self.arrays():
            mine = getattr(self, name)
            mine += getattr(other, name)

    def arrays(self) -> dict[str, np.ndarray]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "count"}

    def standard_errors(self) -> np.ndarray:
        """Of the mean over permutations `[n]`; NaN for fewer than two."""
        if self.count < 2:
            return np.full_like(self.values, np.nan)
        variance = (self.squares - self.values**2 / self.count) / (self.count - 1)
        return np.sqrt(np.maximum(variance, 0) / self.count)


def out_of_bag_sums(block: FactorBlock, held_labels: Tensor, columns: int) -> Tensor:
    """Margin of each of the block's rows on its own label, summed over the prefixes that do not hold it: `[p, b]`.

    `held_labels [p, b]`; the last `columns` right-hand sides are the targets, 1 standing for f_1 - f_0 of two classes
    where there is one kernel. Clipped to [-1, 1] as the utility `margin`. The empty prefix, which predicts 0 for every
    row, is left out, so a row at position p (from 0) has p prefixes.
    """
    panel = block.panel.unflatten(0, (len(held_labels), -1))
    solved = block.solved[:, :, -columns:].unflatten(0, (len(held_labels), -1))
    weights = solved.movedim(3, 2).flatten(1, 2)
    if columns == 1 and panel.shape[1] == 1:
        margins = (panel[:, 0] * weights).cumsum_(dim=2)
        return _sum_before(margins, block) * _signs(held_labels)
    own = torch.zeros_like(panel[:, 0])
    others = torch.full_like(own, -torch.inf)
    # Class by class, so that no tensor of all classes is made: 2.5 times faster with six.
    for index in range(weights.shape[1]):
        outputs = (panel[:, min(index, panel.shape[1] - 1)] * weights[:, index, None]).cumsum_(dim=2)
        mine = (held_labels == index)[:, :, None]
        own = torch.where(mine, outputs, own)
        torch.maximum(others, outputs.masked_fill_(mine, -torch.inf), out=others)
    return _sum_before(own - others, block)


def _sum_before(margins: Tensor, block: FactorBlock) -> Tensor:
    """Clipped margins `[p, b, stop]` of each row, summed over the prefixes that end before the row; in place."""
    margins.clamp_(-1, 1)[:, :, block.start :].tril_(-1)
    return margins.sum(dim=2)


def full_utilities(problem: Problem) -> list[float]:
    """The utility of all rows, then that of every guard. Raises `NotPositiveDefiniteError`."""
    order = torch.arange(problem.rows, device=problem.kernel.device)[None]
    carry = problem.right.new_zeros(1, problem.regressed.shape[1], problem.cross.shape[2])
    for block in factor_blocks(problem.kernel, problem.right, order, problem.ridge):
        running_predictions(block, carry, 1)
    return [float(problem.values(utility, carry[:, :, None]).mean()) for utility in problem.utilities]


def run_chunk(problem: Problem, first: int, last: int, full: list[float]) -> Sums:
    """The permutations `first` to `last` (not included); `full` is what `full_utilities` gave."""
    sums = Sums.zeros(problem.rows, problem.cross.shape[2], problem.per_query)
    for start in range(first, last, problem.batch_size):
        indices = range(start, min(start + problem.batch_size, last))
        orders = torch.stack([permutation(problem.rows, problem.seed, index) for index in indices])
        _run_batch(problem, orders.to(problem.kernel.device), full, sums)
    return sums


def _run_batch(problem: Problem, orders: Tensor, full: list[float], sums: Sums) -> None:
    """Adds the permutations `orders [p, n]` to `sums`, in this order."""
    permutations, columns = len(orders), problem.regressed.shape[1]
    carry = problem.right.new_zeros(permutations, columns, problem.cross.shape[2])
    last_values = problem.utility.empty.to(orders.device).expand(permutations, 1, -1)
    marginals = problem.right.new_zeros(orders.shape)
    bag, bag_count = torch.zeros_like(marginals), torch.zeros_like(marginals)
    positions = torch.arange(problem.rows, dtype=torch.float64, device=orders.device)
    matrix = problem.right.new_zeros(sums.matrix.shape)
    stop_rule = _StopRule(problem, full, permutations)
    for block in factor_blocks(problem.kernel, problem.right, orders, problem.ridge):
        here = slice(block.start, block.stop)
        running = stop_rule.running[:, None]
        if problem.out_of_bag:
            bag[:, here] = (
                out_of_bag_sums(block, problem.labels[orders[:, here]], problem.right.shape[2] - problem.cross.shape[2])
                * running
            )
            bag_count[:, here] = positions[here] * running
        predictions = running_predictions(block, carry, permutations)
        values = problem.values(problem.utility, predictions)
        means = values.mean(dim=2)
        weights = problem.weights[here] * stop_rule.counted(predictions, means)
        marginals[:, here] = torch.diff(means, dim=1, prepend=last_values.mean(dim=2)) * weights
        if problem.per_query:
            steps = torch.diff(values, dim=1, prepend=last_values) * weights[:, :, None]
            for rows, step in zip(orders[:, here], steps, strict=True):
                matrix[rows] += step
        last_values = values[:, -1:]
        sums.steps += float(torch.count_nonzero(weights)) if problem.truncation is not None else weights.numel()
        if not bool(stop_rule.running.any()):
            break
    for rows, marginal, margin, count in zip(orders, marginals, bag, bag_count, strict=True):
        index = rows.cpu().numpy()
        sums.values[index] += marginal.cpu().numpy()
        sums.squares[index] += marginal.square().cpu().numpy()
        sums.bag[index] += margin.cpu().numpy()
        sums.bag_count[index] += count.cpu().numpy()
    sums.matrix += matrix.cpu().numpy()
    sums.count += permutations


class _StopRule:
    """Truncation: a permutation ends at the second of two consecutive prefixes whose utilities are all near the full
    ones.

    Near is |U(prefix) - U(full)| <= truncation * |U(full) - U(empty)|. The marginal of that second prefix still counts.
    """

    def __init__(self, problem: Problem, full: list[float], permutations: int) -> None:
        self.problem, self.full = problem, full
        self.running = torch.ones(permutations, dtype=torch.bool, device=problem.kernel.device)
        self.near_before = torch.zeros_like(self.running)

    def counted(self, predictions: Tensor, means: Tensor) -> Tensor:
        """Which prefixes of the block `[p, b]` come no later than the stop; `means` are those of the first utility."""
        if self.problem.truncation is None:
            return torch.ones_like(means)
        near = torch.ones_like(means, dtype=torch.bool)
        for place, (utility, full) in enumerate(zip(self.problem.utilities, self.full, strict=True)):
            value = means if place == 0 else self.problem.values(utility, predictions).mean(dim=2)
            reach = self.problem.truncation * abs(full - float(utility.empty.mean()))
            near &= (value - full).abs() <= reach
        twice = near & torch.cat([self.near_before[:, None], near[:, :-1]], dim=1)
        counted = self.running[:, None] & (twice.cumsum(dim=1) - twice.long() == 0)
        self.near_before = near[:, -1]
        self.running = self.running & ~twice.any(dim=1)
        return counted.double()
