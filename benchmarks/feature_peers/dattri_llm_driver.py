"""dattri-llm: TracIn on factors, exact or projected on both sides, and influence by its Kronecker factors."""

import logging
import tempfile
from typing import Any

import torch
from dattri_llm import (
    AttributionArguments,
    AttributionTask,
    EKFACAttributor,
    HookManagerConfig,
    KFACAttributor,
    TracInAttributor,
)
from harness import Clock, Job, main

logging.disable(logging.WARNING)


def build(job: Job, kind: type, folder: str) -> Any:
    arguments = AttributionArguments(
        output_dir=folder, per_device_train_batch_size=job.batch, per_device_eval_batch_size=job.batch
    )
    return kind(arguments, task=AttributionTask(loss_func=job.loss, model=job.model()))


def tracin(job: Job, clock: Clock, width: str = "") -> tuple[torch.Tensor, int]:
    projection = {"style": "logra", "proj_dim": int(width), "proj_max_batch_size": 64} if width else None
    config = HookManagerConfig(
        hook_types=dict.fromkeys(job.modules, "linear_io"),
        projection_kwargs=projection and {"__default__": projection},
    )
    model = job.model()
    whole = sum(model.get_submodule(name).weight.numel() for name in job.modules)
    with tempfile.TemporaryDirectory() as folder:
        attributor = build(job, TracInAttributor, folder)
        with clock("features"):
            found = attributor.attribute(
                job.rows("pool", job.width), job.rows("queries", job.width), hook_config=config
            )
    return found.scores, int(width) ** 2 * len(job.modules) if width else whole


def kronecker(job: Job, clock: Clock, kind: str, damping: str = "") -> tuple[torch.Tensor, int]:
    """Influence by K-FAC or EK-FAC; ``damping`` in units of the mean eigenvalue, else the package's own."""
    config = HookManagerConfig(hook_types=dict.fromkeys(job.modules, "linear_io"))
    chosen = {"damping": float(damping), "relative_damping": True} if damping else {}
    model = job.model()
    with tempfile.TemporaryDirectory() as folder:
        attributor = build(job, {"kfac": KFACAttributor, "ekfac": EKFACAttributor}[kind], folder)
        with clock("features"):
            found = attributor.attribute(
                job.rows("pool", job.width), job.rows("queries", job.width), hook_config=config, **chosen
            )
    return found.scores, sum(model.get_submodule(name).weight.numel() for name in job.modules)


if __name__ == "__main__":
    main({"tracin": tracin, "kronecker": kronecker})
