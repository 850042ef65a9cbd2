"""PromptSampler: its posterior by hand, what it draws, and real runs of TRL's GRPOTrainer (written against trl 1.16)."""

import asyncio
import itertools
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from hfdataopt import get_filter
from hfdataopt.errors import DataError, OptionError, StoreError
from hfdataopt.selection.prompt_sampler import PromptSampler

from ..tiny import llama, tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ '[CLS] ' + m['content'] + ' [SEP] ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[CLS] ' }}{% endif %}"
)


def rows(count=8, ids=True, chat=False):
    words = ["film", "plot", "actor", "scene", "it", "was", "the", "very"]
    prompts = [f"the {words[i % 8]} {words[i // 8]}" for i in range(count)]
    data = Dataset.from_dict({"prompt": [[{"role": "user", "content": p}] for p in prompts] if chat else prompts})
    return data.add_column("row_id", [f"r{i}" for i in range(count)]) if ids else data


def text(completion):
    return completion if isinstance(completion, str) else completion[0]["content"]


# -- the sampler alone


def test_posterior_by_hand():
    sampler = PromptSampler(rows(3), prompts=1, discount=0.5, prior=(1.0, 2.0))
    np.testing.assert_allclose(sampler.rates, [1 / 3] * 3)
    sampler.record(["r0", "r0", "r2", "r0", "r0"], [1, 0, 1, 1, None])
    # r0: 0.5 * 1 + 0.5 * 1 + 2 and 0.5 * 2 + 0.5 * 2 + 1; r2: 1 + 1 and 2 + 0
    np.testing.assert_allclose(sampler.rates, [3 / 6, 1 / 3, 2 / 4])
    sampler.record(["r0", "r0"], [0, 0.5])
    # 0.5 * 3 + 0.5 + 0.5 and 0.5 * 3 + 1 + 1.5
    np.testing.assert_allclose(sampler.rates[0], 2.5 / (2.5 + 4.0))
    counts = sampler.counts()
    assert counts["successes"][:] == [1.5, 0.0, 1.0]
    assert counts["trials"][:] == [3.5, 0.0, 1.0]
    f = get_filter("prompt-difficulty", successes="successes", trials="trials", prior=(1.0, 2.0), estimate="mean")
    score = f.fit(counts)(counts[:])["score_prompt_difficulty"]
    np.testing.assert_allclose(score, -abs(sampler.rates - 0.5))


def test_the_nearest_are_chosen_and_repeated_as_trl_does():
    sampler = PromptSampler(rows(6), prompts=2, repeat=3, turns=2, estimate="mean", success=0.5)
    for place, rate in enumerate([0.1, 0.5, 0.9, 0.4, 0.0, 1.0]):
        sampler.record([f"r{place}"] * 10, [1.0] * round(10 * rate) + [0.0] * (10 - round(10 * rate)))
    drawn = list(sampler)
    assert len(drawn) == len(sampler) == 6 // 2 * 2 * 3 * 2
    assert drawn[:12] == 2 * [1, 1, 1, 3, 3, 3]
    assert drawn == 3 * drawn[:12], "nothing was learnt in between"


def test_thompson_sampling_looks_at_all_and_prefers_the_middle():
    sampler = PromptSampler(rows(20), prompts=4, prior=(1.0, 1.0))
    for place in range(20):
        good = 8 if place < 8 else 0
        sampler.record([f"r{place}"] * 8, [0.0, 1.0] * 4 if place >= 16 else [1.0] * good + [0.0] * (8 - good))
    counts = np.bincount(np.concatenate([sampler.choose(turn) for turn in range(400)]), minlength=20)
    assert counts[16:].min() > 3 * counts[:16].max()
    assert counts.min() > 0


