"""log-ratio: DPO's implicit reward margin by hand, and the log-probabilities of TRL's DPOTrainer (written against trl 1.16)."""

import dataclasses
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from hfdataopt import get_filter, top
from hfdataopt.errors import DataError, OptionError
from hfdataopt.selection.curriculum import curriculum

from ..tiny import BAD, GOOD, PLAIN, bert, llama, tokenizer
from .invariance import check_invariance

TEMPLATE = (
    "{% for m in messages %}{{ ('[CLS] ' if m['role'] == 'user' else '[MASK] ') + m['content'] + ' [SEP] ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[MASK] ' }}{% endif %}"
)


ROOT = Path(__file__).parents[3] / "shared"
DATA, STORIES = ROOT / "data" / "preference" / "hh_helpful_base", ROOT / "models" / "stories260K"


def read():
    found = tokenizer(special=False)
    found.chat_template = TEMPLATE
    return found


def rows(count=20, chat=False):
    draws = np.random.default_rng(0)

    def words(pool, least, most):
        return " ".join(draws.choice(pool, size=draws.integers(least, most)))

    prompts = [words(PLAIN, 1, 12) + " " for _ in range(count)]
    chosen = [words([*PLAIN, *GOOD], 1, 9) + " " for _ in range(count)]
    rejected = [words([*PLAIN, *BAD], 1, 9) + " " for _ in range(count)]
    if chat:
        prompts = [[{"role": "user", "content": p.strip()}] for p in prompts]
        chosen, rejected = (
            [[{"role": "assistant", "content": answer.strip()}] for answer in answers] for answers in (chosen, rejected)
        )
    return Dataset.from_dict({"prompt": prompts, "chosen": chosen, "rejected": rejected, "row_id": list(range(count))})


def logp(model, prompt, answer):
    """Of an answer and the end token, a token at a time."""
    tokens = read()
    start, whole = tokens(prompt)["input_ids"], tokens(prompt + answer + " <eos>")["input_ids"]
    total = 0.0
    with torch.no_grad():
        for place in range(len(start), len(whole)):
            logits = model(input_ids=torch.tensor([whole[:place]])).logits[0, -1].double()
            total += float(logits.log_softmax(-1)[whole[place]])
    return total


def test_margin_by_hand():
    data, policy, reference = rows(6), llama(), llama(seed=1)
    f = get_filter("log-ratio", model=policy, reference=reference, beta=0.3, processing_class=read()).fit(data)
    plain = get_filter("log-ratio", model=policy, beta=1.0, processing_class=read()).fit(data)
    for row, margin, alone in zip(data, f.margins(f.batch(data[:])), plain.margins(plain.batch(data[:])), strict=True):
        found = {
            (name, side): logp(model, row["prompt"], row[side])
            for name, model in (("policy", policy), ("reference", reference))
            for side in ("chosen", "rejected")
        }
        expected = 0.3 * (
            (found["policy", "chosen"] - found["reference", "chosen"])
            - (found["policy", "rejected"] - found["reference", "rejected"])
        )
        assert margin == pytest.approx(expected, abs=1e-4)
        assert alone == pytest.approx(found["policy", "chosen"] - found["policy", "rejected"], abs=1e-4)


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "conversational"])
def test_log_probabilities_are_those_of_trl(tmp_path, chat):
    data, model = rows(8, chat), llama()
    args = DPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_tqdm=True,
        gradient_checkpointing=False,
        precompute_ref_log_probs=True,
        per_device_train_batch_size=3,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = DPOTrainer(
            model=llama(seed=1), ref_model=model, args=args, train_dataset=data, processing_class=read()
        )
    columns = ["ref_chosen_logps", "ref_rejected_logps"]
    trained = trainer.train_dataset
    theirs = np.array(trained[columns[0]][:]) - np.array(trained[columns[1]][:])
    f = get_filter("log-ratio", model=model, beta=1.0, processing_class=read()).fit(data)
    np.testing.assert_allclose(f.margins(f.batch(data[:])), theirs, atol=1e-4)
    # and from TRL's columns, as the reference of the same policy
    given = data.add_column(columns[0], trained[columns[0]][:]).add_column(columns[1], trained[columns[1]][:])
    both = get_filter("log-ratio", model=model, ref_logps=columns, processing_class=read()).fit(given)
    np.testing.assert_allclose(both.margins(both.batch(given[:])), 0, atol=1e-5)
    by_columns = get_filter("log-ratio", logps=columns, beta=1.0).fit(given)
    np.testing.assert_allclose(by_columns.margins(by_columns.batch(given[:])), theirs, atol=1e-6)


