"""``RewardFunctions``: what TRL's ``GRPOTrainer(reward_funcs=...)`` takes, called as it calls them, and checked."""

import functools
import importlib
import inspect
import math
import numbers
import operator
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hfdataopt.errors import DataError, HfDataOptError, OptionError
from hfdataopt.gradients.batches import RowId, name_rows
from hfdataopt.rewards import background
from hfdataopt.rewards.reward_model import Formatting, RewardModel

_IMPORTED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")  # as Python names a function
_RESERVED = ("prompts", "completions", "trainer_state", "log_extra", "log_metric")
_OF_THE_ROW = ("prompt", "completion", "completion_ids")  # columns that TRL does not hand on


@dataclass(frozen=True)
class Rewards:
    """Rewards of n completions by f functions.

    Attributes:
        names: of the functions, as TRL reports them; not necessarily unique.
        per_function: ``[n, f]`` float64; NaN where a function gave None.
        total: ``[n]`` float64, sum of weight x reward over the functions that gave one; NaN where none did.
        extra: columns of n values that functions logged; where two log the same column, the later one's is
            ``function/column``.
        metrics: numbers that functions logged, the mean of each.
    """

    names: tuple[str, ...]
    per_function: np.ndarray
    total: np.ndarray
    extra: dict[str, list[Any]]
    metrics: dict[str, float]


