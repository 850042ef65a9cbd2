"""rejection-pairs: k completions and rewards become preference rows."""

import itertools

import numpy as np
import pytest
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from hfdataopt import get_filter
from hfdataopt.errors import DataError, OptionError, StoreError
from hfdataopt.generation import Completion, LocalGenerator
from hfdataopt.selection.keys import keys_of, uniform
from hfdataopt.selection.rejection_pairs import all_pairs, best_worst, paired, rejection_sample, with_completions
from hfdataopt.selection.rules import top

from ..tiny import llama, tokenizer

COMPLETIONS = [
    ["fine", "great film", "was"],  # 4, 10, 3
    ["poor", "dire", "good"],  # all 4: equal
    ["a", "a", "a"],  # one only
    ["superb film", "it", None],
    ["lovely", "very", "the actor and"],
    [],
]
PROMPTS = [f"question {i}" for i in range(6)]


def length(completions, **kwargs):
    return [float(len(c if isinstance(c, str) else c[0]["content"])) for c in completions]


def rows(**more):
    return Dataset.from_dict({"prompt": PROMPTS, "completions": COMPLETIONS, **more})


def test_pairs_by_definition():
    rewards = np.array([0.5, 2.0, -1.0, 2.0, 0.4])
    assert best_worst(rewards, 2.9) == [(1, 2)]
    assert best_worst(rewards, 3.0) == []
    every = [(i, j) for i, j in itertools.product(range(5), repeat=2) if rewards[i] - rewards[j] > 1.45]
    assert all_pairs(rewards, 1.45) == every
    assert paired([2, 0, 3, 1, 4], rewards, 0.0) == [(0, 2)]  # 3 and 1 tie, 4 has no partner


def accept_one_by_one(rewards, count, beta, uniform_of):
    """Algorithm 1 of Liu et al. 2023, a candidate at a time."""
    left, accepted, turn = dict(enumerate(rewards)), [], 0
    while left and len(accepted) < count:
        highest = max(left.values())
        taken = []
        for i, reward in left.items():
            if len(accepted) == count:
                break
            if uniform_of(turn)[i] < np.exp((reward - highest) / beta):
                accepted.append(i)
                taken.append(i)
        for i in taken:
            del left[i]
        turn += 1
    return accepted


@pytest.mark.parametrize("beta", [0.05, 0.5, 5.0])
def test_rejection_sampling_is_algorithm_1(beta):
    draws = np.random.default_rng(0)
    for trial in range(50):
        rewards = draws.normal(size=8)

        def uniform_of(turn, trial=trial):
            return uniform(trial, keys_of([f"{turn}/{i}" for i in range(8)]))

        assert rejection_sample(rewards, 5, beta, uniform_of) == accept_one_by_one(rewards, 5, beta, uniform_of)


def test_first_round_follows_the_rewards():
    """Each is accepted in the first round with probability exp((r - r_max) / beta); within 4 standard errors."""
    rewards, beta, trials = np.array([0.0, 0.5, 1.0, 0.8]), 0.6, 4000
    counts = np.zeros(4)
    for seed in range(trials):
        draws = uniform(seed, keys_of(list("abcd")))
        accepted = rejection_sample(rewards, 4, beta, lambda turn, draws=draws: draws)
        first = [i for i in accepted if draws[i] < np.exp((rewards[i] - 1.0) / beta)]
        assert accepted[: len(first)] == first, "the first round comes first"
        counts[first] += 1
    chance = np.exp((rewards - 1.0) / beta)
    assert (abs(counts / trials - chance) <= 4 * np.sqrt(chance * (1 - chance) / trials) + 1e-12).all()


def test_best_against_worst_and_what_is_said(capfd):
    data = rows(answer=list("abcdef"))
    f = get_filter("rejection-pairs", reward_funcs=length).fit(data)
    pairs = f.pairs(data)
    assert pairs.to_dict() == {
        "prompt": ["question 0", "question 3", "question 4"],
        "chosen": ["great film", "superb film", "the actor and"],
        "rejected": ["was", "it", "very"],
        "chosen_reward": [10.0, 11.0, 13.0],
        "rejected_reward": [3.0, 2.0, 4.0],
        "answer": ["a", "d", "e"],
    }
    said = capfd.readouterr().err
    assert "3 of 6 prompts give no pair" in said
    assert "2 with fewer than 2 different completions" in said
    assert "1 with equal rewards" in said
    assert "1 completions have no reward" in said
    assert "2 completions repeat another" in said
    assert f.fit(data)(data[:])["chosen"] == pairs["chosen"][:]
    assert "3 of 6 prompts give no pair" in capfd.readouterr().err
    with_gap = get_filter("rejection-pairs", reward_funcs=length, min_gap=8.0).fit(data)
    assert with_gap.pairs(data)["prompt"][:] == ["question 3", "question 4"]
    assert "1 with rewards at most min_gap apart" in capfd.readouterr().err


