"""Reward functions as TRL writes them: what they are called with, what they may return, how they fail."""

import asyncio
import functools
import importlib.util
import os
import threading

import numpy as np
import pytest
import torch
from trl.rewards import (
    accuracy_reward,
    get_repetition_penalty_reward,
    get_soft_overlong_punishment,
    think_format_reward,
)

from hfdataopt.errors import DataError, OptionError
from hfdataopt.rewards import RewardFunctions

N = 5
PROMPTS = [f"question {i}" for i in range(N)]
COMPLETIONS = ["a", "b c", "d e f", "", "g"]
IDS = [[1], [2, 3], [4, 5, 6], [], [7]]
COLUMNS = {"answer": ["a", "x", "d", "", "g"], "level": [1, 2, 3, 4, 5]}
ROWS = [f"r{i}" for i in range(N)]


def words(completions, **kwargs):
    return [float(len(completion.split())) for completion in completions]


async def later(completions, answer, **kwargs):
    await asyncio.sleep(0)
    return [float(completion == wanted) for completion, wanted in zip(completions, answer, strict=True)]


def odd(level, **kwargs):
    return [None if value % 2 else float(value) for value in level]


def call(functions, completions=COMPLETIONS, columns=COLUMNS, ids=IDS, rows=ROWS, **changes):
    made = functions if isinstance(functions, RewardFunctions) else RewardFunctions(functions, **changes)
    return made(PROMPTS[: len(rows)], completions, ids, columns, row_ids=rows)


# -- what functions get


def test_a_function_gets_trls_keywords():
    seen = {}

    def record(prompts, completions, completion_ids, answer, level, trainer_state, log_extra, log_metric):
        seen.update(locals())
        return [0.0] * N

    call(record, columns=COLUMNS | {"prompt": PROMPTS, "completion": COMPLETIONS, "completion_ids": IDS})
    assert (seen["prompts"], seen["completions"], seen["completion_ids"]) == (PROMPTS, COMPLETIONS, IDS)
    assert {name: seen[name] for name in COLUMNS} == COLUMNS
    assert seen["trainer_state"].global_step == 0
    state = object()
    RewardFunctions(record)(PROMPTS, COMPLETIONS, IDS, COLUMNS, row_ids=ROWS, trainer_state=state)
    assert seen["trainer_state"] is state


def test_a_function_cannot_change_what_the_next_one_gets():
    def spoil(completions, **kwargs):
        completions[:] = [""] * N
        return [0.0] * N

    assert call([spoil, words]).per_function[:, 1].tolist() == words(COMPLETIONS)


def test_names_are_trls():
    class Judge:
        def __call__(self, **kwargs):
            return [0.0] * N

    functions = [
        words,
        functools.partial(functools.partial(words), extra=1),
        Judge(),
        get_soft_overlong_punishment(4, 2),
    ]
    assert RewardFunctions(functions).names == ("words", "words", "Judge", "soft_overlong_punishment_reward")


def test_no_completions_give_no_rewards():
    rewards = call([words, later], [], {"answer": []}, [], [])
    assert rewards.per_function.shape == (0, 2)
    assert rewards.total.shape == (0,)


def test_without_completion_ids_the_keyword_is_left_out():
    assert call(words, ids=None).total.tolist() == words(COMPLETIONS)
    with pytest.raises(
        DataError,
        match=r"'soft_overlong_punishment_reward' cannot be called .*missing a required argument: 'completion_ids'",
    ):
        call(get_soft_overlong_punishment(4, 2), ids=None)


# -- what comes out


def test_weights_combine_what_is_there():
    rewards = call([words, later, odd], reward_weights=[1.0, -2.0, 0.5])
    one, two = words(COMPLETIONS), [1.0, 0.0, 0.0, 1.0, 1.0]
    assert rewards.per_function.dtype == rewards.total.dtype == np.float64
    np.testing.assert_array_equal(rewards.per_function[:, 0], one)
    np.testing.assert_array_equal(rewards.per_function[:, 1], two)
    np.testing.assert_array_equal(rewards.per_function[:, 2], [np.nan, 2, np.nan, 4, np.nan])
    assert rewards.total.tolist() == [1 - 2, 2 + 1, 3, 0 - 2 + 2, 1 - 2]


