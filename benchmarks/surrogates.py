"""Which surrogate ranks a pool best, from 40 scores or from 25 to 150 votes?

    python benchmarks/surrogates.py
    python benchmarks/surrogates.py --first-seed 100   (development)

A 10-dimensional Sobol point z has the features tanh(z A) B and 5 % noise, and a smooth non-linear score. Surrogates see the
features alone. Scores: 40 observations, the Spearman correlation on the other 1,000 rows. Votes: random pairs of a pool of
200, a Bradley-Terry user whose log-odds are twice the difference of the z-scores, the correlation on the pool. Options were
chosen on seeds from 100 on; the seeds reported here are others.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from quiet import quiet_and_single_threaded
from results import Results
from timing import cpu_seconds
from torch import Tensor

from hfdataopt.bandits import (
    EnsembleSurrogate,
    LinearSurrogate,
    MLPSurrogate,
    NeuralTangentSurrogate,
    RBFSurrogate,
    Surrogate,
)
from hfdataopt.statistics import mean_interval, rank_correlation

OBSERVED, POOL, ARMS, WIDTHS, VOTES = 40, 1000, 200, (384, 5120), (25, 50, 100, 150)
SURROGATES: dict[str, Surrogate] = {
    "`LinearSurrogate` (ridge)": LinearSurrogate(),
    "`RBFSurrogate`": RBFSurrogate(),
    "`NeuralTangentSurrogate`": NeuralTangentSurrogate(),
    "`MLPSurrogate`": MLPSurrogate(),
    '`MLPSurrogate(preset="papers")`': MLPSurrogate(preset="papers"),
    "`EnsembleSurrogate` of 10 linear ones": EnsembleSurrogate(member=LinearSurrogate()),
}
DUELING = SURROGATES | {'`MLPSurrogate(preset="papers")`': MLPSurrogate(preset="papers", widths=(32, 32))}


def world(seed: int, width: int) -> tuple[Tensor, Tensor]:
    """Features ``[1040, width]`` and scores in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    z = torch.quasirandom.SobolEngine(10, scramble=True, seed=seed).draw(OBSERVED + POOL).double()
    x = torch.tanh(z @ normal(10, 128)) @ normal(128, width)
    x = x + 0.05 * x.std(0) * normal(*x.shape)
    first, second = ((2 * z - 1) @ (a / a.norm()) for a in (normal(10), normal(10)))
    score = torch.tanh(1.5 * first) + 0.5 * torch.sin(2 * second) + 0.5 * first * second
    order = torch.randperm(len(x), generator=generator)
    return x[order], ((score - score.min()) / (score.max() - score.min()))[order]


def votes(scores: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + seed)
    pairs = torch.stack([torch.randperm(len(scores), generator=generator)[:2] for _ in range(count)])
    standard = (scores - scores.mean()) / scores.std()
    chance = torch.sigmoid(2 * (standard[pairs[:, 0]] - standard[pairs[:, 1]]))
    return pairs, (torch.rand(count, generator=generator, dtype=torch.float64) < chance).double()


Case = tuple[list[float], float]  # the correlation in each world, CPU seconds of a fit and prediction


def from_scores(surrogate: Surrogate, worlds: Sequence[tuple[Tensor, Tensor]]) -> Case:
    """After the scores of the first rows, on the others."""

    def run() -> list[float]:
        found = []
        for x, y in worlds:
            mean, _ = surrogate.fit(x[:OBSERVED], y[:OBSERVED]).predict(x[OBSERVED:])
            found.append(rank_correlation(mean.numpy(), y[OBSERVED:].numpy()))
        return found

    spent, found = cpu_seconds(run)
    return found, spent / len(worlds)


def from_votes(surrogate: Surrogate, worlds: Sequence[tuple[Tensor, Tensor]], seeds: Sequence[int], count: int) -> Case:
    """After votes on pairs of the pool, on the pool."""

    def run() -> list[float]:
        found = []
        for seed, (x, y) in zip(seeds, worlds, strict=True):
            x, y = x[:ARMS], y[:ARMS]
            mean, _ = surrogate.fit_pairs(x, *votes(y, count, seed)).predict(x)
            found.append(rank_correlation(mean.numpy(), y.numpy()))
        return found

    spent, found = cpu_seconds(run)
    return found, spent / len(worlds)


def tables(results: Results, found: dict[str, list[Case]], seeds: Sequence[int]) -> None:
    columns = ["surrogate", *(f"{OBSERVED} scores, {width:,} features" for width in WIDTHS)]
    columns += [f"{count} votes" for count in VOTES]

    def lines(figure: Any) -> list[list[Any]]:
        return [[name, *map(figure, cases)] for name, cases in found.items()]

    which = f"seeds {seeds[0]} to {seeds[-1]}"
    results.table(
        f"Mean Spearman correlation over {which}, and 95 % t interval",
        columns,
        lines(lambda case: list(mean_interval(case[0]))),
    )
    results.table(f"The least of {which}", columns, lines(lambda case: min(case[0])))
    results.table("CPU seconds of a fit and prediction", columns, lines(lambda case: case[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    options = parser.parse_args()
    quiet_and_single_threaded()
    more = f"--seeds {options.seeds} --first-seed {options.first_seed}"
    results = Results("surrogates", f"python benchmarks/surrogates.py {more}")
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    worlds = {width: [world(seed, width) for seed in seeds] for width in WIDTHS}
    found: dict[str, list[Case]] = {}
    for name in SURROGATES:
        found[name] = [from_scores(SURROGATES[name], worlds[width]) for width in WIDTHS]
        found[name] += [from_votes(DUELING[name], worlds[WIDTHS[0]], seeds, count) for count in VOTES]
        print(name, *(f"{sum(values) / len(values):.3f}" for values, _ in found[name]), flush=True)
    tables(results, found, seeds)


if __name__ == "__main__":
    main()
