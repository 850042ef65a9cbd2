"""reward-margin: differences of rewards, by functions, a reward model and columns, in each of TRL's preference formats."""

import importlib
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, load_from_disk
from transformers import GPT2Config, GPT2ForSequenceClassification
from trl.data_utils import maybe_extract_prompt

from hfdataopt import get_filter
from hfdataopt.errors import DataError, OptionError
from hfdataopt.selection.preferences import split_prompt
from hfdataopt.selection.rules import top

from ..tiny import VOCABULARY, tokenizer

DATA = Path(__file__).parents[3] / "shared" / "data" / "preference" / "hh_helpful_base"
PROMPTS = ["the film was", "it was", "the plot and", "very", "the scene", "an actor"]
CHOSEN = [" fine", " great and superb", " lovely", " fine scene", " good", " superb actor and"]
REJECTED = [" awful film and", " poor", " dire plot was it", " bleak", " very poor", " awful"]


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


def rows(form="explicit"):
    if form == "explicit":
        return Dataset.from_dict({"prompt": PROMPTS, "chosen": CHOSEN, "rejected": REJECTED})
    if form == "implicit":
        return Dataset.from_dict(
            {
                "chosen": [p + c for p, c in zip(PROMPTS, CHOSEN, strict=True)],
                "rejected": [p + r for p, r in zip(PROMPTS, REJECTED, strict=True)],
            }
        )
    chosen, rejected = list(map(assistant, CHOSEN)), list(map(assistant, REJECTED))
    prompts = list(map(user, PROMPTS))
    if form == "chat":
        return Dataset.from_dict({"prompt": prompts, "chosen": chosen, "rejected": rejected})
    answers = {
        "chosen": [p + c for p, c in zip(prompts, chosen, strict=True)],
        "rejected": [p + r for p, r in zip(prompts, rejected, strict=True)],
    }
    return Dataset.from_dict(answers | ({"prompt": PROMPTS} if form == "hybrid" else {}))


def text(completion):
    return completion if isinstance(completion, str) else completion[0]["content"]


def words(completions, **kwargs):
    return [float(len(text(completion).split())) for completion in completions]


def half(prompts, completions, **kwargs):
    asked = [prompt if isinstance(prompt, str) else prompt[-1]["content"] for prompt in prompts]
    return [0.5 * len(text(c)) + len(p) for p, c in zip(asked, completions, strict=True)]


def by_hand():
    return np.array(
        [len(c.split()) - len(r.split()) + 2 * 0.5 * (len(c) - len(r)) for c, r in zip(CHOSEN, REJECTED, strict=True)]
    )


@pytest.mark.parametrize("form", ["explicit", "implicit", "chat", "chat-implicit", "hybrid"])
def test_margin_of_functions(form):
    data = rows(form)
    f = get_filter("reward-margin", reward_funcs=[words, half], reward_weights=[1.0, 2.0]).fit(data)
    found = data.map(f, batched=True)["score_reward_margin"][:]
    np.testing.assert_allclose(found, by_hand(), rtol=1e-12)


@pytest.mark.parametrize("form", ["implicit", "chat-implicit", "hybrid"])
def test_prompts_are_split_as_trl_does(form):
    for row in rows(form):
        expected = maybe_extract_prompt(dict(row))
        assert split_prompt(row["chosen"], row["rejected"]) == (
            expected["prompt"],
            expected["chosen"],
            expected["rejected"],
        )


@pytest.mark.parametrize(
    ("options", "score"),
    [
        ({}, lambda m: m),
        ({"best": "smallest"}, lambda m: -m),
        ({"best": "nearest", "value": 1.5}, lambda m: -abs(m - 1.5)),
    ],
)
def test_columns_of_rewards(options, score):
    data = rows().add_column("score_chosen", [8.0, 7, 3, 5, 9, 2]).add_column("score_rejected", [1.0, 6.5, 4, 5, 2, 1])
    f = get_filter(
        "reward-margin", chosen_reward="score_chosen", rejected_reward="score_rejected", keep=top(k=2), **options
    )
    f = f.fit(data)
    margins = np.array([7, 0.5, -1, 0, 7, 1])
    np.testing.assert_array_equal(data.map(f, batched=True)["score_reward_margin"][:], score(margins))
    kept = data.filter(f.keep, batched=True, input_columns=f.columns)
    assert sorted(score(margins))[-2:] == sorted(
        score(np.array(kept["score_chosen"][:]) - np.array(kept["score_rejected"][:]))
    )


def with_answers(completions, answer, level, **kwargs):
    """Reads other columns, and has no opinion where ``level`` is None."""
    return [
        None if where is None else float(text(c).count(a)) + where
        for c, a, where in zip(completions, answer, level, strict=True)
    ]


def test_functions_get_the_other_columns_and_may_abstain():
    data = rows().add_column("answer", ["f", "o", "e", "l", "o", "a"]).add_column("level", [1, None, 2, 3, None, 1])
    with pytest.raises(DataError, match="no score"):
        get_filter("reward-margin", reward_funcs=with_answers, keep=top(k=2)).fit(data)
    f = get_filter("reward-margin", reward_funcs=with_answers, keep=top(k=2), on_nan="drop").fit(data)
    found = data.map(f, batched=True)["score_reward_margin"][:]
    assert np.isnan(found[1])
    assert np.isnan(found[4])
    assert found[0] == CHOSEN[0].count("f") - REJECTED[0].count("f")
    assert len(data.filter(f.keep, batched=True, input_columns=f.columns)) == 2


