"""Our side: the gradient engine alone, and scorers as a user calls them."""

import os
from typing import Any

os.environ.setdefault("HFDATAOPT_QUIET", "1")

import torch
from datasets import Dataset, disable_progress_bars
from harness import Batch, Clock, Job, main

from hfdataopt import attribute
from hfdataopt.gradients import Basis, find_blocks, fit_basis, gram, per_example_gradients


def named(job: Job, side: str) -> list[dict[str, Any]]:
    """Batches of a side with row ids."""
    made: list[dict[str, Any]] = []
    for batch in job.batches(side):
        start = sum(len(one["row_id"]) for one in made)
        made.append(dict(batch, row_id=[f"{side}{start + place}" for place in range(len(batch["labels"]))]))
    return made


def features(job: Job, clock: Clock, kind: str, floats: str, rows: str = "256") -> tuple[torch.Tensor, int]:
    """Features in a basis fitted on ``rows`` rows of both sides, and their products."""
    model, pool, queries = job.model(), named(job, "pool"), named(job, "queries")
    with clock("set-up"):
        if kind == "random":
            basis = Basis.random(find_blocks(model), int(floats), 0)
        else:
            basis = fit_basis(model, pool + queries, kind=kind, floats_per_row=int(floats), rows=int(rows))  # type: ignore[arg-type]
    with clock("features"):
        one, other = (
            torch.cat([found.features for found in per_example_gradients(model, batches, basis=basis)])
            for batches in (pool, queries)
        )
    with clock("scores"):
        scores = one @ other.T
    return scores, basis.size


def exact(job: Job, clock: Clock) -> tuple[torch.Tensor, int]:
    model = job.model()
    with clock("features"):
        scores = gram(model, job.batches("pool"), job.batches("queries"))
    return scores, sum(block.size for block in find_blocks(model))


def scorer(job: Job, clock: Clock, name: str, *options: str) -> tuple[Any, int | None]:
    """``attribute``: datasets in, scores out; options as ``key=value``."""
    disable_progress_bars()
    chosen: dict[str, Any] = {}
    for option in options:
        key, value = option.split("=")
        chosen[key] = int(value) if value.isdigit() else value
    sides = [Dataset.from_dict(columns(job.rows(side))) for side in ("pool", "queries")]
    model = job.model()
    with clock("features"):
        found = attribute(model, *sides, name, batch_size=job.batch, **chosen)
    floats = chosen.get("floats_per_row")
    if name == "influence" and floats is None:  # whole gradients, where they fit into memory
        floats = sum(block.size for block in find_blocks(model))
    return found.values if found.matrix is None else found.matrix, floats


def columns(rows: list[Batch]) -> dict[str, list[Any]]:
    return {name: [row[name].tolist() for row in rows] for name in rows[0]}


if __name__ == "__main__":
    main({"features": features, "exact": exact, "scorer": scorer})
