"""``select``: the rows of a dataset to keep, by a filter, by scores or by a column of numbers."""

import copy
import difflib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hfdataopt.attribution.rows import ROW_ID, as_list, check_map_style, row_ids, with_row_ids
from hfdataopt.attribution.scorer import MEANINGS
from hfdataopt.attribution.scores import Scores, count_of
from hfdataopt.console import say, warn
from hfdataopt.errors import DataError, OptionError
from hfdataopt.plugins import host
from hfdataopt.selection.filter import Filter, WholeFilter
from hfdataopt.selection.fit_rule import candidates
from hfdataopt.selection.keys import keys_of
from hfdataopt.selection.rules import RULES, Candidates, Rule, sample, top
from hfdataopt.selection.rules import threshold as at_least
from hfdataopt.selection.source import Source, text_columns
from hfdataopt.selection.summary import summarize
from hfdataopt.selection.words import word_vectors

NAMED_RULES = ("top", "sample")


def select(
    dataset: Any,
    by: Any,
    *,
    target: Any = None,
    fraction: float | None = None,
    k: int | None = None,
    threshold: float | None = None,
    rule: str | Rule | None = None,
    seed: int | None = None,
    edited: bool = False,
    return_summary: bool = False,
    **options: Any,
) -> Any:
    """The dataset reduced to the rows a keep rule chooses, in their original order.

    Args:
        dataset: a ``datasets.Dataset``; with a filter also a stream, which comes back as a filtered stream.
        by: a filter or its name, :class:`Scores`, or the name of a column of numbers (which goes before a filter of that name).
            A filter that is fitted already is used as it is. Higher is better.
        target: validation data, for filters that compare with it.
        fraction, k, threshold: exactly one, with a rule's name. ``fraction`` is of the rows that have a score; ``threshold`` keeps
            every row at or above it.
        rule: ``top`` keeps the best, ties by row id; ``sample`` draws rows without replacement with probability
            proportional to exp(score), as a function of (seed, row id); or an instance of a rule, such as
            ``balance("label", k=100)``, which has its own sizes. None: the filter's own rule, else ``top``.
        seed: of the rule ``sample`` given by name, and of a filter given by name that has an option ``seed``; None for 0.
        edited: with :class:`Scores` and the filter ``scores``, whether rows may have been edited since they were scored: then they
            keep their scores and their number is said, else it is an error.
        return_summary: whether to return ``(dataset, SelectionSummary)``.
        options: of a filter given by name.

    Raises:
        OptionError: not exactly one size, or one out of range, an unknown rule, or a target or options nobody has a use for.
        DataError: the scores belong to another dataset, the column is missing or holds NaN, or the rule needs the whole of
            what is a stream.
    """
    import datasets

    streaming = isinstance(dataset, datasets.IterableDataset)
    if isinstance(by, list | tuple):
        raise OptionError(
            f"select: one filter, Scores or a column at a time; got {len(by)}. The filter 'combine' ranks by several"
        )
    if "keep" in options:
        raise OptionError(
            "select: keep= is get_filter's word; here it is rule=, e.g. select(dataset, by, rule=top(k=100))"
        )
    if not streaming:
        check_map_style(dataset, "select: the dataset")
    by_name = isinstance(by, str) and _is_filter(dataset, by)
    if edited and not isinstance(by, Scores) and not by_name:
        raise OptionError(
            f"select: edited=True is for Scores, which know the rows they were made of; {_describe(by)} has no use for it"
        )
    if isinstance(by, Filter) or by_name:
        if edited:
            options["edited"] = True
        chosen_by: Any = by if isinstance(by, Filter) else _create(by, seed or 0, options)
        if isinstance(by, Filter) and options:
            raise OptionError(
                f"select: the options {sorted(options)} belong to a filter given by name; {by.name} is given as it is"
            )
    else:
        chosen_by = by
        if options or target is not None:
            word = sorted(options)[0] if options else "target"
            raise OptionError(f"select: {word}= is used only by a filter; {_describe(by)} has no use for it")
        if streaming:
            check_map_style(dataset, "select: the dataset")
    if not streaming and not hasattr(dataset, "column_names"):
        raise DataError(
            f"select: the dataset is a {type(dataset).__name__}; make it a datasets.Dataset, for example with Dataset.from_list"
        )
    keep = _rule(
        chosen_by,
        rule,
        {"fraction": fraction, "k": k, "threshold": threshold},
        seed or 0,
        None if streaming else len(dataset),
    )
    if seed is not None and rule != "sample" and not (isinstance(by, str) and hasattr(chosen_by, "seed")):
        raise OptionError(
            f"select: seed= is used by rule='sample' and by filters given by name that draw; not by {keep} on {_name(chosen_by)}"
        )
    if streaming:
        return _select_from_stream(dataset, chosen_by, target, keep, return_summary)
    if isinstance(chosen_by, Filter):
        rows, read = _candidates_of_filter(dataset, chosen_by, target, keep)
    else:
        rows, read = _candidates_of_numbers(dataset, chosen_by, keep, edited), None
    without = int(np.isnan(rows.values).sum())
    if without == len(rows.values):
        raise DataError(f"select: no row has a score by {_describe(chosen_by)}")
    if without:
        share = getattr(keep, "fraction", None)
        of_others = "" if share is None else f"; fraction={share:g} is of the other {len(rows.values) - without}"
        say(f"select: {without} of {len(rows.values)} rows have no score and are not kept{of_others}")
    kept = keep.choose(rows)
    if _suspicious(chosen_by) and len(kept) <= len(rows.values) / 2:
        warn(
            f"select: {_name(chosen_by)!r} measures suspicion, so its top {len(kept)} of {len(rows.values)} rows are the least suspicious "
            "(the easiest), not the most helpful; use it to drop the lowest rows, e.g. fraction=0.9"
        )
    say(f"select: kept {len(kept)} of {len(rows.values)} rows by {_describe(chosen_by)}")
    ids = row_ids(dataset, "select: the dataset")
    host().hook.after_selection(dataset=dataset, kept=[ids[i] for i in kept], by=_describe(chosen_by))
    selected = dataset.select(kept)
    if not return_summary:
        return selected
    return selected, summarize(
        dataset, rows.values, kept, ids, by=_name(chosen_by), meaning=_meaning(chosen_by), rule=keep, read=read
    )


