"""DSIR against its formula on Counters of n-grams, and the same whatever the batches."""

import hashlib
import math
import re
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset

from hfdataopt import get_filter, sample, top
from hfdataopt.errors import DataError, OptionError

from .invariance import check_invariance

RNG = np.random.default_rng(0)
COMMON = ["the", "of", "it", "is", ".", ","]
LAW, FOOD = ["court", "law", "judge", "appeal"], ["soup", "salt", "bread", "oven"]


def text(topic, length):
    return " ".join(RNG.choice([*COMMON, *topic], length))


ROWS = [text(LAW if i % 3 == 0 else FOOD, RNG.integers(4, 30)) for i in range(60)]
DATA = Dataset.from_dict({"text": ROWS, "row_id": [f"r{i}" for i in range(60)], "law": [i % 3 == 0 for i in range(60)]})
TARGET = Dataset.from_dict({"text": [text(LAW, 20) for _ in range(8)]})


def counts(texts, ngrams=2, buckets=10_000):
    found = Counter()
    for words in (re.findall(r"\w+|[^\w\s]+", text.lower()) for text in texts):
        for n in range(1, ngrams + 1):
            for i in range(len(words) - n + 1):
                digest = hashlib.sha256(" ".join(words[i : i + n]).encode()).hexdigest()
                found[int(digest, 16) % buckets] += 1
    return found


def expected(texts, ngrams=2, buckets=10_000):
    pool, target = (counts(found, ngrams, buckets) for found in (ROWS, TARGET["text"][:]))

    def log_ratio(bucket):
        return math.log(target[bucket] / target.total() + 1e-8) - math.log(pool[bucket] / pool.total() + 1e-8)

    return [math.fsum(log_ratio(bucket) * n for bucket, n in counts([t], ngrams, buckets).items()) for t in texts]


@pytest.mark.parametrize("options", [{}, {"ngrams": 1}, {"ngrams": 3, "buckets": 50}])
def test_the_score_is_the_log_importance_weight(options):
    f = get_filter("dsir", **options).fit(DATA, TARGET)
    scored = DATA.map(f, batched=True)["score_dsir"]
    np.testing.assert_allclose(scored, expected(ROWS, **options), rtol=0, atol=1e-6)
    new = ["a court of appeal, then bread", "unseen", ""]
    np.testing.assert_allclose(f({"text": new, "row_id": [*"xyz"]})["score_dsir"], expected(new, **options), atol=1e-6)


@pytest.mark.parametrize("hash", ["sha256", "vectorised"])
def test_per_token_is_the_mean_over_ngrams_and_forgets_length(hash):
    sums = get_filter("dsir", hash=hash).fit(DATA, TARGET)
    means = get_filter("dsir", hash=hash, reduction="per-token").fit(DATA, TARGET)
    lengths = np.array([counts([text]).total() for text in ROWS])
    batch = {"text": ROWS, "row_id": DATA["row_id"][:]}
    np.testing.assert_allclose(means(batch)["score_dsir"], sums(batch)["score_dsir"] / lengths, rtol=1e-12)
    twice = {"text": ["law . law . law", "law . law . law . law . law"], "row_id": ["a", "b"]}
    assert abs(np.diff(sums(twice)["score_dsir"])) > 3 * abs(np.diff(means(twice)["score_dsir"]))
    assert means({"text": [""], "row_id": ["a"]})["score_dsir"] == [0.0]


@pytest.mark.parametrize("hash", ["sha256", "vectorised"])
def test_rows_like_the_target_are_kept(hash):
    f = get_filter("dsir", hash=hash, ngrams=1, keep=top(k=20)).fit(DATA, TARGET)
    assert all(DATA.filter(f.keep, batched=True, input_columns=f.columns)["law"][:])


def test_the_vectorised_hash_differs_only_by_collisions():
    """With so many buckets that none is shared, the two hashes give the same weights."""
    options = {"buckets": 1_000_000}
    both = [get_filter("dsir", hash=hash, **options).fit(DATA, TARGET) for hash in ("sha256", "vectorised")]
    scores = [f({"text": ROWS, "row_id": DATA["row_id"][:]})["score_dsir"] for f in both]
    np.testing.assert_array_equal(*scores)


@pytest.mark.parametrize("hash", ["sha256", "vectorised"])
def test_scores_are_the_same_everywhere(hash):
    check_invariance(get_filter("dsir", hash=hash), DATA, TARGET)


def test_scores_do_not_depend_on_the_neighbours_in_long_batches():
    f = get_filter("dsir").fit(DATA, TARGET)
    texts = [text(LAW, int(length)) for length in RNG.integers(0, 80, 300)]
    together = f({"text": texts, "row_id": [str(i) for i in range(300)]})["score_dsir"]
    alone = [f({"text": [text], "row_id": ["a"]})["score_dsir"][0] for text in texts]
    assert together.tolist() == alone


def test_the_rule_sample_draws_by_the_weights():
    """Gumbel noise is in the rule, not in the score; over seeds, rows of high weight come more often."""
    drawn = Counter()
    for seed in range(30):
        f = get_filter("dsir", keep=sample(k=6, seed=seed, temperature=20.0)).fit(DATA, TARGET)
        drawn.update(DATA.filter(f.keep, batched=True, input_columns=f.columns)["row_id"][:])
    scores = np.array(expected(ROWS))
    often = np.array([drawn[name] for name in DATA["row_id"]])
    assert often[np.argsort(-scores)[:15]].mean() > 2 * often[np.argsort(-scores)[15:]].mean()
    assert len(drawn) > 12, "not always the same rows"


def test_fit_reads_the_first_rows_of_a_stream():
    part = get_filter("dsir", fit_rows=10).fit(DATA.to_iterable_dataset(), TARGET)
    first = get_filter("dsir").fit(DATA.select(range(10)), TARGET)
    np.testing.assert_array_equal(part.weights, first.weights)
    assert (part.weights != get_filter("dsir").fit(DATA, TARGET).weights).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ngrams": 0}, "ngrams=0 must be at least 1"),
        ({"buckets": 1}, "buckets=1 must be at least 2"),
        ({"hash": "md5"}, "hash='md5' is not allowed"),
        ({"reduction": "mean"}, "reduction='mean' is not allowed"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(OptionError, match=message):
        get_filter("dsir", **options)


def test_bad_input():
    nothing = Dataset.from_dict({"text": ["", " "]})
    with pytest.raises(OptionError, match="dsir: compares rows with validation data; give target="):
        get_filter("dsir").fit(DATA)
    with pytest.raises(DataError, match=r"dsir: target has no words in \['text'\]"):
        get_filter("dsir").fit(DATA, nothing)
    with pytest.raises(DataError, match=r"dsir: the dataset has no words in \['text'\]"):
        get_filter("dsir").fit(nothing, TARGET)
    with pytest.raises(DataError, match="dsir: target is empty"):
        get_filter("dsir").fit(DATA, TARGET.select([]))


def test_a_sum_that_is_minus_the_length_is_said(capsys):
    generator = np.random.default_rng(0)
    words = [f"w{i}" for i in range(3000)]
    pool = Dataset.from_dict({"text": [" ".join(generator.choice(words, n)) for n in generator.integers(5, 200, 300)]})
    target = Dataset.from_dict({"text": ["w1 w2 w3"]})
    get_filter("dsir").fit(pool, target)
    assert "ranks rows by length (rank correlation -" in capsys.readouterr().err
    get_filter("dsir", reduction="per-token").fit(pool, target)
    assert "by length" not in capsys.readouterr().err
