"""Metrics as reward functions."""

import pickle

import datasets
import evaluate
import numpy as np
import pytest

from hfdataopt.errors import DataError, OptionError
from hfdataopt.rewards import RewardFunctions, exact_match, reward_from_metric, token_f1

COMPLETIONS = ["the cat sat", "a dog", "", "one two three"]
ANSWERS = ["cat sat", "a dog", "bird", "one two"]
N = len(ANSWERS)


class Overlap(evaluate.Metric):
    """Shared words over all words, over the whole set: not the mean of its parts; as ROUGE per pair if asked."""

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references, use_aggregator=True, power=1):
        self.sizes = [*getattr(self, "sizes", []), len(predictions)]
        shared = [len(set(p.split()) & set(r.split())) for p, r in zip(predictions, references, strict=True)]
        lengths = [len(r.split()) for r in references]
        if use_aggregator:
            return {"overlap": (sum(shared) / sum(lengths)) ** power}
        return {"overlap": [(s / n) ** power for s, n in zip(shared, lengths, strict=True)], "shared": shared}


WORDS_FOUND = [1.0, 1.0, 0.0, 1.0]


@pytest.fixture
def overlap(tmp_path):
    return Overlap(cache_dir=str(tmp_path))


def rewards_of(reward, answers=ANSWERS, completions=COMPLETIONS, **columns):
    n = len(completions)
    return reward(prompts=["p"] * n, completions=completions, answer=answers, trainer_state=None, **columns)


# -- metrics of evaluate


def test_a_metric_of_a_set_is_computed_on_one_pair_at_a_time(overlap):
    reward = reward_from_metric(overlap, reference_column="answer")
    assert rewards_of(reward) == WORDS_FOUND
    assert overlap.sizes == [1] * N
    assert reward.__name__ == "overlap"


def test_without_an_aggregator_all_pairs_go_together(overlap):
    reward = reward_from_metric(overlap, reference_column="answer", key="overlap", use_aggregator=False)
    assert rewards_of(reward) == WORDS_FOUND
    assert overlap.sizes[-1] == N
    assert reward.__name__ == "overlap_overlap"


def test_scale_and_keywords_reach_the_metric(overlap):
    answers = ["cat dog", "a dog", "bird", "one two four eight"]
    reward = reward_from_metric(overlap, reference_column="answer", scale=-100, power=2)
    assert rewards_of(reward, answers) == pytest.approx([-25.0, -100.0, 0.0, -25.0])


def test_a_metric_by_its_path(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "local_match").mkdir()
    (tmp_path / "local_match" / "local_match.py").write_text(
        "import datasets\nimport evaluate\n\n\nclass LocalMatch(evaluate.Metric):\n"
        "    def _info(self):\n"
        "        features = datasets.Features({k: datasets.Value('string') for k in ('predictions', 'references')})\n"
        "        return evaluate.MetricInfo(description='', citation='', features=features)\n\n"
        "    def _compute(self, predictions, references):\n"
        "        return {'local': float(predictions == references)}\n"
    )
    reward = reward_from_metric(str(tmp_path / "local_match"), reference_column="answer", trust_remote_code=True)
    assert reward.__name__ == "local_match"
    assert rewards_of(reward) == [0.0, 1.0, 0.0, 0.0]


