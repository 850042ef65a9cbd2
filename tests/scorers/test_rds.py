"""RDS: cosines of last hidden states."""

from typing import Any

import numpy as np
import pytest
import torch

from hfdataopt import attribute, get_scorer
from hfdataopt.attribution.rows import pad_batch
from hfdataopt.errors import DataError, OptionError

from ..tiny import bert, encoded, gpt2, llama, questions


def states(model: Any, dataset: Any, place: str) -> torch.Tensor:
    """Unit vectors ``[rows, d]`` float64, one row at a time and without padding."""
    found = []
    for row in dataset:
        with torch.no_grad():
            hidden = model.base_model(input_ids=torch.tensor([row["input_ids"]])).last_hidden_state[0].double()
        state = {"last": hidden[-1], "mean": hidden.mean(0), "first": hidden[0]}[place]
        found.append(state / state.norm())
    return torch.stack(found)


def close(found: Any, expected: Any, rtol: float = 1e-4) -> None:
    np.testing.assert_allclose(found, np.asarray(expected), rtol=rtol, atol=0.1 * rtol)


def left(rows: list[Any]) -> dict[str, Any]:
    """Pads on the left, without telling positions."""
    batch = pad_batch(rows)
    turned = {name: torch.empty_like(x) for name, x in batch.items()}
    for name, x in batch.items():
        for i, row in enumerate(rows):
            length = len(row["input_ids"])
            turned[name][i] = torch.roll(x[i], x.shape[1] - length)
    return turned


@pytest.mark.parametrize("pooling", ["last", "mean", "first"])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_equals_hidden_states_by_hand(make: Any, pooling: Any) -> None:
    model, pool, queries = make().double().eval(), questions(7, 1), questions(4, 2)
    scores = attribute(model, pool, queries, "rds", pooling=pooling, batch_size=3)
    close(scores.matrix, states(model, pool, pooling) @ states(model, queries, pooling).T)
    np.testing.assert_allclose(scores.values, scores.matrix.mean(1))


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("collate", [None, left], ids=["right", "left"])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_padding_and_batches_change_nothing(make: Any, batch_size: int, collate: Any) -> None:
    model, pool, queries = make().double().eval(), questions(7, 1), questions(4, 2)
    assert len({len(row["input_ids"]) for row in pool}) > 1
    scores = attribute(model, pool, queries, "rds", batch_size=batch_size, data_collator=collate)
    close(scores.matrix, states(model, pool, "last") @ states(model, queries, "last").T)


def test_a_row_that_is_a_query_is_nearest_to_it() -> None:
    model, pool = llama().eval(), questions(9, 1)
    scores = attribute(model, pool, pool.select([4, 7]), "rds")
    assert scores.matrix.argmax(0).tolist() == [4, 7]
    np.testing.assert_allclose([scores.matrix[4, 0], scores.matrix[7, 1]], 1, rtol=1e-5)


def test_prompts_and_texts_are_read(tmp_path: Any) -> None:
    from ..policy import prompts, reader

    model, pool, queries = llama().double().eval(), prompts(5, 1), prompts(3, 2)
    scores = attribute(model, pool, queries, "rds", processing_class=reader(), output_dir=tmp_path)
    read = reader()

    def encode(data: Any) -> list[dict[str, Any]]:
        return [{"input_ids": read(row["prompt"] + row["completion"] + " <eos>")["input_ids"]} for row in data]

    close(scores.matrix, states(model, encode(pool), "last") @ states(model, encode(queries), "last").T)
    again = attribute(model, pool, queries, "rds", processing_class=reader(), output_dir=tmp_path)
    np.testing.assert_array_equal(again.matrix, scores.matrix)


def test_a_classifier() -> None:
    model, pool, queries = bert().double().eval(), encoded(6, 1), encoded(3, 2)
    scores = attribute(model, pool, queries, "rds", batch_size=4)
    close(scores.matrix, states(model, pool, "last") @ states(model, queries, "last").T)


def test_rows_that_are_not_finite(capsys: Any) -> None:
    model, pool = bert().eval(), encoded(8, 1, ids=True)
    word = pool[2]["input_ids"][1]
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[word] = float("inf")
    bad = [i for i, row in enumerate(pool) if word in row["input_ids"]]
    queries = pool.select([i for i in range(8) if i not in bad][:2])
    with pytest.raises(DataError, match=f"rds: the hidden state of {len(bad)} .*not finite: 'r{bad[0]}'"):
        attribute(model, pool, queries, "rds")
    scores = attribute(model, pool, queries, "rds", on_nonfinite="skip")
    assert np.flatnonzero(np.isnan(scores.values)).tolist() == bad
    assert "they get no score" in capsys.readouterr().err


def test_declares_helpfulness() -> None:
    scorer: Any = get_scorer("rds")
    assert (scorer.meaning, scorer.default_when, scorer.combine) == ("helpfulness", "train_end", "last")
    assert scorer.pooling == "last"
    with pytest.raises(OptionError, match=r"rds: option pooling='middle' is not allowed"):
        get_scorer("rds", pooling="middle")
