"""Every kind of bad data gets one error that names the argument, what arrived and what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hfdataopt.errors import DataError
from hfdataopt.shapley import shapley_values

from .conftest import make_data

ROWS = 12


def changed(values: Any, row: int, value: Any, kind: Any = None) -> Any:
    out = np.array(values, dtype=kind)
    out[row] = value
    return out


LABELS = [0, 1] * 6
BAD: list[tuple[str, Any, str]] = [
    ("labels", None, "labels is None"),
    ("labels", [0, 1, None] * 4, r"labels is missing \(None\) at row 2 and 3 more"),
    ("labels", changed(LABELS, 3, np.nan, float), r"labels is missing \(NaN\) at row 3"),
    ("labels", changed(LABELS, 3, 0.5, float), "type float64"),
    ("labels", ["a", "b"] * 6, "pass integers"),
    ("labels", changed(LABELS, 4, -100), "-100 at row 4, out of range"),
    ("labels", [1] * ROWS, r"one class only \(1\)"),
    ("labels", LABELS[:-1], r"shape \[11\]"),
    ("labels", [[0, 1]] * 6, r"shape \[6, 2\]"),
    ("query_labels", None, "query_labels is None"),
    ("query_labels", [0, 1, 2], "class 2, which no pool row has"),
    ("query_labels", [0, 1, -1], "-1 at row 2"),
    ("query_labels", [0, 1], r"shape \[2\]"),
    ("kernel", None, "kernel is None"),
    ("kernel", "kernel", "not an array of real numbers"),
    ("kernel", np.ones((ROWS, ROWS), dtype=complex), "complex"),
    ("kernel", np.ones((ROWS, 3)), r"shape \[12, 3\]"),
    ("kernel", np.ones(ROWS), r"shape \[12\]"),
    ("kernel", np.empty((0, 0)), "pool is empty"),
    ("kernel", np.triu(np.ones((ROWS, ROWS))), "not symmetric"),
    ("kernel", changed(np.eye(ROWS), (2, 2), np.nan), r"nan at \[2, 2\]"),
    ("kernel", changed(np.eye(ROWS), (1, 1), np.inf), r"inf at \[1, 1\]"),
    ("cross_kernel", np.empty((ROWS, 0)), "no queries"),
    ("cross_kernel", np.ones((ROWS + 1, 3)), r"shape \[13, 3\] beside 1 kernel"),
    ("cross_kernel", np.ones((2, ROWS, 3)), "cross_kernel has shape"),
    ("cross_kernel", changed(np.ones((ROWS, 3)), (0, 1), -np.inf), r"-inf at \[0, 1\]"),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("name", "value", "message"), BAD, ids=[f"{name}-{i}" for i, (name, *_) in enumerate(BAD)])
def test_bad_data(name: str, value: Any, message: str) -> None:
    data = make_data(rows=ROWS, queries=3)
    arguments: dict[str, Any] = {
        "kernel": data.kernel,
        "cross_kernel": data.cross,
        "labels": LABELS,
        "query_labels": [0, 1, 1],
    }
    shapley_values(**arguments, permutations=1)
    with pytest.raises(DataError, match=message):
        shapley_values(**{**arguments, name: value}, permutations=1)


def test_a_label_beyond_the_kernels_of_the_classes() -> None:
    data = make_data(rows=ROWS, queries=3, per_class=True)
    with pytest.raises(DataError, match=r"labels is 2 at row 0, out of range"):
        shapley_values(data.kernel, data.cross, [2, *LABELS[1:]], [0, 1, 1], permutations=1)


def test_one_kernel_in_a_stack_of_one_is_a_single_kernel() -> None:
    data = make_data(rows=ROWS, queries=3)
    stacked = shapley_values(data.kernel[None], data.cross[None], LABELS, [0, 1, 1], permutations=2, ridge=0.1)
    plain = shapley_values(data.kernel, data.cross, LABELS, [0, 1, 1], permutations=2, ridge=0.1)
    assert np.array_equal(stacked.values, plain.values)


@pytest.mark.filterwarnings("error")
def test_labels_may_be_of_any_integer_type_and_read_only_arrays_are_fine() -> None:
    data = make_data(rows=ROWS, queries=3)
    plain = shapley_values(data.kernel, data.cross, LABELS, [0, 1, 1], permutations=2, ridge=0.1)
    kernel = data.kernel.numpy().copy()
    kernel.flags.writeable = False
    for kind in (np.uint8, np.int32, bool):
        other = shapley_values(
            kernel, np.asfortranarray(data.cross.numpy()), np.array(LABELS, dtype=kind), torch.tensor([0, 1, 1]),
            permutations=2, ridge=0.1,
        )  # fmt: skip
        assert np.array_equal(plain.values, other.values)
