"""kronfluence: pairwise scores and self-influence by its strategies; ``identity`` is the gradients' inner product."""

import tempfile
from typing import Any

import torch
from harness import Batch, Clock, Job, collate, main
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments
from kronfluence.task import Task
from kronfluence.utils.dataset import DataLoaderKwargs


class Losses(Task):
    """The summed loss, of training rows and of queries."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job

    def compute_train_loss(self, batch: Batch, model: torch.nn.Module, sample: bool = False) -> torch.Tensor:
        if not sample:
            return self.job.loss(model, batch)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        with torch.no_grad():  # labels drawn from the model: the true Fisher, its default
            drawn = torch.distributions.Categorical(logits=logits).sample()
        if not self.job.causal:
            return self.job.loss_of(logits, drawn)
        labels = torch.cat([batch["labels"][:, :1], drawn[:, :-1]], dim=1)
        return self.job.loss_of(logits, labels.where(batch["labels"] != -100, -100))

    def compute_measurement(self, batch: Batch, model: torch.nn.Module) -> torch.Tensor:
        return self.job.loss(model, batch)

    def get_influence_tracked_modules(self) -> list[str]:
        return self.job.modules

    def get_attention_mask(self, batch: Batch) -> torch.Tensor:
        return batch["attention_mask"]


def analyzer(job: Job, folder: str) -> Any:
    task = Losses(job)
    model = prepare_model(job.model(), task)
    made = Analyzer("run", model, task, cpu=True, log_level=40, disable_tqdm=True, output_dir=folder)
    made.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=collate))
    return made


def size(job: Job, strategy: str) -> int:
    model = job.model()
    return sum(p.numel() for name in job.modules for p in model.get_submodule(name).parameters())


def pairwise(job: Job, clock: Clock, strategy: str) -> tuple[torch.Tensor, int]:
    pool, queries = job.rows("pool", job.width), job.rows("queries", job.width)
    with tempfile.TemporaryDirectory() as folder:
        run = analyzer(job, folder)
        with clock("features"):
            run.fit_all_factors(
                "factors", pool, per_device_batch_size=job.batch, factor_args=FactorArguments(strategy=strategy)
            )
        with clock("scores"):
            run.compute_pairwise_scores(
                "scores",
                "factors",
                query_dataset=queries,
                train_dataset=pool,
                per_device_query_batch_size=job.batch,
                per_device_train_batch_size=job.batch,
            )
            scores = run.load_pairwise_scores("scores")["all_modules"].T
    return scores, size(job, strategy)


def self_influence(job: Job, clock: Clock, strategy: str) -> tuple[torch.Tensor, int]:
    pool = job.rows("pool", job.width)
    with tempfile.TemporaryDirectory() as folder:
        run = analyzer(job, folder)
        with clock("features"):
            run.fit_all_factors(
                "factors", pool, per_device_batch_size=job.batch, factor_args=FactorArguments(strategy=strategy)
            )
        with clock("scores"):
            run.compute_self_scores("scores", "factors", train_dataset=pool, per_device_train_batch_size=job.batch)
            scores = run.load_self_scores("scores")["all_modules"]
    return -scores, size(job, strategy)


if __name__ == "__main__":
    main({"pairwise": pairwise, "self-influence": self_influence})