def test_draws_do_not_depend_on_order():
    data = rows(12)
    other = data.shuffle(seed=3)
    for options in ({}, {"candidates": 5}):
        first, second = (PromptSampler(d, prompts=3, seed=5, **options) for d in (data, other))
        for turn in range(10):
            names = [[d["row_id"][i] for i in s.choose(turn)] for d, s in ((data, first), (other, second))]
            assert names[0] == names[1]
    assert PromptSampler(data, prompts=3, seed=6).choose(0) != first.choose(0)
    allowed = [set(first.choose(turn)) for turn in range(200)]
    assert set.union(*allowed) == set(range(12)), "candidates are drawn anew"


def test_equal_prompts_are_one_prompt():
    data = Dataset.from_dict({"prompt": ["a", "b", "a", "c"]})
    sampler = PromptSampler(data, prompts=2)
    sampler.record(["a", "a"], [1, 1])
    np.testing.assert_allclose(sampler.rates, [3 / 4, 1 / 2, 3 / 4, 1 / 2])


def test_file_is_read_again(tmp_path):
    path = tmp_path / "state" / "prompts.jsonl"
    sampler = PromptSampler(rows(), prompts=2, path=path)
    drawn = []
    for row in sampler:
        drawn.append(row)
        sampler.record([f"r{row}"] * 3, [1, 0, row % 2])
    again = PromptSampler(rows(), prompts=2, path=path)
    np.testing.assert_array_equal(again.rates, sampler.rates)
    assert list(again) == drawn
    path.write_text(path.read_text() + '{"round": 99, "ro')  # killed while it wrote
    np.testing.assert_array_equal(PromptSampler(rows(), prompts=2, path=path).rates, sampler.rates)
    assert path.read_text().endswith("}\n")
    with pytest.raises(StoreError, match="other settings"):
        PromptSampler(rows(), prompts=2, seed=1, path=path)
    path.write_text("{\n" + path.read_text())
    with pytest.raises(StoreError, match="damaged"):
        PromptSampler(rows(), prompts=2, path=path)


def test_bad_input():
    with pytest.raises(OptionError, match="not known"):
        list(PromptSampler(rows()))
    with pytest.raises(OptionError, match="cannot be chosen from 3"):
        list(PromptSampler(rows(), prompts=4, candidates=3))
    with pytest.raises(OptionError, match="is not allowed; it takes 'sampled'"):
        PromptSampler(rows(), estimate="median")
    with pytest.raises(DataError, match="a stream"):
        PromptSampler(rows().to_iterable_dataset())
    sampler = PromptSampler(rows(), prompts=2)
    with pytest.raises(DataError, match="not in the dataset"):
        sampler.record(["r99"], [1.0])
    with pytest.raises(DataError, match=r"outside \[0, 1\]"):
        sampler.record(["r0"], [3.0])
    with pytest.raises(OptionError, match="reward model"):
        sampler.watch(torch.nn.Linear(1, 1))


# -- in GRPO


class Heard:
    """A reward, and what it was asked."""

    def __init__(self):
        self.calls = []

    def __call__(self, prompts, completions, trainer_state, **kwargs):
        rewards = [float(len(text(c).split()) % 2 == 0) for c in completions]
        self.calls.append((kwargs.get("row_id"), prompts, rewards, trainer_state.global_step))
        return rewards


