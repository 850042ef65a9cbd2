"""Which parameters a gradient feature covers: the modules of a model, grouped into blocks.

A **block** is one weight (with its biases) and every module that uses it. Its per-example gradient is a matrix
``G [rows, columns] = sum over positions of left [rows] (x) right [columns]``:

- linear (``nn.Linear``, GPT-2's ``Conv1D``, LoRA's A and B): left = output gradient, right = input, with one more
  column holding 1 for each bias
- embedding: left = one-hot token id, right = output gradient, so that a tied LM head adds to the same matrix
- norm: ``rows`` = weight and bias laid end to end, one column

Modules that share a weight are one block: the gradient of a parameter is the sum over its uses.
"""

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from transformers.pytorch_utils import Conv1D

from hfdataopt.errors import OptionError

Kind = Literal["linear", "conv1d", "embedding", "norm"]
Layers = str | Sequence[str] | None

_GROUPS = ("linear", "head", "embeddings", "norms")
_LAYER_NUMBER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Use:
    """One module of a block. ``bias`` is the index of its bias among the block's biases, None without one."""

    module: str
    kind: Kind
    bias: int | None


@dataclass(frozen=True)
class Block:
    """One tracked weight: its parameter names, the shape of its gradient matrix and the modules that use it."""

    name: str
    weight: str
    biases: tuple[str, ...]
    rows: int
    columns: int
    transposed: bool  # the parameter is stored as [columns, rows] (Conv1D)
    vector: bool  # a norm: rows hold weight then bias, one column
    uses: tuple[Use, ...]

    @property
    def size(self) -> int:
        """Number of gradient entries of one example."""
        return self.rows * self.columns

    @property
    def inputs(self) -> int:
        """Columns that belong to the weight, the biases' columns left out."""
        return self.columns - (0 if self.vector else len(self.biases))

    def describe(self) -> list[object]:
        """What identifies the block in a manifest."""
        return [self.name, self.rows, self.columns, [[use.module, use.kind] for use in self.uses]]


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside ``DistributedDataParallel`` and the like, which keep it as ``.module``."""
    while type(model).__name__ in ("DistributedDataParallel", "DataParallel"):
        inner = model.module
        assert isinstance(inner, nn.Module)
        model = inner
    return model


def unpeft(model: Any) -> Any:
    """The model inside a PEFT wrapper; any other as it is."""
    get_base = getattr(model, "get_base_model", None)
    return get_base() if callable(get_base) else model


def find_blocks(model: nn.Module, layers: Layers = None) -> list[Block]:
    """The blocks that ``layers`` selects, in the order of ``model.named_modules()``.

    ``layers``: None = ``"linear"``, all linear layers except the LM head; with LoRA (any PEFT model) the trainable
    ones of them. Otherwise one item or a list of items, each one of

    - ``"linear"``, ``"head"`` (the LM head), ``"embeddings"``, ``"norms"``, or ``"all"`` for these four
    - ``"last:K"``: the linear layers of the last K numbered transformer layers and of what follows them
    - a pattern over module names in the style of ``fnmatch`` (``"*.q_proj"``), or a regular expression after ``"re:"``,
      which must match the whole name.

    A selected weight brings every other module that shares it.

    Raises ``OptionError`` when an item selects nothing, listing the modules there are.
    """
    model = unwrap(model)
    kinds = {name: kind for name, module in model.named_modules() if (kind := _kind(module)) is not None}
    items = ["linear"] if layers is None else [layers] if isinstance(layers, str) else list(layers)
    if not items:
        raise OptionError("layers: an empty list arrived; pass None for all linear layers, or " + _what_there_is(kinds))
    chosen: set[str] = set()
    for item in items:
        names = _select(model, kinds, item)
        if not names:
            raise OptionError(f"layers: {item!r} selects no module of {type(model).__name__}; " + _what_there_is(kinds))
        chosen.update(names)
    return _group(model, kinds, chosen)


def check_layers(model: nn.Module, layers: Layers = None) -> list[str]:
    """Names of the modules that ``layers`` selects; ``OptionError`` when there are none."""
    return [use.module for block in find_blocks(model, layers) for use in block.uses]


def _kind(module: nn.Module) -> Kind | None:
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, Conv1D):
        return "conv1d"
    if isinstance(module, nn.Embedding):
        return "embedding"
    own = dict(module.named_parameters(recurse=False))
    if (
        "norm" in type(module).__name__.lower()
        and not isinstance(module, nn.modules.batchnorm._BatchNorm)
        and "weight" in own
        and own["weight"].dim() == 1
        and set(own) <= {"weight", "bias"}
    ):
        return "norm"
    return None


def _head_names(model: nn.Module) -> set[str]:
    get = getattr(model, "get_output_embeddings", None)
    try:
        head = get() if callable(get) else None
    except (NotImplementedError, AttributeError):
        head = None
    return {name for name, module in model.named_modules() if head is not None and module is head}


def _select(model: nn.Module, kinds: dict[str, Kind], item: str) -> list[str]:
    head = _head_names(model)
    if item == "all":
        return list(kinds)
    if item == "head":
        return [name for name in kinds if name in head or (not head and name == "head")]
    if item in ("embeddings", "norms"):
        return [name for name, kind in kinds.items() if kind == item[:-1]]
    linear = [name for name, kind in kinds.items() if kind in ("linear", "conv1d") and name not in head]
    if item == "linear":
        return _trainable_adapters(model, linear)
    if item.startswith("last:"):
        return _last(model, linear, item)
    try:
        pattern = re.compile(item[3:] if item.startswith("re:") else fnmatch.translate(item))
    except re.error as error:
        raise OptionError(f"layers: {item!r} is not a regular expression: {error}") from None
    return [name for name in kinds if pattern.fullmatch(name)]


def _trainable_adapters(model: nn.Module, linear: list[str]) -> list[str]:
    adapters = [name for name in linear if ".lora_A." in name or ".lora_B." in name]
    if not adapters and not hasattr(model, "peft_config"):
        return linear
    modules = dict(model.named_modules())
    trainable = [name for name in linear if getattr(modules[name].weight, "requires_grad", False)]
    # Loaded for inference, every adapter weight is frozen: the adapters are still what was trained.
    return trainable or adapters


def _last(model: nn.Module, linear: list[str], item: str) -> list[str]:
    count = item.removeprefix("last:")
    if not count.isdigit() or int(count) < 1:
        raise OptionError(f"layers: {item!r} arrived; write 'last:2' for the last two transformer layers")
    linear = _trainable_adapters(model, linear)
    numbers = {name: int(found[1]) for name in linear if (found := _LAYER_NUMBER.search(name + "."))}
    if not numbers:
        return []
    first = max(numbers.values()) + 1 - int(count)
    after = linear.index(max(numbers, key=lambda name: (numbers[name], linear.index(name))))
    return [
        name
        for place, name in enumerate(linear)
        if numbers.get(name, -1) >= first or (name not in numbers and place > after)
    ]


def _group(model: nn.Module, kinds: dict[str, Kind], chosen: Iterable[str]) -> list[Block]:
    modules = dict(model.named_modules())
    names = {id(parameter): name for name, parameter in model.named_parameters(remove_duplicate=True)}
    by_weight: dict[int, list[str]] = {}
    for name in kinds:
        by_weight.setdefault(id(modules[name].weight), []).append(name)
    wanted = {id(modules[name].weight) for name in chosen}
    blocks = []
    for key, members in by_weight.items():
        if key in wanted:
            blocks.append(_block(modules, kinds, members, names))
    return blocks


def _block(modules: dict[str, nn.Module], kinds: dict[str, Kind], members: list[str], names: dict[int, str]) -> Block:
    first = modules[members[0]]
    biases: list[str] = []
    uses = []
    for name in members:
        bias = getattr(modules[name], "bias", None)
        index = None
        if bias is not None:
            if names[id(bias)] not in biases:
                biases.append(names[id(bias)])
            index = biases.index(names[id(bias)])
        uses.append(Use(name, kinds[name], index))
    kind = kinds[members[0]]
    if kind == "linear":
        rows, inputs = int(first.out_features), int(first.in_features)  # type: ignore[arg-type]
    elif kind == "conv1d":
        inputs, rows = first.weight.shape  # type: ignore[misc]
    elif kind == "embedding":
        rows, inputs = int(first.num_embeddings), int(first.embedding_dim)  # type: ignore[arg-type]
    else:
        size = int(first.weight.numel())  # type: ignore[operator]
        weight = names[id(first.weight)]
        return Block(members[0], weight, tuple(biases), size * (1 + len(biases)), 1, False, True, tuple(uses))
    return Block(
        name=members[0],
        weight=names[id(first.weight)],
        biases=tuple(biases),
        rows=rows,
        columns=inputs + len(biases),
        transposed=kind == "conv1d",
        vector=False,
        uses=tuple(uses),
    )


def _what_there_is(kinds: dict[str, Kind]) -> str:
    if not kinds:
        return "the model has no linear layer, embedding or norm, so there is no gradient to take from it"
    shown = [f"{name} ({kind})" for name, kind in list(kinds.items())[:40]]
    more = f" and {len(kinds) - 40} more" if len(kinds) > 40 else ""
    return f"use one of {', '.join(_GROUPS)}, all, last:K, or a pattern over these modules: " + ", ".join(shown) + more
