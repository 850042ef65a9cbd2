"""Plain torch, one row at a time: exact inner products, and a dense random projection of the whole gradient."""

from collections.abc import Iterator
from itertools import islice

import torch
from harness import Clock, Job, main


def gradients(job: Job, side: str) -> Iterator[torch.Tensor]:
    """Each row's gradient of the tracked weights as one vector."""
    model = job.model().requires_grad_(False)
    weights = [model.get_submodule(name).weight.requires_grad_(True) for name in job.modules]
    for row in job.batches(side, 1):
        found = torch.autograd.grad(job.loss(model, row), weights)
        yield torch.cat([one.flatten() for one in found])


def batched(rows: Iterator[torch.Tensor], size: int) -> Iterator[list[torch.Tensor]]:
    """The projection, which is read from memory each time, takes many rows at once."""
    while taken := list(islice(rows, size)):
        yield taken


def exact(job: Job, clock: Clock) -> tuple[torch.Tensor, int]:
    with clock("features"):
        queries = torch.stack(list(gradients(job, "queries")))
        scores = torch.stack([queries @ row for row in gradients(job, "pool")])
    return scores, queries.shape[1]


def dense(job: Job, clock: Clock, floats: str) -> tuple[torch.Tensor, int]:
    model = job.model()
    size = sum(model.get_submodule(name).weight.numel() for name in job.modules)
    with clock("set-up"):
        generator = torch.Generator().manual_seed(0)
        projection = torch.empty(size, int(floats))
        projection.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
    with clock("features"):
        pool, queries = (
            torch.cat([torch.stack(rows) @ projection for rows in batched(gradients(job, side), job.batch)])
            for side in ("pool", "queries")
        )
    with clock("scores"):
        scores = pool @ queries.T
    return scores, int(floats)


if __name__ == "__main__":
    main({"exact": exact, "dense": dense})