def reward_model():
    torch.manual_seed(3)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64, num_labels=1)
    return GPT2ForSequenceClassification(config).eval()


def test_reward_model_gives_the_same_bits_in_any_batch():
    model, read = reward_model(), tokenizer(special=False)
    model.config.pad_token_id = read.pad_token_id
    f = get_filter("reward-margin", reward_funcs=model, reward_processing_classes=read)
    data = rows()
    f = f.fit(data)
    expected = []
    with torch.no_grad():
        for p, c, r in zip(PROMPTS, CHOSEN, REJECTED, strict=True):
            good, bad = (model(**read(p + x, return_tensors="pt")).logits.double().item() for x in (c, r))
            expected.append(good - bad)
    found = {size: data.map(f, batched=True, batch_size=size)["score_reward_margin"][:] for size in (1, 4, 1000)}
    np.testing.assert_allclose(found[1], expected, rtol=1e-6, atol=1e-9)
    assert found[1] == found[4] == found[1000]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        f(data[:])  # starts the threads, which a forked worker does not have
        assert data.map(f, batched=True, num_proc=2)["score_reward_margin"][:] == found[1]
    finally:
        torch.set_num_threads(threads)


def test_same_rows_whatever_the_way():
    data = Dataset.from_dict({name: 9 * values for name, values in rows().to_dict().items()})
    data = data.add_column("row_id", list(range(len(data))))
    f = get_filter("reward-margin", reward_funcs=words, keep=top(k=7))
    f = f.fit(data)
    kept = [
        data.filter(f.keep, batched=True, input_columns=f.columns, batch_size=size, num_proc=processes)["row_id"][:]
        for size, processes in ((7, 1), (1000, 1), (7, 2))
    ]
    stream = data.to_iterable_dataset().filter(f.keep, batched=True, input_columns=f.columns, batch_size=7)
    kept.append([row["row_id"] for row in stream])
    assert len(kept[0]) == 7
    assert all(k == kept[0] for k in kept)
    assert pickle.dumps(pickle.loads(pickle.dumps(f))) == pickle.dumps(f)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "either reward_funcs, or both"),
        ({"chosen_reward": "a"}, "either reward_funcs, or both"),
        ({"reward_funcs": words, "chosen_reward": "a", "rejected_reward": "b"}, "either reward_funcs, or both"),
        ({"reward_funcs": words, "best": "nearest"}, "go together"),
        ({"reward_funcs": words, "value": 0.0}, "go together"),
        ({"chosen_reward": "a", "rejected_reward": "b", "reward_weights": [1.0]}, "go with reward_funcs"),
    ],
)
def test_bad_options(options, says):
    with pytest.raises(OptionError, match=says):
        get_filter("reward-margin", **options)


def test_bad_rows():
    f = get_filter("reward-margin", reward_funcs=words)
    with pytest.raises(DataError, match="no column 'rejected'"):
        f.fit(rows().remove_columns("rejected"))
    mixed = Dataset.from_dict({"prompt": [user("it was")], "chosen": ["fine"], "rejected": ["poor"]})
    fitted = f.fit(mixed)
    with pytest.raises(DataError, match="messages as its prompt but text"):
        fitted(mixed[:])
    g = get_filter("reward-margin", chosen_reward="chosen", rejected_reward="rejected", keep=top(k=1))
    with pytest.raises(DataError, match="must hold numbers"):
        g.fit(rows())
    lacking = Dataset.from_dict({"prompt": ["it was", None], "chosen": ["fine", "x"], "rejected": ["poor", "y"]})
    with pytest.raises(DataError, match="None in column"):
        f.fit(lacking)(lacking[:])


@pytest.mark.skipif(not DATA.is_dir(), reason="the data folder ../shared/data is not here")
def test_real_pairs():
    lines = [json.loads(line) for line in (DATA / "train.jsonl").open()]
    data = Dataset.from_list(lines)
    f = get_filter("reward-margin", reward_funcs=words, keep=top(fraction=0.1)).fit(data)
    kept = data.filter(f.keep, batched=True, input_columns=f.columns)
    margins = np.array([len(row["chosen"].split()) - len(row["rejected"].split()) for row in lines])
    found = np.array([len(c.split()) - len(r.split()) for c, r in zip(kept["chosen"], kept["rejected"], strict=True)])
    assert len(kept) >= len(lines) // 10
    assert sorted(found)[-100:] == sorted(margins)[-100:]


def test_a_reward_of_other_code_is_not_served_from_the_cache(tmp_path, monkeypatch):
    """``datasets`` hashes a function of a module by its name alone."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    Dataset.from_dict({"prompt": ["p"], "chosen": ["aaa"], "rejected": ["b"]}).save_to_disk(tmp_path / "data")
    data = load_from_disk(tmp_path / "data")
    files = []
    for factor in (1, 30):
        (tmp_path / "own_reward.py").write_text(
            f"def own(completions, **columns):\n    return [{factor} * len(text) for text in completions]\n"
        )
        monkeypatch.delitem(sys.modules, "own_reward", raising=False)
        importlib.invalidate_caches()
        own = importlib.import_module("own_reward").own
        scored = data.map(get_filter("reward-margin", reward_funcs=[own]).fit(data), batched=True)
        assert scored["score_reward_margin"][:] == [2 * factor]
        files += scored.cache_files
    monkeypatch.delitem(sys.modules, "own_reward")
    assert len({file["filename"] for file in files}) == 2
