"""Weighted completions of queries: which are kept, what a batch of them holds, and what tells them apart."""

from typing import Any

import pytest
import torch

from hfdataopt.attribution.samples import Sample, Samples

CPU = torch.device("cpu")


def make(weight: float = 0.5, last: int = 9, order: int = 1) -> Samples:
    """Three queries: one with a weightless and an empty sample, one with none, one with two of other lengths."""
    return Samples(
        [
            [Sample([1, 2], [3], weight), Sample([1, 2], [4, 5], 0.0), Sample([1, 2], [], 2.0)],
            [],
            [Sample([6], [7, 8, last], -1.0), Sample([6], [7], 0.25)][::order],
        ]
    )


def test_those_without_weight_or_tokens_are_left_out_and_counted() -> None:
    samples = make()
    assert samples.ids == ["0/0", "2/0", "2/1"]
    assert samples.skipped == 2
    assert samples.largest == 2
    assert [samples.owner(row) for row in samples.ids] == [0, 2, 2]
    assert [samples.weight(row) for row in samples.ids] == [0.5, -1.0, 0.25]


def test_those_of_some_queries_come_shortest_first() -> None:
    samples = make()
    assert samples.of([0, 1, 2]) == ["2/1", "0/0", "2/0"]
    assert samples.of([2]) == ["2/1", "2/0"]
    assert samples.of([1]) == []


def test_only_completions_are_labelled() -> None:
    (batch,) = make().batches(["2/1", "0/0", "2/0"], 8, CPU)
    assert batch["row_id"] == ["2/1", "0/0", "2/0"]
    assert batch["weights"].tolist() == [0.25, 0.5, -1.0]
    assert batch["input_ids"].tolist() == [[6, 7, 0, 0], [1, 2, 3, 0], [6, 7, 8, 9]]
    assert batch["labels"].tolist() == [[-100, 7, -100, -100], [-100, -100, 3, -100], [-100, 7, 8, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_sample_is_in_one_batch(size: int) -> None:
    samples = make()
    batches = list(samples.batches(samples.of([0, 1, 2]), size, CPU))
    assert all(len(batch["row_id"]) <= size for batch in batches)
    assert sorted(row for batch in batches for row in batch["row_id"]) == samples.ids


def test_the_key_tells_contents_apart() -> None:
    keys: list[Any] = [x.key for x in (make(), make(weight=0.6), make(last=10), make(order=-1))]
    assert len(set(keys)) == 4
    assert make().key == keys[0]


def test_nothing_at_all() -> None:
    samples = Samples([[Sample([1], [2], 0.0)], []])
    assert (samples.ids, samples.skipped, samples.largest) == ([], 1, 1)
    assert list(samples.batches(samples.of([0, 1]), 4, CPU)) == []
