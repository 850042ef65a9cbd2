"""Taking per-example gradient factors from one batched forward and backward.

While a :class:`Capture` is entered, the output of each tracked module passes through :class:`_Probe`, an identity whose
backward sees the module's input and its output gradient. All weights are frozen: the graph exists because every probe
also takes a scalar *anchor* that requires a gradient, so no weight gradient is computed and the backward pass ends at
the lowest tracked module. Tensors are kept by ``save_for_backward``, which non-reentrant checkpointing recomputes.

On leaving, modes, ``requires_grad``, hooks and settings are as they were, also after an exception.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hfdataopt.errors import OptionError
from hfdataopt.gradients.blocks import Block, Use, unwrap
from hfdataopt.gradients.factors import Uses


class Captured(NamedTuple):
    """Factors of one use of a block: see :mod:`hfdataopt.gradients.factors`; ``right`` lacks the bias columns."""

    left: Tensor
    right: Tensor
    bias: int | None


Handler = Callable[[int, Block, list[Captured]], None]


class SharedInput(Exception):
    """A module's input does not have the examples as its first dimension; one example at a time is still right."""


def complete(block: Block, captured: Sequence[Captured]) -> Uses:
    """The factors with the bias columns (1 for the bias that the use has, 0 for another's) in place."""
    uses = []
    for left, right, bias in captured:
        extra = 0 if block.vector else len(block.biases)
        if extra:
            columns = right.new_zeros((*right.shape[:-1], extra))
            if bias is not None:
                columns[..., bias] = 1
            right = torch.cat([right, columns], dim=-1)
        uses.append((left, right))
    return uses


class _Probe(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, output: Tensor, given: Tensor, anchor: Tensor, receive: Callable[[Tensor, Tensor], None]
    ) -> Tensor:
        ctx.save_for_backward(given)
        ctx.receive = receive
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None]:
        (given,) = ctx.saved_tensors
        ctx.receive(gradients[0], given)
        return gradients[0] if ctx.needs_input_grad[0] else None, None, None, None


