"""``reward_from_metric``: an ``evaluate`` metric, or a plain function, as a reward function of TRL's signature."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hfdataopt.errors import DataError, OptionError
from hfdataopt.rewards.texts import is_messages, needed_column, text_of


def reward_from_metric(
    metric: Any,
    *,
    reference_column: str,
    name: str | None = None,
    key: str | None = None,
    scale: float = 1.0,
    trust_remote_code: bool = False,
    **compute_kwargs: Any,
) -> "MetricReward":
    """A reward function that compares each completion with the dataset's reference by a metric.

    Args:
        metric: an ``evaluate`` metric, or its id or path (loaded at the first call, with ``trust_remote_code``); or a function
            ``(prediction, reference) -> float``, or one with parameters named ``predictions`` and ``references``, lists,
            that returns a list (one number per pair), a float, or a dict of either.
        reference_column: the dataset's column of references: strings, lists of strings, messages (the last one's text
            counts) or, for functions, anything else; None makes the row abstain.
        name: under which the reward is reported; by default the metric's, with the key.
        key: which entry of a dict is meant; needed where there are several.
        scale: the metric is multiplied by this, for example 0.01 for one in percent, -1 for an error rate.
        trust_remote_code: an id or a path is a Python script, from the hub or from here, that is run.
        compute_kwargs: handed to the metric.

    A metric of a whole set is computed on one pair at a time. Pairs are handed over together only where the results
    stay apart: a function that returns lists, or ``use_aggregator=False`` (ROUGE).

    Raises:
        OptionError: an id or path without ``trust_remote_code=True``, or something that is no metric.
    """
    if isinstance(metric, str) and trust_remote_code is not True:
        raise OptionError(
            f"reward_from_metric: the metric {metric!r} is a script that evaluate would run; pass trust_remote_code=True if you "
            "trust it, or a plain function (hfdataopt.rewards has exact_match, token_f1 and accuracy)"
        )
    return MetricReward(metric, reference_column, name, key, scale, compute_kwargs)


class MetricReward:
    """What :func:`reward_from_metric` returns; can be pickled if the metric can."""

    def __init__(
        self,
        metric: Any,
        reference_column: str,
        name: str | None,
        key: str | None,
        scale: float,
        compute_kwargs: Mapping[str, Any],
    ) -> None:
        self.metric, self.reference_column, self.key, self.scale = metric, reference_column, key, float(scale)
        self.compute_kwargs = dict(compute_kwargs)
        self._loaded: Any = None if isinstance(metric, str) else metric
        self.__name__ = name or _name(metric) + (f"_{key}" if key else "")
        self._paired = _takes_one_pair(metric)
        self._lists = compute_kwargs.get("use_aggregator") is False or not _of_evaluate(metric)

    @property
    def settings(self) -> tuple[Any, ...]:
        """What tells it from others (:mod:`hfdataopt.attribution.identity`)."""
        return self.metric, self.reference_column, self.key, self.scale, self.compute_kwargs

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        column = needed_column(columns, self.reference_column, self.__name__)
        references = [text_of(value) if is_messages(value) else value for value in column]
        rows = [row for row, reference in enumerate(references) if reference is not None]
        values = self._values([text_of(completions[row]) for row in rows], [references[row] for row in rows])
        rewards: list[float | None] = [None] * len(references)
        for row, value in zip(rows, values, strict=True):
            rewards[row] = self.scale * value
        return rewards

    def _values(self, predictions: list[str], references: list[Any]) -> list[float]:
        if not predictions:
            return []
        if self._paired:
            results = [self.metric(p, r, **self.compute_kwargs) for p, r in zip(predictions, references, strict=True)]
            return [_single(self._entry(result)) for result in results]
        if self._lists and _is_list(self._compute(predictions[:1], references[:1])):
            together = self._compute(predictions, references)
            if len(together) != len(predictions):
                raise DataError(f"{self.__name__} gave {len(together)} numbers for {len(predictions)} pairs")
            return [_single(value) for value in together]
        return [_single(self._compute([p], [r])) for p, r in zip(predictions, references, strict=True)]

    def _compute(self, predictions: list[str], references: list[Any]) -> Any:
        if self._loaded is None:
            self._loaded = _load(self.metric)
        call: Callable[..., Any] = getattr(self._loaded, "compute", self._loaded)
        return self._entry(call(predictions=predictions, references=references, **self.compute_kwargs))

    def _entry(self, result: Any) -> Any:
        if not isinstance(result, Mapping):
            if self.key is not None:
                raise OptionError(f"{self.__name__}: key={self.key!r}, but the metric returns no dict: {result!r:.200}")
            return result
        if self.key is None and len(result) == 1:
            return next(iter(result.values()))
        if self.key not in result:
            raise OptionError(
                f"{self.__name__}: key={self.key!r} is not in the metric's result; choose {_keys(result)}"
            )
        return result[self.key]


def _keys(result: Mapping[str, Any]) -> str:
    return " or ".join(repr(key) for key in result)


def _name(metric: Any) -> str:
    if isinstance(metric, str):
        return metric.rstrip("/").split("/")[-1]
    if hasattr(metric, "add_batch"):
        return str(getattr(metric, "name", None) or type(metric).__name__)
    return getattr(metric, "__name__", type(metric).__name__)


def _of_evaluate(metric: Any) -> bool:
    return isinstance(metric, str) or hasattr(metric, "add_batch")


def _takes_one_pair(metric: Any) -> bool:
    """Whether a metric is a function of one prediction and one reference."""
    if _of_evaluate(metric):
        return False
    if not callable(metric) or inspect.iscoroutinefunction(metric):
        raise OptionError(
            f"reward_from_metric takes an evaluate metric, its id, or a function (not async); got {metric!r:.200}"
        )
    parameters = inspect.signature(metric).parameters
    return not {"predictions", "references"} <= set(parameters)


def _load(identifier: str) -> Any:
    import evaluate

    try:
        return evaluate.load(identifier)
    except Exception as error:
        raise DataError(
            f"the evaluate metric {identifier!r} cannot be loaded ({type(error).__name__}: {error}); metrics come from the "
            "hub, so go online, pass the path of a local one, or a plain function (hfdataopt.rewards has exact_match, "
            "token_f1 and accuracy)"
        ) from error


def _is_list(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, str | Mapping) and getattr(value, "ndim", 1) == 1


def _single(value: Any) -> float:
    if _is_list(value) and len(value) == 1:
        value = value[0]
    if isinstance(value, str) or not hasattr(value, "__float__"):
        raise TypeError(f"a metric must give a number for a pair, not {value!r:.200}")
    return float(value)
