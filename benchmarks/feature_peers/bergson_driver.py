"""bergson: gradients projected on both sides at random, collected in memory, with weights as they come or frozen by the caller;
and what its commands ``ekfac`` and ``trackstar`` run, at their defaults, from files to files."""

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
from bergson import CollectorComputer, DataConfig, GradientProcessor, IndexConfig, InMemoryCollector, QuerySetConfig
from bergson.cli.commands import Ekfac, Trackstar
from bergson.config.config import (
    HessianConfig,
    HessianPipelineConfig,
    PreprocessConfig,
    ScoreConfig,
    TrackstarConfig,
    TrackstarIndexConfig,
)
from bergson.data import load_scores
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


def pipeline(job: Job, clock: Clock, command: str) -> tuple[Any, int | None]:
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for side, rows in job.sides.items():
            files[side] = str(Path(folder, f"{side}.jsonl"))
            Path(files[side]).write_text("".join(json.dumps(row) + "\n" for row in rows))
        model = job.model()
        shared = {
            "run_path": str(Path(folder, "run")),
            "model": str(job.folder / "model"),
            "filter_modules": "*lm_head*",
            "token_batch_size": min(2048, model.config.max_position_embeddings),
        }
        data, queries = DataConfig(dataset=files["pool"]), QuerySetConfig(dataset=files["queries"])
        run: Any
        if command == "ekfac":
            run = Ekfac(
                IndexConfig(data=data, **shared),
                HessianConfig(method="kfac", ev_correction=True),
                ScoreConfig(),
                PreprocessConfig(),
                HessianPipelineConfig(query=queries),
            )
        else:
            run = Trackstar(TrackstarIndexConfig(data=data, **shared), TrackstarConfig(query=queries))
        with clock("features"):
            run.execute()
        scores = load_scores(Path(folder, "run", "scores"))[:]
    size = sum(model.get_submodule(name).weight.numel() for name in job.modules)
    return scores, size if command == "ekfac" else 256 * len(job.modules)


if __name__ == "__main__":
    main({"projected": projected, "pipeline": pipeline})
