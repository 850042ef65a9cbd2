"""Looking must not touch: everything a scorer might change in a live training run is put back.

Weights are never written. The global random states, module modes, ``requires_grad`` and hooks are restored, also when
scoring raises. What stays behind is only time.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def reseed(seed: int) -> None:
    """Seed the global random states; only inside :func:`untouched`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    # torch.manual_seed would also queue a seed for a CUDA context that does not exist yet
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def untouched(model: Any, seed: int = 0) -> Iterator[None]:
    """Score inside: the model is in eval mode, and random numbers drawn here (by a collator, say) depend on ``seed`` only."""
    modes = {module: module.training for module in model.modules()}
    grads = {parameter: parameter.requires_grad for parameter in model.parameters()}
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    forward = vars(model).get("forward")
    devices = (
        list(range(torch.cuda.device_count())) if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    )
    cuda_states = [torch.cuda.get_rng_state(device) for device in devices]
    try:
        model.eval()
        if "_original_forward" in vars(model):  # accelerate's wrapper would force the trainer's precision on any other
            model.forward = model._original_forward
        reseed(seed)
        yield
    finally:
        if forward is not None:
            model.forward = forward
        for module, mode in modes.items():
            module.training = mode
        for parameter, flag in grads.items():
            parameter.requires_grad_(flag)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        for device, state in zip(devices, cuda_states, strict=True):
            torch.cuda.set_rng_state(state, device)