def grpo(folder, sampler, data, reward, *, kind=(GRPOTrainer, GRPOConfig), **changes):
    read = tokenizer(special=False)
    read.chat_template = TEMPLATE
    args = kind[1](
        **{
            "output_dir": str(folder),
            "use_cpu": True,
            "bf16": False,
            "report_to": [],
            "disable_tqdm": True,
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "num_generations": 4,
            "steps_per_generation": 2,
            "gradient_accumulation_steps": 2,
            "max_completion_length": 4,
            "save_strategy": "no",
            "gradient_checkpointing": False,
            **changes,
        }
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = kind[0](
            model=llama(), args=args, train_dataset=data, processing_class=read, reward_funcs=[sampler.watch(reward)]
        )
    sampler.attach(trainer)
    return trainer


@pytest.mark.parametrize(("ids", "chat"), [(True, False), (False, True)], ids=["ids", "conversational"])
def test_grpo_reads_its_prompts_here(tmp_path, ids, chat):
    data, heard = rows(6, ids, chat), Heard()
    path = tmp_path / "prompts.jsonl"
    sampler = PromptSampler(data, path=path, discount=0.9)
    trainer = grpo(tmp_path, sampler, data, heard)
    assert trainer.reward_func_names == ["Heard"]
    trainer.train()
    assert len(heard.calls) == 4
    events = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    rounds = {event["round"]: event["rows"] for event in events if "round" in event}
    alpha, beta = np.ones(6), np.ones(6)
    for turn, (names, prompts, rewards, step) in enumerate(heard.calls):
        chosen = rounds[turn]
        assert len(set(chosen)) == 2
        assert prompts == [data["prompt"][row] for row in chosen for _ in range(4)]
        assert names == ([f"r{row}" for row in chosen for _ in range(4)] if ids else None)
        assert step == turn
        for row, group in zip(chosen, np.reshape(rewards, (2, 4)), strict=True):
            alpha[row] = 0.9 * alpha[row] + 0.1 + group.sum()
            beta[row] = 0.9 * beta[row] + 0.1 + (1 - group).sum()
    np.testing.assert_allclose(sampler.rates, alpha / (alpha + beta))
    assert 0 < sum(sum(rewards) for _, _, rewards, _ in heard.calls) < 32
    # Round t + 1 is chosen when round t is handed out.
    order = [("round", e["round"]) if "round" in e else ("rewards", e["step"]) for e in events]
    assert order[:5] == [("round", 0), ("round", 1), ("rewards", 0), ("round", 2), ("rewards", 1)]


def test_resumed_training_goes_on_as_it_would_have(tmp_path):
    data = rows(6)

    def run(folder, **changes):
        sampler = PromptSampler(data, path=tmp_path / folder / "prompts.jsonl")
        trainer = grpo(tmp_path / folder, sampler, data, Heard(), save_strategy="steps", save_steps=2, **changes)
        return sampler, trainer

    whole, trainer = run("whole", max_steps=5)
    trainer.train()

    class Killed(Exception):
        pass

    class Kill(Heard):
        def __call__(self, trainer_state, **keywords):
            if trainer_state.global_step == 3:
                raise Killed
            return super().__call__(trainer_state=trainer_state, **keywords)

    sampler = PromptSampler(data, path=tmp_path / "part" / "prompts.jsonl")
    trainer = grpo(tmp_path / "part", sampler, data, Kill(), save_strategy="steps", save_steps=2, max_steps=5)
    with pytest.raises(Killed):
        trainer.train()
    resumed, trainer = run("part", max_steps=5)
    trainer.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-2"))
    files = [(tmp_path / folder / "prompts.jsonl").read_text() for folder in ("whole", "part")]
    assert files[0] == files[1]
    np.testing.assert_array_equal(whole.rates, resumed.rates)


def test_rloo(tmp_path):
    data, heard = rows(6), Heard()
    sampler = PromptSampler(data)
    trainer = grpo(tmp_path, sampler, data, heard, kind=(RLOOTrainer, RLOOConfig), max_steps=2, beta=0.0)
    trainer.train()
    seen = {name for names, *_ in heard.calls for name in names}
    assert len(heard.calls) == 2
    first = PromptSampler(data, prompts=2).choose(0)
    assert heard.calls[0][0] == [f"r{row}" for row in first for _ in range(4)]
    changed = {f"r{row}" for row in np.flatnonzero(sampler.rates != 0.5)}
    assert changed
    assert changed <= seen


def test_async_rewards_and_evaluation(tmp_path):
    data = rows(6)
    sampler = PromptSampler(data)

    async def solved(completions, **kwargs):
        await asyncio.sleep(0)
        return [float(len(text(c).split()) % 2 == 0) for c in completions]

    trainer = grpo(tmp_path, sampler, data, solved, max_steps=1)
    assert trainer.reward_func_names == ["solved"]
    trainer.train()
    before = sampler.rates.copy()
    assert (before != 0.5).any()
    strangers = Dataset.from_dict({"prompt": ["very very", "it it"], "row_id": ["r0", "r1"]})
    trainer.evaluate(strangers)
    np.testing.assert_array_equal(sampler.rates, before)


TWO = """
import os, sys, torch
torch.set_num_threads(1)
sys.path.insert(0, os.environ["TESTED_ROOT"])
from hfdataopt.selection.prompt_sampler import PromptSampler
from tests.selection.test_prompt_sampler import Heard, grpo, rows
data, heard, out = rows(6), Heard(), sys.argv[1]
sampler = PromptSampler(data, path=f"{out}/prompts.jsonl")
trainer = grpo(out, sampler, data, heard)
trainer.train()
assert trainer.args.world_size == 2
import json
calls = [[names, rewards] for names, _, rewards, _ in heard.calls]
with open(f"{out}/{trainer.args.process_index}.json", "w") as file:
    json.dump({"rates": sampler.rates.tolist(), "calls": calls}, file)
"""


@pytest.mark.slow
def test_two_processes_choose_alike(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(TWO)
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "TESTED_ROOT": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(script), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = [json.loads((tmp_path / f"{process}.json").read_text()) for process in (0, 1)]
    assert found[0]["rates"] == found[1]["rates"]
    events = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()[1:]]
    rounds = [event["rows"] for event in events if "round" in event]
    alpha, beta = np.ones(6), np.ones(6)
    assert len(found[0]["calls"]) == 4
    for turn in range(4):
        names, rewards = ([*found[0]["calls"][turn][part], *found[1]["calls"][turn][part]] for part in (0, 1))
        chosen = rounds[turn]
        assert len(set(chosen)) == 4
        assert names == [f"r{row}" for row in chosen for _ in range(4)]
        for row, group in zip(chosen, np.reshape(rewards, (4, 4)), strict=True):
            alpha[row], beta[row] = alpha[row] + group.sum(), beta[row] + (1 - group).sum()
    np.testing.assert_allclose(found[0]["rates"], alpha / (alpha + beta))


def test_attach_refuses(tmp_path):
    data = rows(6)
    sampler = PromptSampler(data)
    with pytest.raises(OptionError, match="other rows"):
        grpo(tmp_path, sampler, rows(7), Heard())
    with pytest.raises(OptionError, match="cannot be chosen"):
        grpo(tmp_path, PromptSampler(rows(1)), rows(1), Heard())


def test_half_of_it_forgotten_is_said(tmp_path, capsys):
    def reward(prompts, **_):
        return [1.0] * len(prompts)

    data = rows()
    sampler = PromptSampler(data, prompts=2)
    watched = sampler.watch(reward)
    for _ in range(2):
        watched(prompts=["x"], completions=["y"], row_id=["r1"])
    said = capsys.readouterr().err
    assert said.count("rewards arrive, but nobody asks for prompts here; call sampler.attach(trainer)") == 1
    next(iter(sampler))
    watched(prompts=["x"], completions=["y"], row_id=["r1"])
    assert not capsys.readouterr().err
    with pytest.raises(DataError, match=r"the dataset is a list; it must be a datasets.Dataset"):
        PromptSampler(["a"])


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("repeat", 1.5, "option repeat=1.5 is not allowed; it takes int"),
        ("prompts", "two", "option prompts='two' is not allowed"),
        ("prior", (1e-320, 1.0), "must be at least 0.001 and at most"),
        ("prior", (1e308, 1e308), "must be at least 0.001 and at most"),
        ("prior", 1.0, "option prior=1.0 is not allowed"),
        ("seed", None, "option seed=None is not allowed"),
    ],
)
def test_options_of_another_type_or_beyond_what_can_be_drawn(option, value, says):
    with pytest.raises(OptionError, match=re.escape(says)):
        PromptSampler(Dataset.from_dict({"prompt": ["a", "b"]}), **{"prompts": 2, option: value})


def test_many_repeats_take_no_memory():
    sampler = PromptSampler(Dataset.from_dict({"prompt": ["a", "b"]}), prompts=2, repeat=2**40)
    assert len(set(itertools.islice(iter(sampler), 5))) == 1
