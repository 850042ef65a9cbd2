"""Weighted token sequences that belong to queries, several to each: what a policy gradient is made of."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hfdataopt.attribution.rows import pad_batch

IGNORED = -100


@dataclass(frozen=True)
class Sample:
    """One completion of a query and its weight in the query's vector. ``prompt`` and ``completion`` are token ids."""

    prompt: list[int]
    completion: list[int]
    weight: float


class Samples:
    """The samples of all queries that have a weight and a token; the others add nothing to a gradient and are counted.

    Args:
        of_queries: the samples of each query, in the order of the queries.
        pad_token_id: any token; padding is masked.

    Attributes:
        ids: ``"position/number"`` of each sample.
        key: a hash of everything that changes a vector.
        largest: the most samples that a query has.
        skipped: how many samples have weight 0, or no token.
    """

    def __init__(self, of_queries: Sequence[Sequence[Sample]], pad_token_id: int = 0):
        self._samples = {
            f"{position}/{number}": sample
            for position, samples in enumerate(of_queries)
            for number, sample in enumerate(samples)
            if sample.weight != 0 and sample.completion
        }
        self._of: list[list[str]] = [[] for _ in of_queries]
        for row in self._samples:
            self._of[self.owner(row)].append(row)
        self.ids = list(self._samples)
        self.largest = max((len(rows) for rows in self._of), default=0) or 1
        self.skipped = sum(len(samples) for samples in of_queries) - len(self.ids)
        content = [[row, x.prompt, x.completion, x.weight] for row, x in self._samples.items()]
        self.key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
        self._pad = pad_token_id

    def of(self, positions: Sequence[int]) -> list[str]:
        """Ids of the samples of these queries, shortest first, so that batches hold little padding."""
        ids = [row for position in positions for row in self._of[position]]
        return sorted(ids, key=lambda row: len(self._samples[row].prompt) + len(self._samples[row].completion))

    def owner(self, row_id: str) -> int:
        """Position of the query that a sample belongs to."""
        return int(row_id.split("/")[0])

    def weight(self, row_id: str) -> float:
        return self._samples[row_id].weight

    def batches(self, ids: Sequence[str], batch_size: int, device: torch.device) -> Iterator[dict[str, Any]]:
        """Padded batches with ``row_id`` and ``weights``; only completions are labelled."""
        for start in range(0, len(ids), batch_size):
            chunk = list(ids[start : start + batch_size])
            rows = [
                {
                    "input_ids": sample.prompt + sample.completion,
                    "labels": [IGNORED] * len(sample.prompt) + sample.completion,
                }
                for sample in map(self._samples.__getitem__, chunk)
            ]
            batch = {name: value.to(device) for name, value in pad_batch(rows, self._pad).items()}
            yield {**batch, "row_id": chunk, "weights": torch.tensor([self.weight(row) for row in chunk])}
