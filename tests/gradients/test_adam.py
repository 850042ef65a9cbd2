"""Adam's moments and its steps on single gradients: against torch's AdamW, against plain formulas, from files, refusals."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from hfdataopt.errors import DataError, OptionError
from hfdataopt.gradients import AdamMoments, Source, find_blocks, fit_basis, gram, per_example_gradients
from hfdataopt.gradients.adam import AdamState

peft = pytest.importorskip("peft")
accelerate = pytest.importorskip("accelerate")

FORMS = ["less", "adamw"]
MODELS = ["bert-cls", "gpt2", "llama", "lora"]


def build(tools: Any, name: str) -> nn.Module:
    if name != "lora":
        return tools.build(name)
    model = tools.build("llama").requires_grad_(False)
    config = peft.LoraConfig(r=3, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    torch.manual_seed(1)
    return peft.get_peft_model(model, config).train()


def rows_for(tools: Any, name: str) -> list[dict[str, Any]]:
    return tools.make_rows("llama" if name == "lora" else name)


def train(tools: Any, model: nn.Module, name: str, kind: Any = torch.optim.AdamW, **options: Any) -> Any:
    """Four steps of an optimizer on the rows; other options for the biases."""
    named = [(key, p) for key, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for key, p in named if "bias" not in key], "weight_decay": 0.1},
        {"params": [p for key, p in named if "bias" in key], "betas": (0.7, 0.95), "eps": 1e-6},
    ]
    optimizer = kind([group for group in groups if group["params"]], lr=1e-3, **options)
    model.eval()
    for batch in tools.batches_of(rows_for(tools, name), 3) * 2:
        optimizer.zero_grad()
        model(**{key: x for key, x in batch.items() if key != "row_id"}).loss.backward()
        optimizer.step()
    return optimizer


def by_formula(form: str, gradient: Tensor, state: Any) -> Tensor:
    """The step on one gradient, as written in the papers, float64."""
    one, two = state.betas
    mean = one * state.exp_avg.double() + (1 - one) * gradient
    square = two * state.exp_avg_sq.double() + (1 - two) * gradient**2
    if form == "less":
        return mean / (square + state.eps).sqrt()
    count = state.step + 1
    return (mean / (1 - one**count)) / ((square / (1 - two**count)).sqrt() + state.eps)


def reference(tools: Any, model: nn.Module, rows: list[Any], layers: Any, form: str, moments: AdamMoments) -> Tensor:
    """``[rows, P]`` in the layout of exact features: autograd in float64 one row at a time, then the formula."""
    double = copy.deepcopy(model).double()
    plain = tools.reference(double, rows, layers)
    result, start = [], 0
    for block in find_blocks(model, layers):
        matrix = plain[:, start : start + block.size].view(len(rows), block.rows, block.columns)
        start += block.size
        states = [moments.parameters[name] for name in (block.weight, *block.biases)]
        if block.vector:
            width = block.rows // len(states)
            parts = [by_formula(form, matrix[:, i * width :][:, :width, 0], s) for i, s in enumerate(states)]
            result.append(torch.cat(parts, 1))
            continue
        weight = matrix[:, :, : block.inputs]
        turned = weight.transpose(1, 2) if block.transposed else weight  # the moments are stored as the weight is
        weight = by_formula(form, turned, states[0])
        weight = weight.transpose(1, 2) if block.transposed else weight
        biases = [by_formula(form, matrix[:, :, block.inputs + i], s).unsqueeze(-1) for i, s in enumerate(states[1:])]
        result.append(torch.cat([weight, *biases], 2).flatten(1))
    return torch.cat(result, 1)


def without_key_biases(model: nn.Module, layers: Any) -> Tensor:
    """Which entries ``[P]`` are not biases of attention keys. The gradient of these is 0 but for rounding, where positions are
    absolute: Adam divides rounding by rounding, in training too."""
    parts = []
    for block in find_blocks(model, layers):
        part = torch.ones(block.rows, block.columns, dtype=torch.bool)
        if block.name.endswith("c_attn"):
            part[block.rows // 3 : 2 * block.rows // 3, block.inputs :] = False
        parts.append(part.flatten())
    return torch.cat(parts)


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam])
def test_adamw_form_is_the_step_that_torch_takes(kind: Any, steps: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3, bias=False)).double()
    groups = [{"params": model[0].parameters(), "eps": 1e-3}, {"params": model[1].parameters(), "betas": (0.5, 0.99)}]
    optimizer = kind(groups, lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(9, 5, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
    step = AdamMoments.of(optimizer, model).precondition("adamw")
    for name, parameter in model.named_parameters():
        gradients = torch.randn(4, *parameter.shape, dtype=torch.float64)
        wanted = []
        for gradient in gradients:
            other = copy.deepcopy(model)
            real = kind([{"params": other[0].parameters()}, {"params": other[1].parameters()}])
            real.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            for group in real.param_groups:
                group["lr"], group["weight_decay"] = 1.0, 0.0
            moved = dict(other.named_parameters())[name]
            moved.grad = gradient.clone()
            before = moved.detach().clone()
            real.step()
            wanted.append(before - moved.detach())
        assert torch.allclose(step(name, gradients.clone()), torch.stack(wanted), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 6), (300, 40, 50), (3, 1, 200_000)])
def test_forms_are_their_formulas_whatever_the_layout(form: Any, shape: tuple[int, ...]) -> None:
    """Also where a gradient is worked on in several parts."""
    torch.manual_seed(0)
    mean, square = torch.randn(shape[1:], dtype=torch.float64), torch.rand(shape[1:], dtype=torch.float64)
    state = AdamState(mean, square, 3, (0.8, 0.9), 0.1, 1.0, 0.0)
    step = AdamMoments({"x": state}).precondition(form)
    gradient = torch.randn(shape, dtype=torch.float64)
    wanted = by_formula(form, gradient, state)
    given = gradient.clone()
    assert step("x", given) is given  # in place
    assert torch.allclose(given, wanted, rtol=1e-10, atol=1e-12)
    assert torch.allclose(step("x", gradient.float()).double(), wanted, rtol=1e-4, atol=1e-6)
    if len(shape) == 3:  # seen through a transpose, as GPT-2 stores its weights
        seen = gradient.transpose(1, 2).contiguous().transpose(1, 2)
        assert torch.allclose(step("x", seen), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "layers"), [(name, None) for name in MODELS] + [("gpt2", "all"), ("llama", "all")])
def test_features_equal_autograd_one_row_at_a_time(tools: Any, name: str, layers: Any, form: Any) -> None:
    model, rows = build(tools, name), rows_for(tools, name)
    moments = AdamMoments.of(train(tools, model, name), model, layers=layers)
    wanted = reference(tools, model, rows, layers, form, moments)
    norms = wanted.square().sum(1)
    step = moments.precondition(form)
    options = {"precondition": step, "layers": layers}
    before = copy.deepcopy(moments.parameters)
    for size in (1, 2, 6):
        batches = tools.batches_of(rows, size, length=12 if size == 1 else None)
        results = list(per_example_gradients(model, batches, basis="exact", **options))
        kept = without_key_biases(model, layers)
        assert tools.close(tools.features(results)[:, kept], wanted[:, kept], 1e-4)
        assert tools.close(tools.features(results), wanted, 1e-4 if form == "less" else 1e-3)
        found = torch.cat([result.squared_norm for result in results])
        assert found.dtype == torch.float64
        assert torch.allclose(found, norms, rtol=1e-3)
    products = gram(model, tools.batches_of(rows, 4), **options)
    scale = norms.sqrt()
    assert ((products - wanted @ wanted.T).abs() / (scale[:, None] * scale)).max() < 2e-4
    for key, state in before.items():  # looking changes nothing
        assert torch.equal(state.exp_avg, moments.parameters[key].exp_avg)
        assert torch.equal(state.exp_avg_sq, moments.parameters[key].exp_avg_sq)


@pytest.mark.parametrize("form", FORMS)
def test_projected_features_do_not_depend_on_batches(tools: Any, form: Any) -> None:
    model, rows = build(tools, "gpt2"), rows_for(tools, "gpt2")
    step = AdamMoments.of(train(tools, model, "gpt2"), model).precondition(form)
    basis = fit_basis(model, Source(tools.batches_of(rows, 6), precondition=step), floats_per_row=300)
    assert basis.kind == "eigen"
    one, other = (
        tools.features(per_example_gradients(model, tools.batches_of(rows, size), basis=basis, precondition=step))
        for size in (1, 4)
    )
    assert tools.close(one, other, 1e-4 if form == "less" else 1e-3)  # see without_key_biases


def test_weights_scale_the_gradient_before_it_is_preconditioned(tools: Any) -> None:
    model, rows = build(tools, "llama"), rows_for(tools, "llama")
    moments = AdamMoments.of(train(tools, model, "llama"), model)
    weights = [0.5, -2.0, 1.0, 0.0, 3.0, 0.1]
    plain = tools.reference(copy.deepcopy(model).double(), rows) * torch.tensor(weights)[:, None]
    (found,) = per_example_gradients(
        model, tools.batches_of(rows, 6), basis="exact", weights=weights, precondition=moments.precondition("less")
    )
    start = 0
    for block in find_blocks(model):
        state = moments.parameters[block.weight]
        matrix = plain[:, start : start + block.size].view(len(rows), block.rows, block.columns)[:, :, : block.inputs]
        mine = found.features[:, start : start + block.size].view(len(rows), block.rows, block.columns)
        wanted = by_formula("less", matrix, state)
        assert torch.allclose(
            mine[:, :, : block.inputs].double(), wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max())
        )
        start += block.size
    assert (found.features[3] != 0).any()  # what the momentum does without any gradient


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}, {"foreach": False}])
def test_every_implementation_of_adamw(tools: Any, options: Any) -> None:
    model = build(tools, "llama")
    optimizer = train(tools, model, "llama", **options)
    wrapped = accelerate.Accelerator(cpu=True).prepare_optimizer(optimizer)
    assert wrapped is not optimizer
    for source in (optimizer, wrapped):
        moments = AdamMoments.of(source, model)
        assert moments.step == 4
        assert set(moments.parameters) == {n for b in find_blocks(model) for n in (b.weight, *b.biases)}
        for name, parameter in model.named_parameters():
            if name in moments.parameters:
                state = moments.parameters[name]
                assert torch.equal(state.exp_avg, optimizer.state[parameter]["exp_avg"])
                assert torch.equal(state.exp_avg_sq, optimizer.state[parameter]["exp_avg_sq"])
                assert (state.betas, state.eps) == (((0.7, 0.95), 1e-6) if "bias" in name else ((0.9, 0.999), 1e-8))


class _Rows(torch.utils.data.Dataset[Any]):
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def run_trainer(tools: Any, model: nn.Module, name: str, folder: Path, **options: Any) -> tuple[Trainer, Path]:
    """Three steps of a real Trainer, and the checkpoint it wrote."""
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=3,
        per_device_train_batch_size=2,
        save_steps=3,
        weight_decay=0.1,
        learning_rate=1e-3,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        **options,
    )

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {key: x for key, x in tools.collate(rows).items() if key != "row_id"}

    trainer = Trainer(model=model, args=args, train_dataset=_Rows(rows_for(tools, name)), data_collator=collate)
    trainer.train()
    return trainer, folder / "checkpoint-3"


def same(one: AdamMoments, other: AdamMoments) -> bool:
    return one.hash() == other.hash() and all(
        torch.equal(state.exp_avg, other.parameters[name].exp_avg)
        and torch.equal(state.exp_avg_sq, other.parameters[name].exp_avg_sq)
        and (state.step, state.betas, state.eps, state.weight_decay)
        == (o := other.parameters[name], o.step, o.betas, o.eps, o.weight_decay)[1:]
        for name, state in one.parameters.items()
    )


@pytest.mark.parametrize("name", ["gpt2", "llama", "lora", "bert-cls"])
def test_a_checkpoint_of_the_trainer_gives_the_moments_of_its_optimizer(tools: Any, name: str, tmp_path: Path) -> None:
    model = build(tools, name)
    trainer, folder = run_trainer(tools, model, name, tmp_path)
    layers = None if name == "lora" else "all"
    live = AdamMoments.of(trainer.optimizer, trainer.model, layers=layers)
    assert live.step == 3
    for source in (folder, str(folder), folder / "optimizer.pt"):
        assert same(live, AdamMoments.of(source, trainer.model, layers=layers))
    if name == "lora":
        base = tools.build("llama")
        loaded = peft.PeftModel.from_pretrained(base, folder)  # for inference: everything is frozen
        assert not any(p.requires_grad for p in loaded.parameters())
        assert same(live, AdamMoments.of(folder, loaded))
    else:
        assert {state.weight_decay for state in live.parameters.values()} == {0.0, 0.1}
        loaded = type(model).from_pretrained(folder)
        assert same(live, AdamMoments.of(folder, loaded, layers=layers))
    features = [
        tools.features(
            per_example_gradients(
                model,
                tools.batches_of(rows_for(tools, name), 3),
                basis="exact",
                precondition=moments.precondition("less"),
            )
        )
        for moments in (AdamMoments.of(trainer.optimizer, model), AdamMoments.of(folder, model))
    ]
    assert torch.equal(*features)


def test_a_partly_frozen_model_and_names_in_the_file(tools: Any, tmp_path: Path) -> None:
    model = build(tools, "llama")
    model.model.layers[0].requires_grad_(False)
    trainer, folder = run_trainer(tools, model, "llama", tmp_path)
    live = AdamMoments.of(trainer.optimizer, model, layers="last:1")
    assert same(live, AdamMoments.of(folder, model, layers="last:1"))
    with pytest.raises(DataError, match=r"no moments of .*layers\.0"):
        AdamMoments.of(folder, model)
    model.requires_grad_(True)  # nothing in the file says which parameters were frozen
    with pytest.raises(DataError, match="frozen parameters frozen"):
        AdamMoments.of(folder, model, layers="last:1")
    named = torch.optim.AdamW([(n, p) for n, p in model.named_parameters() if "layers.1" in n], lr=1e-3)
    model(**{k: x for k, x in tools.collate(rows_for(tools, "llama")).items() if k != "row_id"}).loss.backward()
    named.step()
    torch.save(named.state_dict(), tmp_path / "optimizer.pt")
    assert same(AdamMoments.of(named, model, layers="last:1"), AdamMoments.of(tmp_path, model, layers="last:1"))


def test_checkpoints_that_cannot_be_used(tools: Any, tmp_path: Path) -> None:
    model = build(tools, "llama")
    optimizer = train(tools, model, "llama")
    one_group = torch.optim.AdamW(model.parameters())
    one_group.load_state_dict({"state": {}, "param_groups": one_group.state_dict()["param_groups"]})

    def refused(content: Any, message: str, error: type[Exception] = DataError) -> None:
        folder = tmp_path / "checkpoint-1"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if isinstance(content, bytes):
            (folder / "optimizer.pt").write_bytes(content)
        elif isinstance(content, str):
            (folder / content).mkdir()
        elif content is not None:
            torch.save(content, folder / "optimizer.pt")
        with pytest.raises(error, match=message) as caught:
            AdamMoments.of(folder, model, who="less")
        assert str(caught.value).startswith("less: ")
        assert "\n" not in str(caught.value)

    refused(None, "optimizer.pt is missing")
    refused(b"not a zip file", "cannot be read")
    refused({"model": torch.ones(2)}, "cannot be read")
    refused(Path("."), "cannot be read")  # a class that the safe unpickler does not make
    refused("global_step3", "sharded")
    refused("optimizer_0", "sharded")
    refused(one_group.state_dict(), "no moments yet")
    refused(torch.optim.SGD(model.parameters(), momentum=0.9).state_dict(), "no moments yet")
    good = optimizer.state_dict()
    refused({**good, "param_groups": good["param_groups"][:1]}, "groups of")
    other = tools.build("gpt2")
    refused(train(tools, other, "gpt2").state_dict(), "groups of")
    changed = copy.deepcopy(good)
    changed["param_groups"] = [{**group, "amsgrad": True} for group in changed["param_groups"]]
    refused(changed, "amsgrad", OptionError)
    for kind, word in ((torch.optim.SGD, "SGD"), (torch.optim.NAdam, "NAdam"), (torch.optim.Adamax, "Adamax")):
        options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        trained = kind(model.parameters(), **options)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        trained.step()
        refused(trained.state_dict(), word, OptionError)
    eight_bit = copy.deepcopy(good)
    for state in eight_bit["state"].values():
        state["state1"], state["state2"] = state.pop("exp_avg"), state.pop("exp_avg_sq")
    refused(eight_bit, "8-bit", OptionError)


def test_optimizers_that_cannot_be_used(tools: Any) -> None:
    model = build(tools, "llama")
    with pytest.raises(OptionError, match=r"less: .*no optimizer"):
        AdamMoments.of(None, model, who="less")
    with pytest.raises(DataError, match="no moments yet"):
        AdamMoments.of(torch.optim.AdamW(model.parameters()), model)
    with pytest.raises(OptionError, match=r"torch\.optim\.sgd\.SGD arrived"):
        AdamMoments.of(torch.optim.SGD(model.parameters(), lr=1.0), model)
    for option in ("amsgrad", "maximize"):
        with pytest.raises(OptionError, match=option):
            AdamMoments.of(train(tools, model, "llama", **{option: True}), model)
    optimizer = train(tools, model, "llama")
    with pytest.raises(DataError, match="trains none"):
        AdamMoments.of(optimizer, build(tools, "llama"))
    state = optimizer.state[model.model.layers[0].mlp.up_proj.weight]
    state["exp_avg"] = state["exp_avg"][:3]
    with pytest.raises(DataError, match=r"up_proj\.weight have shape \[3, 16\], the parameter \[24, 16\]"):
        AdamMoments.of(optimizer, model)
    assert AdamMoments.of(optimizer, model, layers="last:1").step == 4
    with pytest.raises(OptionError, match="'adam'"):
        AdamMoments.of(optimizer, model, layers="last:1").precondition("adam")  # type: ignore[arg-type]
    step = AdamMoments.of(optimizer, model, layers="last:1").precondition()
    with pytest.raises(DataError, match="same layers="):
        list(
            per_example_gradients(
                model, tools.batches_of(rows_for(tools, "llama"), 3), basis="exact", precondition=step
            )
        )
    adapters = build(tools, "lora")
    optimizer = train(tools, adapters, "lora")
    with pytest.raises(DataError, match=r"no moments of .*lora"):
        AdamMoments.of(optimizer, adapters, layers="*.v_proj")
    AdamMoments.of(optimizer, adapters)


def test_the_key_of_a_step_tells_form_and_moments(tools: Any) -> None:
    model = build(tools, "llama")
    optimizer = train(tools, model, "llama")
    keys = [AdamMoments.of(optimizer, model).precondition(form).key for form in ("less", "adamw")]
    assert keys[0] == AdamMoments.of(optimizer, model).precondition("less").key != keys[1]
    with torch.no_grad():
        optimizer.state[model.model.layers[0].mlp.up_proj.weight]["exp_avg"][2, 3] += 1e-3
    assert AdamMoments.of(optimizer, model).precondition("less").key != keys[0]
