"""The moments of an Adam optimizer, and gradients turned into the steps that Adam would take on them.

Two forms, of a gradient ``g`` with the moments ``m``, ``v`` and the step count ``t`` of its parameter:

- ``less`` (Xia et al. 2024, arXiv 2402.04333, as its authors compute it): ``m' / sqrt(v' + eps)`` with
  ``m' = b1 m + (1 - b1) g`` and ``v' = b2 v + (1 - b2) g^2``; no bias correction, eps inside the root. The authors fix
  b1 = 0.9, b2 = 0.999, eps = 1e-8; here they are the optimizer's own.
- ``adamw``: the step of torch's AdamW (or Adam, whose coupled decay is left out too) on ``g`` without weight decay and learning rate,
  ``(m' / (1 - b1^(t+1))) / (sqrt(v' / (1 - b2^(t+1))) + eps)``, eps outside.

The result points up the loss: the weights would move against it. Its inner product with a query's plain gradient is
thus how much the loss of the query falls, to first order and per unit of learning rate, were this row the whole next
batch. The part of it that comes from ``m`` is nearly the same for all rows: it shifts inner products, and it enters
cosines.

Where the gradient is 0 but for rounding, as for the bias of attention keys, ``adamw`` divides rounding by rounding, as the
training does; in ``less`` eps is too large for that.

Neither form is linear in ``g``: a row's weight, and whether its loss is a sum or a mean over tokens, scale ``g`` before
it is preconditioned, and change the direction of the result. For gradients of the mean loss pass ``weights=`` of 1 / tokens.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from hfdataopt.errors import DataError, OptionError
from hfdataopt.gradients.blocks import Layers, find_blocks, unwrap
from hfdataopt.gradients.store import checksum

AdamForm = Literal["less", "adamw"]
FORMS: tuple[str, ...] = get_args(AdamForm)

# Entries of a gradient that are worked on at once: several passes go over them, in a core's cache.
CACHED = 1 << 17
# A key of a group or of a parameter's state that only this optimizer has.
_OTHERS = {
    "nesterov": "SGD",
    "momentum_buffer": "SGD",
    "scale_parameter": "Adafactor",
    "exp_avg_sq_row": "Adafactor",
    "momentum_decay": "NAdam",
    "exp_inf": "Adamax",
    "square_avg": "RMSprop",
    "state1": "a bitsandbytes optimizer (8-bit or paged)",
}


@dataclass(frozen=True)
class AdamState:
    """Moments of one parameter, each of its shape, after ``step`` steps, with the options of its group."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: int
    betas: tuple[float, float]
    eps: float
    lr: float
    weight_decay: float