def test_rewards_of_a_column_and_none():
    data = rows(rewards=[[1.0, None, 0.0], [1, 2, 3], [1, 2, 3], [5, 4, 9], [None, None, 1], []])
    f = get_filter("rejection-pairs", rewards="rewards", on_nan="drop").fit(data)
    pairs = f.pairs(data)
    assert pairs["chosen"][:] == ["fine", "good", "superb film"]
    assert pairs["rejected"][:] == ["was", "poor", "it"]
    assert f.scores(f.batch(data[:])).tolist()[:2] == [1.0, 2.0]
    wrong = rows(rewards=[[1.0]] + [[]] * 5)
    with pytest.raises(DataError, match="3 completions but 1 rewards"):
        f.fit(wrong).pairs(wrong)


def test_conversations():
    chat = [[{"role": "user", "content": p}] for p in PROMPTS]
    plain = Dataset.from_dict({"prompt": chat, "completions": COMPLETIONS})
    answers = [[c and [{"role": "assistant", "content": c}] for c in found] for found in COMPLETIONS]
    messages = Dataset.from_dict({"prompt": chat, "completions": answers})
    found = [get_filter("rejection-pairs", reward_funcs=length).fit(d).pairs(d) for d in (plain, messages)]
    assert found[0].to_dict() == found[1].to_dict()
    assert found[0]["chosen"][0] == [{"role": "assistant", "content": "great film"}]


@pytest.mark.parametrize(
    "options",
    [
        {"pairs_by": "best-worst"},
        {"pairs_by": "all-pairs", "min_gap": 1.0},
        {"pairs_by": "rejection-sampling", "samples": 4, "beta": 2.0},
    ],
    ids=lambda options: options["pairs_by"],
)
def test_same_pairs_whatever_the_way(options):
    draws = np.random.default_rng(0)
    completions = [["x" * int(n) + str(i) for i, n in enumerate(draws.integers(1, 9, size=6))] for _ in range(40)]
    data = Dataset.from_dict({"prompt": [f"q{i}" for i in range(40)], "completions": completions})
    data = data.add_column("row_id", list(range(40)))
    f = get_filter("rejection-pairs", reward_funcs=length, **options).fit(data)
    ways = [f.pairs(data), f.pairs(data, num_proc=2)]
    for size in (7, 1000):
        ways.append(data.map(f, batched=True, batch_size=size, remove_columns=data.column_names))
    stream = data.to_iterable_dataset()
    streamed = list(stream.map(f, batched=True, batch_size=7, remove_columns=stream.column_names))
    first = ways[0].to_list()
    assert len(first) >= 40
    assert all(way.to_list() == first for way in ways)
    assert streamed == first
    ids = ways[0]["row_id"][:]
    assert len(set(ids)) == len(ids)
    assert all(row["chosen_reward"] > row["rejected_reward"] for row in first)
    if options["pairs_by"] == "rejection-sampling":
        other = get_filter("rejection-pairs", reward_funcs=length, seed=1, **options).fit(data).pairs(data)
        assert other.to_list() != first
        assert len(first) <= 2 * 40


def test_prompts_by_a_keep_rule():
    data = rows()
    f = get_filter("rejection-pairs", reward_funcs=length, keep=top(k=2), on_nan="drop").fit(data)
    kept = data.filter(f.keep, batched=True, input_columns=f.columns)
    assert kept["prompt"][:] == ["question 3", "question 4"]
    assert set(f.pairs(data)["prompt"][:]) == {"question 3", "question 4"}
    alike = Dataset.from_dict({"prompt": PROMPTS, "completions": [["a", "bc"]] * 6, "more": list("abcdef")})
    f = get_filter("rejection-pairs", reward_funcs=length, keep=top(k=3)).fit(alike)
    assert len(alike.filter(f.keep, batched=True, input_columns=f.columns)) == 3, "ties"


