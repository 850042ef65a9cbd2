"""IFD: the ratio of two one-by-one losses over the same tokens, and misaligned rows below all others."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from hfdataopt import get_filter, threshold, top
from hfdataopt.errors import DataError, OptionError
from tests import tiny
from tests.filters.invariance import check_invariance
from tests.tiny import word_ids as ids

START = 5  # the end of sequence, which stands in front where a tokenizer has no first token


def mean_loss(model, before, scored):
    labels = torch.tensor([[-100] * len(before) + scored])
    with torch.no_grad():
        return float(model.eval()(input_ids=torch.tensor([before + scored]), labels=labels).loss)


def data(rows=60):
    texts = tiny.texts(rows)["text"][:]
    answers = [" " + " ".join(text.split()[: 1 + i % 7]) for i, text in enumerate(reversed(texts))]
    return Dataset.from_dict({"prompt": texts, "completion": answers, "row_id": list(range(rows))})


def ratios(folder, rows):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    return np.array(
        [
            mean_loss(model, [START, *ids(row["prompt"])], ids(row["completion"]))
            / mean_loss(model, [START], ids(row["completion"]))
            for row in rows
        ]
    )


def test_the_loss_given_the_prompt_over_the_loss_alone(folder):
    rows = data()
    f = get_filter("ifd", model=folder).fit(rows)
    found, expected = f(rows[:])["score_ifd"], ratios(folder, rows)
    np.testing.assert_allclose(np.abs(found), expected, rtol=1e-5)
    aligned = expected < 1
    assert 5 < aligned.sum() < 55, "both kinds are among the rows"
    assert (found[aligned] > 0).all()
    assert (found[~aligned] <= -1).all()


def test_hard_rows_first_and_misaligned_rows_last(folder):
    rows = data()
    expected = ratios(folder, rows)
    f = get_filter("ifd", model=folder, keep=threshold(0.0)).fit(rows)
    kept = rows.filter(f.keep, batched=True, input_columns=f.columns)["row_id"][:]
    assert kept == np.flatnonzero(expected < 1).tolist()
    f = get_filter("ifd", model=folder, keep=top(k=4)).fit(rows)
    kept = rows.filter(f.keep, batched=True, input_columns=f.columns)["row_id"][:]
    assert kept == sorted(np.argsort(np.where(expected < 1, expected, -np.inf))[-4:].tolist())


def test_both_losses_are_over_the_tokens_that_fit(folder):
    long = " ".join(["the film was fine and"] * 20)
    rows = Dataset.from_dict({"prompt": ["it was very"], "completion": [" " + long]})
    found = get_filter("ifd", model=folder).fit(rows)(rows[:])["score_ifd"]
    short = Dataset.from_dict({"prompt": ["it was very"], "completion": [" ".join(long.split()[: 32 - 4])]})
    np.testing.assert_allclose(np.abs(found), ratios(folder, short), rtol=1e-5)


def test_the_same_scores_and_rows_however_it_runs(folder):
    check_invariance(get_filter("ifd", model=folder), data())


def test_a_tokenizer_without_any_first_token_leaves_the_first_out():
    model, read = tiny.llama(), tiny.tokenizer(special=False)
    read.eos_token = None
    rows = Dataset.from_dict({"prompt": ["the film", "it"], "completion": [" was very fine", " was"]})
    f = get_filter("ifd", model=model, processing_class=read, on_nan="drop").fit(rows)
    given = mean_loss(model, ids("the film was"), ids("very fine"))
    alone = mean_loss(model, ids("was"), ids("very fine"))
    found = f(rows[:])["score_ifd"]
    assert abs(found[0]) == pytest.approx(given / alone, rel=1e-5)
    assert np.isnan(found[1]), "one token, with nothing before it when it stands alone"


@pytest.mark.parametrize(
    "columns",
    [
        {"prompt": ["it was", ""], "completion": [" fine", "fine"]},
        {"prompt": ["it was", "it was"], "completion": [" fine", ""]},
        {"prompt": ["it was", None], "completion": [" fine", " fine"]},
    ],
)
def test_a_row_without_a_prompt_or_an_answer_has_no_score(folder, columns):
    rows = Dataset.from_dict(columns)
    found = get_filter("ifd", model=folder, on_nan="drop").fit(rows)(rows[:])["score_ifd"]
    assert [bool(np.isnan(value)) for value in found] == [False, True]
    with pytest.raises(DataError, match=r"has no score|is None"):
        get_filter("ifd", model=folder).fit(rows)(rows[:])


def test_rows_of_text_alone_have_no_prompt(folder):
    rows = Dataset.from_dict({"text": ["the film was fine"]})
    with pytest.raises(DataError, match="has no score"):
        get_filter("ifd", model=folder).fit(rows)(rows[:])
    with pytest.raises(OptionError, match="ifd: give model="):
        get_filter("ifd").fit(rows)