@dataclass
class AdamMoments:
    """Moments by parameter name: made by :meth:`of`, used by :meth:`precondition`.

    The tensors are the optimizer's own, or views of the file: a live optimizer changes them at its next step.
    """

    parameters: dict[str, AdamState]
    who: str = "gradients"
    _moved: dict[tuple[str, torch.device], tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        source: torch.optim.Optimizer | str | os.PathLike[str] | None,
        model: nn.Module,
        *,
        layers: Layers = None,
        who: str = "gradients",
    ) -> "AdamMoments":
        """The moments of the parameters that ``layers`` selects of ``model`` (see
        :func:`hfdataopt.gradients.blocks.find_blocks`).

        ``source``: a torch ``Adam`` or ``AdamW`` that trains ``model``, bare or wrapped by accelerate; or a checkpoint
        folder of ``transformers.Trainer`` (or the ``optimizer.pt`` in it), with ``model`` as it was saved there. The file
        is a pickle, the only form that the Trainer writes; it is read by ``torch.load(weights_only=True)``, whose
        unpickler makes tensors and plain containers and runs no code of the file, and its tensors are memory-mapped.
        The file numbers parameters: without names in it they are taken to be those that require a gradient, in the
        Trainer's order (those with weight decay, then those without), and lengths and shapes must agree.
        ``who`` begins the messages of errors.

        Raises:
            OptionError: there is no optimizer, or it is not Adam or AdamW, or uses ``amsgrad`` or ``maximize``.
            DataError: there are no moments yet, the file is missing, not readable, sharded or of another model, or a
                selected parameter is not in it or has another shape there.
        """
        model = unwrap(model)
        wanted = [name for block in find_blocks(model, layers) for name in (block.weight, *block.biases)]
        states = _read(Path(source), model, who) if isinstance(source, str | os.PathLike) else _live(source, model, who)
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        _check(states, wanted, shapes, who)
        return cls({name: states[name] for name in wanted}, who)

    @staticmethod
    def check(optimizer: torch.optim.Optimizer, who: str = "gradients") -> None:
        """Raise ``OptionError`` for an optimizer that will never have these moments, also before its first step."""
        _adam_in(optimizer, who)

    @property
    def step(self) -> int:
        """Steps taken: the largest count of any parameter."""
        return max(state.step for state in self.parameters.values())

    def precondition(self, form: AdamForm = "less") -> "AdamStep":
        """For ``precondition=`` of the engine; ``form`` as above."""
        return AdamStep(self, form)

    def hash(self) -> str:
        """SHA-256 over names, options and checksums of all moments."""
        digest = hashlib.sha256()
        for name, state in sorted(self.parameters.items()):
            sums = [checksum(moment) for moment in (state.exp_avg, state.exp_avg_sq)]
            digest.update(f"{name}{tuple(state.exp_avg.shape)}{state.step}{state.betas}{state.eps}{sums};".encode())
        return digest.hexdigest()

    def _on(self, name: str, device: torch.device) -> tuple[Tensor, Tensor]:
        """Both moments on ``device``; moved once, since the optimizer had room for them there too."""
        state = self.parameters[name]
        if state.exp_avg.device == device:
            return state.exp_avg, state.exp_avg_sq
        if (name, device) not in self._moved:
            self._moved[name, device] = state.exp_avg.to(device), state.exp_avg_sq.to(device)
        return self._moved[name, device]


@dataclass(frozen=True)
class AdamStep:
    """``(parameter name, gradient [b, *shape]) -> [b, *shape]``, in place: each row's gradient becomes the step that Adam
    would take on it alone, in the gradient's precision."""

    moments: AdamMoments
    form: AdamForm

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise OptionError(
                f"{self.moments.who}: the Adam form {self.form!r} arrived; it must be one of {', '.join(FORMS)}"
            )

    def __call__(self, name: str, gradient: Tensor) -> Tensor:
        moments = self.moments
        if name not in moments.parameters:
            raise DataError(f"{moments.who}: no moments of {name} were read; pass the same layers= to AdamMoments.of")
        _step(moments.parameters[name], *moments._on(name, gradient.device), gradient, self.form)
        return gradient

    @cached_property
    def key(self) -> list[str]:
        """What tells it from another: JSON values, for a manifest."""
        return ["adam", self.form, self.moments.hash()]


