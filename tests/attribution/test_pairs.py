"""Preference pairs in a RewardTrainer: one score a pair, from the loss and the gradients of the trainer itself."""

from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

from hfdataopt import AttributionCallback, attribute, with_row_ids
from hfdataopt.attribution.rows import Rows, pad_batch, shuffled
from hfdataopt.errors import DataError

from ..tiny import bert, llama, row_gradient, texts, tokenizer

LONG = "the film was very very great"


def pairs(rows: int, seed: int = 0) -> Dataset:
    """Chosen and rejected answers of different lengths."""
    first, second = texts(rows, seed)["text"][:], texts(rows, seed + 1)["text"][:]
    return Dataset.from_dict({"prompt": ["it "] * rows, "chosen": first, "rejected": [f"{LONG} {t}" for t in second]})


def tokenized(rows: int, seed: int = 0, margin: bool = False) -> Dataset:
    read, found = tokenizer(), pairs(rows, seed)
    columns: dict[str, Any] = {
        f"{name}_ids": [read(text)["input_ids"] for text in found[name]] for name in ("chosen", "rejected")
    }
    return Dataset.from_dict(columns | ({"margin": [0.1 * i for i in range(rows)]} if margin else {}))


def trainer(folder: Any, pool: Any, model: Any = None, **parts: Any) -> RewardTrainer:
    arguments = RewardConfig(
        str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=3,
        learning_rate=1e-2,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        max_length=None,
    )
    return RewardTrainer(model or bert(labels=1), arguments, train_dataset=pool, processing_class=tokenizer(), **parts)


def loss_of(model: Any, row: dict[str, Any]) -> torch.Tensor:
    """The definition, on one pair without padding."""
    chosen, rejected = (
        model(input_ids=torch.tensor([row[name]])).logits[0, 0] for name in ("chosen_ids", "rejected_ids")
    )
    return torch.nn.functional.softplus(rejected - chosen + row.get("margin", 0.0))


@pytest.mark.parametrize("margin", [False, True])
def test_loss_is_that_of_the_trainer(tmp_path: Any, margin: bool) -> None:
    model, pool = bert(labels=1).eval(), tokenized(7, margin=margin)
    scores = attribute(model, pool, None, "loss", batch_size=3)
    with torch.no_grad():
        own = trainer(tmp_path, pool, model)
        expected = [own.compute_loss(model, own.data_collator([row])).item() for row in pool]
        defined = [loss_of(model, row).item() for row in pool]
    np.testing.assert_allclose(scores.values, -np.array(expected), rtol=1e-5)
    np.testing.assert_allclose(scores.values, -np.array(defined), rtol=1e-5)


def test_gradients_are_those_of_the_loss_of_a_pair() -> None:
    model, pool, queries = bert(labels=1).eval(), tokenized(6), tokenized(3, seed=5)
    rows, asked = (torch.stack([row_gradient(model, loss_of(model, row)) for row in side]) for side in (pool, queries))
    norms = attribute(model, pool, None, "self-influence", batch_size=4)
    np.testing.assert_allclose(-norms.values, rows.square().sum(1), rtol=1e-4)
    products = attribute(model, pool, queries, "tracin", basis="exact", batch_size=4)
    np.testing.assert_allclose(products.matrix, rows @ asked.T, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("scorer", ["loss", "self-influence", "cv-confidence"])
def test_neither_order_nor_batches_matter(scorer: str) -> None:
    model, pool = bert(labels=1), with_row_ids(tokenized(12))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0)).tolist()
    scores = attribute(model, pool, None, scorer, batch_size=5)
    again = attribute(model, pool.select(order), None, scorer, batch_size=1)
    np.testing.assert_allclose(again.values, scores.values[order], rtol=1e-4)


def test_confidence_equals_scikit_learn_without_intercept() -> None:
    from sklearn.linear_model import LogisticRegression

    model, pool = bert(labels=1).eval(), tokenized(30)
    scores = attribute(model, pool, None, "cv-confidence", inverse_penalty=3.0)
    with torch.no_grad():
        chosen, rejected = (
            torch.stack([model.bert(torch.tensor([ids]))[0][0].mean(0) for ids in pool[name]]).double()
            for name in ("chosen_ids", "rejected_ids")
        )
    x = torch.nn.functional.normalize(chosen - rejected, dim=1).numpy()
    turned = np.where(np.arange(30) % 2, 1, -1)  # either way round: scikit-learn needs two classes
    fold = np.empty(30, int)
    fold[shuffled(list(range(30)), 0)] = np.arange(30) % 5
    expected = np.empty(30)
    for k in range(5):
        model_ = LogisticRegression(C=3.0, fit_intercept=False, tol=1e-10, max_iter=10_000)
        model_.fit((x * turned[:, None])[fold != k], turned[fold != k])
        expected[fold == k] = model_.predict_proba(x[fold == k])[:, 1]
    np.testing.assert_allclose(scores.values, expected, atol=1e-4)