# -- what is asked


def _is_filter(dataset: Any, name: str) -> bool:
    """Whether a name is a filter's rather than a column's."""
    columns = getattr(dataset, "column_names", None) or []
    if name in columns:
        return False
    if name in host().components["filter"]:
        return True
    raise DataError(
        f"select: the dataset has no column {name!r}; it has: {', '.join(columns)}. And no filter is called so; there are: "
        f"{', '.join(sorted(host().components['filter'])) or 'none'}"
    )


def _create(name: str, seed: int, options: dict[str, Any]) -> Filter:
    component = host().get("filter", name)
    return component.create(**({"seed": seed} if "seed" in component.options else {}), **options)


def _rule(by: Any, rule: str | Rule | None, sizes: dict[str, Any], seed: int, rows: int | None) -> Rule:
    given = [name for name, value in sizes.items() if value is not None]
    own = by.rule if isinstance(by, Filter) else None
    if own is not None:
        if given or rule is not None:
            word = given[0] if given else "rule"
            raise OptionError(
                f"select: {word}= was given, but {by.name} has the rule {own} of its own; drop one of them"
            )
        return own
    if isinstance(rule, Rule):
        if given:
            raise OptionError(f"select: {given[0]}= goes with a rule's name; {rule.name} has its own sizes")
        return rule
    name = rule or "top"
    if name not in NAMED_RULES:
        names, others = ", ".join(map(repr, NAMED_RULES)), ", ".join(each for each in RULES if each not in NAMED_RULES)
        if name in RULES:
            size = next((f"{word}={value}" for word, value in sizes.items() if value is not None), "")
            raise OptionError(
                f"select: by name rule= is {names}; {name} is given as an instance with its own sizes: "
                f"rule=hfdataopt.{name}({'...' if name in ('balance', 'quantile') else size or '...'})"
            )
        near = difflib.get_close_matches(str(name), RULES, n=1)
        raise OptionError(
            f"select: rule={rule!r} is unknown{f' (did you mean {near[0]!r}?)' if near else ''}; there are: {names}, and as instances "
            f"(rule=hfdataopt.NAME(...)): {others}"
        )
    if len(given) != 1:
        raise OptionError(f"select: give exactly one of fraction, k and threshold; got {', '.join(given) or 'none'}")
    k, fraction, threshold = sizes["k"], sizes["fraction"], sizes["threshold"]
    if threshold is not None:
        if name != "top" or not isinstance(threshold, int | float) or math.isnan(threshold):
            raise OptionError(f"select: threshold={threshold!r} must be a number, and goes with rule='top' only")
        return at_least(threshold)
    if rows is not None:
        count_of(k, fraction, rows)
    return top(k=k, fraction=fraction) if name == "top" else sample(k=k, fraction=fraction, seed=seed)


