"""Near-duplicates against the Jaccard similarity of all pairs, and the same whatever the batches."""

import sys

import numpy as np
import pytest
from datasets import Dataset

from hfdataopt import get_filter, threshold
from hfdataopt.errors import DataError, MissingDependencyError, OptionError

from .whole import check_whole

RNG = np.random.default_rng(0)
WORDS = np.array([f"w{i}" for i in range(400)])


def variants(text, changes):
    """The text with so many words replaced."""
    words = text.split()
    for place in RNG.choice(len(words), changes, replace=False):
        words[place] = f"new{RNG.integers(10**6)}"
    return " ".join(words)


ORIGINALS = [" ".join(RNG.choice(WORDS, RNG.integers(30, 80))) for _ in range(40)]
TEXTS = [*ORIGINALS, *(variants(text, changes) for text in ORIGINALS for changes in (0, 1, 2, 4))]
DATA = Dataset.from_dict({"text": TEXTS, "row_id": list(range(len(TEXTS)))}).shuffle(seed=3)


def shingles(text, size=5):
    words = text.split()
    return {tuple(words[i : i + size]) for i in range(max(1, len(words) - size + 1))}


def plain(texts, limit, size=5):
    """All pairs, row by row: minus the largest similarity to an earlier row that is kept, where it reaches the limit."""
    kept, scores = [], []
    for found in (shingles(text, size) for text in texts):
        near = max((len(found & other) / len(found | other) for other in kept), default=0)
        scores.append(-near if near >= limit else 0.0)
        if near < limit:
            kept.append(found)
    return np.array(scores)


def scores_of(filter, data):
    return np.array(data.map(filter.fit(data), batched=True)["score_near_duplicates"])


@pytest.mark.parametrize(("limit", "size"), [(0.5, 5), (0.7, 5), (0.8, 3), (0.95, 2)])
def test_scores_are_those_of_all_pairs(limit, size):
    """But for at most two rows in a hundred, which MinHash missed and which are then kept."""
    rows = DATA.sort("row_id")
    expected = plain(TEXTS, limit, size)
    assert 40 <= (expected < 0).sum() < len(TEXTS) - 40
    assert (np.abs(expected[expected < 0] + limit) < 0.05).any()  # some lie just above the threshold
    found = scores_of(get_filter("near-duplicates", similarity=limit, shingle=size, permutations=512), rows)
    missed = (found == 0) & (expected < 0)
    assert missed.mean() <= 0.02
    np.testing.assert_allclose(found[~missed], expected[~missed])


@pytest.mark.parametrize("seed", range(3))
def test_by_default_few_pairs_near_the_threshold_are_missed_and_none_below_counts(seed):
    """Pairs of Jaccard similarity 46/56 = 0.821 and 46/58 = 0.793: one changed word in 55, and two more words."""
    draws = np.random.default_rng(seed)
    texts = []
    for i in range(300):
        words = [f"a{i}x{j}" for j in draws.permutation(55)]
        changed = [*words[:20], "changed", *words[21:]]
        texts += [" ".join(words), " ".join(changed if i % 2 else [*changed, "and", "more"])]
    data = Dataset.from_dict({"text": texts, "row_id": list(range(len(texts)))})
    scores = scores_of(get_filter("near-duplicates", seed=seed), data)
    above, below = scores[3::4], scores[1::4]
    assert set(above) <= {0.0, -46 / 56}
    assert (above < 0).mean() > 0.95
    assert (below == 0).all()
    assert (scores[::2] == 0).all()


def test_the_scores_and_rows_do_not_depend_on_batches_or_order():
    filter = get_filter("near-duplicates", keep=threshold(0.0))
    fitted, _ = check_whole(filter, DATA)
    kept = DATA.filter(fitted.keep, batched=True, input_columns=fitted.columns)["row_id"][:]
    assert sorted(kept) == [row for row in range(len(TEXTS)) if plain(TEXTS, 0.8)[row] == 0]
    assert set(kept) >= set(range(40))


def test_a_stricter_threshold_can_follow_from_the_scores():
    data = DATA.sort("row_id")
    fitted = get_filter("near-duplicates", keep=threshold(-0.99), similarity=0.5).fit(data)
    kept = data.filter(fitted.keep, batched=True, input_columns=fitted.columns)
    copies = set(range(40, len(TEXTS), 4))
    assert set(range(len(TEXTS))) - set(kept["row_id"]) == copies


def test_ids_of_words_are_taken_in_their_order():
    data = Dataset.from_dict({"text": ["one two three", "other words", "one two three"], "row_id": ["c", "b", "a"]})
    assert scores_of(get_filter("near-duplicates"), data).tolist() == [-1, 0, 0]


def test_characters_short_texts_and_empty_ones():
    def scores(texts, **options):
        data = Dataset.from_dict({"text": texts, "row_id": list(range(len(texts)))})
        return scores_of(get_filter("near-duplicates", **options), data).tolist()

    assert scores(["Yes, no", "yes no", "no yes", "", "!", "", "!"]) == [0, -1, 0, 0, 0, -1, -1]
    # abcdef: abcde bcdef; abcdeg: abcde bcdeg
    assert scores(["abcdef", "abcdeg", "ABCDEF"], unit="characters", similarity=0.3) == [0, -1 / 3, 0]
    assert scores(["a b c", "a b d"], shingle=1, similarity=0.5) == [0, -0.5]


def test_rows_without_text_take_no_part():
    data = Dataset.from_dict({"text": [None, "", "x y"], "row_id": [0, 1, 2]})
    fitted = get_filter("near-duplicates", on_nan="drop").fit(data)
    np.testing.assert_array_equal(data.map(fitted, batched=True)["score_near_duplicates"][:], [np.nan, 0, 0])
    with pytest.raises(DataError, match="row 0 is None"):
        data.map(get_filter("near-duplicates").fit(data), batched=True)


def test_without_datasketch_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'hfdataopt\[filters\]'"):
        get_filter("near-duplicates").fit(DATA)


def test_equal_texts_need_row_ids():
    rows = Dataset.from_dict({"text": ["a b c", "d e f", "a b c"]})
    with pytest.raises(DataError, match="with_row_ids"):
        get_filter("near-duplicates").fit(rows)
    apart = Dataset.from_dict({"text": ["a b c", "d e f", "A b c!"]})
    fitted = get_filter("near-duplicates", keep=threshold(0.0)).fit(apart)
    assert apart.filter(fitted.keep, batched=True, input_columns=fitted.columns)["text"][:] == ["a b c", "d e f"]


@pytest.mark.parametrize(
    "options",
    [{"similarity": 0.0}, {"similarity": 1.1}, {"shingle": 0}, {"permutations": 1}, {"unit": "tokens"}, {"seed": -1}],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(OptionError, match="near-duplicates"):
        get_filter("near-duplicates", **options)
