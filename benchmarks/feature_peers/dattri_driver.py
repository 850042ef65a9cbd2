"""dattri: LoGra and FactGraSS, gradients projected layer by layer, with or without the empirical Fisher."""

import logging
import tempfile
from typing import Any

import torch
from dattri.algorithm.factgrass import FactGraSSAttributor
from dattri.algorithm.logra import LoGraAttributor
from dattri.task import AttributionTask
from harness import Clock, Job, collate, main

logging.disable(logging.WARNING)
KINDS = {"logra": LoGraAttributor, "factgrass": FactGraSSAttributor}


def build(job: Job, folder: str, kind: str, floats: str, hessian: str) -> tuple[Any, list[torch.utils.data.DataLoader]]:
    """An attributor and the loaders of both sides. ``folder``: it keeps the sizes of batches and layers of a run in one, else in
    the working folder, where the next run would take them for its own."""
    model = job.model()
    # The attributors hand the loss a model and a batch; their queries' loss is the model's own.
    task = AttributionTask(
        loss_func=lambda model, batch, device: job.loss(model, batch), model=model, checkpoints=model.state_dict()
    )
    made = KINDS[kind](
        task,
        layer_names=job.modules,
        hessian=hessian,
        device="cpu",
        proj_dim=int(floats),
        offload="cpu",
        cache_dir=folder,
    )
    loaders = [
        torch.utils.data.DataLoader(job.rows(side, job.width), batch_size=job.batch, collate_fn=collate)
        for side in ("pool", "queries")
    ]
    return made, loaders


def pairwise(job: Job, clock: Clock, kind: str, floats: str, hessian: str) -> tuple[torch.Tensor, int]:
    with tempfile.TemporaryDirectory() as folder:
        attributor, (pool, queries) = build(job, folder, kind, floats, hessian)
        with clock("features"):
            attributor.cache(pool)
        with clock("scores"):
            scores = attributor.attribute(pool, queries)
    return scores, int(floats) * len(job.modules)


def self_influence(job: Job, clock: Clock, kind: str, floats: str, hessian: str) -> tuple[torch.Tensor, int]:
    with tempfile.TemporaryDirectory() as folder:
        attributor, (pool, _) = build(job, folder, kind, floats, hessian)
        with clock("features"):
            attributor.cache(pool)
        with clock("scores"):
            scores = attributor.compute_self_attribution()
    return -scores, int(floats) * len(job.modules)


if __name__ == "__main__":
    main({"pairwise": pairwise, "self-influence": self_influence})