def _name(by: Any) -> str:
    return by.name if isinstance(by, Filter) else by.scorer if isinstance(by, Scores) else str(by)


def _meaning(by: Any) -> str:
    if isinstance(by, Filter):
        return MEANINGS.get(by.meaning, by.meaning)
    return by.meaning if isinstance(by, Scores) else "a column of the dataset"


def _suspicious(by: Any) -> bool:
    return (
        by.meaning if isinstance(by, Filter) else by.metadata.get("meaning") if isinstance(by, Scores) else ""
    ) == "suspicion"


def _describe(by: Any) -> str:
    return f"{_name(by)} ({_meaning(by)})" if isinstance(by, Filter | Scores) else f"column {by!r}"


# -- the rows to choose from


def _with_rule(by: Filter, rule: Rule) -> Filter:
    given = copy.copy(by)
    given.set(rule=rule)
    return given


def _candidates_of_filter(
    dataset: Any, by: Filter, target: Any, rule: Rule
) -> tuple[Candidates, tuple[str, ...] | None]:
    """The rows with their scores, and the columns that these were computed from."""
    if by.fitted:
        if target is not None:
            raise OptionError(
                f"select: {by.name} is fitted already and has no use for target=; leave it out, or pass the filter before fit"
            )
        fitted, pool = _with_rule(by, rule), Source(dataset, by.name, "the dataset")
        pool.read = by.read or ()
    else:
        if isinstance(by, WholeFilter) and ROW_ID not in dataset.column_names:
            dataset = with_row_ids(dataset)  # rows of equal text may differ in score
        fitted, pool = _with_rule(by, rule).learned(dataset, target)
    return candidates(fitted, pool), fitted.read


def _candidates_of_numbers(dataset: Any, by: Any, rule: Rule, edited: bool) -> Candidates:
    ids = row_ids(dataset, "select: the dataset")
    group = rule.group_column_of(dataset.column_names, "select")

    def vectors(positions: np.ndarray) -> np.ndarray:
        pool = Source(dataset, "select", "the dataset")
        pool.read = text_columns(pool.columns, None, "select", "the dataset")
        return np.concatenate([word_vectors(batch.texts) for batch in pool.at(positions)])

    def ids_at(positions: np.ndarray) -> Sequence[Any]:
        return [ids[position] for position in positions]

    scores = _values(dataset, by, edited)
    values = rule.values(scores, lambda: keys_of(ids))
    return Candidates(values, ids_at, None if group is None else as_list(dataset[group]), vectors)


def _values(dataset: Any, by: Any, edited: bool) -> np.ndarray:
    if isinstance(by, Scores):
        return by.align(dataset, edited=edited)
    if not isinstance(by, str):
        raise OptionError(
            f"select: by must be a filter, Scores, or the name of a filter or a column; got {type(by).__name__}"
        )
    column = as_list(dataset[by])
    wrong = [value for value in column if value is not None and not isinstance(value, int | float)]
    if wrong:
        raise DataError(f"select: column {by!r} must hold numbers; got {wrong[0]!r}")
    values = np.array([math.nan if value is None else value for value in column], dtype=np.float64)
    if np.isnan(values).any():
        count, first = int(np.isnan(values).sum()), row_ids(dataset)[int(np.isnan(values).argmax())]
        raise DataError(
            f"select: column {by!r} is NaN or None in {count} rows, first in row {first!r}; drop or fill them first"
        )
    return values


def _select_from_stream(stream: Any, by: Any, target: Any, rule: Rule, return_summary: bool) -> Any:
    if return_summary:
        raise OptionError(
            "select: a stream has no summary, since its rows have not been read; take one of stream.take(n)"
        )
    if by.fitted:
        if by.rule is not rule:
            raise OptionError(
                f"select: {by.name} is fitted already; on a stream fit it with the rule: get_filter({by.name!r}, keep=...).fit(stream)"
            )
        fitted = by
    else:
        fitted = _with_rule(by, rule).fit(stream, target)
    return stream.filter(fitted.keep, batched=True, input_columns=fitted.columns)