def test_a_row_on_which_all_abstain_has_no_total():
    rewards = call([odd, odd], reward_weights=[1.0, 0.0])
    np.testing.assert_array_equal(rewards.total, [np.nan, 2, np.nan, 4, np.nan])


@pytest.mark.parametrize(
    "returned",
    [
        [1, 0, True, np.float32(2), 3.0],
        (1, 0, 1, 2, 3),
        np.array([1, 0, 1, 2, 3]),
        torch.tensor([1.0, 0, 1, 2, 3], dtype=torch.bfloat16, requires_grad=True),
        [torch.tensor(1), torch.tensor([0.0]), np.bool_(True), np.int64(2), np.array([3])],
    ],
)
def test_numbers_of_every_kind(returned):
    assert call(lambda **kwargs: returned).total.tolist() == [1, 0, 1, 2, 3]


def test_logged_columns_and_metrics():
    def in_parts(completions, log_extra, log_metric, **kwargs):
        for completion in completions:
            log_extra("length", [len(completion)])
            log_metric("mean length", torch.tensor(float(len(completion))))
        return [0.0] * N

    def at_once(log_extra, log_metric, **kwargs):
        log_extra("length", list("abcde"))
        log_metric("mean length", 8)
        return [0.0] * N

    rewards = call([in_parts, at_once])
    assert rewards.extra == {"length": [1, 3, 5, 0, 1], "at_once/length": list("abcde")}
    assert rewards.metrics == {"mean length": pytest.approx((1 + 3 + 5 + 0 + 1 + 8) / 6)}


def test_a_logged_column_of_another_length_is_an_error():
    def short(log_extra, **kwargs):
        log_extra("length", [1])
        return [0.0] * N

    with pytest.raises(DataError, match="'short' logged 1 values of the column 'length' for 5 completions"):
        call(short)


# -- async


def test_async_functions_run_at_the_same_time():
    """Each waits for all the others; one after the other would never end (the timeout makes it an error)."""
    arrived = []

    async def meet(n, **kwargs):
        arrived.append(threading.current_thread().name)
        while len(arrived) < 3:
            await asyncio.sleep(0.001)
        return [float(n)] * N

    class Meet:
        async def __call__(self, **kwargs):
            return await asyncio.wait_for(meet(3), 30)

    async def bounded(n, **kwargs):
        return await asyncio.wait_for(meet(n), 30)

    rewards = call([functools.partial(bounded, 1), functools.partial(bounded, 2), Meet(), words])
    assert rewards.per_function[0].tolist() == [1.0, 2.0, 3.0, 1.0]
    assert set(arrived) == {"hfdataopt-rewards"}


def test_async_functions_work_inside_a_running_loop_and_keep_theirs_between_calls():
    loops = set()

    async def record(**kwargs):
        loops.add(asyncio.get_running_loop())
        return [1.0] * N

    async def notebook():
        return call(record), asyncio.get_running_loop()

    rewards, outer = asyncio.run(notebook())
    assert rewards.total.tolist() == call(record).total.tolist() == [1.0] * N
    assert len(loops) == 1
    assert outer not in loops


