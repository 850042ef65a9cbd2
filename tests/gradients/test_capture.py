"""Hooks: LoRA, shared modules, checkpointing, and leaving the model as it was."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from hfdataopt.errors import OptionError
from hfdataopt.gradients import Basis, check_layers, find_blocks, gram, make_target, per_example_gradients

peft = pytest.importorskip("peft")


def exact(tools: Any, model: nn.Module, batches: Any, **options: Any) -> torch.Tensor:
    return tools.features(per_example_gradients(model, batches, basis="exact", **options))


def with_lora(tools: Any, name: str, targets: list[str]) -> nn.Module:
    config = peft.LoraConfig(r=3, lora_alpha=6, lora_dropout=0.3, target_modules=targets, init_lora_weights=False)
    if name == "bert-cls":
        config.modules_to_save = ["classifier"]
    torch.manual_seed(3)
    return peft.get_peft_model(tools.build(name), config).train()


@pytest.mark.parametrize(
    ("name", "targets"),
    [("llama", ["q_proj", "down_proj"]), ("gpt2", ["c_attn"]), ("bert-cls", ["query", "value"])],
)
def test_lora_gradients_equal_autograd(tools: Any, name: str, targets: list[str]) -> None:
    model, rows = with_lora(tools, name, targets), tools.make_rows(name)
    names = check_layers(model)
    assert all("lora_" in x or "classifier.modules_to_save" in x for x in names)
    assert any("lora_A" in x for x in names)
    assert any("lora_B" in x for x in names)
    found = exact(tools, model, tools.batches_of(rows, 4))
    wanted = tools.reference(model, rows)
    assert (wanted != 0).float().mean() > 0.8  # B is not zero, so A has gradients too
    assert tools.close(found, wanted)


def test_lora_loaded_for_inference_is_still_tracked(tools: Any) -> None:
    model = with_lora(tools, "llama", ["q_proj"])
    trained = check_layers(model)
    model.requires_grad_(False)
    assert check_layers(model) == trained


class Twice(nn.Module):
    """A classifier that calls one layer twice, shares a weight between two others and leaves one unused."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(37, 8)
        self.inner = nn.Linear(8, 8)
        self.one = nn.Linear(8, 8)
        self.other = nn.Linear(8, 8)
        self.other.weight = self.one.weight
        self.unread = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.inner(self.embed(input_ids)).tanh()
        x = self.inner(x).tanh()
        x = self.one(x).tanh() + self.other(x)
        self.unread(x)
        return self.head((x * attention_mask.unsqueeze(-1)).sum(1))


