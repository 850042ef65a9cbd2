"""Keep rules against their definitions, and cuts that keep row by row what a rule chose from the whole."""

import itertools

import numpy as np
import pytest

from hfdataopt import balance, diverse, quantile, sample, threshold, top
from hfdataopt.errors import DataError, OptionError
from hfdataopt.selection.keys import keys_of
from hfdataopt.selection.rules import Candidates, even_sizes

VALUES = np.array([3.0, 1.0, 3.0, 2.0, 3.0, np.nan, 0.0, 2.0])
NAMES = ["h", "g", "f", "e", "d", "c", "b", "a"]
LABELS = [0, 0, 0, 1, 1, 1, 2, 2]


def candidates(values=VALUES, ids=NAMES, groups=None, vectors=None):
    return Candidates(np.asarray(values, float), lambda positions: [ids[i] for i in positions], groups, vectors)


def chosen(rule, **options):
    return rule.choose(candidates(**options)).tolist()


def test_top_keeps_exactly_k_and_ties_go_by_id():
    assert chosen(top(k=1)) == [4], "d is the first of d, f, h"
    assert chosen(top(k=2)) == [2, 4]
    assert chosen(top(k=4)) == [0, 2, 4, 7], "a before e"
    assert chosen(top(fraction=0.25)) == [2, 4]
    assert chosen(top(k=7)) == [0, 1, 2, 3, 4, 6, 7]


def test_threshold_and_quantile_keep_rows_at_the_limit():
    assert chosen(threshold(2)) == [0, 2, 3, 4, 7]
    assert chosen(quantile(0.5)) == [0, 2, 3, 4, 7]
    assert chosen(quantile(1.0)) == [0, 2, 4]
    assert chosen(quantile(0.0)) == [0, 1, 2, 3, 4, 6, 7]


def test_balance_takes_equally_many_of_each_class():
    assert chosen(balance("label", k=3), groups=LABELS) == [2, 4, 7]
    assert chosen(balance("label", k=6), groups=LABELS) == [0, 2, 3, 4, 6, 7]
    assert chosen(balance("label", k=7), groups=LABELS) == [0, 1, 2, 3, 4, 6, 7], "a class with two gives two"


@pytest.mark.parametrize("total", range(0, 13))
def test_even_sizes_is_the_most_equal_split(total):
    available = {"a": 1, "b": 3, "c": 3, "d": 5}
    sizes = even_sizes(available, total)
    assert sum(sizes.values()) == total
    splits = itertools.product(*(range(size + 1) for size in available.values()))
    best = max(sorted(split) for split in splits if sum(split) == total)
    assert sorted(sizes.values()) == best, "the smallest is as large as can be, then the next"
    assert all(sizes[name] <= size for name, size in available.items())


def test_sample_draws_in_proportion_to_exp_of_the_score():
    """First draws of many seeds have the probabilities of the softmax; pairs those of drawing without replacement."""
    scores, keys = np.array([0.0, 1.0, 2.0, 0.5]), keys_of(list("abcd"))
    temperature, draws = 0.8, 6000
    p = np.exp(scores / temperature) / np.exp(scores / temperature).sum()
    counts, pairs = np.zeros(4), np.zeros((4, 4))
    for seed in range(draws):
        values = sample(k=1, temperature=temperature, seed=seed).values(scores, lambda: keys)
        counts[sample(k=1).choose(candidates(values, list("abcd")))[0]] += 1
        a, b = sample(k=2).choose(candidates(values, list("abcd")))
        pairs[a, b] += 1
    assert np.abs(counts / draws - p).max() < 0.02
    for a, b in itertools.combinations(range(4), 2):
        assert abs(pairs[a, b] / draws - p[a] * p[b] * (1 / (1 - p[a]) + 1 / (1 - p[b]))) < 0.02


