"""Short trainings of the tiny Llama, what Adam knew at each epoch's end, and its steps on single gradients."""

from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from hfdataopt.attribution.rows import pad_batch
from hfdataopt.gradients import find_blocks

from .policy import reader, speaker
from .tiny import questions, row_batch


def trainer(folder: Path, *callbacks: Any, model: Any = None, pool: Any = None, **changes: Any) -> Trainer:
    """Two epochs of three steps on twelve rows; a checkpoint and a logged learning rate for each epoch."""
    optimizers = changes.pop("optimizers", (None, None))
    args = TrainingArguments(
        **{
            "output_dir": str(folder),
            "num_train_epochs": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 3e-3,
            "weight_decay": 0.1,
            "save_strategy": "epoch",
            "logging_steps": 1,
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "seed": 3,
            **changes,
        }
    )
    return Trainer(
        speaker() if model is None else model,
        args,
        train_dataset=questions(12, seed=5) if pool is None else pool,
        data_collator=pad_batch,
        processing_class=reader(),
        callbacks=list(callbacks),
        optimizers=optimizers,
    )


class Moments(TrainerCallback):
    """Copies the weights and the optimizer's moments, by parameter name, at the end of each epoch."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []
        self.states: list[dict[str, dict[str, Any]]] = []

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        self.weights.append({name: value.clone() for name, value in model.state_dict().items()})
        found = {}
        for name, parameter in model.named_parameters():
            for group in optimizer.param_groups:
                if any(other is parameter for other in group["params"]):
                    kept = {key: value.clone() for key, value in optimizer.state[parameter].items()}
                    found[name] = {**kept, "betas": group["betas"], "eps": group["eps"]}
        self.states.append(found)


def adam_step(state: dict[str, Any], gradient: torch.Tensor, form: str) -> torch.Tensor:
    """The step of Adam on one gradient, from the definitions: without bias correction and eps in the root, or as AdamW."""
    one, two = state["betas"]
    mean = one * state["exp_avg"].double() + (1 - one) * gradient
    square = two * state["exp_avg_sq"].double() + (1 - two) * gradient**2
    if form == "less":
        return mean / (square + state["eps"]).sqrt()
    steps = int(state["step"]) + 1
    return (mean / (1 - one**steps)) / ((square / (1 - two**steps)).sqrt() + state["eps"])


def mean_loss_gradients(
    model: Any, dataset: Any, states: dict[str, Any] | None = None, form: str = "less"
) -> torch.Tensor:
    """``[rows, d]`` float64: gradient of each row's mean loss, one row at a time, with ``states`` turned into steps."""
    parameters = dict(model.named_parameters())
    names = [name for block in find_blocks(model, None) for name in (block.weight, *block.biases)]
    rows = []
    for row in dataset:
        loss = model.eval()(**row_batch(row)).loss
        found = torch.autograd.grad(loss, [parameters[name] for name in names])
        steps = [
            g.double() if states is None else adam_step(states[name], g.double(), form)
            for name, g in zip(names, found, strict=True)
        ]
        rows.append(torch.cat([step.flatten() for step in steps]))
    return torch.stack(rows)


def cosines(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    return (rows / rows.norm(dim=1, keepdim=True)) @ (columns / columns.norm(dim=1, keepdim=True)).T
