"""Targets agree with the model's own loss, and bad labels are named."""

from typing import Any

import pytest
import torch
from torch import nn

from hfdataopt.errors import DataError, OptionError
from hfdataopt.gradients import find_task, make_target, per_example_gradients, per_example_loss


@pytest.mark.parametrize("name", ["bert-cls", "bert-mlm", "gpt2", "llama"])
def test_loss_sum_is_the_models_own_loss(tools: Any, name: str) -> None:
    model, rows = tools.build(name).eval(), tools.make_rows(name)
    batches = tools.batches_of(rows, 4)
    for batch, result in zip(
        batches, per_example_gradients(model, batches, basis="random", floats_per_row=200), strict=True
    ):
        inputs = {key: x for key, x in batch.items() if key != "row_id"}
        own = model(**inputs).loss
        assert result.row_ids == batch["row_id"]
        assert torch.allclose(result.loss_sum.sum() / result.tokens.sum(), own, rtol=1e-5)
        labels = batch["labels"][:, 1:] if name in ("gpt2", "llama") else batch["labels"]
        assert result.tokens.sum() == (labels != -100).sum()
        alone, tokens = per_example_loss(model, batch)
        assert torch.allclose(alone, result.loss_sum)
        assert torch.equal(tokens, result.tokens)


@pytest.mark.parametrize(("labels", "problem"), [("one", None), ("three", "regression"), ("three", None)])
def test_regression_and_multi_label_heads(tools: Any, labels: str, problem: str | None) -> None:
    model = tools.build("bert-cls", num_labels=1 if labels == "one" else 3).eval()
    model.config.problem_type = problem
    batch = tools.collate(tools.make_rows("bert-cls"))
    del batch["row_id"]
    generator = torch.Generator().manual_seed(0)
    batch["labels"] = torch.rand((6,) if labels == "one" else (6, 3), generator=generator)
    values, tokens = per_example_loss(model, batch)
    assert model.config.problem_type == problem  # not written, as transformers does
    assert torch.allclose(values.sum() / tokens.sum(), model(**batch).loss, rtol=1e-5)


@pytest.mark.parametrize("name", ["bert-mlm", "gpt2", "llama", "bert-cls"])
def test_a_row_without_labels_has_zero_loss_and_gradient(tools: Any, name: str) -> None:
    model, rows = tools.build(name), tools.make_rows(name)
    batch = tools.collate(rows)
    batch["labels"][1] = -100
    for basis in ("exact", "random"):
        (result,) = per_example_gradients(model, [batch], basis=basis, floats_per_row=200)
        assert result.loss_sum[1] == 0
        assert result.tokens[1] == 0
        assert (result.features[1] == 0).all()
        assert (result.features[0] != 0).any()
    batch["labels"][:] = -100
    (result,) = per_example_gradients(model, [batch], basis="exact")
    assert (result.features == 0).all()


def test_logits_by_number_pair_and_difference(tools: Any) -> None:
    model = tools.build("bert-cls", num_labels=2).eval()
    batch = tools.collate(tools.make_rows("bert-cls"))
    batch["labels"] %= 2
    del batch["row_id"]
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits

    def value(logit: Any) -> torch.Tensor:
        return make_target(model, "logit", logit)(model, batch)[0]

    assert torch.allclose(value(1), logits[:, 1])
    assert torch.allclose(value((0, 1)), logits[:, 0] - logits[:, 1])
    assert torch.allclose(value("difference"), logits[:, 1] - logits[:, 0])
    assert torch.allclose(value(None), logits.gather(1, batch["labels"].unsqueeze(1)).squeeze(1))
    for bad in (2, (0, 5), (0, 1, 1)):
        with pytest.raises(OptionError, match="logit"):
            value(bad)


