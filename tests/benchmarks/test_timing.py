"""Times that take turns, and the intervals of their medians."""

import math
import sys
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def timing(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import timing

    yield timing
    del sys.modules["timing"]


def test_every_piece_runs_once_a_round_and_the_last_result_is_kept(timing: Any) -> None:
    asked: list[str] = []
    numbers = count()

    def run(name: str) -> int:
        asked.append(name)
        return next(numbers)

    runs = {name: lambda name=name: run(name) for name in ("a", "b", "c")}
    times, results = timing.in_turn(runs, 20, clock=lambda run: (1.0, run()))
    assert times == {name: [1.0] * 20 for name in runs}
    rounds = [asked[start : start + 3] for start in range(3, len(asked), 3)]
    assert asked[:3] == ["a", "b", "c"]  # once before the clock
    assert len(rounds) == 20
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len({tuple(one) for one in rounds}) > 3
    assert {max(results.values())} == {len(asked) - 1}
    asked.clear()
    timing.in_turn(runs, 2, warm=False)
    assert len(asked) == 6


@pytest.mark.parametrize("repeats", [6, 7, 9, 11, 21, 40])
def test_interval_of_a_median_covers_it(timing: Any, repeats: int) -> None:
    """Against the definition: the narrowest pair of order statistics, the same from both ends, that holds the median in 95 %."""
    middle, low, high = timing.median(range(repeats))
    assert middle == (repeats - 1) / 2
    assert low + high == repeats - 1

    def coverage(place: int) -> float:
        return 1 - 2 * sum(math.comb(repeats, k) for k in range(place + 1)) / 2**repeats

    assert coverage(low) >= 0.95 > coverage(low + 1)
    draws = np.sort(np.random.default_rng(repeats).exponential(size=(4000, repeats)), axis=1)
    held = (draws[:, low] <= math.log(2)) & (draws[:, high] >= math.log(2))
    assert held.mean() > 0.94


def test_few_repeats_have_their_range(timing: Any) -> None:
    assert timing.median([3.0, 1.0, 2.0]) == [2.0, 1.0, 3.0]
    assert timing.ratio([2.0, 6.0, 4.0], [1.0, 2.0, 4.0]) == [2.0, 1.0, 3.0]
    same = [1.0, 2.0]
    assert timing.ratio(same, same) == 1.0