def test_a_metric_that_cannot_be_loaded_says_so_when_it_is_called(monkeypatch):
    monkeypatch.setattr("evaluate.config.HF_EVALUATE_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    reward = reward_from_metric("metric_of_nobody", reference_column="answer", trust_remote_code=True)
    with pytest.raises(DataError, match=r"'metric_of_nobody' cannot be loaded .* plain function"):
        rewards_of(reward)


# -- functions


def test_a_function_of_a_pair():
    reward = reward_from_metric(token_f1, reference_column="answer")
    assert rewards_of(reward) == [token_f1(c, a) for c, a in zip(COMPLETIONS, ANSWERS, strict=True)]
    assert reward.__name__ == "token_f1"
    assert reward_from_metric(token_f1, reference_column="answer", name="f1").__name__ == "f1"


def test_a_function_of_lists_that_keeps_pairs_apart_is_called_once_for_all():
    sizes = []

    def same(predictions, references):
        sizes.append(len(predictions))
        return np.array(predictions) == np.array(references)

    assert rewards_of(reward_from_metric(same, reference_column="answer")) == [0.0, 1.0, 0.0, 0.0]
    assert sizes[-1] == N


def test_a_function_of_lists_that_averages_is_called_once_per_pair():
    def share(predictions, references):
        return {"share": sum(map(str.__eq__, predictions, references)) / len(references), "n": len(references)}

    assert rewards_of(reward_from_metric(share, reference_column="answer", key="share")) == [0.0, 1.0, 0.0, 0.0]
    assert rewards_of(reward_from_metric(share, reference_column="answer", key="n")) == [1.0] * N


def test_references_in_every_form():
    reward = reward_from_metric(exact_match, reference_column="answer")
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "a dog"}]
    blocks = [
        {"role": "assistant", "content": [{"type": "text", "text": "one two "}, {"type": "text", "text": "three"}]}
    ]
    assert rewards_of(reward, [["cat", "the cat sat"], said, None, blocks]) == [1.0, 1.0, None, 1.0]
    chat = [[{"role": "assistant", "content": text}] for text in COMPLETIONS]
    assert rewards_of(reward, ["the cat sat", said, None, blocks], chat) == [1.0, 1.0, None, 1.0]
    assert rewards_of(reward, [None] * N) == [None] * N


def test_it_can_be_pickled():
    reward = pickle.loads(pickle.dumps(reward_from_metric(token_f1, reference_column="answer", scale=2)))
    assert rewards_of(reward)[1] == 2.0
    assert reward.__name__ == "token_f1"


# -- errors


def test_a_missing_column_is_named():
    with pytest.raises(OptionError, match="exact_match: the dataset has no column 'gold'; its columns are answer"):
        rewards_of(reward_from_metric(exact_match, reference_column="gold"))


def test_a_dict_needs_the_right_key():
    def two(prediction, reference):
        return {"one": 1.0, "two": 2.0}

    for key in (None, "three"):
        with pytest.raises(OptionError, match="choose 'one' or 'two'"):
            rewards_of(reward_from_metric(two, reference_column="answer", key=key))
    with pytest.raises(OptionError, match="key='one', but the metric returns no dict"):
        rewards_of(reward_from_metric(exact_match, reference_column="answer", key="one"))


@pytest.mark.parametrize("wrong", ["good", None, [1.0, 2.0]])
def test_what_is_no_number_is_an_error_that_names_the_row(wrong):
    def metric(prediction, reference):
        return wrong if prediction == "a dog" else 1.0

    functions = RewardFunctions(reward_from_metric(metric, reference_column="answer"))
    with pytest.raises(DataError, match=r"'metric' raised TypeError: .* a number for a pair.* \(row 'r1'\)"):
        functions(["p"] * N, COMPLETIONS, None, {"answer": ANSWERS}, row_ids=[f"r{i}" for i in range(N)])


def test_lists_of_another_length_are_refused():
    def last(predictions, references):
        return [1.0]

    with pytest.raises(DataError, match="last gave 1 numbers for 4 pairs"):
        rewards_of(reward_from_metric(last, reference_column="answer"))


@pytest.mark.parametrize("metric", [3, None])
def test_what_is_no_metric_is_refused(metric):
    with pytest.raises(OptionError, match="takes an evaluate metric, its id, or a function"):
        reward_from_metric(metric, reference_column="answer")


def test_an_async_metric_is_refused():
    async def later(prediction, reference):
        return 1.0

    with pytest.raises(OptionError, match="not async"):
        reward_from_metric(later, reference_column="answer")
