"""TRAK with the projector that it has for a CPU: the whole gradient, dense normal projection."""

import logging
import tempfile

import torch
from harness import Batch, Clock, Job, main
from trak import TRAKer
from trak.modelout_functions import AbstractModelOutput
from trak.projectors import BasicProjector, ProjectionType


class LogLikelihood(AbstractModelOutput):
    """A row's log-likelihood as the model's output, so that the gradient of the loss with respect to it is 1."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def get_output(self, model: torch.nn.Module, weights: Batch, buffers: Batch, *row: torch.Tensor) -> torch.Tensor:
        # No mask: transformers looks at its values, which vmap forbids. Padding follows the tokens of a causal model.
        ids, labels = (part.unsqueeze(0) for part in row)
        out = torch.func.functional_call(model, (weights, buffers), (), {"input_ids": ids})
        return -self.job.loss_of(out.logits, labels)

    def get_out_to_loss_grad(
        self, model: torch.nn.Module, weights: Batch, buffers: Batch, batch: list[torch.Tensor]
    ) -> torch.Tensor:
        return torch.ones(len(batch[0]), 1)


def trak(job: Job, clock: Clock, floats: str) -> tuple[torch.Tensor, int]:
    model = job.model()
    names = [f"{name}.{part}" for name in job.modules for part, _ in model.get_submodule(name).named_parameters()]
    parameters = dict(model.named_parameters())

    def batches(side: str) -> list[list[torch.Tensor]]:
        rows = job.rows(side, job.width)
        return [
            [torch.stack([row[key] for row in rows[start : start + 32]]) for key in ("input_ids", "labels")]
            for start in range(0, len(rows), 32)
        ]

    with tempfile.TemporaryDirectory() as folder:
        with clock("features"):
            projector = BasicProjector(
                grad_dim=sum(parameters[name].numel() for name in names),
                proj_dim=int(floats),
                seed=0,
                proj_type=ProjectionType.normal,
                device="cpu",
                dtype=torch.float32,
            )
            traker = TRAKer(
                model=model,
                task=LogLikelihood(job),
                train_set_size=len(job.sides["pool"]),
                save_dir=folder,
                device="cpu",
                projector=projector,
                use_half_precision=False,
                grad_wrt=names,
                logging_level=logging.ERROR,
            )
            traker.load_checkpoint(model.state_dict(), model_id=0)
            for batch in batches("pool"):
                traker.featurize(batch=batch, num_samples=len(batch[0]))
            traker.finalize_features()
        with clock("scores"):
            traker.start_scoring_checkpoint("run", model.state_dict(), 0, len(job.sides["queries"]))
            for batch in batches("queries"):
                traker.score(batch=batch, num_samples=len(batch[0]))
            scores = torch.tensor(traker.finalize_scores("run"))
    return scores, int(floats)


if __name__ == "__main__":
    main({"trak": trak})
