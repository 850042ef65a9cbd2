"""Curves: planted values that add up, so that every point is known; and a real training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hfdataopt.errors import DataError, OptionError
from hfdataopt.evaluation import draw_subsets, removal_curves
from hfdataopt.retraining import Recipe

from ..tiny import bert, encoded

VALUES = np.array([5.0, -3.0, 2.0, 0.0, 1.0, -1.0, 4.0, -2.0, 3.0, -4.0])


def train(positions: list[int], seed: int) -> Any:
    model = bert()
    model.worth = VALUES[positions].sum() + 0.01 * seed
    return model


def worth(model: Any, batch: dict[str, Any]) -> Any:
    return torch.full((len(batch["labels"]),), getattr(model, "worth", 0.0), dtype=torch.float64)


PLANTED: dict[str, Any] = {"training": train, "utility": worth, "fractions": (0.2, 0.5)}


def test_every_point_is_the_sum_of_its_rows() -> None:
    scores = {"right": VALUES, "wrong": -VALUES}
    found = removal_curves(scores, bert(), encoded(10), encoded(4, seed=3), seeds=3, **PLANTED)
    points = {(point.kind, point.scores, point.rows): point for point in found.points}
    assert len(points) == len(found.points) == 12
    expected = {
        ("add-highest", "right", 2): 9,
        ("add-highest", "right", 5): 15,
        ("remove-highest", "right", 2): -4,
        ("remove-highest", "right", 5): -10,
        ("add-highest", "wrong", 2): -7,
        ("remove-highest", "wrong", 5): 15,
    }
    for key, value in expected.items():
        utility = points[key].utility
        assert utility.value == pytest.approx(value + 0.01)
        assert (utility.low, utility.high) == pytest.approx((value + 0.01 - 0.02484, value + 0.01 + 0.02484), abs=1e-4)
    assert (found.none, found.everything.value) == (0, pytest.approx(5.01))
    for fraction, rows in ((0.2, 2), (0.5, 5)):
        sums = draw_subsets(range(10), 3, fraction) @ VALUES
        assert points["add-highest", "random", rows].utility.value == pytest.approx(sums.mean() + 0.01)
        assert points["remove-highest", "random", rows].utility.value == pytest.approx(5.01 - sums.mean())
        gain = points["add-highest", "right", rows].gain
        assert gain.value == pytest.approx(expected["add-highest", "right", rows] - sums.mean())
        assert points["add-highest", "random", rows].gain is None
    assert "all rows 5.010 (4.985 to 5.035)" in str(found)
    assert len(str(found).splitlines()) == 13


def test_the_order_of_the_rows_does_not_matter() -> None:
    pool, test = encoded(10, ids=True), encoded(4, seed=3)
    order = [3, 1, 9, 0, 2, 8, 4, 6, 5, 7]
    options: dict[str, Any] = {"training": Recipe(1, 1e-2, 4), "fractions": (0.3,), "seeds": 1, "utility": "margin"}
    one = removal_curves({"a": VALUES}, bert(), pool, test, **options)
    other = removal_curves({"a": VALUES[order]}, bert(), pool.select(order), test, **options)
    for first, second in zip(one.points, other.points, strict=True):
        assert first.utility.value == pytest.approx(second.utility.value, abs=1e-6)


def test_a_run_goes_on(tmp_path: Path) -> None:
    asked: list[Any] = []

    def counted(positions: list[int], seed: int) -> Any:
        asked.append((positions, seed))
        return train(positions, seed)

    options: dict[str, Any] = {**PLANTED, "training": counted, "output_dir": tmp_path}
    first = removal_curves({"a": VALUES}, bert(), encoded(10), encoded(4, seed=3), **options)
    count = len(asked)
    assert removal_curves({"a": VALUES}, bert(), encoded(10), encoded(4, seed=3), **options) == first
    assert len(asked) == count == len({str(job) for job in asked})


def test_bad_input() -> None:
    args = (bert(), encoded(10), encoded(4, seed=3))
    with pytest.raises(DataError, match=r"'a' has shape \[10\] and 1 rows without a score"):
        removal_curves({"a": np.where(VALUES == 5, np.nan, VALUES)}, *args, **PLANTED)
    with pytest.raises(DataError, match=r"'a' has shape \[9\]"):
        removal_curves({"a": VALUES[:-1]}, *args, **PLANTED)
    with pytest.raises(OptionError, match="'random' is the name of the control"):
        removal_curves({"random": VALUES}, *args, **PLANTED)
    with pytest.raises(OptionError, match=r"fraction=0\.01 of 10 rows have 0 rows"):
        removal_curves({"a": VALUES}, *args, **{**PLANTED, "fractions": (0.01,)})
    with pytest.raises(OptionError, match="0 rankings"):
        removal_curves({}, *args, **PLANTED)
