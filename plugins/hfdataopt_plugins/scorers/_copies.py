"""What scorers of other packages share: they hook and change a model, so they get a copy of it; one process only."""

import copy
import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hfdataopt.attribution.view import View
from hfdataopt.errors import MissingDependencyError, OptionError
from hfdataopt.gradients import find_blocks
from hfdataopt.gradients.blocks import unwrap


def need(module: str, who: str, lines: Sequence[str]) -> Any:
    """A package that pip cannot install beside this one without disturbing it; the error gives the lines that can."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(f"scorer {who!r} needs {module} ({error}); {'; '.join(lines)}") from error


def linear_modules(view: View, layers: Any) -> list[str]:
    """Names of the linear modules that ``layers`` selects; ``OptionError`` where another kind, or a shared weight, is among them."""
    names = []
    for block in find_blocks(view.model, layers):
        if len(block.uses) > 1 or block.uses[0].kind != "linear":
            kinds = ", ".join(f"{use.module} ({use.kind})" for use in block.uses)
            raise OptionError(
                f"{view.name}: only linear layers with weights of their own can be tracked; layers selects {kinds}"
            )
        names.append(block.uses[0].module)
    return names


def one_process(view: View) -> None:
    """``OptionError`` in a run of several processes."""
    if view.processes.count > 1:
        raise OptionError(
            f"{view.name}: runs in one process, and there are {view.processes.count}; save a checkpoint and score it without a "
            "launcher: attribute(model, pool, queries, scorer, checkpoints=[folder])"
        )


def copy_of(view: View) -> nn.Module:
    """The model once more, in eval mode, float32 and without gradients."""
    model = copy.deepcopy(unwrap(view.model)).float().eval()
    for parameter in model.parameters():
        parameter.grad = None
    return model


def scored(view: View, matrix: torch.Tensor) -> torch.Tensor:
    """``[rows, queries]`` float64 on the CPU with NaN for rows without labelled tokens and for those that are not finite."""
    found = matrix.double().cpu()
    good = view.labelled_rows("pool", view.losses("pool")[1]) & view.finite_rows("pool", found, "the score", "skip")
    return found.masked_fill(~good[:, None], float("nan"))