class Capture(AbstractContextManager["Capture"]):
    """Context in which a forward and backward of ``model`` hands the factors of each block to ``handler``.

    ``handler(index, block, captured)`` is called once per block and batch, as soon as all uses of the block have their
    gradients, so that no more than one block's factors need to be alive. Blocks without any gradient are not reported.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[Block]) -> None:
        self.model = unwrap(model)
        self.blocks = blocks
        self.anchor = torch.zeros((), requires_grad=True)
        self.handler: Handler | None = None
        self.called: set[str] = set()
        # Walking the modules costs as much as a layer of a small model: once, not per batch.
        self._modules = dict(self.model.named_modules())
        self._parameters = list(self.model.parameters())
        self._configs = _configs(self._modules.values())
        self._stack = ExitStack()
        self._batch = 0
        self._tokens = 0
        self._counting = False
        self._paused = False
        self._expected: list[int] = []
        self._waiting: list[list[Captured]] = []

    def __enter__(self) -> "Capture":
        with ExitStack() as stack:
            stack.enter_context(_frozen(self._parameters))
            stack.enter_context(_evaluating(self._modules))
            stack.enter_context(_without_cache(self._configs))
            for index, block in enumerate(self.blocks):
                for use in block.uses:
                    hook = partial(self._hook, index, use)
                    handle = self._modules[use.module].register_forward_hook(hook, with_kwargs=True)
                    stack.callback(handle.remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        self._waiting = []
        self.handler = None

    @contextmanager
    def forward(self, batch: int, tokens: int) -> Iterator[None]:
        """Around the forward pass of ``batch`` examples whose flattened length is ``tokens`` positions."""
        self._batch, self._tokens = batch, tokens
        self._expected = [0] * len(self.blocks)
        self._waiting = [[] for _ in self.blocks]
        self._counting = True  # recomputation under checkpointing calls the hooks again, outside of this context
        try:
            with torch.enable_grad():
                yield
        finally:
            self._counting = False

    def backward(self, objective: Tensor, handler: Handler, keep_graph: bool = False) -> None:
        """Differentiate the scalar ``objective``, handing each block's factors to ``handler``."""
        self.handler = handler
        if objective.requires_grad:
            # The backward of float32 operations must not be cast by an autocast context of the caller.
            with torch.autocast(objective.device.type, enabled=False):
                torch.autograd.grad(objective, self.anchor, allow_unused=True, retain_graph=keep_graph)
        for index, waiting in enumerate(self._waiting):
            if waiting:  # some use of the block has no gradient, such as an output that the loss does not read
                self._deliver(index)
        self.handler = None

    def never_called(self) -> list[str]:
        """Tracked modules that no forward pass has called so far."""
        return [use.module for block in self.blocks for use in block.uses if use.module not in self.called]

    def _hook(self, index: int, use: Use, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Tensor) -> Any:
        if self._paused:
            return None
        given: Tensor = args[0] if args else next(iter(kwargs.values()))
        if self._counting:
            self.called.add(use.module)
            self._expected[index] += 1
        if use.kind == "embedding" and output.shape[0] == 1 and self._batch > 1:
            # Position embeddings looked up once for all examples: one copy each, so that gradients stay apart.
            output = output.expand(self._batch, *output.shape[1:])
            given = given.expand(self._batch, *given.shape[1:])
        return _Probe.apply(output, given, self.anchor, partial(self._receive, index, use, module))

    def _receive(self, index: int, use: Use, module: nn.Module, gradient: Tensor, given: Tensor) -> None:
        # An autocast context of the caller would send the sums that follow through bfloat16.
        with torch.no_grad(), torch.autocast(gradient.device.type, enabled=False):
            gradient = self._per_example(use, gradient, gradient.shape[-1])
            if use.kind == "norm":
                gradient, given = self._norm_gradient(module, given, gradient)
            elif use.kind == "embedding":
                given = self._per_example(use, given, None)
                padding: Any = module.padding_idx
                if padding is not None:  # torch gives the padding row no gradient
                    gradient = gradient.masked_fill((given == padding).unsqueeze(-1), 0)
                gradient, given = given, gradient
            else:
                given = self._per_example(use, given, given.shape[-1])
            self._waiting[index].append(Captured(gradient, given, use.bias))
            if len(self._waiting[index]) == self._expected[index]:
                self._deliver(index)

    def _deliver(self, index: int) -> None:
        captured, self._waiting[index] = self._waiting[index], []
        assert self.handler is not None
        with torch.no_grad():
            self.handler(index, self.blocks[index], captured)

    def _per_example(self, use: Use, tensor: Tensor, size: int | None) -> Tensor:
        """``[batch, positions, size]``, or ``[batch, positions]`` for indices."""
        shape = () if size is None else (size,)
        if self._batch == 1 or tensor.shape[0] == self._batch:
            return tensor.reshape(self._batch, -1, *shape)
        if tensor.shape[: tensor.dim() - len(shape)] == (self._tokens,):
            return tensor.reshape(self._batch, -1, *shape)
        raise SharedInput(f"{use.module} saw {list(tensor.shape)} in a batch of {self._batch}")

    def _norm_gradient(self, module: nn.Module, given: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """A norm is affine in its weight, so the slope is its output at weight 1 less its output at weight 0."""
        state = {"weight": torch.ones_like(module.weight)}  # type: ignore[arg-type]
        zero = {"weight": torch.zeros_like(module.weight)}  # type: ignore[arg-type]
        self._paused = True
        try:
            slope = torch.func.functional_call(module, state, (given,)) - torch.func.functional_call(
                module, zero, (given,)
            )
        finally:
            self._paused = False
        slope = slope.reshape(gradient.shape).float()
        rows = [(slope * gradient.float()).sum(1)]
        if getattr(module, "bias", None) is not None:
            rows.append(gradient.float().sum(1))
        left = torch.cat(rows, dim=-1).unsqueeze(1)
        return left, left.new_ones((left.shape[0], 1, 1))


@contextmanager
def _frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def _evaluating(modules: dict[str, nn.Module]) -> Iterator[None]:
    """Evaluation mode, with gradient checkpointing still active where it was."""
    training = [module for module in modules.values() if module.training]
    checkpointed: list[Any] = [
        module
        for module in modules.values()
        if "_gradient_checkpointing_func" in vars(module) and getattr(module, "gradient_checkpointing", False) is True
    ]
    refuse_reentrant(modules)
    replaced = []
    try:
        for module in training:
            module.training = False
        for layer in checkpointed:
            if _is_checkpointing_layer(layer):
                original = layer._gradient_checkpointing_func
                replaced.append((layer, original))
                layer._gradient_checkpointing_func = partial(_checkpoint_in_eval, layer, original)
                layer.training = True  # transformers 5.23 checkpoints a layer only in training mode
        yield
    finally:
        for layer, original in replaced:
            layer._gradient_checkpointing_func = original
            layer.training = False
        for module in training:
            module.training = True


def refuse_reentrant(modules: dict[str, nn.Module]) -> None:
    """``OptionError`` if the model checkpoints with the reentrant variant, which ``autograd.grad`` cannot go
    through."""
    for name, module in modules.items():
        function = vars(module).get("_gradient_checkpointing_func")
        if function is not None and getattr(module, "gradient_checkpointing", False) is True:
            keywords = getattr(function, "keywords", None)
            # torch 2.13: reentrant where the argument is left out
            if keywords is not None and keywords.get("use_reentrant") is not False:
                raise OptionError(
                    f"gradients: {name or type(module).__name__} uses reentrant gradient checkpointing, which "
                    'per-example gradients cannot go through; pass gradient_checkpointing_kwargs={"use_reentrant": False} to the '
                    'training arguments, or call model.gradient_checkpointing_enable({"use_reentrant": False})'
                )


def _is_checkpointing_layer(module: nn.Module) -> bool:
    return any(kind.__name__ == "GradientCheckpointingLayer" for kind in type(module).__mro__)


def _checkpoint_in_eval(
    module: nn.Module, checkpoint: Callable[..., Any], function: Callable[..., Any], *args: Any
) -> Any:
    """Checkpoint ``function`` with the layer itself in evaluation mode: some layers apply dropout by their own mode."""

    def evaluate(*inner: Any) -> Any:
        module.training = False
        try:
            return function(*inner)
        finally:
            module.training = True

    return checkpoint(evaluate, *args)


@contextmanager
def _without_cache(configs: Iterable[Any]) -> Iterator[None]:
    """No key-value cache: in evaluation mode transformers would build one."""
    configs = [config for config in configs if getattr(config, "use_cache", None) is True]
    for config in configs:
        config.use_cache = False
    try:
        yield
    finally:
        for config in configs:
            config.use_cache = True


def _configs(modules: Iterable[nn.Module]) -> list[Any]:
    """The configurations that modules hold, each once."""
    found = {id(config): config for module in modules if (config := vars(module).get("config")) is not None}
    return list(found.values())
