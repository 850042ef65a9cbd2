"""Whatever a reward function returns, raises or takes: a total per completion as the definition says, or a named error."""

import asyncio
import functools
import math
import numbers
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from hfdataopt.rewards import RewardFunctions

from .inputs import anything, awkward_texts, objects, odd_numbers, scalars, words
from .kinds import kind, outcome, refused

finite = st.floats(-1e6, 1e6)
rewards = st.none() | finite | st.integers(-5, 5) | st.booleans()
ROWS = 4
ERRORS = [
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AssertionError,
    RecursionError,
    StopIteration,
    OSError,
    RuntimeError,
]


def ask(functions: Any, rows: int = ROWS, columns: Any = None, **options: Any) -> Any:
    """The outcome of scoring so many completions."""
    return outcome(
        lambda: RewardFunctions(functions, **options)(
            ["the film was"] * rows,
            ["fine", "poor", "", "x" * 50, "great"][:rows],
            [[1], [2, 3], [], [4] * 5, [6]][:rows],
            columns or {},
            row_ids=[f"r{i}" for i in range(rows)],
        )
    )


def number_of(value: Any) -> float | None:
    """The number that a returned value stands for; None where it is no finite number."""
    if value is None:
        return math.nan
    if isinstance(value, torch.Tensor | np.ndarray):
        if math.prod(value.shape) != 1:
            return None
        value = value.item()
    if isinstance(value, str | bytes | complex) or not isinstance(value, numbers.Real | np.bool_):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def check(found: Any, expected: list[float | None] | None) -> None:
    """The totals are these, or the outcome is an error where one of them is not a number."""
    if expected is None or None in expected:
        assert refused(found)
        return
    assert not refused(found), str(found)
    np.testing.assert_array_equal(found.total, np.array(expected, dtype=float))
    assert found.total.dtype == np.float64


@kind(60, values=st.lists(rewards | scalars | objects, min_size=ROWS, max_size=ROWS))
def test_a_value_per_completion(values):
    check(ask(lambda completions, **_: list(values)), [number_of(value) for value in values])


@kind(30, returned=anything)
def test_something_else_than_a_list(returned):
    found = ask(lambda completions, **_: returned)
    listed = isinstance(returned, list | tuple) or (
        isinstance(returned, np.ndarray | torch.Tensor) and returned.ndim == 1
    )
    if not listed or len(returned) != ROWS:
        assert refused(found)


@kind(
    25,
    count=st.integers(0, 9),
    container=st.sampled_from([list, tuple, np.array, torch.tensor, iter, set, dict.fromkeys]),
)
def test_the_wrong_number_of_rewards(count, container):
    values = [float(i) for i in range(count)]
    returned = container(values)
    expected = values if count == ROWS and isinstance(returned, list | tuple | np.ndarray | torch.Tensor) else None
    check(ask(lambda completions, **_: returned), expected)


@kind(
    20,
    values=st.lists(finite, min_size=ROWS, max_size=ROWS),
    dtype=st.sampled_from(["float16", "float32", "float64", "int64", "bool"]),
)
def test_arrays_and_tensors(values, dtype):
    array = np.array(values).clip(-1e4, 1e4).astype(dtype)
    expected = [float(value) for value in array]
    check(ask(lambda completions, **_: array), expected)
    check(ask(lambda completions, **_: torch.from_numpy(array)), expected)
    check(ask(lambda completions, **_: array[:, None]), None)


@kind(
    25,
    error=st.sampled_from([*ERRORS, ConnectionError, TimeoutError, UnicodeError, MemoryError, NotImplementedError]),
    message=awkward_texts | words,
    at=st.integers(0, ROWS - 1),
    is_async=st.booleans(),
)
def test_functions_that_raise(error, message, at, is_async):
    culprit = ["fine", "poor", "", "x" * 50][at]

    def sync(completions: Any, **_: Any) -> list[float]:
        if culprit in completions:
            raise error(message)
        return [0.0] * len(completions)

    async def later(completions: Any, **_: Any) -> list[float]:
        await asyncio.sleep(0)
        return sync(completions)

    found = ask(later if is_async else sync)
    assert refused(found)
    if not (is_async and error is StopIteration):  # which Python turns into a RuntimeError
        assert error.__name__ in str(found)
    if not issubclass(error, ConnectionError | TimeoutError) and not (is_async and error is StopIteration):
        assert f"row 'r{at}'" in str(found)


