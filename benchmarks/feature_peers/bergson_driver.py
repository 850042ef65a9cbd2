"""bergson: gradients projected on both sides at random, collected in memory; weights as they come, or frozen by the caller."""

import logging
import tempfile
from pathlib import Path

import torch
from bergson import CollectorComputer, GradientProcessor, IndexConfig, InMemoryCollector
from datasets import Dataset
from harness import Clock, Job, freeze, main

logging.disable(logging.WARNING)


def collect(job: Job, model: object, side: str, width: int) -> torch.Tensor:
    """Projected gradients of a side ``[rows, modules * width ** 2]``."""
    rows = job.sides[side]
    data = Dataset.from_dict({name: [row[name] for row in rows] for name in ("input_ids", "labels")})
    places = list(range(len(rows)))
    with tempfile.TemporaryDirectory() as folder:
        config = IndexConfig(run_path=str(Path(folder) / "run"), projection_dim=width, loss_reduction="sum")
        config.partial_run_path.mkdir()
        collector = InMemoryCollector(
            model=model,
            target_modules=set(job.modules),
            data=data,
            cfg=config,
            processor=GradientProcessor(projection_dim=width or None, projection_seed=0),
        )
        batches = [places[start : start + job.batch] for start in range(0, len(rows), job.batch)]
        CollectorComputer(model, data, collector=collector, batches=batches, cfg=config).run_with_collector_hooks()
    return torch.cat([collector.gradients[name].flatten(1).float() for name in sorted(collector.gradients)], dim=1)


def projected(job: Job, clock: Clock, width: str, frozen: str = "") -> tuple[torch.Tensor, int]:
    if not job.causal:
        raise NotImplementedError("computes the loss of causal language models only")
    model = freeze(job.model()) if frozen else job.model()
    with clock("features"):
        pool, queries = (collect(job, model, side, int(width)) for side in ("pool", "queries"))
    with clock("scores"):
        scores = pool @ queries.T
    return scores, pool.shape[1]


if __name__ == "__main__":
    main({"projected": projected})