def _step(state: AdamState, exp_avg: Tensor, exp_avg_sq: Tensor, gradient: Tensor, form: AdamForm) -> None:
    """Replace ``gradient [b, *shape]`` by its step, in place.

    With M = b1 m / (1 - b1) and V = b2 v / (1 - b2), m' = (1 - b1)(g + M) and v' = (1 - b2)(g^2 + V), so that both forms
    are ``(g + M) / (sqrt((g^2 + V') / s^2) + e)`` for a scale s: no pass over [b, *shape] is spent on constants.
    """
    one, two = state.betas
    if form == "less":
        scale, inside, outside = (1 - one) / (1 - two) ** 0.5, state.eps / (1 - two), 0.0
    else:
        first, second = 1 - one ** (state.step + 1), 1 - two ** (state.step + 1)
        scale = (1 - one) / first * (second / (1 - two)) ** 0.5
        inside, outside = 0.0, state.eps * first / (1 - one)
    exp_avg, exp_avg_sq = exp_avg.to(gradient.dtype), exp_avg_sq.to(gradient.dtype)
    if gradient.dim() == 3 and gradient.stride(1) < gradient.stride(2):  # stored transposed: walk memory in its order
        gradient, exp_avg, exp_avg_sq = gradient.transpose(1, 2), exp_avg.T, exp_avg_sq.T
    variance = torch.empty(exp_avg.shape, dtype=gradient.dtype, device=gradient.device)
    torch.mul(exp_avg_sq, two / (1 - two) / scale**2, out=variance).add_(inside / scale**2)
    mean = exp_avg.mul(one / (1 - one))
    rows = max(1, CACHED // max(1, mean.numel())) if gradient.device.type == "cpu" else len(gradient)
    for part in gradient.split(rows):
        root = torch.addcmul(variance, part, part, value=scale**-2).sqrt_()
        if outside:
            root.add_(outside)
        part.add_(mean).div_(root)


def _live(source: Any, model: nn.Module, who: str) -> dict[str, AdamState]:
    """States by name of the parameters that a live optimizer has states for."""
    if source is None:
        raise OptionError(
            f"{who}: Adam moments are needed, but there is no optimizer; score within training (a callback of the Trainer), "
            "or at a checkpoint folder that holds optimizer.pt"
        )
    optimizer = _adam_in(source, who)
    if not optimizer.state:
        raise _too_early(who, "the optimizer has not taken a step")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    states = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) in names and parameter in optimizer.state:
                _check_group(group, optimizer.state[parameter], who)
                states[names[id(parameter)]] = _state(optimizer.state[parameter], group, who)
    if not states:
        raise DataError(
            f"{who}: the optimizer trains none of the parameters of this {type(model).__name__}; pass the model that it trains"
        )
    return states


def _adam_in(optimizer: Any, who: str) -> torch.optim.Adam | torch.optim.AdamW:
    """The Adam or AdamW inside its wrappers."""
    while not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        inner = getattr(optimizer, "optimizer", None)
        if not isinstance(inner, torch.optim.Optimizer):
            kind = f"{type(optimizer).__module__}.{type(optimizer).__name__}"
            raise _another(who, kind) if "deepspeed" not in kind else _sharded(who, f"the optimizer is {kind}")
        optimizer = inner
    return optimizer


def _read(path: Path, model: nn.Module, who: str) -> dict[str, AdamState]:
    """States by name from ``optimizer.pt`` of a checkpoint folder, or from that file."""
    folder, file = (path, path / "optimizer.pt") if path.is_dir() or not path.suffix else (path.parent, path)
    if not file.is_file():
        patterns = ("global_step*", "optimizer.bin", "optimizer_[0-9]*", "rank*-of-*-optimizer.pt", "optimizer.pt_*")
        found = sorted(x.name for pattern in patterns for x in folder.glob(pattern))
        if found:
            raise _sharded(who, f"{folder} holds {found[0]} instead of optimizer.pt")
        raise DataError(
            f"{who}: {file} is missing; save checkpoints with save_only_model=False, or score within training"
        )
    try:
        saved = torch.load(file, weights_only=True, map_location="cpu", mmap=True)
        groups, states = list(saved["param_groups"]), dict(saved["state"])
    except Exception as error:  # the unpickler and the zip reader raise many kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{who}: {file} cannot be read as the state of an optimizer ({reason}); save the checkpoint again, or score "
            "within training"
        ) from error
    if not states:
        raise _too_early(who, f"{file} holds no state")
    for group in groups:
        for index in group["params"]:
            if index in states:
                _check_group(group, states[index], who)
    result = {}
    for group, names in zip(groups, _names(groups, states, model, f"{who}: {file}"), strict=True):
        for index, name in zip(group["params"], names, strict=True):
            if index in states:
                result[name] = _state(states[index], group, who)
    return result