def test_a_draw_is_a_function_of_seed_and_key():
    scores, keys = np.arange(6.0), keys_of(list("abcdef"))
    order = [3, 1, 5, 0, 2, 4]
    values, moved = (
        sample(k=2, seed=4).values(scores, lambda: keys),
        sample(k=2, seed=4).values(scores[order], lambda: keys[order]),
    )
    assert (values[order] == moved).all()
    assert (values != sample(k=2, seed=5).values(scores, lambda: keys)).all()


@pytest.mark.parametrize(
    "rule", [top(k=1), top(k=2), top(k=4), top(k=7), threshold(2), quantile(0.4), sample(k=3), balance("x", k=5)]
)
def test_a_cut_keeps_row_by_row_what_was_chosen(rule):
    values = rule.values(VALUES, lambda: keys_of(NAMES))
    rows = candidates(values, groups=LABELS if rule.group_column else None)
    kept = rule.choose(rows)
    cut = rule.cut(rows, kept)
    for size in (1, 3, 8):
        found = []
        for start in range(0, len(values), size):
            part = slice(start, start + size)
            groups = LABELS[part] if rule.group_column else None
            mask = cut(values[part], lambda positions, part=part: [NAMES[part][i] for i in positions], groups)
            found += (np.flatnonzero(mask) + start).tolist()
        assert found == kept.tolist()


def test_a_class_the_rule_never_saw_is_an_error():
    rows = candidates(groups=LABELS)
    rule = balance("x", k=3)
    cut = rule.cut(rows, rule.choose(rows))
    with pytest.raises(DataError, match="class 9 was not among the rows"):
        cut(np.zeros(1), lambda positions: ["z"], [9])
    nothing = rule.cut(rows, np.array([2]))
    assert not nothing(np.array([99.0]), lambda positions: ["z"], [1]).any(), "a class of which none is kept is known"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: top(), "exactly one of k and fraction; got k=None, fraction=None"),
        (lambda: top(k=1, fraction=0.5), "exactly one"),
        (lambda: top(k=0), "top: k=0 must be at least 1"),
        (lambda: top(k=1.5), "top: option k=1.5 is not allowed"),
        (lambda: sample(fraction=0.0), "sample: fraction=0.0 must be at most 1 and above 0"),
        (lambda: sample(fraction=1.1), "must be at most 1 and above 0"),
        (lambda: sample(k=1, temperature=0.0), "temperature=0.0 must be above 0"),
        (lambda: quantile(1.5), "quantile: q=1.5 must be at least 0 and at most 1"),
        (lambda: threshold("high"), "value='high' is not allowed"),
        (lambda: threshold(float("nan")), "is not allowed"),
        (lambda: diverse(k=1, candidates=0.5), "candidates=0.5 must be at least 1"),
        (lambda: top(k=9).choose(candidates()), "k=9 must be a whole number from 1 to 8"),
        (lambda: top(k=8).choose(candidates()), "top asks for 8 rows but only 7 have a score"),
        (lambda: diverse(k=2).choose(candidates()), "needs representations of rows"),
    ],
)
def test_sizes_and_options_out_of_range(make, message):
    with pytest.raises(OptionError, match=message):
        make()


def test_diverse_chooses_among_the_best_and_starts_with_them():
    vectors = np.array([[1, 0], [1, 0.1], [1, 0.05], [0, 1], [1, 0.02], [9, 9], [0, 1], [0.1, 1]], float)
    picked = chosen(diverse(k=2, candidates=2.5), vectors=lambda positions: vectors[positions])
    assert picked[1] in (3, 7), "one of the second direction"
    assert picked[0] in (0, 2, 4)
    assert chosen(diverse(k=3, candidates=1), vectors=lambda positions: vectors[positions]) == [0, 2, 4], "top"
    farthest = chosen(
        diverse(k=2, candidates=2.5, method="farthest-first"), vectors=lambda positions: vectors[positions]
    )
    assert farthest == [3, 4], "d, the first of the best rows, then the first of those farthest from it"
