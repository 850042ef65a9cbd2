"""Which surrogate ranks a pool best, from 40 scores or from 25 to 150 votes?

    python benchmarks/surrogates.py
    python benchmarks/surrogates.py --first-seed 100   (development)

A 10-dimensional Sobol point z has the features tanh(z A) B and 5 % noise, and a smooth non-linear score. Surrogates see the
features alone. Scores: 40 observations, the Spearman correlation on the other 1,000 rows. Votes: random pairs of a pool of
200, a Bradley-Terry user whose log-odds are twice the difference of the z-scores, the correlation on the pool. Options were
chosen on seeds from 100 on; the seeds reported here are others.
"""

import argparse
import time

import torch
from quiet import quiet_and_single_threaded
from torch import Tensor

from hfdataopt.bandits import (
    EnsembleSurrogate,
    LinearSurrogate,
    MLPSurrogate,
    NeuralTangentSurrogate,
    RBFSurrogate,
    Surrogate,
)
from hfdataopt.statistics import rank_correlation

OBSERVED, POOL, ARMS, VOTES = 40, 1000, 200, (25, 50, 100, 150)
SURROGATES: dict[str, Surrogate] = {
    "linear ridge": LinearSurrogate(),
    "RBF GP": RBFSurrogate(),
    "neural-tangent GP": NeuralTangentSurrogate(),
    "MLP": MLPSurrogate(),
    "MLP, papers": MLPSurrogate(preset="papers"),
    "ensemble of 10 linear": EnsembleSurrogate(member=LinearSurrogate()),
}
DUELING = SURROGATES | {"MLP, papers": MLPSurrogate(preset="papers", widths=(32, 32))}


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


def row(name: str, found: list[float], spent: float) -> None:
    figures = " ".join(f"{value:6.3f}" for value in found)
    print(
        f"  {name:22s} {sum(found) / len(found):6.3f}   ({figures})   {spent / len(found):6.2f} s per fit", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    options = parser.parse_args()
    quiet_and_single_threaded()
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    for width in (384, 5120):
        worlds = [world(seed, width) for seed in seeds]
        print(f"\n{OBSERVED} scores, {width} features: mean Spearman (per seed), CPU seconds with the prediction")
        for name, surrogate in SURROGATES.items():
            started, found = time.process_time(), []
            for x, y in worlds:
                mean, _ = surrogate.fit(x[:OBSERVED], y[:OBSERVED]).predict(x[OBSERVED:])
                found.append(rank_correlation(mean.numpy(), y[OBSERVED:].numpy()))
            row(name, found, time.process_time() - started)
    worlds = [world(seed, 384) for seed in seeds]
    for count in VOTES:
        print(f"\n{count} votes, 384 features, {ARMS} candidates: mean Spearman (per seed)")
        for name, surrogate in DUELING.items():
            started, found = time.process_time(), []
            for seed, (x, y) in zip(seeds, worlds, strict=True):
                x, y = x[:ARMS], y[:ARMS]
                mean, _ = surrogate.fit_pairs(x, *votes(y, count, seed)).predict(x)
                found.append(rank_correlation(mean.numpy(), y.numpy()))
            row(name, found, time.process_time() - started)


if __name__ == "__main__":
    main()