SIGNATURES: dict[str, Any] = {
    "everything": lambda prompts, completions, **kwargs: [1.0] * len(completions),
    "keywords": lambda **kwargs: [1.0] * len(kwargs["completions"]),
    "few": lambda prompts, completions: [1.0] * len(completions),
    "nothing": lambda: [1.0],
    "positional": lambda completions, /, **kwargs: [1.0] * len(completions),
    "answer": lambda completions, answer, **kwargs: [float(len(one)) for one in answer],
    "missing": lambda completions, absent, **kwargs: [1.0] * len(completions),
    "default": lambda completions, absent=None, **kwargs: [1.0 if absent is None else 2.0] * len(completions),
    "starred": lambda *args, **kwargs: [1.0] * len(kwargs["completions"]),
    "partial": functools.partial(lambda answer, completions, **kwargs: [2.0] * len(completions), "bound"),
    "class": dict,
    "builtin": len,
    "method": [].append,
}


@kind(
    40,
    name=st.sampled_from(sorted(SIGNATURES)),
    columns=st.dictionaries(
        st.sampled_from(["answer", "absent", "completion", "prompts", "trainer_state", "", "log_extra"]),
        st.lists(words, min_size=ROWS, max_size=ROWS),
        max_size=3,
    ),
)
def test_signatures(name, columns):
    found = ask(SIGNATURES[name], columns=columns)
    works = {"everything", "keywords", "starred", "default"} | ({"answer"} if "answer" in columns else set())
    works |= {"missing"} if "absent" in columns else set()
    works |= set() if "answer" in columns else {"partial"}
    if name in works and not {"prompts", "trainer_state", "log_extra"} & set(columns):
        expected = {"answer": [float(len(x)) for x in columns.get("answer", [])], "partial": [2.0] * ROWS}
        default = [2.0 if name == "default" and "absent" in columns else 1.0] * ROWS
        check(found, expected.get(name, default))
    elif name not in works:
        assert refused(found)


@kind(30, columns=st.dictionaries(awkward_texts, st.lists(scalars, max_size=6), max_size=2))
def test_columns_of_any_name_and_length(columns):
    found = ask(SIGNATURES["everything"], columns=columns)
    if any(len(values) != ROWS for values in columns.values()):
        assert refused(found)
    else:
        check(found, [1.0] * ROWS)


@kind(30, given=st.lists(odd_numbers | scalars | objects, max_size=3), functions=st.integers(1, 3))
def test_weights(given, functions):
    found = ask([SIGNATURES["everything"]] * functions, reward_weights=given)
    plain = [isinstance(one, numbers.Real) and number_of(one) is not None for one in given]
    if len(given) != functions or not all(plain):
        assert refused(found)
    elif not refused(found):
        np.testing.assert_allclose(found.total, [sum(map(float, given))] * ROWS)


@kind(20, table=st.lists(st.lists(st.none() | finite, min_size=ROWS, max_size=ROWS), min_size=1, max_size=3))
def test_several_functions_are_summed_over_those_with_an_opinion(table):
    found = ask([lambda completions, values=values, **_: values for values in table])
    expected = []
    for column in zip(*table, strict=True):
        given = [value for value in column if value is not None]
        expected.append(math.nan if not given else functools.reduce(float.__add__, map(float, given)))
    assert not refused(found)
    np.testing.assert_allclose(found.total, expected, rtol=1e-12)


@kind(25, functions=anything)
def test_things_that_are_no_reward_functions(functions):
    found = ask(functions)
    if not callable(functions):
        assert refused(found)


@kind(30, column=scalars | objects, values=anything, metric=anything)
def test_what_functions_log(column, values, metric):
    def function(completions: Any, log_extra: Any = None, log_metric: Any = None, **_: Any) -> list[float]:
        log_extra(column, values)
        log_metric("mean", metric)
        return [1.0] * len(completions)

    found = ask(function)
    if not refused(found):
        assert all(len(logged) == ROWS for logged in found.extra.values())
        assert all(isinstance(value, float) for value in found.metrics.values())


@kind(6, rows=st.integers(0, 5))
def test_no_row_and_one_row(rows):
    found = ask(SIGNATURES["keywords"], rows=rows)
    check(found, [1.0] * rows)