class RewardFunctions:
    """One or several rewards, called on all completions together.

    A reward is a callable, sync or async, that takes TRL's keywords ``prompts, completions, completion_ids``, every
    other column of the dataset as a list, ``trainer_state``, ``log_extra`` and ``log_metric``, and returns a list with a number
    or None (no opinion) per completion; or a sequence-classification model with ``num_labels=1``, or its id or path
    (:class:`~hfdataopt.rewards.reward_model.RewardModel`); or ``"module:function"``, imported from the working folder or an
    installed package, as a command line names it. Async functions run at the same time.

    Args:
        reward_funcs: one, or a list.
        reward_weights: a weight per function; 1 each by default.
        reward_processing_classes: a tokenizer per reward model, None for the model's own; entries of callables do not
            matter, as in TRL.
        reward_formatting_funcs: ``(prompt, completion) -> str | (str, str)`` per reward model whose input is not prompt +
            completion; None elsewhere.
        who: begins each message.
        batch_size: texts in one forward of a reward model.

    Where a function raises, it is called again on smaller and smaller parts of the batch, to name the row in the message;
    not after a ``ConnectionError`` or ``TimeoutError``.
    """

    def __init__(
        self,
        reward_funcs: Any,
        *,
        reward_weights: Sequence[float] | None = None,
        reward_processing_classes: Any = None,
        reward_formatting_funcs: Formatting | Sequence[Formatting | None] | None = None,
        who: str = "nice",
        batch_size: int = 16,
    ) -> None:
        given = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs]
        if not given:
            raise OptionError(f"{who}: reward_funcs is empty; give at least one reward function or reward model")
        if batch_size < 1:
            raise OptionError(f"{who}: the batch size of a reward model is {batch_size}; it must be at least 1")
        tokenizers = _one_each(reward_processing_classes, "reward_processing_classes", len(given), who)
        formatting = _one_each(reward_formatting_funcs, "reward_formatting_funcs", len(given), who)
        weights = [1.0] * len(given) if reward_weights is None else list(reward_weights)
        numeric = all(isinstance(weight, numbers.Real) and math.isfinite(weight) for weight in weights)
        if len(weights) != len(given) or not numeric:
            raise OptionError(f"{who}: reward_weights={reward_weights!r} must be {len(given)} finite number(s)")
        self.who = who
        self._weights = np.array(weights, dtype=float)
        self._given = (given, tokenizers, formatting)
        self._functions: list[Any] = []
        for function, tokenizer, form in zip(given, tokenizers, formatting, strict=True):
            if isinstance(function, str) and _IMPORTED.fullmatch(function):
                function = _import(function, who)
            elif isinstance(function, str) and _DOTTED.fullmatch(function) and not os.path.exists(function):
                module, _, attribute = function.rpartition(".")
                raise OptionError(
                    f"{who}: the reward {function!r} is no folder and cannot be the id of a model; a function is named "
                    f"'module:function', such as {module + ':' + attribute!r}"
                )
            if isinstance(function, str | os.PathLike | torch.nn.Module):
                self._functions.append(RewardModel(function, tokenizer, form, batch_size, who))
                continue
            if inspect.isclass(function) or not callable(function):
                raise OptionError(
                    f"{who}: a reward function is a callable, a sequence-classification model or its id; got {function!r:.200}"
                    + ("; make an instance of the class" if inspect.isclass(function) else "")
                )
            if form is not None:
                raise OptionError(
                    f"{who}: reward_formatting_funcs has an entry for {_name(function)!r}, which is no reward model"
                )
            self._functions.append(function)
        self.names = tuple(_name(function) for function in self._functions)

    @property
    def settings(self) -> tuple[Any, ...]:
        """What tells it from others (:mod:`hfdataopt.attribution.identity`)."""
        return self._given, self._weights.tolist()

    def load(self) -> None:
        """Load the reward models that were given by id, which the first call does otherwise; ``OptionError`` where one cannot be."""
        for function in self._functions:
            if isinstance(function, RewardModel):
                function.load()

    def check_columns(self, columns: Iterable[str], completion_ids: bool) -> None:
        """Raise :class:`DataError` now where a call with these columns, and with tokens or without, would fail on its keywords.

        Reward models are not loaded for it.
        """
        keywords = self._keywords([], [], [] if completion_ids else None, {name: [] for name in columns}, [])
        for i, function in enumerate(self._functions):
            if not isinstance(function, RewardModel):
                self._check_signature(i, keywords | dict.fromkeys(_RESERVED[2:]))

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None,
        columns: Mapping[str, Sequence[Any]],
        *,
        row_ids: Sequence[RowId],
        trainer_state: Any = None,
    ) -> Rewards:
        """Rewards of the completions.

        Args:
            prompts, completions: one per completion (a prompt is repeated), strings or lists of messages.
            completion_ids: their tokens, or None if there are none; then functions do not get the keyword.
            columns: the dataset's other columns, one value per completion.
            row_ids: of the queries, for messages.
            trainer_state: by default that of a training that has not begun.

        Raises:
            DataError: a function cannot be called with these columns, raises, or returns something else than a list with
                one finite number or None per completion. Errors of hfdataopt's own reward functions pass as they are.
        """
        base = self._keywords(prompts, completions, completion_ids, columns, row_ids)
        if trainer_state is None:
            from transformers import TrainerState  # late: it takes seconds, and a plugin that only registers needs none

            trainer_state = TrainerState()
        base["trainer_state"] = trainer_state
        logs = [_Log() for _ in self._functions]
        per_function = np.full((len(row_ids), len(self._functions)), np.nan)
        waiting = []
        for i, (function, log) in enumerate(zip(self._functions, logs, strict=True) if len(row_ids) else ()):
            if isinstance(function, RewardModel):
                returned: Any = function(base["prompts"], base["completions"], row_ids)
            else:
                keywords = _copy(base) | {"log_extra": log.extra, "log_metric": log.metric}
                self._check_signature(i, keywords)
                if background.is_async(function):
                    waiting.append((i, keywords))
                    continue
                try:
                    returned = function(**keywords)
                except Exception as error:
                    raise self._failure(i, error, base, row_ids) from error
            per_function[:, i] = self._numbers(i, returned, row_ids)
        if waiting:
            calls = [functools.partial(self._functions[i], **keywords) for i, keywords in waiting]
            outcomes = background.run(lambda: background.together(calls))
            for (i, _), outcome in zip(waiting, outcomes, strict=True):
                if isinstance(outcome, Exception):
                    raise self._failure(i, outcome, base, row_ids) from outcome
            for (i, _), outcome in zip(waiting, outcomes, strict=True):
                if isinstance(outcome, BaseException):
                    raise DataError(f"{self._function(i)} was cancelled; it must not cancel its own task") from outcome
                per_function[:, i] = self._numbers(i, outcome, row_ids)
        total = np.nansum(per_function * self._weights, axis=1)
        total[np.isnan(per_function).all(axis=1)] = np.nan
        return Rewards(self.names, per_function, total, self._extra(logs, len(row_ids)), _metrics(logs))

    def _keywords(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None,
        columns: Mapping[str, Sequence[Any]],
        row_ids: Sequence[RowId],
    ) -> dict[str, Any]:
        taken = [column for column in columns if column in _RESERVED]
        if taken:
            raise DataError(
                f"{self.who}: the dataset's column {taken[0]!r} has the name of a keyword of reward functions; rename it"
            )
        keywords: dict[str, Any] = {"prompts": prompts, "completions": completions}
        if completion_ids is not None:
            keywords["completion_ids"] = completion_ids
        keywords |= {name: values for name, values in columns.items() if name not in _OF_THE_ROW}
        for name, values in keywords.items():
            if len(values) != len(row_ids):
                raise DataError(f"{self.who}: {len(values)} {name!r} for {len(row_ids)} completions")
        return keywords

    def _check_signature(self, i: int, keywords: dict[str, Any]) -> None:
        try:
            signature = inspect.signature(self._functions[i])
        except ValueError:  # not every callable of an extension module has one
            return
        try:
            signature.bind(**keywords)
        except TypeError as error:
            advice = f"it gets {', '.join(keywords)} and should accept **kwargs"
            if list(signature.parameters)[:2] == ["prediction", "reference"]:
                advice = f"it is a metric of one prediction; reward_from_metric({self.names[i]}, reference_column=...) makes a reward of it"
            raise DataError(f"{self._function(i)} cannot be called with TRL's keywords: {error}; {advice}") from error

    def _failure(self, i: int, error: Exception, base: dict[str, Any], row_ids: Sequence[RowId]) -> HfDataOptError:
        if isinstance(error, HfDataOptError):
            return error
        first, last = 0, len(row_ids)
        if not isinstance(error, ConnectionError | TimeoutError):
            first, last = self._narrow(i, base, last)
        rows = list(dict.fromkeys(row_ids[first:last]))
        where = f"row {rows[0]!r}" if len(rows) == 1 else f"one of the rows {name_rows(rows)}"
        return DataError(f"{self._function(i)} raised {type(error).__name__}: {error} ({where})")

    def _narrow(self, i: int, base: dict[str, Any], last: int) -> tuple[int, int]:
        """Bounds of a smallest part of the batch on which the function raises."""
        first = 0
        while last - first > 1:
            middle = (first + last) // 2
            for part in ((first, middle), (middle, last)):
                log = _Log()
                keywords = _copy(base, slice(*part)) | {"log_extra": log.extra, "log_metric": log.metric}
                try:
                    call = functools.partial(self._functions[i], **keywords)
                    background.run(call) if background.is_async(call) else call()
                except Exception:
                    first, last = part
                    break
            else:
                break
        return first, last

    def _numbers(self, i: int, returned: Any, row_ids: Sequence[RowId]) -> list[float]:
        """What a function returned as floats, NaN for None."""
        who = self._function(i)
        if inspect.isawaitable(returned):
            if inspect.iscoroutine(returned):
                returned.close()
            raise DataError(f"{who} returned a coroutine that nobody awaits; define it with async def")
        if isinstance(returned, torch.Tensor):
            returned = returned.detach().cpu().double().numpy()
        if isinstance(returned, np.ndarray) and returned.ndim == 1:
            returned = returned.tolist()
        if not isinstance(returned, list | tuple):
            shape = f" of shape {list(returned.shape)}" if isinstance(returned, np.ndarray) else ""
            raise DataError(
                f"{who} returned {type(returned).__name__}{shape} ({returned!r:.80}); it must return a list with one number or "
                f"None per completion (first row: {row_ids[0]!r})"
            )
        if len(returned) != len(row_ids):
            raise DataError(
                f"{who} returned {len(returned)} rewards for {len(row_ids)} completions (rows {name_rows(list(row_ids))}); "
                "it must return exactly one per completion"
            )
        return [self._number(who, value, row) for value, row in zip(returned, row_ids, strict=True)]

    def _number(self, who: str, value: Any, row: RowId) -> float:
        if value is None:
            return math.nan
        if isinstance(value, torch.Tensor | np.ndarray) and math.prod(value.shape) == 1:
            value = value.item()
        if not isinstance(value, numbers.Real | np.bool_):
            raise DataError(
                f"{who} returned {type(value).__name__} {value!r:.80} for row {row!r}; it must be a number or None"
            )
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise DataError(f"{who} returned {number} for row {row!r}; return None where there is no reward")
        return number

    def _extra(self, logs: list["_Log"], n: int) -> dict[str, list[Any]]:
        extra: dict[str, list[Any]] = {}
        for i, log in enumerate(logs):
            for column, values in log.columns.items():
                if len(values) != n:
                    raise DataError(
                        f"{self._function(i)} logged {len(values)} values of the column {column!r} for {n} completions"
                    )
                extra[f"{self.names[i]}/{column}" if column in extra else column] = values
        return extra

    def _function(self, i: int) -> str:
        return f"{self.who}: reward function {self.names[i]!r}"


