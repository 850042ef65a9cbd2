"""The kernel that freeshap, label-consistency and loo regress on, built by hand, and each of them on it."""

from typing import Any

import numpy as np
import pytest
import torch

from hfdataopt import attribute, get_scorer
from hfdataopt.attribution.kernels import KernelScorer
from hfdataopt.attribution.probe import fit_linear_probe
from hfdataopt.attribution.rows import shuffled
from hfdataopt.errors import DataError, OptionError
from hfdataopt.gradients import find_blocks
from hfdataopt.shapley import loo_ridge, prefix_predictions_reference, shapley_values

from ..tiny import ANSWERS, WORDS, bert, cloze, gpt2, masked_lm, mean_hidden, questions, row_batch, row_gradient

EXACT: dict[str, Any] = {"basis": "exact", "batch_size": 4, "kernel": "sum", "normalize": False}


def scaled(pool: torch.Tensor, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    kernel, cross = pool @ pool.T, pool @ queries.T
    scale = kernel.diagonal().mean()
    return kernel / scale, cross / scale


def body_layers(model: Any) -> list[str]:
    names = [use.module for block in find_blocks(model, "last:2") for use in block.uses]
    return [name for name in names if name.startswith("bert.")]


def hand_built(model: Any, pool: Any, queries: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel ``sum`` of a binary task: the mean of hidden states and eNTK of a probe's logit difference."""
    hidden = [mean_hidden(model, data) for data in (pool, queries)]
    probe = fit_linear_probe(hidden[0].float(), torch.tensor(pool["label"][:]), 2)
    weight, bias = probe.weight[1] - probe.weight[0], probe.bias[1] - probe.bias[0]

    def gradients(data: Any) -> torch.Tensor:
        rows = []
        for row in data:
            batch = {k: v for k, v in row_batch(row).items() if k != "labels"}
            value = model.bert(**batch)[0][0].mean(0).double() @ weight + bias
            rows.append(row_gradient(model, value, body_layers(model)))
        return torch.stack(rows)

    one = hidden[0].std()
    with_bias = [torch.cat([x, torch.full((len(x), 1), float(one))], 1) for x in hidden]
    parts = [scaled(gradients(pool), gradients(queries)), scaled(*with_bias)]
    return (parts[0][0] + parts[1][0]) / 2, (parts[0][1] + parts[1][1]) / 2


@pytest.fixture(scope="module")
def task(pool: Any, queries: Any) -> Any:
    model = bert().eval()
    kernel, cross = hand_built(model, pool, queries)
    labels, asked = (np.array(data["label"][:]) for data in (pool, queries))
    return model, kernel, cross, labels, asked


def margin(predictions: torch.Tensor, labels: Any) -> np.ndarray:
    """Margin of a binary task, clipped."""
    sign = torch.tensor(np.where(np.asarray(labels) == 1, 1.0, -1.0))
    return ((predictions[..., 1] - predictions[..., 0]) * sign).clamp(-1, 1).numpy()


def predict(kernel: torch.Tensor, cross: torch.Tensor, labels: Any, rows: list[int], ridge: float) -> torch.Tensor:
    """Kernel regression on ``rows``: ``[t, c]``."""
    targets = torch.nn.functional.one_hot(torch.tensor(labels)[rows], 2).double()
    system = kernel[rows][:, rows] + ridge * torch.eye(len(rows), dtype=torch.float64)
    return cross[rows].T @ torch.linalg.solve(system, targets)


def test_freeshap_equals_the_engine_on_the_hand_built_kernel(task: Any, pool: Any, queries: Any) -> None:
    model, kernel, cross, labels, asked = task
    options: dict[str, Any] = {"permutations": 30, "seed": 1, "ridge": 0.1, "utility": "margin"}
    scores = attribute(model, pool, queries, "freeshap", per_query=True, **options, **EXACT)
    order = shuffled(range(15), 0)  # permutations are drawn over rows in an order of their ids
    targets = [labels[row] for row in order]
    expected = shapley_values(kernel[order][:, order], cross[order], targets, asked, per_query=True, **options)
    np.testing.assert_allclose(scores.values[order], expected.values, atol=2e-4)
    np.testing.assert_allclose(scores.matrix[order], expected.matrix, atol=1e-3)
    np.testing.assert_allclose(scores.standard_errors[order], expected.standard_errors, atol=1e-3)


def test_freeshap_adds_up(task: Any, pool: Any, queries: Any) -> None:
    model, kernel, cross, labels, asked = task
    scores = attribute(model, pool, queries, "freeshap", permutations=3, ridge=0.1, utility="margin", **EXACT)
    facts = scores.metadata["moments"][0]
    full = margin(predict(kernel, cross, labels, list(range(15)), 0.1), asked).mean()
    assert scores.values.sum() == pytest.approx(facts["full_utility"] - facts["empty_utility"], abs=1e-9)
    assert facts["full_utility"] == pytest.approx(full, abs=1e-4)
    assert (facts["head"], facts["ridge"], facts["permutations"], facts["ridge_raised"]) == ("probe", 0.1, 3, False)


def test_loo_equals_leaving_each_row_out(task: Any, pool: Any, queries: Any) -> None:
    model, kernel, cross, labels, asked = task
    scores = attribute(model, pool, queries, "loo", ridge=0.1, **EXACT)
    full = margin(predict(kernel, cross, labels, list(range(15)), 0.1), asked)
    for row in range(15):
        rest = [i for i in range(15) if i != row]
        without = margin(predict(kernel, cross, labels, rest, 0.1), asked)
        np.testing.assert_allclose(scores.matrix[row], full - without, atol=1e-4)


def test_label_consistency_leave_one_out(task: Any, pool: Any) -> None:
    model, kernel, _, labels, _ = task
    scores = attribute(model, pool, None, "label-consistency", form="leave-one-out", ridge=0.1, **EXACT)
    for row in range(15):
        rest = [i for i in range(15) if i != row]
        predicted = predict(kernel, kernel[:, [row]], labels, rest, 0.1)[0]
        assert scores.values[row] == pytest.approx(float(predicted[labels[row]] - predicted[1 - labels[row]]), abs=1e-4)


def test_label_consistency_out_of_bag(task: Any, pool: Any) -> None:
    from hfdataopt.shapley._walk import permutation

    model, kernel, _, labels, _ = task
    scores = attribute(
        model, pool, None, "label-consistency", form="out-of-bag", permutations=4, seed=5, ridge=0.1, **EXACT
    )
    total, count = np.zeros(15), np.zeros(15)
    targets = torch.nn.functional.one_hot(torch.tensor(labels), 2).double()
    for index in range(4):
        order = [shuffled(range(15), 0)[place] for place in permutation(15, 5, index)]
        predicted = prefix_predictions_reference(kernel, kernel, targets, order, ridge=0.1)
        for place, row in enumerate(order):
            total[row] += margin(predicted[:place, row], labels[row]).sum()
            count[row] += place
    np.testing.assert_allclose(scores.values, total / count, atol=2e-4)


def test_auto_ridge_is_the_leave_one_out_minimiser(task: Any, pool: Any, queries: Any) -> None:
    model, kernel, _, labels, _ = task
    expected = loo_ridge(kernel, torch.nn.functional.one_hot(torch.tensor(labels), 2).double())
    for name, given in (("loo", queries), ("label-consistency", None), ("freeshap", queries)):
        extra = {} if name == "loo" else {"permutations": 2}
        scores = attribute(model, pool, given, name, **extra, **EXACT)
        assert scores.metadata["moments"][0]["ridge"] == pytest.approx(expected, rel=0.05)


def test_paper_preset_is_the_paper(pool: Any, queries: Any) -> None:
    scorer: Any = get_scorer("freeshap", preset="paper")
    assert (scorer.utility, scorer.ridge, scorer.truncation, scorer.logit, scorer.kernel) == (
        "accuracy",
        1e-6,
        0.05,
        0,
        "entk",
    )
    model = bert().eval()
    scores = attribute(model, pool, queries, "freeshap", preset="paper", permutations=3)
    assert scores.metadata["options"]["utility"] == "accuracy"
    assert scores.metadata["moments"][0]["ridge"] == 1e-6
    assert scores.metadata["moments"][0]["empty_utility"] == pytest.approx(0.5, abs=0.2)


@pytest.mark.parametrize(
    "options",
    [
        {"utility": "margin"},
        {"ridge": 0.5},
        {"truncation": 0.2},
        {"logit": 1},
        {"kernel": "hidden"},
        {"per_class": True},
    ],
)
def test_paper_preset_refuses_other_settings(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(OptionError, match=f"preset='paper' sets {name}="):
        get_scorer("freeshap", preset="paper", **options)


def test_banzhaf_refuses_truncation() -> None:
    with pytest.raises(OptionError, match=r"truncation=0\.1"):
        get_scorer("freeshap", weights="banzhaf", truncation=0.1)


def test_per_class_kernels_and_single_logit(pool: Any, queries: Any) -> None:
    model = bert().eval()
    # A probe on two classes has opposite weights, hence equal kernels: the model's own head tells them apart.
    options: dict[str, Any] = {"kernel": "entk", "head": "model", "permutations": 3}
    by_class = attribute(model, pool, queries, "freeshap", per_class=True, **options)
    single = attribute(model, pool, queries, "freeshap", logit=1, **options)
    assert np.isfinite(by_class.values).all()
    assert not np.allclose(by_class.values, single.values)
    with pytest.raises(OptionError, match="per_class=True"):
        get_scorer("freeshap", per_class=True, logit=0)
    with pytest.raises(OptionError, match=r"logit=2 is not among the 2 classes"):
        attribute(model, pool, queries, "freeshap", logit=2)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kernel", ["entk", "hidden", "sum"])
def test_the_mean_diagonal_is_one(pool: Any, queries: Any, monkeypatch: Any, kernel: str, normalize: bool) -> None:
    built = []
    build = KernelScorer.build
    monkeypatch.setattr(KernelScorer, "build", lambda self, view: built.append(build(self, view)) or built[-1])
    scores = attribute(bert().eval(), pool, queries, "loo", kernel=kernel, normalize=normalize)
    diagonal = built[0].kernel.diagonal()
    assert float(diagonal.mean()) == pytest.approx(1)
    assert bool((diagonal - 1).abs().max() < 1e-9) == normalize
    scale = scores.metadata["moments"][0]["kernel_scale"]
    assert list(scale) == (["entk", "hidden"] if kernel == "sum" else [kernel])
    assert all(value > 0 for value in scale.values())


def test_not_positive_definite_kernel(pool: Any, queries: Any) -> None:
    from datasets import concatenate_datasets

    twice = concatenate_datasets([pool, pool])  # of rank 15 or less, and 30 rows
    options: dict[str, Any] = {"kernel": "hidden", "ridge": 0.0, "permutations": 2}
    with pytest.raises(DataError, match=r"not positive definite.*raise-ridge"):
        attribute(bert().eval(), twice, queries, "freeshap", **options)
    scores = attribute(bert().eval(), twice, queries, "freeshap", on_not_positive_definite="raise-ridge", **options)
    facts = scores.metadata["moments"][0]
    assert facts["ridge_raised"] is True
    assert facts["ridge"] > 0
    assert np.isfinite(scores.values).all()


def test_heads_of_language_models() -> None:
    for model, make in ((gpt2().eval(), questions), (masked_lm().eval(), cloze)):
        scores = attribute(model, make(8, 1), make(4, 2), "freeshap", permutations=4)
        assert scores.metadata["moments"][0]["head"] == "prompt"
        assert np.isfinite(scores.values).all()
    assert WORDS.index(ANSWERS[0])


def test_own_head_of_a_model_as_it_is_goes_without_a_warning(pool: Any, queries: Any, capsys: Any) -> None:
    scores = attribute(bert().eval(), pool, queries, "freeshap", head="model", permutations=2)
    assert "classification head is fresh" not in capsys.readouterr().err
    assert scores.metadata["moments"][0]["head"] == "model"


@pytest.mark.parametrize(
    ("name", "meaning", "when", "needs_queries"),
    [
        ("freeshap", "helpfulness", "train_begin", True),
        ("label-consistency", "suspicion", "train_begin", False),
        ("loo", "helpfulness", "train_end", True),
    ],
)
def test_declarations(name: str, meaning: str, when: str, needs_queries: bool) -> None:
    scorer: Any = get_scorer(name)
    assert (scorer.meaning, scorer.default_when, scorer.needs_queries) == (meaning, when, needs_queries)