def test_same_rows_whatever_the_way():
    options = {"model": llama(), "reference": llama(seed=1), "processing_class": read()}
    check_invariance(get_filter("log-ratio", best="smallest", **options), rows(40))


def test_from_easy_to_hard():
    data = rows(12)
    f = get_filter("log-ratio", model=llama(), reference=llama(seed=1), processing_class=read()).fit(data)
    scored = data.map(f, batched=True)
    ordered = curriculum(scored, "score_log_ratio")["score_log_ratio"][:]
    assert ordered == sorted(scored["score_log_ratio"][:], reverse=True)
    hardest = get_filter(
        "log-ratio",
        model=llama(),
        reference=llama(seed=1),
        processing_class=read(),
        best="nearest",
        value=0.0,
        keep=top(k=3),
    ).fit(data)
    kept = data.filter(hardest.keep, batched=True, input_columns=hardest.columns)["row_id"][:]
    assert kept == sorted(np.argsort(np.abs(scored["score_log_ratio"][:]))[:3].tolist())


def test_long_rows_are_cut_and_empty_ones_have_no_score(capfd):
    data = rows(4)
    whole = get_filter("log-ratio", model=llama(), processing_class=read()).fit(data)
    lengths = [len(read()(row["prompt"])["input_ids"]) for row in data]
    cut = dataclasses.replace(whole, max_length=max(lengths), on_nan="drop").fit(data)
    found = cut(data[:])["score_log_ratio"]
    longest = lengths.index(max(lengths))
    assert np.isnan(found[longest])
    assert "longer rows are cut" in capfd.readouterr().err
    with pytest.raises(DataError, match=f"row {longest} has no score"):
        dataclasses.replace(cut, on_nan="error").fit(data)(data[:])


def test_weights_that_change_are_noticed():
    data, model = rows(4), llama()
    f = get_filter("log-ratio", model=model, processing_class=read()).fit(data)
    with torch.no_grad():
        model.lm_head.weight.add_(0.1)
    with pytest.raises(DataError, match="weights of model= have changed"):
        f(data[:])


def test_bad_options():
    model = llama()
    for options, says in [
        ({}, "either model="),
        ({"model": model, "logps": ("a", "b")}, "either model="),
        ({"model": model, "reference": model, "ref_logps": ("a", "b")}, "reference= or ref_logps="),
        ({"model": model, "beta": 0.0}, "above 0"),
        ({"model": model, "device": "cpu"}, "there is none"),
        ({"model": model, "best": "nearest"}, "go together"),
    ]:
        with pytest.raises(OptionError, match=says):
            get_filter("log-ratio", **options)
    with pytest.raises(OptionError, match="not a causal language model"):
        get_filter("log-ratio", model=bert(), processing_class=read()).fit(rows(2))
    f = get_filter("log-ratio", model=model, processing_class=tokenizer(special=False)).fit(rows(2, chat=True))
    with pytest.raises(OptionError, match="no chat template"):
        f(rows(2, chat=True)[:])
    with pytest.raises(DataError, match="no column 'a'"):
        get_filter("log-ratio", logps=("a", "b")).fit(rows(2))


@pytest.mark.skipif(not (DATA.is_dir() and STORIES.is_dir()), reason="../shared with its data and models is not here")
def test_real_pairs_by_a_real_model():
    """Against the model's own mean loss over the tokens of each answer."""
    data = Dataset.from_list([json.loads(line) for line in (DATA / "test.jsonl").open()])
    data = data.filter(lambda row: sum(map(len, row.values())) < 400).select(range(12))
    f = get_filter("log-ratio", model=str(STORIES), beta=1.0).fit(data)
    margins = f.margins(f.batch(data[:]))
    tokenizer, model = AutoTokenizer.from_pretrained(STORIES), AutoModelForCausalLM.from_pretrained(STORIES).eval()
    for row, margin in zip(data, margins, strict=True):
        start = len(tokenizer(row["prompt"])["input_ids"])
        sums = []
        for side in ("chosen", "rejected"):
            ids = torch.tensor([tokenizer(row["prompt"] + row[side] + tokenizer.eos_token)["input_ids"]])
            labels = ids.clone()
            labels[:, :start] = -100
            with torch.no_grad():
                sums.append(-float(model(input_ids=ids, labels=labels).loss) * (ids.shape[1] - start))
        assert margin == pytest.approx(sums[0] - sums[1], rel=1e-4, abs=1e-2)