def test_async_functions_work_after_a_fork():
    call(later)  # the parent has its loop
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, repr(call(later).total.tolist()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    assert os.read(reader, 1000).decode() == repr(call(later).total.tolist())
    os.close(reader)


def test_the_other_async_functions_stop_when_one_raises():
    stopped = []

    async def forever(**kwargs):
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            stopped.append(True)
            raise

    async def broken(**kwargs):
        await asyncio.sleep(0)
        raise ValueError("no answer")

    with pytest.raises(DataError, match="reward function 'broken' raised ValueError: no answer"):
        call([forever, broken])
    assert stopped == [True]


def test_an_async_function_that_calls_back_without_await_is_told_so():
    inner = RewardFunctions(later)

    async def outer(**kwargs):
        return call(inner).total.tolist()

    with pytest.raises(OptionError, match="would wait for itself"):
        call(outer)


def test_a_function_that_cancels_itself_is_named():
    async def quit_(**kwargs):
        raise asyncio.CancelledError

    with pytest.raises(DataError, match="'quit_' was cancelled"):
        call(quit_)


# -- failures


def broken(completions, **kwargs):
    return [1 / len(completion) for completion in completions]


async def broken_later(completions, **kwargs):
    return broken(completions)


@pytest.mark.parametrize("function", [broken, broken_later])
def test_what_a_function_raises_names_it_and_the_row(function):
    name = function.__name__
    with pytest.raises(
        DataError, match=rf"^nice: reward function '{name}' raised ZeroDivisionError: .* \(row 'r3'\)$"
    ) as e:
        call([words, function])
    assert isinstance(e.value.__cause__, ZeroDivisionError)


def test_a_failure_of_the_whole_batch_names_all_rows():
    def picky(completions, **kwargs):
        if len(completions) > 2:
            raise RuntimeError("too many")
        return words(completions)

    with pytest.raises(DataError, match=r"RuntimeError: too many \(one of the rows 'r2', 'r3', 'r4'\)"):
        call(picky)


@pytest.mark.parametrize("error", [ConnectionError("refused"), TimeoutError("slow")])
def test_an_endpoint_that_fails_is_not_asked_again(error):
    calls = []

    def remote(**kwargs):
        calls.append(1)
        raise error

    with pytest.raises(DataError, match="one of the rows 'r0', 'r1', 'r2', 'r3', 'r4'"):
        call(remote)
    assert len(calls) == 1


def test_repeated_rows_are_named_once():
    def remote(**kwargs):
        raise TimeoutError("slow")

    with pytest.raises(DataError, match=r"\(row 7\)"):
        call(remote, rows=[7] * N)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0] * 4, r"returned 4 rewards for 5 completions \(rows 'r0', .*'r4'\)"),
        (1.0, r"returned float \(1.0\); it must return a list"),
        (None, "returned NoneType"),
        ("11111", "returned str .* it must return a list"),
        ({"a": 1}, "returned dict"),
        ((x for x in [1.0] * 5), "returned generator"),
        (np.zeros((5, 1)), r"returned ndarray of shape \[5, 1\]"),
        (torch.tensor(1.0), r"returned ndarray of shape \[\]"),
        ([1.0, 1.0, "good", 1.0, 1.0], "returned str 'good' for row 'r2'; it must be a number or None"),
        ([1.0, [1.0], 1.0, 1.0, 1.0], r"returned list \[1.0\] for row 'r1'"),
        ([1.0, 1j, 1.0, 1.0, 1.0], "returned complex 1j for row 'r1'"),
        ([1.0, 1.0, 1.0, 1.0, float("nan")], "returned nan for row 'r4'; return None where there is no reward"),
        ([1.0, torch.tensor(float("inf")), 1.0, 1.0, 1.0], "returned inf for row 'r1'"),
        (np.array([1.0, 1.0, np.nan, 1.0, 1.0]), "returned nan for row 'r2'"),
        ([10**400, 1, 1, 1, 1], "returned inf for row 'r0'"),
    ],
)
def test_what_is_no_list_of_numbers_is_refused(returned, message):
    def wrong(**kwargs):
        return returned

    async def wrong_later(**kwargs):
        return returned

    with pytest.raises(DataError, match=f"reward function 'wrong' {message}"):
        call([words, wrong])
    if not hasattr(returned, "send"):
        with pytest.raises(DataError, match=f"reward function 'wrong_later' {message}"):
            call([words, wrong_later])