def _names(
    groups: Sequence[Mapping[str, Any]], states: Mapping[Any, Any], model: nn.Module, where: str
) -> list[list[str]]:
    """Parameter names of each group of a state that numbers parameters."""
    if all("param_names" in group for group in groups):
        return [list(group["param_names"]) for group in groups]
    from transformers import Trainer

    # Reads nothing of a trainer, so that none has to be made: which parameters decay follows from modules and names.
    decaying = set(Trainer.get_decay_parameter_names(cast(Any, None), model))
    parameters = dict(model.named_parameters())
    trained = [name for name, parameter in parameters.items() if parameter.requires_grad]
    # A PEFT model loaded for inference is frozen: what is saved with the adapter is what was trained.
    adapters = [name for name in parameters if "lora_" in name or ".modules_to_save." in name]
    lengths = [len(group["params"]) for group in groups]
    for names in (trained, adapters, list(parameters)):
        for order in (
            [[name for name in names if name in decaying], [name for name in names if name not in decaying]],
            [names],
        ):
            if [len(group) for group in order] == lengths and all(
                index not in states or parameters[name].shape == states[index]["exp_avg"].shape
                for group, members in zip(groups, order, strict=True)
                for index, name in zip(group["params"], members, strict=True)
            ):
                return order
    raise DataError(
        f"{where} was saved for groups of {' + '.join(map(str, lengths))} parameters, the Trainer's groups for this "
        f"{type(model).__name__} have {sum(name in decaying for name in trained)} + "
        f"{sum(name not in decaying for name in trained)} that require a gradient, or their shapes differ; load the model as "
        "it was trained (adapters trainable, frozen parameters frozen), or make the optimizer from model.named_parameters()"
    )


def _state(state: Mapping[str, Any], group: Mapping[str, Any], who: str) -> AdamState:
    if any(type(state[key]).__name__ == "DTensor" for key in ("exp_avg", "exp_avg_sq")):
        raise _sharded(who, "the moments are distributed tensors")
    return AdamState(
        exp_avg=state["exp_avg"].detach(),
        exp_avg_sq=state["exp_avg_sq"].detach(),
        step=int(state["step"]),
        betas=(float(group["betas"][0]), float(group["betas"][1])),
        eps=float(group["eps"]),
        lr=float(group["lr"]),
        weight_decay=float(group["weight_decay"]),
    )


def _check_group(group: Mapping[str, Any], state: Mapping[str, Any], who: str) -> None:
    """Whether group and state are those of torch's Adam or AdamW, of the plain variant."""
    keys = {"exp_avg", "exp_avg_sq", "step"}
    other = next((kind for key, kind in _OTHERS.items() if key in group or key in state), None)
    if other is not None or not keys <= set(state) or not {"betas", "eps", "amsgrad", "maximize"} <= set(group):
        raise _another(who, other or f"an optimizer with the state {', '.join(map(str, state)) or 'of nothing'}")
    for option in ("amsgrad", "maximize"):
        if group[option]:
            raise OptionError(
                f"{who}: the optimizer has {option}=True, for which no form is defined here; train without it"
            )


def _check(states: Mapping[str, AdamState], wanted: Sequence[str], shapes: Mapping[str, torch.Size], who: str) -> None:
    missing = [name for name in wanted if name not in states]
    if missing:
        raise DataError(
            f"{who}: the optimizer has no moments of {len(missing)} of the {len(wanted)} selected parameters, such as "
            f"{missing[0]}; choose layers= among those that were trained, such as that of {next(iter(states), 'none')}"
        )
    for name in wanted:
        for moment in (states[name].exp_avg, states[name].exp_avg_sq):
            if moment.shape != shapes[name]:
                raise DataError(
                    f"{who}: the moments of {name} have shape {list(moment.shape)}, the parameter {list(shapes[name])}; "
                    "pass the optimizer state of this very model (a sharded one is not supported)"
                )


def _another(who: str, kind: str) -> OptionError:
    return OptionError(
        f"{who}: Adam moments are needed, but {kind} arrived; train with torch's AdamW (optim='adamw_torch' or "
        "'adamw_torch_fused'), or choose a scorer that needs none"
    )


def _sharded(who: str, what: str) -> DataError:
    return DataError(
        f"{who}: {what}: a sharded optimizer state (DeepSpeed, FSDP) cannot be read; train without sharding, or choose a scorer "
        "that needs no moments"
    )


def _too_early(who: str, what: str) -> DataError:
    return DataError(f"{who}: {what}, so there are no moments yet; score after at least one step")
