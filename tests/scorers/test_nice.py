"""NICE: policy gradients of sampled completions in the place of query gradients."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from hfdataopt import attribute, get_scorer
from hfdataopt.attribution.rows import pad_batch
from hfdataopt.errors import DataError, OptionError
from hfdataopt_plugins.scorers.nice import policy_weights

from ..policy import (
    EOS,
    Recorder,
    constant,
    good_words,
    later,
    opinionated,
    policy_gradients,
    prompts,
    reader,
    speaker,
    weights_of,
)
from ..tiny import loss_gradients, questions, texts

PLAIN: dict[str, Any] = {"precondition": "none", "normalize": False, "basis": "exact"}
SHORT: dict[str, Any] = {"samples": 6, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def pool() -> Any:
    return questions(7, seed=1)


@pytest.fixture(scope="module")
def queries() -> Any:
    return prompts(5, seed=3)


@pytest.fixture
def model() -> Any:
    return speaker().double()


def run(model: Any, pool: Any, queries: Any, reward: Any, **options: Any) -> Any:
    given = {"batch_size": 4, **PLAIN, **SHORT, **options}
    name = given.pop("scorer", "nice")
    return attribute(model, pool, queries, name, processing_class=reader(), reward_funcs=reward, **given)


def close(found: Any, expected: Any, rtol: float = 1e-4) -> None:
    expected = np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=0.1 * rtol * np.abs(expected).max())


def one_by_one(
    model: Any, pool: Any, queries: Any, asked: Any, weights: dict[Any, list[float]], *, cosines: bool = False
) -> torch.Tensor:
    """Scores ``[rows, queries]`` by autograd, a sequence at a time."""
    rows, columns = loss_gradients(model, pool), policy_gradients(model, queries, asked, weights)
    if cosines:
        rows, columns = (x / x.norm(dim=1, keepdim=True) for x in (rows, columns))
    return rows @ columns.T


def facts(scores: Any) -> dict[str, Any]:
    return scores.metadata["moments"][0]["policy"]


# -- truth


@pytest.mark.parametrize("baseline", ["leave-one-out", "none"])
@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, lambda r, best: True),
        ({"keep": "rejection"}, lambda r, best: r > 0),
        ({"keep": "hard-rejection"}, lambda r, best: r >= 1.5),
        ({"keep": "top-k", "keep_best": 3}, lambda r, best: best < 3),
        ({"eos": False}, lambda r, best: True),
    ],
    ids=["all", "rejection", "hard-rejection", "top-k", "no-eos"],
)
def test_equals_autograd(model: Any, pool: Any, queries: Any, baseline: str, options: Any, kept: Any) -> None:
    reward = Recorder()
    scores = run(model, pool, queries, reward, baseline=baseline, **options)
    asked = {row: completions[:6] for row, completions in reward.asked.items()}  # a reference may follow them
    ended = [EOS in ids for row in asked.values() for ids in row]
    assert any(ended) == options.get("eos", True)
    weights = {}
    for row, completions in asked.items():
        rewards = good_words(completions)
        rank = np.argsort(np.argsort([-r for r in rewards], kind="stable"), kind="stable")
        which = [kept(r, best) for r, best in zip(rewards, rank, strict=True)]
        weights[row] = weights_of(rewards, baseline, which)
    assert any(w for row in weights.values() for w in row)
    expected = one_by_one(model, pool, queries, asked, weights)
    silent = [not any(weights[row]) for row in queries["row_id"]]
    assert np.isnan(scores.matrix[:, silent]).all()
    speaking = [not x for x in silent]
    close(scores.matrix[:, speaking], expected[:, speaking])
    np.testing.assert_allclose(scores.values, scores.matrix[:, speaking].mean(1))


def test_cosines_equal_autograd(model: Any, pool: Any, queries: Any) -> None:
    reward = Recorder()
    scores = run(model, pool, queries, reward, normalize=True)
    weights = {row: weights_of(good_words(ids)) for row, ids in reward.asked.items()}
    close(scores.matrix, one_by_one(model, pool, queries, reward.asked, weights, cosines=True))
    assert np.abs(scores.matrix).max() <= 1 + 1e-6


def test_several_rewards_with_weights_and_without_an_opinion(model: Any, pool: Any, queries: Any) -> None:
    reward = Recorder()
    scores = run(model, pool, queries, [reward, opinionated, later], reward_weights=[1, 0.5, -2.0])
    texts_of: dict[str, list[str]] = {}
    for call in reward.calls:
        for row, text in zip(call["row_id"], call["completions"], strict=True):
            texts_of.setdefault(row, []).append(text)
    weights = {}
    for row, ids in reward.asked.items():
        parts = zip(good_words(ids), opinionated(ids), [text.count("film") for text in texts_of[row]], strict=True)
        weights[row] = weights_of([a + 0.5 * (b or 0) - 2 * c for a, b, c in parts])
    close(scores.matrix, one_by_one(model, pool, queries, reward.asked, weights))
    assert facts(scores)["without_reward"] == 0


def test_completions_without_a_reward_are_left_out_and_counted(
    model: Any, pool: Any, queries: Any, capsys: Any
) -> None:
    reward = Recorder(opinionated)
    scores = run(model, pool, queries, reward)
    given = {row: opinionated(ids) for row, ids in reward.asked.items()}
    missing = sum(r is None for row in given.values() for r in row)
    assert 0 < missing < 30
    expected = one_by_one(
        model, pool, queries, reward.asked, {row: weights_of(rewards) for row, rewards in given.items()}
    )
    close(scores.matrix, expected)
    assert facts(scores)["without_reward"] == missing
    assert f"; {missing} got no reward" in capsys.readouterr().err


def test_empty_completions_are_counted_and_add_nothing(model: Any, pool: Any, queries: Any) -> None:
    reward = Recorder()
    scores = run(model, pool, queries, reward, eos=False, baseline="none")
    assert facts(scores)["empty"] == sum(not ids for row in reward.asked.values() for ids in row) > 0
    assert np.isfinite(scores.matrix).all()


def test_samples_of_weight_0_are_skipped_and_counted(model: Any, pool: Any, queries: Any, monkeypatch: Any) -> None:
    from hfdataopt.attribution.samples import Samples

    seen: list[str] = []
    batches = Samples.batches

    def counted(self: Any, ids: Any, *rest: Any) -> Any:
        seen.extend(ids)
        return batches(self, ids, *rest)

    monkeypatch.setattr(Samples, "batches", counted)

    def film(completions: Any, **_: Any) -> list[float]:
        return [float("film" in text) for text in completions]

    reward = Recorder(film)
    scores = run(model, pool, queries, reward, baseline="none")
    ones = sum(sum(film(call["completions"])) for call in reward.calls)
    assert 0 < ones < 30
    assert facts(scores)["skipped_weight_0"] == 30 - ones
    assert len(set(seen)) == ones


def test_variances_and_counts_are_reported(model: Any, pool: Any, queries: Any, capsys: Any) -> None:
    reward = Recorder()
    scores = run(model, pool, queries, reward)
    given = [good_words(reward.asked[row]) for row in queries["row_id"]]
    np.testing.assert_allclose(facts(scores)["reward_variance"], [np.var(row) for row in given])
    assert facts(scores)["completions"] == 30
    assert facts(scores)["mean_reward"] == pytest.approx(np.mean(given))
    unfinished = sum(EOS not in ids for row in reward.asked.values() for ids in row)
    assert facts(scores)["unfinished"] == unfinished > 0
    said = capsys.readouterr().err
    assert f"nice: 30 completions of 5 queries, mean reward {np.mean(given):.4g}, variance within a query" in said


@pytest.mark.parametrize("basis", ["eigen", "random", "sketch"])
def test_a_projection_is_close(model: Any, pool: Any, queries: Any, basis: str) -> None:
    exact = run(model, pool, queries, good_words, normalize=True)
    near = run(model, pool, queries, good_words, normalize=True, basis=basis, floats_per_row=512)
    assert np.corrcoef(exact.matrix.ravel(), near.matrix.ravel())[0, 1] > (0.95 if basis == "eigen" else 0.7)
    assert near.metadata["moments"][0]["basis"]["policy"]["floats"] <= 512


# -- without signal


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1e9, 1 / 3])
@pytest.mark.parametrize("count", [2, 3, 7, 16])
def test_a_constant_reward_has_weights_of_exactly_0(value: float, count: int) -> None:
    assert (policy_weights(np.full(count, value), "leave-one-out") == 0).all()


@pytest.mark.parametrize("options", [{}, {"normalize": True}, {"basis": "eigen", "floats_per_row": 512}])
def test_a_constant_reward_is_no_signal_and_nothing_is_ranked(
    model: Any, pool: Any, queries: Any, options: Any, capsys: Any
) -> None:
    scores = run(model, pool, queries, constant, **options)
    assert np.isnan(scores.values).all()
    assert facts(scores)["queries_without_signal"] == 5
    said = capsys.readouterr().err
    assert "nice: no signal: within every query all rewards are equal" in said
    assert "nice: no row got a score" in said
    with pytest.raises(OptionError, match="only 0 have a score"):
        scores.top(k=1)


def test_without_a_baseline_a_constant_reward_is_the_likelihood(model: Any, pool: Any, queries: Any) -> None:
    reward = Recorder(constant)
    scores = run(model, pool, queries, reward, baseline="none")
    weights = {row: [0.3 / 6] * 6 for row in queries["row_id"]}
    close(scores.matrix, one_by_one(model, pool, queries, reward.asked, weights))


def test_a_query_without_signal_is_left_out_and_named(model: Any, pool: Any, queries: Any, capsys: Any) -> None:
    def but_one(row_id: Any, completion_ids: Any, **_: Any) -> list[float]:
        given = good_words(completion_ids)
        return [1.0 if row == "q2" else r for row, r in zip(row_id, given, strict=True)]

    scores = run(model, pool, queries, but_one)
    assert np.isnan(scores.matrix[:, 2]).all()
    assert np.isfinite(np.delete(scores.matrix, 2, axis=1)).all()
    np.testing.assert_allclose(scores.values, np.delete(scores.matrix, 2, axis=1).mean(1))
    assert "1 queries tell nothing, their completions weigh 0: 'q2'" in capsys.readouterr().err


def test_the_zero_of_the_reward_does_not_matter(model: Any, pool: Any, queries: Any) -> None:
    def shifted(**keywords: Any) -> list[float]:
        return [r + 100 for r in good_words(**keywords)]

    close(run(model, pool, queries, shifted).matrix, run(model, pool, queries, good_words).matrix)
    raw = [run(model, pool, queries, reward, baseline="none").matrix for reward in (shifted, good_words)]
    assert np.corrcoef(raw[0].ravel(), raw[1].ravel())[0, 1] < 0.99


# -- invariances


def wide(rows: list[Any]) -> dict[str, Any]:
    """Pads every batch to 30 tokens."""
    return {
        name: torch.nn.functional.pad(x, (0, 30 - x.shape[1]), value=-100 if name == "labels" else 0)
        for name, x in pad_batch(rows).items()
    }


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 64}, {"data_collator": wide}])
def test_batches_and_padding_change_nothing(model: Any, pool: Any, queries: Any, options: Any) -> None:
    first, second = Recorder(), Recorder()
    scores = run(model, pool, queries, first)
    again = run(model, pool, queries, second, **options)
    assert first.asked == second.asked
    close(again.matrix, scores.matrix)


def test_order_of_queries_and_rows_changes_nothing(model: Any, pool: Any, queries: Any) -> None:
    scores = run(model, pool, queries, good_words)
    order, rows = [3, 0, 4, 1], [6, 2, 0, 5, 1, 4, 3]
    again = run(model, pool.select(rows), queries.select(order), good_words, batch_size=3)
    close(again.matrix, scores.matrix[rows][:, order])


def test_another_seed_draws_other_completions(model: Any, pool: Any, queries: Any) -> None:
    recorders = [Recorder() for _ in range(3)]
    for recorder, seed in zip(recorders, (0, 0, 1), strict=True):
        run(model, pool, queries, recorder, seed=seed)
    assert recorders[0].asked == recorders[1].asked != recorders[2].asked


def test_the_model_and_the_random_state_stay_as_they_were(model: Any, pool: Any, queries: Any) -> None:
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config, state = model.generation_config.to_dict(), torch.get_rng_state()
    run(model, pool, queries, good_words)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert model.generation_config.to_dict() == config


# -- what rewards get


def test_rewards_get_the_columns_and_no_labels_are_needed(model: Any, pool: Any) -> None:
    reward = Recorder()
    bare = Dataset.from_dict({"prompt": texts(3, 4)["text"][:], "answer": ["yes", "no", "maybe"], "row_id": [5, 6, 7]})
    scores = run(model, pool, bare, reward)
    assert np.isfinite(scores.values).all()
    found = {name for call in reward.calls for name in call}
    assert found == {
        "prompts",
        "completions",
        "completion_ids",
        "answer",
        "row_id",
        "trainer_state",
        "log_extra",
        "log_metric",
    }
    for call in reward.calls:
        for prompt, answer, row in zip(call["prompts"], call["answer"], call["row_id"], strict=True):
            assert (prompt, answer) == (bare[row - 5]["prompt"], bare[row - 5]["answer"])


def test_queries_without_a_table(model: Any, pool: Any, queries: Any) -> None:
    scores = run(model, pool, queries.remove_columns("row_id"), good_words)
    close(run(model, pool, [dict(row) for row in queries.remove_columns("row_id")], good_words).matrix, scores.matrix)


def test_conversations(model: Any, pool: Any, queries: Any) -> None:
    read = reader()
    read.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %} <eos>{% endif %} {% endfor %}"
        "{% if add_generation_prompt %}it{% endif %}"
    )
    reward, plain = Recorder(), Recorder()
    spoken = queries.map(
        lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]}, load_from_cache_file=False
    )
    options: dict[str, Any] = {**PLAIN, **SHORT, "batch_size": 4, "processing_class": read}
    scores = attribute(model, pool, spoken, "nice", reward_funcs=reward, **options)
    call = reward.calls[0]
    assert call["prompts"][0] == [{"role": "user", "content": queries[0]["prompt"]}]
    assert set(call["completions"][0][0]) == {"role", "content"}
    written = queries.map(lambda row: {"prompt": row["prompt"] + " it"}, load_from_cache_file=False)
    close(scores.matrix, run(model, pool, written, plain).matrix)
    assert reward.asked == plain.asked
    with pytest.raises(
        DataError, match=r"nice: the prompt of row 'q0' is a list of messages, but the tokenizer has no"
    ):
        run(model, pool, spoken, good_words)


# -- options


def test_off_policy_is_said(model: Any, pool: Any, queries: Any, capsys: Any) -> None:
    run(model, pool, queries, good_words)
    assert "off-policy" not in capsys.readouterr().err
    for changed in ({"temperature": 1.2}, {"top_k": 5}, {"top_p": 0.9}, {"stop": ["film"]}):
        run(model, pool, queries, good_words, **changed)
        ((name, value),) = changed.items()
        assert "nice: off-policy: " in (said := capsys.readouterr().err)
        assert f"{name}={value}" in said


def test_the_authors_settings() -> None:
    scorer: Any = get_scorer("nice", reward_funcs=good_words, preset="paper")
    assert (scorer.samples, scorer.top_k, scorer.top_p, scorer.baseline, scorer.eos) == (20, 50, 0.95, "none", False)
    assert (scorer.precondition, scorer.normalize) == ("less", True)
    with pytest.raises(OptionError, match=r"nice: preset='paper' sets top_k=50, but top_k=4 was given; drop one"):
        get_scorer("nice", reward_funcs=good_words, preset="paper", top_k=4)


def test_declares_helpfulness() -> None:
    scorer = get_scorer("nice", reward_funcs=good_words)
    assert (scorer.meaning, scorer.default_when, scorer.combine) == ("helpfulness", "epoch", "learning-rate-sum")
    assert scorer.query_form == "prompts"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward_funcs": None}, "nice: reward_funcs= is needed"),
        (
            {"samples": 1},
            r"nice: baseline='leave-one-out' compares completions of a query, but samples=1; take at least 2",
        ),
        ({"samples": 0, "baseline": "none"}, r"nice: samples=0 must be at least 1"),
        ({"max_new_tokens": 0}, r"nice: max_new_tokens=0 must be at least 1"),
        ({"temperature": -1.0}, r"nice: temperature=-1.0 must be at least 0"),
        ({"temperature": 0.0}, r"nice: temperature=0.*samples"),
        ({"top_p": 1.5}, r"nice: top_p=1.5 must be"),
        ({"keep": "top-k", "keep_best": 0}, r"nice: keep_best=0 must be at least 1"),
        ({"baseline": "mean"}, r"nice: option baseline='mean' is not allowed"),
        ({"reward_weights": [1.0, 2.0]}, r"nice: reward_weights=\[1.0, 2.0\] must be 1 finite number"),
        ({"reward_funcs": []}, r"nice: reward_funcs is empty"),
        ({"reward_funcs": "no/such-model-anywhere"}, r"nice: reward model 'such-model-anywhere' cannot be loaded"),
    ],
)
def test_options_that_cannot_work(model: Any, pool: Any, queries: Any, options: Any, message: str) -> None:
    given = {"reward_funcs": good_words, **options}
    with pytest.raises((OptionError, DataError), match=message):
        run(model, pool, queries, given.pop("reward_funcs"), **given)


# -- bad input


def raises(completions: Any, row_id: Any, **_: Any) -> list[float]:
    if "q3" in row_id:
        raise ZeroDivisionError("oh")
    return [1.0] * len(completions)


def short(completions: Any, **_: Any) -> list[float]:
    return [1.0] * (len(completions) - 1)


def written(completions: Any, **_: Any) -> list[Any]:
    return ["good"] * len(completions)


def undefined(completions: Any, row_id: Any, **_: Any) -> list[float]:
    return [float("nan") if row == "q2" else 1.0 for row in row_id]


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (raises, r"nice: reward function 'raises' raised ZeroDivisionError: oh \(row 'q3'\)"),
        (short, r"nice: reward function 'short' returned 29 rewards for 30 completions"),
        (written, r"nice: reward function 'written' returned str 'good' for row 'q0'"),
        (undefined, r"nice: reward function 'undefined' returned nan for row 'q2'"),
    ],
)
def test_rewards_that_fail(model: Any, pool: Any, queries: Any, reward: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        run(model, pool, queries, reward)


@pytest.mark.parametrize("prompt", [None, "", "  ", 7, []])
def test_a_query_without_a_prompt(model: Any, pool: Any, queries: Any, prompt: Any) -> None:
    rows = [dict(row) for row in queries]
    rows[2]["prompt"] = prompt
    with pytest.raises(
        DataError, match=r"nice: query 2 has no prompt|nice: the prompt of row 2|nice: row 2 has no prompt"
    ):
        run(model, pool, rows, good_words)


def test_queries_without_a_column_of_prompts(model: Any, pool: Any) -> None:
    with pytest.raises(DataError, match=r"nice: queries= needs a column 'prompt' .*; it has text, label"):
        run(model, pool, texts(3), good_words)


def test_no_tokenizer(model: Any, pool: Any, queries: Any) -> None:
    with pytest.raises(OptionError, match=r"nice: a tokenizer is needed; got processing_class=NoneType"):
        attribute(model, pool, queries, "nice", reward_funcs=good_words)


def test_a_tokenizer_without_a_pad_token(model: Any, pool: Any, queries: Any) -> None:
    read = reader()
    read.pad_token = None
    options: dict[str, Any] = {**PLAIN, **SHORT, "batch_size": 4, "reward_funcs": good_words}
    scores = attribute(model, pool, queries, "nice", processing_class=read, **options)
    close(scores.matrix, run(model, pool, queries, good_words).matrix)


def test_too_few_tokens_to_ever_finish_is_said(model: Any, pool: Any, queries: Any, capsys: Any) -> None:
    with torch.no_grad():
        model.get_output_embeddings().weight[EOS] = 0
        model.model.norm.weight.mul_(20)
    scores = run(model, pool, queries, good_words)
    assert facts(scores)["unfinished"] == 30
    said = capsys.readouterr().err
    assert "100% of 30 completions did not end within max_new_tokens=6; give them more" in said
    assert "; 30 did not end" in said
    run(model, pool, prompts(20, seed=3), good_words)  # sampled in more than one part
    assert capsys.readouterr().err.count("give them more") == 1


def test_a_prompt_that_leaves_no_room(model: Any, pool: Any, queries: Any) -> None:
    with pytest.raises(
        DataError, match=r"the prompt of row 'q\d' has \d+ tokens; with max_new_tokens=60 that is more than"
    ):
        run(model, pool, queries, good_words, max_new_tokens=60)


def test_hard_rejection_needs_references(model: Any, pool: Any, queries: Any) -> None:
    with pytest.raises(
        DataError, match=r"nice: keep='hard-rejection' compares with a reference answer; queries= needs"
    ):
        run(model, pool, queries.remove_columns("completion"), good_words, keep="hard-rejection")


def test_a_classifier_cannot_be_asked(queries: Any) -> None:
    from ..tiny import bert, encoded

    with pytest.raises(OptionError, match=r"BertForSequenceClassification is not a causal language model"):
        attribute(bert(), encoded(4), queries, "nice", processing_class=reader(), reward_funcs=good_words)


# -- what is kept


def test_completions_and_rewards_are_kept_and_made_once(
    model: Any, pool: Any, queries: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    reward = Recorder()
    scores = run(model, pool, queries, reward, output_dir=tmp_path)
    (moment,) = tmp_path.glob("step-*")
    lines = [json.loads(line) for line in next(moment.glob("completions-*.jsonl")).read_text().splitlines()]
    assert sorted((line["query"], line["number"]) for line in lines) == [(i, k) for i in range(5) for k in range(6)]
    found = {(line["query"], line["number"]): line["completion"]["token_ids"] for line in lines}
    assert all(found[i, k] == ids for i, row in enumerate(queries["row_id"]) for k, ids in enumerate(reward.asked[row]))
    rewards = [json.loads(line) for line in next(moment.glob("rewards-*.jsonl")).read_text().splitlines()]
    assert sorted(line["query"] for line in rewards) == list(range(5))
    for file in moment.glob("result.*"):
        file.unlink()
    again = Recorder()
    monkeypatch.setattr(type(model), "generate", lambda *_, **__: pytest.fail("sampled again"))
    resumed = run(model, pool, queries, again, output_dir=tmp_path)
    assert again.calls == []
    np.testing.assert_array_equal(resumed.matrix, scores.matrix)
