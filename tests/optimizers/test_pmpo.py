import dataclasses
import re

import numpy as np
import pytest

from hfdataopt.errors import DataError, OptionError
from hfdataopt.prompting.likelihood import log_likelihoods
from hfdataopt_plugins.optimizers.pmpo import Pmpo
from tests import tiny
from tests.optimizers import search
from tests.optimizers.qualities import ITEMS, proposer, quality, reward


class Likelihoods(search.PlainServices):
    """A wanted answer is the likelier the better the instruction, a rejected one the less likely; each item has its own."""

    def __init__(self, seed=0):
        super().__init__(proposer(seed))
        self.calls = 0

    def log_likelihood(self, candidates, items, outputs):
        self.calls += len(candidates) * len(items)
        sign = [-1.0 if output.startswith("bad") else 1.0 for output in outputs]
        return np.array(
            [
                [s * quality(one.instruction) - int(item.id) / 10 for s, item in zip(sign, items, strict=True)]
                for one in candidates
            ]
        )


def preferences(**changes):
    of = search.task(ITEMS, **changes)
    items = [
        dataclasses.replace(item, columns={"chosen": f"good {item.id}", "rejected": f"bad {item.id}"})
        for item in of.items
    ]
    return dataclasses.replace(of, items=tuple(items))


def test_the_score_is_the_mean_margin_of_chosen_over_rejected():
    optimizer, helpers = Pmpo(rows=4), Likelihoods()
    search.run(optimizer, preferences(calls=200), reward, helpers, 500)
    for key, margins in optimizer.margins.items():
        assert margins == pytest.approx(2 * quality(optimizer.seen[key].instruction))
        assert len(margins) == 4
    best = max(optimizer.margins, key=lambda key: optimizer.margins[key].mean())
    assert optimizer.best.key == best
    assert len(optimizer.trials[0].items) == ITEMS


def test_without_preferences_it_is_that_of_the_answers():
    optimizer, helpers = Pmpo(), Likelihoods()
    search.run(optimizer, search.task(ITEMS, calls=150), reward, helpers, 500)
    key, values = next(iter(optimizer.margins.items()))
    assert values == pytest.approx(quality(optimizer.seen[key].instruction) - np.arange(ITEMS) / 10)


def test_a_likelihood_that_is_no_number_comes_last():
    optimizer, helpers = Pmpo(), Likelihoods()
    search.run(optimizer, search.task(ITEMS, calls=150), reward, helpers, 500)
    last = optimizer.by_likelihood()[0]
    optimizer.margins[last.key] = np.full(ITEMS, np.nan)
    assert optimizer.by_likelihood()[-1] == last


def test_the_proposer_reads_the_least_likely_rows():
    optimizer, helpers = Pmpo(worst=2), Likelihoods()
    search.run(optimizer, search.task(ITEMS, calls=150), reward, helpers, 500)
    rewrites = [text for text in helpers.asked if "Write a better instruction" in text]
    assert rewrites
    for text in rewrites:
        assert re.findall(r"^Input: (\d+)$", text, re.M) == [str(ITEMS - 1), str(ITEMS - 2)]

    optimizer, helpers = Pmpo(worst=1, rows=3), Likelihoods()
    search.run(optimizer, preferences(calls=150), reward, helpers, 500)
    text = next(text for text in helpers.asked if "Write a better instruction" in text)
    shown = re.findall(r"^Input: (\d+)\nOutput: bad (\d+)\nExpected: good (\d+)$", text, re.M)
    assert len(shown) == 1
    assert len(set(shown[0])) == 1


@pytest.mark.parametrize("calls", [60, 150])
def test_likelihoods_and_trials_stay_in_the_budget_and_the_search_gets_better(calls):
    gains = []
    for seed in range(10):
        optimizer, helpers = Pmpo(rows=5), Likelihoods(seed)
        search.run(optimizer, search.task(ITEMS, calls=calls, seed=seed), reward, helpers, 500)
        assert ITEMS < helpers.calls + sum(len(trial.items) for trial in optimizer.trials) <= calls
        made = [one for one in optimizer.seen.values() if one.origin == "induce"]
        gains.append(quality(optimizer.best.instruction) - max(quality(one.instruction) for one in made))
    assert np.mean(gains) > 0.05