def test_logits_at_labelled_positions_of_a_language_model(tools: Any) -> None:
    model, rows = tools.build("gpt2").eval(), tools.make_rows("gpt2")
    batch = tools.collate(rows)
    del batch["row_id"]
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    mask = batch["labels"][:, 1:] != -100
    values, tokens = make_target(model, "logit", 5)(model, batch)
    assert torch.allclose(values, (logits[..., 5] * mask).sum(1), rtol=1e-4)
    assert torch.equal(tokens, mask.sum(1))


def test_few_labelled_columns_go_through_logits_to_keep(tools: Any) -> None:
    model, rows = tools.build("llama"), tools.make_rows("llama", [12, 12, 12])
    for row in rows:
        row["labels"][:9] = -100
    asked = []
    model.lm_head.register_forward_hook(lambda module, args, output: asked.append(args[0].shape[1]))
    found = tools.features(per_example_gradients(model, tools.batches_of(rows, 3), basis="exact"))
    assert asked == [3]
    assert tools.close(found, tools.reference(model, rows))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda labels: labels.masked_fill(labels == labels.max(), 99), "99"),
        (lambda labels: labels - 200, "outside"),
        (lambda labels: labels.float(), "float32"),
        (lambda labels: labels.float() * float("nan"), "float32"),
        (None, "labels"),
    ],
)
@pytest.mark.parametrize("name", ["bert-cls", "llama"])
def test_bad_labels_are_named(tools: Any, name: str, change: Any, message: str) -> None:
    model, rows = tools.build(name), tools.make_rows(name)
    batch = tools.collate(rows)
    if change is None:
        del batch["labels"]
    else:
        batch["labels"] = change(batch["labels"])
    with pytest.raises(DataError, match=message) as error:
        list(per_example_gradients(model, [batch], basis="exact"))
    assert "'r0'" in str(error.value)


def test_regression_labels_that_are_not_finite(tools: Any) -> None:
    model = tools.build("bert-cls", num_labels=1)
    batch = tools.collate(tools.make_rows("bert-cls"))
    batch["labels"] = torch.tensor([0.0, 1, 2, float("nan"), 4, 5])
    with pytest.raises(DataError, match="rows 3"):
        list(per_example_gradients(model, [batch], basis="exact"))


def test_unknown_architectures_need_a_custom_loss(tools: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    assert find_task(model) is None
    batch = {
        "x": torch.randn(5, 4, generator=torch.Generator().manual_seed(0)),
        "labels": torch.tensor([0, 1, 2, 0, 1]),
    }
    with pytest.raises(OptionError, match="per_example_loss"):
        list(per_example_gradients(model, [batch], basis="exact"))

    def custom(model: nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        values = nn.functional.cross_entropy(model(batch["x"]), batch["labels"], reduction="none")
        return values, torch.ones_like(batch["labels"])

    for options in ({"custom_loss": custom}, {"of": custom}):
        (result,) = per_example_gradients(model, [batch], basis="exact", **options)
        assert result.features.shape == (5, 15)
        assert result.row_ids == [0, 1, 2, 3, 4]
    (fallback,) = per_example_gradients(
        tools.build("bert-cls"),
        [tools.collate(tools.make_rows("bert-cls"))],
        basis="exact",
        custom_loss=lambda *_: None,
    )
    assert fallback.features.abs().sum() > 0
    with pytest.raises(OptionError, match="losses"):
        per_example_gradients(model, [batch], of="losses")


def test_trl_patched_forward_gives_the_plain_gradients(tools: Any, tmp_path: Any) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    model, rows = tools.build("llama"), tools.make_rows("llama")
    wanted = tools.reference(model, rows)
    data = datasets.Dataset.from_list([{"input_ids": row["input_ids"].tolist()} for row in rows])
    tokenizer = _tokenizer()
    args = trl.SFTConfig(str(tmp_path), report_to="none", bf16=False, use_cpu=True, gradient_checkpointing=True)
    trainer = trl.SFTTrainer(model, args, train_dataset=data, processing_class=tokenizer)
    trainer.model.train()
    found = tools.features(per_example_gradients(trainer.model, tools.batches_of(rows, 4), basis="exact"))
    assert tools.close(found, wanted)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2, "a": 3}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