def test_bad_options_and_rows():
    for options, says in [
        ({}, "either reward_funcs= or rewards="),
        ({"reward_funcs": length, "samples": 4}, "go with pairs_by"),
        ({"reward_funcs": length, "pairs_by": "rejection-sampling", "beta": 1.0}, "go with pairs_by"),
        ({"reward_funcs": length, "min_gap": -1.0}, "at least 0"),
    ]:
        with pytest.raises(OptionError, match=says):
            get_filter("rejection-pairs", **options)
    f = get_filter("rejection-pairs", reward_funcs=length)
    with pytest.raises(DataError, match="no column 'completions'"):
        f.fit(rows().remove_columns("completions"))
    with pytest.raises(DataError, match="already has a column 'chosen'"):
        f.fit(rows(chosen=PROMPTS))
    single = Dataset.from_dict({"prompt": ["a"], "completions": ["text"]})
    with pytest.raises(DataError, match="must hold a list of completions"):
        f.fit(single).pairs(single)
    alike = Dataset.from_dict({"prompt": ["a"], "completions": [["x", "y"]]})
    with pytest.raises(DataError, match="none of the 1 prompts"):
        f.fit(alike).pairs(alike)


class Counting:
    """A generator that counts what it is asked for, and may fail."""

    on_policy = False

    def __init__(self, fail_after=None):
        self.made, self.fail_after = 0, fail_after

    def describe(self):
        return {"kind": "counting"}

    def generate(self, prompts, n, *, keys, seed=0, have=None, on_done=None):
        found = [[(have or {}).get((i, k)) for k in range(n)] for i in range(len(prompts))]
        for i, prompt in enumerate(prompts):
            for k in range(n):
                if found[i][k] is None:
                    if self.made == self.fail_after:
                        raise RuntimeError("killed")
                    self.made += 1
                    found[i][k] = Completion(f"{prompt} {k} {seed}")
                    on_done(i, k, found[i][k])
        return found


def test_a_killed_run_goes_on_from_its_file(tmp_path):
    data = Dataset.from_dict({"prompt": [f"p{i}" for i in range(7)], "row_id": list("abcdefg")})
    whole = with_completions(data, Counting(), 3)["completions"][:]
    path = tmp_path / "deep" / "made.jsonl"
    with pytest.raises(RuntimeError, match="killed"):
        with_completions(data, Counting(fail_after=11), 3, batch_size=2, path=path)
    path.write_bytes(path.read_bytes()[:-9])  # the last line was cut short
    again = Counting()
    assert with_completions(data, again, 3, batch_size=3, path=path)["completions"][:] == whole
    assert again.made == 7 * 3 - 10
    more = Counting()
    assert [found[:3] for found in with_completions(data, more, 5, path=path)["completions"]] == whole
    assert more.made == 7 * 2, "more completions of each are added to those that are there"
    for other, options in ((data, {"seed": 1}), (data.select(range(6)), {})):
        with pytest.raises(StoreError, match="holds completions of another generator, seed or prompts"):
            with_completions(other, Counting(), 3, path=path, **options)


def test_from_a_model_to_dpo(tmp_path):
    """Sampled, scored, paired, and taken by TRL's DPOTrainer as it is."""
    read = tokenizer(special=False)
    data = Dataset.from_dict({"prompt": ["the film was ", "it was ", "the film was ", "very "]})
    generator = LocalGenerator(llama(), read, max_new_tokens=6)
    sampled = with_completions(data, generator, 6, batch_size=2)
    assert sampled["completions"][0] == sampled["completions"][2], "equal prompts without row ids"
    assert [len(found) for found in sampled["completions"]] == [6] * 4
    assert sampled["completions"][:] == with_completions(data, generator, 6, batch_size=64)["completions"][:]
    pairs = get_filter("rejection-pairs", reward_funcs=length).fit(sampled).pairs(sampled)
    args = DPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_tqdm=True,
        max_steps=1,
        per_device_train_batch_size=2,
        save_strategy="no",
        gradient_checkpointing=False,
    )
    trainer = DPOTrainer(model=llama(), ref_model=llama(), args=args, train_dataset=pairs, processing_class=read)
    assert trainer.train().global_step == 1