def test_in_training_weights_are_untouched_and_scores_belong_to_the_rows(tmp_path: Any) -> None:
    pool, queries = with_row_ids(pairs(9)), pairs(4, seed=3)
    plain = trainer(tmp_path / "plain", pool)
    plain.train()
    watched = trainer(tmp_path / "watched", pool, eval_dataset=queries)
    callbacks = [
        AttributionCallback(scorer, trainer=watched, when="train_end")
        for scorer in ("loss", "tracin", "self-influence", "cv-confidence")
    ]
    for callback in callbacks:
        watched.add_callback(callback)
    watched.train()
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(weight, watched.model.state_dict()[name]), name
    scores = callbacks[0].scores
    with torch.no_grad():
        expected = [-loss_of(watched.model.eval(), row).item() for row in watched.train_dataset]
    np.testing.assert_allclose(scores.values, expected, rtol=1e-4)
    assert callbacks[1].scores.matrix.shape == (9, 4)
    from hfdataopt import select

    worst = int(np.argmin(scores.values))
    assert worst not in select(pool, scores, k=8)["row_id"][:]


@pytest.mark.parametrize("scorer", ["rds", "influence", "grad-norm"])
def test_the_other_scorers_without_classes(scorer: str) -> None:
    """A pair with itself the wrong way round has the opposite difference: what helps one harms the other."""
    model, pool = bert(labels=1), tokenized(8)
    turned = pool.rename_columns({"chosen_ids": "rejected_ids", "rejected_ids": "chosen_ids"})
    scores = attribute(model, pool, tokenized(3, seed=5), scorer)
    again = attribute(model, turned, tokenized(3, seed=5), scorer)
    assert np.isfinite(scores.values).all()
    if scorer == "influence":
        assert (np.sign(scores.matrix) == -np.sign(again.matrix)).mean() > 0.9


@pytest.mark.parametrize("scorer", ["label-consistency", "freeshap", "knn-shapley"])
def test_scorers_of_classes_say_what_takes_pairs(scorer: str) -> None:
    with pytest.raises(DataError, match=r"the pool holds preference pairs .* for pairs use cv-confidence"):
        attribute(bert(labels=1), tokenized(6), tokenized(3), scorer)


def test_a_classifier_is_no_reward_model() -> None:
    with pytest.raises(DataError, match=r"which a reward model reads.*num_labels=1; got BertForSequenceClassification"):
        attribute(bert(labels=2), tokenized(6), None, "loss")


def test_pairs_are_padded_as_by_trl(tmp_path: Any) -> None:
    pool = tokenized(5, margin=True)
    ours, theirs = pad_batch(list(pool)), trainer(tmp_path, pool).data_collator(list(pool))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    rows = Rows(pool, pad_batch, side="pool").batch([1, 3])
    assert rows["input_ids"].shape[:2] == (2, 2)
    assert rows["input_ids"][1, 0][: len(pool[3]["chosen_ids"])].tolist() == pool[3]["chosen_ids"]
    assert rows["margin"].tolist() == pytest.approx([0.1, 0.3])


def test_pairs_of_dpo_stay_refused(tmp_path: Any) -> None:
    """Its loss needs a reference model; a pair of a DPOTrainer must not be read as one of a reward model."""
    arguments = DPOConfig(str(tmp_path), bf16=False, report_to="none", use_cpu=True, max_steps=1, disable_tqdm=True)
    dpo = DPOTrainer(
        llama(), llama(), args=arguments, train_dataset=pairs(4), processing_class=tokenizer(special=False)
    )
    dpo.add_callback(AttributionCallback("loss", trainer=dpo, when="train_begin"))
    with pytest.raises(DataError, match="pairs of answers"):
        dpo.train()


def test_pairs_as_text_are_the_trainers_to_read(tmp_path: Any) -> None:
    watched = trainer(tmp_path, with_row_ids(pairs(9)))
    watched.add_callback(AttributionCallback("tracin", queries=pairs(4, seed=3), when="train_begin"))
    with pytest.raises(DataError, match=r"the queries holds pairs as text; .* eval_dataset"):
        watched.train()