@pytest.mark.filterwarnings("error")
def test_a_coroutine_that_nobody_awaits_is_refused():
    def hidden(**kwargs):
        return later(COMPLETIONS, COLUMNS["answer"])

    with pytest.raises(DataError, match="'hidden' returned a coroutine that nobody awaits; define it with async def"):
        call(hidden)


def test_a_function_that_does_not_take_the_keywords_is_told_which():
    def narrow(prompts, completions):
        return [0.0] * N

    def wide(completions, gold, **kwargs):
        return [0.0] * N

    with pytest.raises(DataError, match=r"unexpected keyword argument 'completion_ids'; .* should accept \*\*kwargs"):
        call(narrow)
    with pytest.raises(DataError, match=r"missing a required argument: 'gold'; it gets prompts, .*answer, level"):
        call(wide)


@pytest.mark.parametrize("name", ["prompts", "completions", "trainer_state", "log_extra", "log_metric"])
def test_a_column_named_like_a_keyword_is_refused(name):
    with pytest.raises(DataError, match=f"column '{name}' has the name of a keyword"):
        call(words, columns={name: [1] * N})


def test_columns_of_another_length_are_refused():
    with pytest.raises(DataError, match="4 'answer' for 5 completions"):
        call(words, columns={"answer": ["a"] * 4})
    with pytest.raises(DataError, match="4 'completion_ids' for 5 completions"):
        call(words, ids=IDS[:4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward_funcs": []}, "reward_funcs is empty"),
        ({"reward_funcs": 3}, "is a callable, a sequence-classification model or its id; got 3"),
        ({"reward_funcs": dict}, "make an instance of the class"),
        ({"reward_funcs": [words, odd], "reward_weights": [1.0]}, "must be 2 finite"),
        ({"reward_funcs": words, "reward_weights": [float("nan")]}, "must be 1 finite"),
        ({"reward_funcs": words, "reward_weights": ["much"]}, "must be 1 finite"),
        ({"reward_funcs": words, "batch_size": 0}, "must be at least 1"),
        ({"reward_funcs": [words, odd], "reward_processing_classes": [None]}, "1 entries for 2 reward"),
        (
            {"reward_funcs": words, "reward_formatting_funcs": str.__add__},
            "entry for 'words', which is no reward model",
        ),
    ],
)
def test_options_that_cannot_be_honoured(options, message):
    with pytest.raises(OptionError, match=f"^mine: .*{message}"):
        RewardFunctions(**options, who="mine")


# -- TRL's own functions, unchanged


def chat(texts):
    return [[{"role": "assistant", "content": text}] for text in texts]


def test_trls_functions_run_unchanged():
    completions = chat(["<think>a</think>b", "<think>a b", "b", "<think></think>", "<think>a</think>"])
    functions = [think_format_reward, get_soft_overlong_punishment(3, 2), get_repetition_penalty_reward(1)]
    rewards = call(functions, completions)
    assert rewards.names == ("think_format_reward", "soft_overlong_punishment_reward", "repetition_penalty_reward")
    assert rewards.per_function.T.tolist() == [
        think_format_reward(completions),
        [0.0, -0.5, -1.0, 0.0, 0.0],
        functions[2](completion_ids=IDS),
    ]


@pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="math_verify is not installed")
def test_trls_accuracy_reward_runs_unchanged():
    completions = chat([r"\boxed{\frac{1}{3}}", r"\boxed{2}", r"\boxed{3}", "", r"\boxed{5}"])
    columns = {"solution": [r"\frac{1}{3}", "1", "", "4", "5"]}
    rewards = call(accuracy_reward, completions, columns)
    np.testing.assert_array_equal(rewards.total, [1.0, 0.0, np.nan, 0.0, 1.0])
    assert rewards.extra["solution"] == columns["solution"]
