"""captum's TracInCP at one checkpoint: exact inner products, with its sample-wise gradients of linear layers."""

import torch
from captum.influence import TracInCP
from harness import Clock, Job, collate, main


class Logits(torch.nn.Module):
    """captum calls the model with positions, and wants a tensor back."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=ids, attention_mask=mask).logits


def build(job: Job, clock: Clock) -> tuple[TracInCP, torch.utils.data.DataLoader]:
    def loader(side: str, size: int) -> torch.utils.data.DataLoader:
        def tuples(rows: list) -> tuple[torch.Tensor, ...]:
            return tuple(collate(rows).values())

        return torch.utils.data.DataLoader(job.rows(side, job.width), batch_size=size, collate_fn=tuples)

    model = Logits(job.model())
    with clock("set-up"):
        explainer = TracInCP(
            model,
            loader("pool", job.batch),
            checkpoints=["as it is"],
            checkpoints_load_func=lambda model, checkpoint: 1.0,
            layers=[f"model.{name}" for name in job.modules],
            loss_fn=job.loss_of,
            sample_wise_grads_per_batch=True,
        )
    return explainer, loader("queries", len(job.sides["queries"]))


def size(job: Job) -> int:
    model = job.model()
    return sum(p.numel() for name in job.modules for p in model.get_submodule(name).parameters())


def tracin(job: Job, clock: Clock) -> tuple[torch.Tensor, int]:
    explainer, queries = build(job, clock)
    with clock("features"):
        scores = explainer.influence(next(iter(queries))).T
    return scores, size(job)


def self_influence(job: Job, clock: Clock) -> tuple[torch.Tensor, int]:
    explainer, _ = build(job, clock)
    with clock("features"):
        scores = explainer.self_influence()
    return -scores, size(job)


if __name__ == "__main__":
    main({"tracin": tracin, "self-influence": self_influence})