def test_a_seed_reproduces_it():
    def keys(seed):
        optimizer = Pmpo()
        search.run(optimizer, preferences(calls=200, seed=seed), reward, Likelihoods(seed), 500)
        return list(optimizer.margins)

    assert keys(0) == keys(0) != keys(1)


def test_bad_input():
    of = search.task(ITEMS)
    bare = dataclasses.replace(of, items=tuple(dataclasses.replace(item, output=None) for item in of.items))
    with pytest.raises(DataError, match="chosen"):
        Pmpo().start(bare)
    with pytest.raises(OptionError, match="at least"):
        Pmpo().start(search.task(ITEMS, calls=10))


# -- the likelihoods themselves


def test_likelihoods_are_sums_of_the_models_log_probabilities():
    import torch

    model, tokenizer = tiny.llama(), tiny.tokenizer(special=False)
    found = log_likelihoods(model, tokenizer, ["the film was", "plot"], ["great fine", "dire"], 4)
    for text, start, value in (("the film was great fine", 3, found[0]), ("plot dire", 1, found[1])):
        ids = torch.tensor([tiny.word_ids(text)])
        with torch.no_grad():
            log = model(input_ids=ids).logits.double().log_softmax(-1)
        expected = sum(float(log[0, i - 1, ids[0, i]]) for i in range(start, ids.shape[1]))
        assert value == pytest.approx(expected, abs=1e-5)
    assert found.dtype == np.float64


def test_a_likelihood_does_not_depend_on_the_pairs_beside_it():
    model, tokenizer = tiny.llama(), tiny.tokenizer(special=False)
    rng = np.random.default_rng(0)
    prompts = [" ".join(rng.choice(tiny.PLAIN, rng.integers(1, 20))) for _ in range(12)]
    completions = [" ".join(rng.choice(tiny.GOOD, rng.integers(1, 4))) for _ in range(12)]
    together = log_likelihoods(model, tokenizer, prompts, completions, 4)
    order = rng.permutation(12)
    shuffled = log_likelihoods(model, tokenizer, [prompts[i] for i in order], [completions[i] for i in order], 4)
    alone = [log_likelihoods(model, tokenizer, [p], [c], 4)[0] for p, c in zip(prompts, completions, strict=True)]
    assert np.array_equal(together[order], shuffled)
    assert np.array_equal(together, alone)
    assert np.allclose(together, log_likelihoods(model, tokenizer, prompts, completions, 7), atol=1e-5)


def test_pairs_that_cannot_be_read_are_named():
    model, tokenizer = tiny.llama(), tiny.tokenizer(special=False)
    with pytest.raises(DataError, match="completion 1 has no tokens"):
        log_likelihoods(model, tokenizer, ["the", "film"], ["great", ""], 2)


def test_a_pair_that_is_too_long_has_no_likelihood_and_changes_no_other(capsys):
    model, tokenizer = tiny.llama(), tiny.tokenizer(special=False)
    found = log_likelihoods(model, tokenizer, ["the film", "the " * 100, "plot"], ["fine", "great", "dire"], 2)
    assert np.isnan(found).tolist() == [False, True, False]
    assert np.array_equal(found[[0, 2]], log_likelihoods(model, tokenizer, ["the film", "plot"], ["fine", "dire"], 2))
    assert "1 of 3 pairs of prompt and completion have up to 101 tokens" in capsys.readouterr().err


def test_an_instruction_that_is_too_long_never_wins():
    class Short(Likelihoods):
        """Cannot read the first instruction with one of the rows."""

        def log_likelihood(self, candidates, items, outputs):
            found = super().log_likelihood(candidates, items, outputs)
            for place, one in enumerate(candidates):
                if self.long is None or self.long == one.key:
                    self.long = one.key
                    found[place, -1] = np.nan
            return found

    helpers, optimizer = Short(), Pmpo()
    helpers.long = None
    search.run(optimizer, search.task(ITEMS, calls=150), reward, helpers, 500)
    assert helpers.long in optimizer.margins
    assert optimizer.by_likelihood()[-1].key == helpers.long != optimizer.best.key
    everything = Likelihoods()
    everything.log_likelihood = lambda candidates, items, outputs: np.full((len(candidates), len(items)), np.nan)
    with pytest.raises(DataError, match="too long for the model"):
        search.run(Pmpo(), search.task(ITEMS, calls=150), reward, everything, 500)
