"""Training again: the same weights as the Trainer, whatever the order of the rows; utilities; outcomes kept on disk."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from hfdataopt.errors import DataError, OptionError, StoreError
from hfdataopt.retraining import Recipe, fine_tune, read_rows, utility
from hfdataopt.trainings import Trainings

from .tiny import bert, cloze, encoded, gpt2, masked_lm, questions, row_batch, tokenizer

STILL: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def weights(model: Any) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def assert_same_way(before: torch.Tensor, found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Adam makes steps of full size of gradients that are rounding errors, so weights are compared all together."""
    assert (wanted - before).norm() > 0.05
    assert (found - wanted).norm() < 1e-3 * (wanted - before).norm()


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_the_same_weights_as_the_trainer(tmp_path: Path, weight_decay: float) -> None:
    """One batch per epoch, so that the order within it cannot matter."""
    model, data = bert(**STILL), encoded(8)
    recipe: dict[str, Any] = {"epochs": 4, "learning_rate": 3e-3, "batch_size": 8, "weight_decay": weight_decay}
    trained = fine_tune(model, read_rows(data, model), **recipe)
    args = TrainingArguments(
        str(tmp_path),
        num_train_epochs=4,
        learning_rate=3e-3,
        per_device_train_batch_size=8,
        weight_decay=weight_decay,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    before = weights(model)
    Trainer(model, args, train_dataset=data, processing_class=tokenizer()).train()
    assert_same_way(before, weights(trained), weights(model))


def test_a_language_model_too() -> None:
    model, data = gpt2(), questions(6)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    before = weights(model)
    trained = fine_tune(model, read_rows(data, model), epochs=3, learning_rate=1e-3, batch_size=6)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    for step in range(3):
        optimizer.param_groups[0]["lr"] = 1e-3 * (3 - step) / 3
        batch = read_rows(data, model).batch(range(6))
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert_same_way(before, weights(trained), weights(model))


def test_the_model_and_the_random_states_stay_as_they_are() -> None:
    model, rows = bert().train(), read_rows(encoded(6), bert())
    before, state = weights(model).clone(), torch.get_rng_state()
    trained = fine_tune(model, rows, [0, 1, 2], epochs=1, learning_rate=1e-2)
    assert utility(model, rows).shape == (6,)
    assert torch.equal(weights(model), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not trained.training
    assert not torch.equal(weights(trained), before)


def test_a_training_is_a_function_of_seed_and_row_ids() -> None:
    model, data = bert(), encoded(9, ids=True)
    recipe: dict[str, Any] = {"epochs": 2, "learning_rate": 1e-2, "batch_size": 4}
    one = fine_tune(model, read_rows(data, model), range(5), seed=3, **recipe)
    torch.manual_seed(99)
    again = fine_tune(model, read_rows(data, model), [4, 2, 0, 1, 3], seed=3, **recipe)
    assert torch.equal(weights(one), weights(again))
    turned = read_rows(data.select(range(8, -1, -1)), model)
    assert torch.equal(weights(fine_tune(model, turned, range(4, 9), seed=3, **recipe)), weights(one))
    other = fine_tune(model, read_rows(data, model), range(5), seed=4, **recipe)
    assert not torch.equal(weights(other), weights(one))


def test_no_rows_leave_the_weights_and_frozen_ones_do_not_move() -> None:
    model = bert()
    rows = read_rows(encoded(4), model)
    assert torch.equal(weights(fine_tune(model, rows, [])), weights(model))
    for parameter in model.bert.parameters():
        parameter.requires_grad_(False)
    trained = fine_tune(model, rows, epochs=1, learning_rate=1e-2)
    assert torch.equal(weights(trained.bert), weights(model.bert))
    assert not torch.equal(weights(trained.classifier), weights(model.classifier))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(OptionError, match="no parameter of BertForSequenceClassification requires a gradient"):
        fine_tune(model, rows)


def test_a_training_that_diverges_is_one_clear_error() -> None:
    model = bert(**STILL)
    with torch.no_grad():
        model.classifier.weight.fill_(math.inf)
    with pytest.raises(DataError, match=r"the loss on 2 rows became (nan|inf) at step 1 of 3; lower learning_rate="):
        fine_tune(model, read_rows(encoded(4), model), [0, 1])


@pytest.mark.parametrize(
    ("option", "value"),
    [("epochs", 0), ("epochs", 1.5), ("batch_size", True), ("learning_rate", 0.0), ("weight_decay", -1)],
)
def test_a_recipe_is_checked(option: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"Recipe: .*{option}="):
        Recipe(**{option: value})


# -- utility


@pytest.mark.parametrize(
    ("model", "data"),
    [(bert(3), encoded(7)), (gpt2(), questions(7)), (masked_lm(), cloze(7))],
    ids=["bert", "gpt2", "mlm"],
)
def test_utilities_equal_those_of_one_row_at_a_time(model: Any, data: Any) -> None:
    model.eval()
    rows = read_rows(data, model)
    found = {name: utility(model, rows, name, batch_size=3) for name in ("log-likelihood", "margin", "accuracy")}
    for place, row in enumerate(data):
        batch = row_batch(row)
        with torch.no_grad():
            out = model(**batch)
        logits, labels = out.logits.reshape(-1, out.logits.shape[-1]), batch["labels"].flatten()
        if "gpt2" in type(model).__name__.lower():
            logits, labels = logits[:-1], labels[1:]
        logits, labels = logits[labels != -100], labels[labels != -100]
        p = logits.double().softmax(-1)[torch.arange(len(labels)), labels]
        assert found["log-likelihood"][place] == pytest.approx(-out.loss.item(), abs=1e-5)
        assert found["margin"][place] == pytest.approx((p / (1 - p)).log().mean().item(), abs=1e-4)
        assert found["accuracy"][place] == (logits.argmax(-1) == labels).double().mean().item()


def test_a_utility_of_ones_own_and_those_that_cannot_be() -> None:
    model = bert()
    rows = read_rows(encoded(5), model)
    own = utility(model, rows, lambda model, batch: model(**batch).logits[:, 1] * 2)
    with torch.no_grad():
        expected = model.eval()(**rows.batch(range(5))).logits[:, 1] * 2
    torch.testing.assert_close(own, expected.double(), atol=1e-5, rtol=0)
    with pytest.raises(OptionError, match=r"returned shape \[\] for 5 rows"):
        utility(model, rows, lambda model, batch: torch.tensor(1.0))
    with pytest.raises(DataError, match=r"of 5 row\(s\) of the queries is not finite"):
        utility(model, read_rows(encoded(5), model, side="queries"), lambda model, batch: torch.full((5,), math.nan))
    regression = bert(labels=1)
    scored = encoded(3).map(lambda row: {"label": float(row["label"])})
    with pytest.raises(OptionError, match="utility='margin' is for one class per row or token"):
        utility(regression, read_rows(scored, regression), "margin")
    assert (utility(regression, read_rows(scored, regression)) < 0).all()


# -- many trainings


def trainings(folder: Path | None = None, **options: Any) -> Trainings:
    model = bert()
    pool, queries = read_rows(encoded(6), model), read_rows(encoded(3, seed=5), model, side="queries")
    return Trainings(
        model, pool, queries, folder=folder, **{"training": Recipe(epochs=1, learning_rate=1e-2), **options}
    )


def test_an_outcome_is_what_training_and_measuring_gives() -> None:
    many = trainings()
    trained = fine_tune(many.model, many.pool, [1, 4], epochs=1, learning_rate=1e-2, seed=2)
    np.testing.assert_array_equal(many.of([4, 1], seed=2), utility(trained, many.queries).numpy())
    np.testing.assert_array_equal(many.of([]), utility(many.model, many.queries).numpy())
    assert many.trained == 1
    many.of([1, 4], 2)
    assert many.trained == 1


def test_outcomes_are_kept_and_a_line_cut_short_is_trained_again(tmp_path: Path) -> None:
    first = trainings(tmp_path)
    expected = [first.of([0, 1]), first.of([2]), first.of([], seed=7)]
    file = tmp_path / "outcomes-0.jsonl"
    assert [json.loads(line)["rows"] for line in file.read_text().splitlines()] == [2, 1, 0]
    file.write_text(file.read_text()[:-30] + "")
    second = trainings(tmp_path)
    np.testing.assert_array_equal([second.of([0, 1]), second.of([2]), second.of([], seed=9)], expected)
    second.of([3])
    assert second.trained == 1
    third = trainings(tmp_path)
    third.of([3])
    assert third.trained == 0


@pytest.mark.parametrize(
    ("options", "differs"),
    [({"metric": "accuracy"}, "utility"), ({"training": Recipe(epochs=2)}, "training")],
)
def test_a_folder_of_another_run_is_refused(tmp_path: Path, options: dict[str, Any], differs: str) -> None:
    trainings(tmp_path)
    with pytest.raises(StoreError, match=f"holds trainings whose {differs} differ from this run's"):
        trainings(tmp_path, **options)


def test_ones_own_training() -> None:
    asked = []

    def train(positions: list[int], seed: int) -> Any:
        asked.append((positions, seed))
        return bert(seed=len(positions)).eval()

    many = trainings(training=train)
    expected = utility(bert(seed=2), many.queries).numpy()
    np.testing.assert_array_equal(many.of([5, 0], seed=1), expected)
    many.of([])
    assert asked == [([0, 5], 1)]
    with pytest.raises(OptionError, match="returned NoneType; return a model"):
        trainings(training=lambda positions, seed: None).of([1])
    with pytest.raises(OptionError, match="the utility 'f1' is unknown"):
        trainings(metric="f1")


def test_what_it_costs_is_said_before_and_after_the_first(capsys: Any) -> None:
    many = trainings()
    many.announce(12, 36, at_most=True)
    assert "retraining: at most 12 trainings, on 3 rows each on average" in capsys.readouterr().err
    many.of([0, 1])
    assert "a training on 2 rows took" in capsys.readouterr().err
    many.of([0])
    assert capsys.readouterr().err == ""
