"""Labels, heads, pooled features and the linear probe."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding

from hfdataopt import attribute
from hfdataopt.attribution.probe import cross_validated_confidence, fit_linear_probe
from hfdataopt.attribution.rows import Rows, pad_batch
from hfdataopt.attribution.task import (
    ClassLabels,
    is_causal,
    is_language_model,
    model_head,
    pooled_features,
    prompt_head,
    read_labels,
    resolve_head,
)
from hfdataopt.errors import DataError, OptionError

from ..tiny import (
    ANSWERS,
    WORDS,
    bert,
    cloze,
    encoded,
    gpt2,
    llama,
    masked_lm,
    plain_texts,
    questions,
    tokenizer,
)

KERNEL_LIKE = ["freeshap", "label-consistency", "loo", "knn-shapley", "representer", "cv-confidence"]
LOSS_LIKE = ["loss", "tracin", "self-influence", "grad-norm"]


def with_label(values: list[Any]) -> Dataset:
    data = encoded(len(values), ids=True).remove_columns(["label"])
    return data.add_column("label", values)


# -- labels


@pytest.mark.parametrize("name", [*KERNEL_LIKE, *LOSS_LIKE])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 1, 2, 0], "row 'r2' has the label 2, but the model has classes 0 to 1"),
        ([0, 1, -1, 0], "row 'r2' has the label -1"),
        ([0.0, 1.0, float("nan"), 0.0], "row 'r2' is NaN"),
        ([0.0, 1.0, 0.5, 0.0], "must be whole numbers, but row 'r0' is 0.0"),
        (["no", "yes", "no", "yes"], "labels that are strings, such as 'no'; map them to class numbers"),
    ],
    ids=["high", "negative", "nan", "float", "string"],
)
def test_labels_that_do_not_fit(name: str, values: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=f"{name}.*the pool.*{message}"):
        attribute(bert(), with_label(values), encoded(4), name)


@pytest.mark.parametrize("name", [*KERNEL_LIKE, *LOSS_LIKE])
def test_labels_missing(name: str) -> None:
    with pytest.raises(DataError, match=rf"{name}.*the pool has no labels.*attention_mask.*'label' or 'labels'"):
        attribute(bert(), encoded(4).remove_columns(["label"]), encoded(4), name)


@pytest.mark.parametrize("collate", [None, DataCollatorWithPadding(tokenizer())], ids=["own", "transformers"])
@pytest.mark.parametrize("values", [[None, 1, 0, None], [0, 1, None, 0]], ids=["first", "later"])
@pytest.mark.parametrize("name", [*KERNEL_LIKE, *LOSS_LIKE])
def test_a_label_that_is_none_is_named(name: str, values: list[Any], collate: Any) -> None:
    rows = [f"r{i}" for i, value in enumerate(values) if value is None]
    message = f"{name}: the pool: the label of {len(rows)} row(s) is None: {', '.join(map(repr, rows))}; give them"
    with pytest.raises(DataError, match=re.escape(message)):
        attribute(bert(), with_label(values), encoded(4), name, data_collator=collate)


@pytest.mark.parametrize("name", KERNEL_LIKE)
def test_one_class_only(name: str) -> None:
    with pytest.raises(DataError, match=f"{name}.*all 4 pool rows have the label 1"):
        attribute(bert(), with_label([1, 1, 1, 1]), with_label([1, 1]), name)


@pytest.mark.parametrize("name", ["freeshap", "loo", "knn-shapley", "representer"])
def test_query_label_that_the_pool_lacks(name: str) -> None:
    with pytest.raises(DataError, match=f"{name}.*query row 'r1' has the label 2, which no pool row has"):
        attribute(bert(labels=3), with_label([0, 1, 0, 1]), with_label([0, 2]), name)


@pytest.mark.parametrize("name", ["tracin", "freeshap"])
def test_labels_of_the_queries_are_checked_too(name: str) -> None:
    with pytest.raises(DataError, match=f"{name}.*the queries.*row 'r1' has the label 5"):
        attribute(bert(), encoded(4), with_label([0, 5]), name)


def test_regression_models_are_for_gradient_scorers() -> None:
    model, pool = bert(labels=1).eval(), with_label([0.1, 0.2, 0.7, 0.4])
    assert np.isfinite(attribute(model, pool, pool, "tracin").values).all()
    with pytest.raises(DataError, match=r"freeshap.*whole numbers"):
        attribute(model, pool, pool, "freeshap")
    with pytest.raises(DataError, match=r"tracin.*'r1' is not finite"):
        attribute(model, with_label([0.1, float("nan")]), pool, "tracin")


def test_several_labels_per_row_are_for_gradient_scorers() -> None:
    model = bert(labels=2, problem_type="multi_label_classification").eval()
    data = encoded(4).remove_columns(["label"]).add_column("labels", [[0.0, 1.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])

    def collate(rows: list[Any]) -> dict[str, Any]:
        labels = torch.tensor([row["labels"] for row in rows])
        return {**pad_batch([{k: v for k, v in row.items() if k != "labels"} for row in rows]), "labels": labels}

    assert np.isfinite(attribute(model, data, None, "loss", data_collator=collate).values).all()
    with pytest.raises(DataError, match=r"one class per row is needed.*\[rows, 2\].*tracin"):
        attribute(model, data, None, "label-consistency", data_collator=collate)


def test_language_model_labels() -> None:
    pool = plain_texts(3).map(lambda row: {"labels": [999] * len(row["labels"])})
    with pytest.raises(DataError, match=f"tracin.*row 0 lies outside 0 to {len(WORDS) - 1}"):
        attribute(gpt2(), pool, pool, "tracin")
    ignored = questions(3).map(lambda row: {"labels": [-100] * len(row["labels"])})
    with pytest.raises(DataError, match=r"freeshap.*row 0 has no labelled token"):
        attribute(gpt2(), ignored, ignored, "freeshap")


def test_too_many_label_words() -> None:
    width = 70
    model = gpt2()
    model.resize_token_embeddings(200)
    rows = [{"input_ids": [2, 6, 100 + i, 5], "labels": [-100, -100, 100 + i, 5]} for i in range(width)]
    with pytest.raises(DataError, match=r"begin with 70 different tokens \(at most 64.*use tracin"):
        attribute(model, Dataset.from_list(rows), None, "label-consistency")


def test_read_labels_maps_to_classes_of_the_pool() -> None:
    pool = Rows(with_label([4, 1, 4, 1]), pad_batch, side="pool")
    queries = Rows(with_label([1, 4]), pad_batch, side="queries")
    labels = read_labels(bert(labels=6), pool, queries, "x", batch_size=3)
    assert labels.classes == [1, 4]
    assert labels.pool.tolist() == [1, 0, 1, 0]
    assert labels.queries is not None
    assert labels.queries.tolist() == [0, 1]
    words = read_labels(gpt2(), Rows(questions(4), pad_batch, side="pool"), None, "x")
    assert [WORDS[token] for token in words.classes] == ["yes", "no"]
    assert words.words


@pytest.mark.parametrize(("make", "name"), [(gpt2, "causal"), (masked_lm, "masked"), (bert, "classifier")])
def test_subclasses_are_what_they_inherit_from(make: Any, name: str) -> None:
    """Users give their models names of their own."""
    from peft import LoraConfig, get_peft_model

    model = make().eval()
    model.__class__ = type("Mine", (type(model),), {})
    lora = LoraConfig(r=2, target_modules=["c_attn"] if make is gpt2 else ["query"])
    for seen in (model, get_peft_model(model, lora)):
        assert is_causal(seen) == (name == "causal")
        assert is_language_model(seen) == (name != "classifier")
    plain, data = make().eval(), {"causal": questions, "masked": cloze, "classifier": encoded}[name](6)
    model = make().eval()
    model.__class__ = type("Mine", (type(model),), {})
    for scorer in ("loss", "cv-confidence"):
        scores = [
            attribute(each, data, None, scorer, **({"folds": 2} if scorer != "loss" else {})) for each in (model, plain)
        ]
        np.testing.assert_array_equal(scores[0].values, scores[1].values)


# -- heads


def test_heads_resolve() -> None:
    classes = ClassLabels([0, 1], torch.tensor([0, 1]), None, words=False)
    words = ClassLabels([23, 24], torch.tensor([0, 1]), None, words=True)
    assert resolve_head("auto", bert(), classes, "x") == "probe"
    assert resolve_head("model", bert(), classes, "x") == "model"
    assert resolve_head("auto", gpt2(), words, "x") == "prompt"
    assert resolve_head("auto", masked_lm(), words, "x") == "prompt"
    for head, model, labels in (("prompt", bert(), classes), ("probe", gpt2(), words), ("model", gpt2(), words)):
        with pytest.raises(OptionError, match=rf"freeshap: head='{head}' does not fit.*use head='auto'"):
            resolve_head(head, model, labels, "freeshap")


@pytest.mark.parametrize("make", [gpt2, llama])
def test_prompt_head_of_causal_models(make: Any) -> None:
    model, data = make().eval(), questions(4)
    classes = [WORDS.index("yes"), WORDS.index("no")]
    with torch.no_grad():
        got = prompt_head(classes)(model, pad_batch(list(data)))
        for row, logits in zip(data, got, strict=True):
            place = next(i for i, label in enumerate(row["labels"]) if label != -100)
            alone = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, place - 1, classes]
            torch.testing.assert_close(logits, alone, rtol=1e-5, atol=1e-5)


def test_prompt_head_of_masked_models() -> None:
    model, data = masked_lm().eval(), cloze(4)
    classes = [WORDS.index("no"), WORDS.index("maybe")]
    with torch.no_grad():
        got = prompt_head(classes)(model, pad_batch(list(data)))
        for row, logits in zip(data, got, strict=True):
            alone = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, row["input_ids"].index(4), classes]
            torch.testing.assert_close(logits, alone, rtol=1e-5, atol=1e-5)


def test_model_head_takes_the_classes_of_the_pool() -> None:
    model, batch = bert(labels=4).eval(), pad_batch(list(encoded(3)))
    with torch.no_grad():
        expected = model(**batch).logits[:, [1, 3]]
        torch.testing.assert_close(model_head([1, 3])(model, {**batch, "row_id": [0, 1, 2]}), expected)


# -- pooled features


def padded(rows: list[Any], side: str, width: int = 20) -> dict[str, torch.Tensor]:
    """Rows padded to ``width`` on one side."""
    batch: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], "position_ids": []}
    for row in rows:
        n = len(row["input_ids"])
        fill = [0] * (width - n)
        parts = ((row["input_ids"], fill), ([1] * n, fill), (list(range(n)), fill))
        for name, (values, padding) in zip(batch, parts, strict=True):
            batch[name].append(padding + values if side == "left" else values + padding)
    return {name: torch.tensor(values) for name, values in batch.items()}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", ["mean", "first", "last", "auto"])
@pytest.mark.parametrize("make", [bert, llama])
def test_pooled_features(make: Any, pooling: Any, side: str) -> None:
    model, data = make().eval(), encoded(5)
    with torch.no_grad():
        got = pooled_features(model, padded(list(data), side), pooling)
        for row, vector in zip(data, got, strict=True):
            hidden = model.base_model(input_ids=torch.tensor([row["input_ids"]])).last_hidden_state[0]
            kind = {"auto": "mean" if make is bert else "last"}.get(pooling, pooling)
            expected = hidden.mean(0) if kind == "mean" else hidden[0 if kind == "first" else -1]
            torch.testing.assert_close(vector, expected, rtol=1e-4, atol=1e-5)


def test_a_causal_model_is_read_before_it_sees_the_answer() -> None:
    model, data = gpt2().eval(), list(questions(4))
    other = [{**row, "input_ids": [*row["input_ids"][:-2], WORDS.index(ANSWERS[2]), 5]} for row in data]
    with torch.no_grad():
        torch.testing.assert_close(*(pooled_features(model, pad_batch(rows)) for rows in (data, other)))
        assert not torch.allclose(*(pooled_features(model, pad_batch(rows), "last") for rows in (data, other)))


def test_pooled_features_see_through_peft() -> None:
    from peft import LoraConfig, get_peft_model

    plain, batch = llama().eval(), pad_batch(list(questions(3)))
    with torch.no_grad():
        expected = pooled_features(plain, batch)
        wrapped = get_peft_model(plain, LoraConfig(r=2, task_type="CAUSAL_LM")).eval()  # B is zero: nothing changes
        torch.testing.assert_close(pooled_features(wrapped, batch), expected)


# -- the probe


@pytest.mark.parametrize("classes", [2, 3])
def test_probe_equals_scikit_learn(classes: int) -> None:
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=generator, dtype=torch.float64) * torch.tensor([1, 5, 0.1, 1, 3.0]) + 2
    y = torch.randint(classes, (60,), generator=generator)
    l2 = 0.02
    probe = fit_linear_probe(x, y, classes, l2=l2)
    scaled = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    # scikit-learn fits two classes with one vector w = W_1 - W_0, whose share of the penalty is half.
    strength = (2 if classes == 2 else 1) / (l2 * 60)
    expected = LogisticRegression(C=strength, tol=1e-12, max_iter=100_000).fit(scaled, y.numpy())
    np.testing.assert_allclose(probe.logits(x).softmax(1), expected.predict_proba(scaled), atol=1e-5)


def test_probe_takes_soft_targets_and_constant_features() -> None:
    x = torch.cat([torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), torch.ones(20, 1)], 1)
    hard = torch.arange(20) % 2
    soft = torch.nn.functional.one_hot(hard, 2).double()
    torch.testing.assert_close(fit_linear_probe(x, hard, 2).logits(x), fit_linear_probe(x, soft, 2).logits(x))
    assert torch.isfinite(fit_linear_probe(x, hard, 2).weight).all()


def test_probe_leaves_the_random_state_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    fit_linear_probe(torch.randn(8, 2, generator=torch.Generator()), torch.arange(8) % 2, 2)
    assert torch.equal(before, torch.get_rng_state())


def test_folds_do_not_depend_on_row_order() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(23, 4, generator=generator), torch.randint(2, (23,), generator=generator)
    ids = [f"r{i}" for i in range(23)]
    values = cross_validated_confidence(x, y, ids, seed=1)
    order = torch.randperm(23, generator=generator)
    again = cross_validated_confidence(x[order], y[order], [ids[i] for i in order], seed=1)
    torch.testing.assert_close(again, values[order], rtol=0, atol=1e-6)
    assert not torch.allclose(cross_validated_confidence(x, y, ids, seed=2), values)
    with pytest.raises(DataError, match="at least 5 rows for 5 folds; got 3"):
        cross_validated_confidence(x[:3], y[:3], ids[:3])


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"input_ids": [[2, 7], [2, 99]]}, "input_ids of row 1 hold 99; this model knows 0 to 25"),
        ({"input_ids": [[2, 7], [-1, 3]]}, "input_ids of row 1 hold -1"),
        ({"input_ids": [[2, 7], []]}, "input_ids of row 1 must be a list of token ids; got []"),
        ({"input_ids": [[2, 7], None]}, "the collator collate_by_padding failed on rows [0, 1]"),
        ({"input_ids": [[2.5, 7], [1, 2]]}, "input_ids must be token ids, whole numbers"),
        ({"input_ids": [2, 7]}, "the collator collate_by_padding failed on rows [0, 1]"),
        (
            {"input_ids": [[2, 7]] * 2, "attention_mask": [[1]] * 2},
            "attention_mask of shape [2, 1] arrived for input_ids",
        ),
        (
            {"input_ids": [[2, 7]] * 2, "token_type_ids": [[0, 5]] * 2},
            "token_type_ids of row 0 hold 5; this model knows",
        ),
    ],
)
def test_tokens_that_the_model_cannot_read_are_an_error_that_names_the_row(columns, says):
    data = Dataset.from_dict({**columns, "label": [0, 1]})
    with pytest.raises(DataError, match=re.escape(says)):
        attribute(bert(), data, None, "loss")


@pytest.mark.parametrize("labels", [[[2, 7]] * 2, [[2, 7, 8, 9, 3]] * 2])
def test_labels_that_are_not_as_long_as_the_tokens(labels):
    data = Dataset.from_dict({"input_ids": [[2, 7, 8]] * 2, "labels": labels})
    with pytest.raises(DataError, match="they must be as long as the tokens"):
        attribute(llama(), data, None, "loss")