class _Log:
    """What one function logs during a call; ``extra`` may be called once per part of the batch."""

    def __init__(self) -> None:
        self.columns: dict[str, list[Any]] = {}
        self.values: dict[str, list[float]] = {}

    def extra(self, column: str, values: Sequence[Any]) -> None:
        self.columns.setdefault(column, []).extend(values)

    def metric(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(float(value))


def _name(function: Any) -> str:
    """TRL's name: of a function its own, of a partial the wrapped one's, of an object its class's."""
    if isinstance(function, RewardModel):
        return function.name
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def _one_each(given: Any, option: str, count: int, who: str) -> list[Any]:
    if given is None:
        return [None] * count
    entries = list(given) if isinstance(given, list | tuple) else [given]
    if len(entries) != count:
        raise OptionError(f"{who}: {option} has {len(entries)} entries for {count} reward function(s); give one each")
    return entries


def _copy(base: Mapping[str, Any], part: slice = slice(None)) -> dict[str, Any]:
    """The keywords with lists of their own, so that a function that changes its lists changes nobody else's."""
    return {name: value if name == "trainer_state" else list(value[part]) for name, value in base.items()}


def _metrics(logs: Sequence[_Log]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for log in logs:
        for name, numbers_logged in log.values.items():
            values.setdefault(name, []).extend(numbers_logged)
    return {name: sum(logged) / len(logged) for name, logged in values.items()}


def _import(name: str, who: str) -> Any:
    """The object that ``"module:function"`` names."""
    module, _, attribute = name.partition(":")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        return operator.attrgetter(attribute)(importlib.import_module(module))
    except Exception as error:  # the module's own code runs, and may raise anything
        raise OptionError(
            f"{who}: the reward {name!r} cannot be imported from {here!r} or an installed package: "
            f"{type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.remove(here)
