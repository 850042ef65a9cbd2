"""Batches in, features out: invariances, weights, preconditioning, precision, failures."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from hfdataopt.errors import DataError, OptionError
from hfdataopt.gradients import Runner, find_blocks, fit_basis, gradient_norms, gram, per_example_gradients, runner

MODELS = ["bert-cls", "bert-mlm", "gpt2", "llama"]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["exact", "eigen", "random", "sketch"])
def test_batch_size_row_order_and_padding_do_not_matter(tools: Any, name: str, kind: Any) -> None:
    model, rows = tools.build(name), tools.make_rows(name, [9, 4, 12, 7, 5, 11, 8, 6])
    basis = fit_basis(model, tools.batches_of(rows, 3), kind=kind, floats_per_row=300)
    assert basis.kind == kind

    def run(rows: list[Any], size: int, **options: Any) -> torch.Tensor:
        results = list(
            per_example_gradients(model, tools.batches_of(rows, size, **options), basis=basis, dtype="float32")
        )
        assert [row for result in results for row in result.row_ids] == [row["row_id"] for row in rows]
        return tools.features(results)

    wanted = run(rows, 8)
    assert tools.close(run(rows, 1), wanted)
    assert tools.close(run(rows, 3, length=31), wanted)
    order = [5, 0, 7, 2, 1, 6, 3, 4]
    assert tools.close(run([rows[i] for i in order], 4), wanted[order])


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_exact_products_do_not_depend_on_batching(tools: Any, name: str) -> None:
    model, rows = tools.build(name), tools.make_rows(name)
    wanted = gram(model, tools.batches_of(rows, 6), dtype="float32")
    found = gram(model, tools.batches_of(rows, 1), tools.batches_of(rows, 2, length=40), dtype="float32")
    scale = wanted.diagonal().sqrt()
    assert ((found - wanted).abs() / (scale[:, None] * scale)).max() < 1e-5


def test_left_padding_is_exact_with_rotary_positions(tools: Any) -> None:
    model, rows = tools.build("llama"), tools.make_rows("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        left = tools.features(per_example_gradients(model, tools.batches_of(rows, 4, left=True), basis="exact"))
    assert tools.close(left, tools.reference(model, rows))


@pytest.mark.parametrize("name", ["gpt2", "bert-cls", "bert-mlm"])
def test_left_padding_with_absolute_positions_warns(tools: Any, name: str) -> None:
    model, rows = tools.build(name), tools.make_rows(name)
    batches = tools.batches_of(rows, 4, left=True)
    with pytest.warns(UserWarning, match="padding_side"):
        left = tools.features(per_example_gradients(model, batches, basis="exact"))
    wanted = tools.reference(model, rows)
    assert not tools.close(left, wanted, 1e-2)  # the warning is deserved
    if name == "bert-cls":
        return  # its pooler reads the first position, so that only right padding helps
    for batch in batches:
        batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fixed = tools.features(per_example_gradients(model, batches, basis="exact"))
    assert tools.close(fixed, wanted)


def test_weights_by_row_id_by_position_and_in_the_batch(tools: Any) -> None:
    model, rows = tools.build("llama"), tools.make_rows("llama")
    batches = tools.batches_of(rows, 4)
    plain = tools.features(per_example_gradients(model, batches, basis="exact"))
    weights = [1.0, -2.0, 0.5, 0.0, 3.0, -1.0]
    wanted = plain * torch.tensor(weights)[:, None]
    by_id = {row["row_id"]: weight for row, weight in zip(rows, weights, strict=True)}
    inside = [dict(batch, weights=[by_id[row] for row in batch["row_id"]]) for batch in batches]
    for options in ({"weights": by_id}, {"weights": weights}, {"weights": torch.tensor(weights)}):
        results = list(per_example_gradients(model, batches, basis="exact", **options))
        assert torch.allclose(tools.features(results), wanted, atol=1e-6)
        assert (torch.cat([result.loss_sum for result in results]) > 0).all()  # the loss itself is not weighted
    assert torch.allclose(tools.features(per_example_gradients(model, inside, basis="exact")), wanted, atol=1e-6)
    with pytest.raises(DataError, match="r5"):
        list(per_example_gradients(model, batches, basis="exact", weights=dict(list(by_id.items())[:5])))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("layers", [None, "all"])
def test_preconditioning_by_mapping_and_by_callable(tools: Any, name: str, layers: Any) -> None:
    model, rows = tools.build(name), tools.make_rows(name)
    batches = tools.batches_of(rows, 4)
    generator = torch.Generator().manual_seed(5)
    factors = {key: torch.rand(p.shape, generator=generator) for key, p in model.named_parameters()}
    scaled = copy.deepcopy(model)
    plain = tools.reference(model, rows, layers)
    # The layout of the features, applied to the factors: what the reference does to gradients.
    flat = []
    for block in find_blocks(scaled, layers):
        weight = factors[block.weight]
        if block.vector:
            flat.append(torch.cat([weight, *(factors[x] for x in block.biases)]))
        else:
            weight = weight.T if block.transposed else weight
            flat.append(torch.cat([weight, *(factors[x].unsqueeze(1) for x in block.biases)], 1).flatten())
    wanted = plain * torch.cat(flat)
    for precondition in (factors, lambda key, gradient: gradient * factors[key]):
        options = {"precondition": precondition, "layers": layers}
        assert tools.close(tools.features(per_example_gradients(model, batches, basis="exact", **options)), wanted)
        products = gram(model, batches, **options)
        assert torch.allclose(products, wanted.double() @ wanted.double().T, rtol=1e-4, atol=1e-5)
    name = find_blocks(model)[0].weight
    with pytest.raises(OptionError, match="precondition"):
        list(per_example_gradients(model, batches, basis="exact", precondition={name: torch.ones(3)}))


def test_rows_that_are_not_finite_are_named_or_skipped(tools: Any) -> None:
    model, rows = tools.build("llama"), tools.make_rows("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[36] = float("nan")
    for row in rows:
        row["input_ids"][row["input_ids"] == 36] = 35
        row["labels"][row["labels"] == 36] = 35
    rows[1]["input_ids"][1] = rows[4]["input_ids"][0] = 36
    batches = tools.batches_of(rows, 4)
    for basis in ("exact", "eigen"):
        with pytest.raises(DataError, match="'r1'"):
            list(per_example_gradients(model, batches, basis=basis, floats_per_row=300))
        results = list(per_example_gradients(model, batches, basis=basis, floats_per_row=300, on_nonfinite="skip"))
        assert [result.skipped for result in results] == [["r1"], ["r4"]]
        assert [row for result in results for row in result.row_ids] == ["r0", "r2", "r3", "r5"]
        assert all(torch.isfinite(result.features).all() for result in results)
    with pytest.raises(DataError, match="'r1'"):
        gram(model, batches)


@pytest.mark.parametrize("kind", ["exact", "eigen"])
def test_out_of_memory_halves_the_batch_and_says_so_once(
    tools: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = tools.build("llama"), tools.make_rows("llama", [9, 4, 12, 7, 5, 11, 8, 6])
    batches = tools.batches_of(rows, 8) * 1
    wanted = tools.features(per_example_gradients(model, batches, basis=kind, floats_per_row=300))
    real, sizes = runner.forward_backward, []

    def short_of_memory(capture: Any, target: Any, inputs: Any, weights: Any, precision: Any, collector: Any) -> Any:
        size = len(inputs["input_ids"])
        sizes.append(size)
        result = real(capture, target, inputs, weights, precision, collector)
        if size > 2:  # after the collector has seen everything: what it took must not count twice
            raise torch.OutOfMemoryError("injected")
        return result

    monkeypatch.setattr(runner, "forward_backward", short_of_memory)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = list(per_example_gradients(model, batches, basis=kind, floats_per_row=300))
    assert tools.close(tools.features(results), wanted, 1e-4)
    assert [row for result in results for row in result.row_ids] == [row["row_id"] for row in rows]
    said = [str(x.message) for x in caught if "out of memory" in str(x.message)]
    assert sizes[:4] == [8, 4, 2, 2]
    assert len(said) == 1  # the size that the fit found is kept for the features

    def never_enough(*args: Any) -> Any:
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(runner, "forward_backward", never_enough)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError, match=rf"row {rows[0]['row_id']!r} alone does not fit into memory; shorten"):
            list(per_example_gradients(model, batches, basis="exact"))


def test_precision(tools: Any) -> None:
    model, rows = tools.build("llama"), tools.make_rows("llama")
    batches = tools.batches_of(rows, 4)

    def run(dtype: Any) -> torch.Tensor:
        return tools.features(per_example_gradients(model, batches, basis="exact", dtype=dtype))

    full, half = run("float32"), run("bfloat16")
    assert torch.equal(run(None), full)
    error = ((half - full).norm(dim=1) / full.norm(dim=1)).max()
    assert 1e-4 < error < 0.1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(run(None), half)
        assert Runner(model).precision == "bfloat16"
        assert torch.equal(run("float32"), full)
    assert Runner(model, dtype="bfloat16").precision == "bfloat16"
    assert Runner(model).precision == "float32"
    with pytest.raises(OptionError, match="dtype"):
        run("float8")
    with pytest.raises(OptionError, match="half precision"):
        list(per_example_gradients(model.to(torch.bfloat16), batches, dtype="float32"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"basis": "eigenbasis"}, "basis"),
        ({"on_nonfinite": "drop"}, "on_nonfinite"),
        ({"of": "logit", "basis": "eigen", "floats_per_row": 3}, "floats_per_row"),
        ({"of": "loss", "logit": 1}, "logit"),
    ],
)
def test_bad_options(tools: Any, options: Any, message: str) -> None:
    model, rows = tools.build("bert-cls"), tools.make_rows("bert-cls")
    with pytest.raises(OptionError, match=message):
        list(per_example_gradients(model, tools.batches_of(rows, 4), **options))


def test_an_iterator_cannot_be_fitted_on_but_can_be_read(tools: Any) -> None:
    model, rows = tools.build("bert-cls"), tools.make_rows("bert-cls")
    with pytest.raises(OptionError, match="twice"):
        per_example_gradients(model, iter(tools.batches_of(rows, 4)))
    assert len(list(per_example_gradients(model, iter(tools.batches_of(rows, 4)), basis="random"))) == 2


def test_modules_that_are_never_called_are_named(tools: Any) -> None:
    model, rows = tools.build("bert-cls"), tools.make_rows("bert-cls")
    model.spare = nn.Linear(2, 2)
    with pytest.warns(UserWarning, match="spare"):
        list(per_example_gradients(model, tools.batches_of(rows, 4), basis="exact"))


def test_row_ids_must_match_the_batch(tools: Any) -> None:
    model, rows = tools.build("bert-cls"), tools.make_rows("bert-cls")
    batch = tools.collate(rows) | {"row_id": ["a", "b"]}
    with pytest.raises(DataError, match="2 row ids"):
        list(per_example_gradients(model, [batch], basis="exact"))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["exact", "eigen", "random", "sketch"])
def test_gpu_agrees_with_cpu(tools: Any, kind: Any) -> None:
    model, rows = tools.build("llama"), tools.make_rows("llama")
    batches = tools.batches_of(rows, 4)
    basis = fit_basis(model, batches, kind=kind, floats_per_row=300)
    wanted = tools.features(per_example_gradients(model, batches, basis=basis))
    found = tools.features(per_example_gradients(model.cuda(), batches, basis=basis, dtype="float32"))
    assert tools.close(found, wanted, 1e-3)
    assert (
        fit_basis(model, batches, kind="random", floats_per_row=300).hash
        == fit_basis(copy.deepcopy(model).cpu(), batches, kind="random", floats_per_row=300).hash
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_target_with_columns_equals_one_target_each(tools: Any, checkpointing: bool) -> None:
    model, rows = tools.build("bert-cls"), tools.make_rows("bert-cls")
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    batches = tools.batches_of(rows, 3)

    def logits(model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        out = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
        return out, torch.ones(len(out), dtype=torch.long)

    together = list(per_example_gradients(model, batches, of=logits, basis="exact"))
    for column in range(3):
        alone = list(
            per_example_gradients(
                model, batches, of=lambda m, b, k=column: (logits(m, b)[0][:, k], logits(m, b)[1]), basis="exact"
            )
        )
        mine = [part for part in together if part.column == column]
        assert tools.close(tools.features(mine), tools.features(alone), 1e-5)
        assert [part.row_ids for part in mine] == [part.row_ids for part in alone]
    assert not tools.close(
        tools.features([p for p in together if p.column == 0]),
        tools.features([p for p in together if p.column == 1]),
        1e-2,
    )
    with pytest.raises(OptionError, match="one column"):
        list(gradient_norms(model, batches, of=logits))