def twice_loss(model: nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    logits = model(batch["input_ids"], batch["attention_mask"])
    values = nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
    return values, torch.ones_like(batch["labels"])


@pytest.mark.parametrize("layers", [None, ["linear", "embeddings"]])
def test_module_called_twice_and_modules_sharing_a_weight(tools: Any, layers: Any) -> None:
    torch.manual_seed(0)
    model, rows = Twice(), tools.make_rows("bert-cls")
    blocks = {block.name: block for block in find_blocks(model, layers)}
    assert [use.module for use in blocks["one"].uses] == ["one", "other"]
    assert blocks["one"].biases == ("one.bias", "other.bias")
    found = exact(tools, model, tools.batches_of(rows, 4), of=twice_loss, layers=layers)
    wanted = tools.reference(model, rows, layers, of=twice_loss)
    assert tools.close(found, wanted)
    products = gram(model, tools.batches_of(rows, 4), of=twice_loss, layers=layers)
    assert torch.allclose(products, wanted.double() @ wanted.double().T, rtol=1e-5, atol=1e-6)
    basis = Basis.random(find_blocks(model, layers), 150, 0)
    projected = tools.features(
        per_example_gradients(model, tools.batches_of(rows, 4), of=twice_loss, layers=layers, basis=basis)
    )
    parts = [
        basis.project_matrix(index, wanted[:, start : start + block.size].view(-1, block.rows, block.columns))
        for index, (block, start) in enumerate(zip(blocks.values(), _starts(blocks.values()), strict=True))
    ]
    assert tools.close(projected, torch.cat(parts, 1))


def _starts(blocks: Any) -> list[int]:
    starts = [0]
    for block in blocks:
        starts.append(starts[-1] + block.size)
    return starts[:-1]


class Flattening(nn.Module):
    """Mixes the rows of a batch into one dimension, and routes each position to one of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(37, 8)
        self.flat = nn.Linear(8, 8)
        self.experts = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.head = nn.Linear(8, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.flat(self.embed(input_ids).reshape(-1, 8)).tanh()
        routed = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mine = input_ids.reshape(-1) % 2 == number
            routed = routed.index_put((mine.nonzero().flatten(),), expert(x[mine]))
        routed = routed.view(*input_ids.shape, 8) * attention_mask.unsqueeze(-1)
        return self.head(routed.sum(1))


def test_inputs_without_a_batch_dimension(tools: Any) -> None:
    torch.manual_seed(0)
    model, rows = Flattening(), tools.make_rows("bert-cls")
    batches = tools.batches_of(rows, 4)
    flat = exact(tools, model, batches, of=twice_loss, layers=["flat", "head"])
    assert tools.close(flat, tools.reference(model, rows, ["flat", "head"], of=twice_loss))
    with pytest.warns(UserWarning, match="experts"):
        found = exact(tools, model, batches, of=twice_loss)
    assert tools.close(found, tools.reference(model, rows, of=twice_loss))


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert-mlm"])
def test_checkpointing_gives_the_same_gradients_and_is_really_used(
    tools: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = tools.build(name), tools.make_rows(name)
    batches = tools.batches_of(rows, 4)
    plain = exact(tools, model, batches)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    calls = []
    real = torch.utils.checkpoint.checkpoint
    for module in model.modules():
        function = vars(module).get("_gradient_checkpointing_func")
        if function is not None:
            module._gradient_checkpointing_func = lambda f, *a, function=function: calls.append(1) or function(f, *a)
    assert torch.equal(exact(tools, model, batches), plain)
    assert len(calls) == 2 * len(batches)  # two layers
    assert real is torch.utils.checkpoint.checkpoint
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("options", [{"use_reentrant": True}, {"preserve_rng_state": True}])
def test_reentrant_checkpointing_is_refused(tools: Any, options: Any) -> None:
    model, rows = tools.build("llama"), tools.make_rows("llama")
    model.gradient_checkpointing_enable(options)
    with pytest.raises(OptionError, match="use_reentrant"):
        per_example_gradients(model, tools.batches_of(rows, 4), basis="exact")


def state(model: nn.Module) -> list[Any]:
    return [
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [len(module._forward_hooks) for module in model.modules()],
        [parameter.grad is None for parameter in model.parameters()],
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
        model.config.use_cache,
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(tools: Any, fails: bool) -> None:
    model, rows = tools.build("llama"), tools.make_rows("llama")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.model.layers[1].eval()
    model.model.norm.weight.requires_grad_(False)
    before = state(model)
    target = make_target(model, "loss")

    def broken(model: nn.Module, batch: dict[str, Any]) -> Any:
        assert not any(x.training for x in model.modules() if not hasattr(x, "_gradient_checkpointing_func"))
        assert not any(parameter.requires_grad for parameter in model.parameters())
        value, tokens = target(model, batch)
        if fails:
            raise RuntimeError("broken on purpose")
        return value, tokens

    results = per_example_gradients(model, tools.batches_of(rows, 2), of=broken, basis="eigen", floats_per_row=300)
    if fails:
        with pytest.raises(RuntimeError, match="on purpose"):
            next(results)
    else:
        next(results)
        assert state(model) == before  # also between batches
        list(results)
    assert state(model) == before


def test_works_under_no_grad_and_with_frozen_weights(tools: Any) -> None:
    model, rows = tools.build("llama"), tools.make_rows("llama")
    wanted = tools.reference(model, rows)
    model.requires_grad_(False)
    with torch.no_grad():
        found = exact(tools, model, tools.batches_of(rows, 4))
    assert tools.close(found, wanted)


def test_no_weight_gradient_is_computed_and_backward_stops_at_the_lowest_layer(tools: Any) -> None:
    model, rows = tools.build("llama"), tools.make_rows("llama")
    seen = []

    def watch(gradient: torch.Tensor) -> None:
        seen.append(1)

    def hook(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(watch)

    model.model.layers[0].mlp.register_forward_hook(hook)
    exact(tools, model, tools.batches_of(rows, 4), layers="model.layers.1.*")
    assert not seen
    exact(tools, model, tools.batches_of(rows, 4), layers="model.layers.0.*")
    assert seen


@pytest.mark.parametrize(
    "layers", ["nothing.*", "re:(", [], "last:0", ["linear", "*.no_such"], "norms"], ids=lambda x: str(x)
)
def test_layers_that_select_nothing_list_what_there_is(layers: Any) -> None:
    config = LlamaConfig(
        vocab_size=9,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    model: nn.Module = LlamaForCausalLM(config) if layers != "norms" else nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(OptionError) as error:
        check_layers(model, layers)
    assert "layers" in str(error.value)
    if layers not in ("re:(", "last:0"):
        assert "(linear)" in str(error.value)


def test_no_linear_layer_at_all() -> None:
    with pytest.raises(OptionError, match="no linear layer"):
        check_layers(nn.Sequential(nn.ReLU()))


def test_layer_groups(tools: Any) -> None:
    model = tools.build("llama")
    everything, linear = check_layers(model, "all"), check_layers(model)
    assert "lm_head" in everything
    assert "lm_head" not in linear
    assert len(linear) == 14
    assert check_layers(model, "last:1") == [name for name in linear if ".1." in name]
    assert check_layers(model, "re:.*[qk]_proj") == [name for name in linear if name[-6:] in ("q_proj", "k_proj")]
    classifier = tools.build("bert-cls")
    assert check_layers(classifier, "last:1")[-1] == "classifier"
    assert "cls.predictions.decoder" not in check_layers(tools.build("bert-mlm"))
