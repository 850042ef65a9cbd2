"""Planted flips lie low, the score is cleanlab's on the same probabilities, and it does not depend on batches or order."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from hfdataopt import diverse, get_filter, quantile
from hfdataopt.errors import DataError, MissingDependencyError, OptionError
from hfdataopt.selection.keys import keys_of, uniform

from .whole import check_whole

cleanlab_rank = pytest.importorskip("cleanlab.rank")
TREC = Path(__file__).parents[3] / "shared" / "data" / "classification" / "trec" / "train.jsonl"
TOPICS = {"food": ["soup", "salt", "bread", "oven", "spoon"], "law": ["court", "judge", "appeal", "jury", "bail"]}
TOPICS["sea"] = ["wave", "ship", "port", "sail", "tide"]
COMMON = ["the", "of", "a", "is", "was", "it"]


def planted(rows=150, flips=15, seed=0):
    """Texts of three topics, ``row_id``, the label by topic but for the flips, and which are flipped."""
    draws = np.random.default_rng(seed)
    names = list(TOPICS)
    classes = draws.integers(3, size=rows)
    texts = [" ".join(draws.choice([*COMMON, *TOPICS[names[c]]], 12)) for c in classes]
    flipped = np.zeros(rows, dtype=bool)
    flipped[draws.permutation(rows)[:flips]] = True
    labels = np.where(flipped, (classes + draws.integers(1, 3, rows)) % 3, classes)
    return Dataset.from_dict({"text": texts, "label": labels.tolist(), "row_id": list(range(rows))}), flipped


def area(scores, flipped):
    """The chance that a flipped row scores below another one."""
    low, high = scores[flipped][:, None], scores[~flipped][None]
    return ((low < high) + 0.5 * (low == high)).mean()


def scores_of(data, **options):
    return np.array(data.map(get_filter("label-errors", **options).fit(data), batched=True)["score_label_errors"])


@pytest.mark.parametrize("method", ["self_confidence", "normalized_margin", "confidence_weighted_entropy"])
@pytest.mark.parametrize("seed", range(2))
def test_planted_flips_lie_low(method, seed):
    data, flipped = planted(seed=seed)
    assert area(scores_of(data, method=method), flipped) > 0.97
    assert get_filter("label-errors").meaning == "suspicion"


@pytest.mark.parametrize("adjust", [False, True])
def test_it_is_cleanlabs_score_of_out_of_fold_probabilities(adjust):
    """Features and folds made anew: tf-idf by its formula, rows in their own order, folds by (seed, row id)."""
    data, _ = planted()
    counts = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\w+").fit_transform(data["text"][:]).toarray()
    inverse = np.log((1 + len(data)) / (1 + (counts > 0).sum(axis=0))) + 1
    features = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0) * inverse
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    fold = (uniform(7, keys_of(data["row_id"][:])) * 4).astype(int)
    labels = np.array(data["label"])
    probabilities = np.zeros((len(data), 3))
    for part in range(4):
        model = LogisticRegression(C=30, max_iter=1000).fit(features[fold != part], labels[fold != part])
        probabilities[fold == part] = model.predict_proba(features[fold == part])
    expected = cleanlab_rank.get_label_quality_scores(labels, probabilities, adjust_pred_probs=adjust)
    np.testing.assert_allclose(scores_of(data, folds=4, seed=7, adjust=adjust), expected, atol=2e-3)


def test_given_probabilities_are_used_as_they_are():
    data, _ = planted(40)
    given = np.random.default_rng(0).dirichlet(np.ones(3), 40)
    data = data.add_column("p", given.tolist()).remove_columns("text")
    expected = given[np.arange(40), data["label"][:]]
    np.testing.assert_allclose(scores_of(data, probabilities="p"), expected)
    others = np.where(np.arange(3) == np.array(data["label"])[:, None], -1, given).max(axis=1)
    margin = scores_of(data, probabilities="p", method="normalized_margin")
    np.testing.assert_allclose(margin, (1 + expected - others) / 2)


def test_the_scores_and_rows_do_not_depend_on_batches_or_order():
    data, _ = planted()
    data = data.map(lambda row: {"label": list(TOPICS)[row["label"]]})
    fitted, scores = check_whole(get_filter("label-errors", keep=quantile(0.1)), data)
    assert fitted.columns == ["text", "label", "row_id"]
    other = scores_of(data, seed=1)
    assert not np.array_equal(scores, other)


def test_no_row_is_judged_by_a_model_that_saw_it():
    """Each row has words of its own and a label by chance: a model that saw them would be sure of every label."""
    draws = np.random.default_rng(0)
    texts = [" ".join(f"w{i}x{j}" for j in range(6)) for i in range(100)]
    data = Dataset.from_dict({"text": texts, "label": draws.integers(2, size=100).tolist(), "row_id": list(range(100))})
    assert abs(scores_of(data).mean() - 0.5) < 0.1


def test_without_ids_the_label_belongs_to_the_key():
    data, flipped = planted()
    scores = scores_of(data.remove_columns("row_id"))
    assert area(scores, flipped) > 0.97
    rows = data.remove_columns("row_id").to_list()
    twice = Dataset.from_list([*rows, {**rows[0], "label": (rows[0]["label"] + 1) % 3}, rows[1]])
    scores = scores_of(twice)
    assert scores[0] != scores[-2]
    assert scores[1] == scores[-1]


def test_diverse_reads_the_text_and_not_the_label():
    data, _ = planted()
    fitted = get_filter("label-errors", keep=diverse(k=10)).fit(data)
    assert len(data.filter(fitted.keep, batched=True, input_columns=fitted.columns)) == 10


def test_rows_without_label_have_no_score():
    data, _ = planted()
    labels = data["label"][:]
    labels[3] = None
    data = data.remove_columns("label").add_column("label", labels)
    fitted = get_filter("label-errors", on_nan="drop").fit(data)
    scores = data.map(fitted, batched=True)["score_label_errors"][:]
    assert [i for i, score in enumerate(scores) if np.isnan(score)] == [3]


def test_without_cleanlab_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cleanlab.rank", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'hfdataopt\[cleanlab\]'"):
        get_filter("label-errors").fit(planted()[0])


def refused(message, columns, **options):
    with pytest.raises(DataError, match=message):
        get_filter("label-errors", **options).fit(Dataset.from_dict(columns))


def test_bad_data_is_refused():
    texts = [f"text {i}" for i in range(6)]
    refused("no column 'label'; it has: text", {"text": texts})
    refused("no column 'p'", {"text": texts, "label": [0, 1] * 3}, probabilities="p")
    refused("integers or strings, one kind; got float", {"text": texts, "label": [0.5, 1.0] * 3})
    refused("holds -1", {"text": texts, "label": [0, 1, -1] * 2})
    refused("all labels are 1", {"text": texts, "label": [1] * 6})
    refused("too few to divide", {"text": texts[:2], "label": [0, 1]})
    wrong = {"label": [0, 1] * 3}
    refused("no probabilities", {**wrong, "p": [[0.5, 0.6]] * 6}, probabilities="p")
    refused("no probabilities", {**wrong, "p": [[1.5, -0.5]] * 6}, probabilities="p")
    refused("equally many numbers", {**wrong, "p": [[0.5, 0.5]] * 5 + [[1.0]]}, probabilities="p")
    refused("two probabilities or more", {**wrong, "p": [0.5] * 6}, probabilities="p")
    refused(
        "holds 2; with probabilities of 2 classes", {"label": [0, 1, 2] * 2, "p": [[0.5, 0.5]] * 6}, probabilities="p"
    )


@pytest.mark.parametrize(
    "options",
    [
        {"folds": 1},
        {"method": "entropy"},
        {"adjust": True, "method": "confidence_weighted_entropy"},
        {"probabilities": "p", "text": "text"},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(OptionError, match="label-errors"):
        get_filter("label-errors", **options)


@pytest.mark.skipif(not TREC.is_file(), reason="the data folder ../shared/data is not here")
def test_flips_among_real_questions_lie_low():
    """1,000 questions of TREC in six classes, 5 % flipped; out-of-fold accuracy is some 0.75."""
    rows = [json.loads(line) for line in TREC.open()]
    draws = np.random.default_rng(0)
    rows = [rows[i] for i in draws.permutation(len(rows))[:1000]]
    flipped = np.zeros(1000, dtype=bool)
    flipped[draws.permutation(1000)[:50]] = True
    labels = [
        (row["label"] + int(draws.integers(1, 6))) % 6 if flip else row["label"]
        for row, flip in zip(rows, flipped, strict=True)
    ]
    data = Dataset.from_dict({"text": [row["text"] for row in rows], "label": labels, "row_id": list(range(1000))})
    scores = scores_of(data)
    assert area(scores, flipped) > 0.9
    assert flipped[np.argsort(scores)[:50]].mean() > 0.3
