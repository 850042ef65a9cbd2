"""``select``, filters and keep rules on any dataset: the rows that the definition names, or a named error."""

import itertools
import math
from typing import Any

import numpy as np
from datasets import Dataset
from hypothesis import strategies as st

from hfdataopt import select
from hfdataopt.plugins import get_filter, host
from hfdataopt.selection.curriculum import curriculum
from hfdataopt.selection.prompt_sampler import PromptSampler
from hfdataopt.selection.rules import balance, diverse, quantile, sample, threshold, top
from hfdataopt.testing.tiny import rows as filter_rows

from .inputs import any_text, anything, awkward_texts, dataset_of, messages, odd_numbers, rectangular, scalars, words
from .kinds import kind, outcome, refused

TARGET = Dataset.from_dict({"text": ["the film was great", "it was a fine plot", "superb scene"]})
TEXT_FILTERS = ["length", "random", "near-duplicates", "dsir", "bm25", "tsds"]
columns_of_numbers = st.lists(st.floats(-3, 3) | st.integers(-3, 3), min_size=1, max_size=8)


def fitted(name: str, data: Any, target: Any = TARGET, **options: Any) -> Any:
    """The scores of a filter for every row, by its map function; or the refusal."""

    def run() -> list[float]:
        one = get_filter(name, **options)
        two = one.fit(data, target if one.needs_target else None)
        mapped = data.map(two, batched=True, batch_size=2)
        return [row[two.score_column] for row in mapped]

    return outcome(run)


def check_scores(found: Any, rows: int) -> None:
    """One finite number per row, unless refused."""
    if not refused(found):
        assert len(found) == rows
        assert all(isinstance(value, float) and math.isfinite(value) for value in found)


@kind(50, name=st.sampled_from(TEXT_FILTERS), texts=st.lists(any_text, min_size=1, max_size=6))
def test_filters_on_any_text(name, texts):
    data = dataset_of({"text": texts})
    found = fitted(name, data)
    check_scores(found, len(texts))
    if name == "length":
        assert found == [float(len(text.split())) for text in texts]
    if not refused(found):  # rows of equal text have equal scores
        pairs = dict(zip(texts, found, strict=True))
        assert [pairs[text] for text in texts] == found


@kind(
    30,
    name=st.sampled_from(TEXT_FILTERS),
    cells=st.lists(st.none() | words, min_size=1, max_size=5),
    drop=st.booleans(),
)
def test_filters_on_missing_text(name, cells, drop):
    data = dataset_of({"text": cells})
    found = fitted(name, data, on_nan="drop" if drop else "error")
    if not drop and None in cells:
        assert refused(found)
    elif not refused(found):
        for cell, value in zip(cells, found, strict=True):
            assert math.isnan(value) if cell is None else math.isfinite(value)


@kind(40, name=st.sampled_from(TEXT_FILTERS), cells=st.lists(messages, min_size=1, max_size=4))
def test_filters_on_malformed_messages(name, cells):
    data = rectangular([{"messages": cell} for cell in cells])
    if data is not None:
        check_scores(fitted(name, data), len(cells))


@kind(
    40,
    name=st.sampled_from(TEXT_FILTERS),
    column=st.sampled_from(["text", "prompt", "completion", "chosen", "messages", "other", "row_id"]),
    cells=st.lists(scalars, min_size=1, max_size=4),
)
def test_filters_on_columns_of_any_type(name, column, cells):
    data = dataset_of({column: cells})
    if data is not None:
        found = fitted(name, data)
        check_scores(found, len(cells))
        if name == "random":  # which reads no text
            return
        if column in ("completion", "other", "row_id") or not all(isinstance(cell, str) for cell in data[column][:]):
            assert refused(found)


@kind(
    25,
    name=st.sampled_from(
        sorted(set(host().components["filter"]) - {"rds", "perplexity", "ifd", "log-ratio", "active-dpo"})
    ),
    dataset=anything | st.sampled_from([[], [{}], [{"text": "a"}], {"text": ["a"]}, "train.jsonl"]),
    as_target=st.booleans(),
)
def test_filters_on_what_is_no_dataset(name, dataset, as_target):
    options = {"combine": {"inputs": ["number"]}, "scores": {"given": "x"}}.get(name, {})
    data = filter_rows(6)
    found = outcome(lambda: get_filter(name, **options).fit(*((data, dataset) if as_target else (dataset, None))))
    if not as_target or dataset is not None:
        assert refused(found)


@kind(
    24,
    name=st.sampled_from(["length", "random", "dsir", "bm25"]),
    texts=st.lists(words | st.sampled_from(["", "a"]), min_size=1, max_size=7),
    size=st.integers(1, 5),
)
def test_streams_and_datasets_agree(name, texts, size):
    data = Dataset.from_dict({"text": texts})
    one, other = fitted(name, data), fitted(name, data.to_iterable_dataset(num_shards=min(size, len(texts))))
    assert (str(one), refused(one)) == (str(other), refused(other)) if refused(one) else one == other


@kind(
    40,
    name=st.sampled_from(
        [
            "label-errors",
            "reward-margin",
            "prompt-difficulty",
            "rejection-pairs",
            "combine",
            "tsds",
            "log-ratio",
            "active-dpo",
            "rds",
        ]
    ),
    columns=st.dictionaries(
        st.sampled_from(["label", "p", "a", "b"]),
        st.lists(scalars | st.lists(odd_numbers, max_size=3) | st.integers(0, 2), min_size=4, max_size=4),
        min_size=1,
    ),
)
def test_filters_of_numbers_on_columns_of_any_type(name, columns):
    options: dict[str, Any] = {
        "label-errors": {"probabilities": "p"},
        "reward-margin": {"chosen_reward": "a", "rejected_reward": "b"},
        "prompt-difficulty": {"rewards": "p"},
        "rejection-pairs": {"rewards": "p", "completions": "a"},
        "combine": {"inputs": ["a", "b"]},
        "tsds": {"embeddings": "p"},
        "log-ratio": {"logps": ("a", "b")},
        "active-dpo": {"features": ("a", "b")},
        "rds": {"embeddings": "p"},
    }[name]
    data = dataset_of(columns)
    if data is not None:
        found = fitted(name, data, target=data, **options)
        if name != "rejection-pairs":
            check_scores(found, 4)


@kind(
    24,
    target=st.lists(scalars, max_size=3),
    column=st.sampled_from(["text", "prompt", "label"]),
    name=st.sampled_from(["dsir", "bm25", "tsds"]),
)
def test_targets_of_any_type(target, column, name):
    given = dataset_of({column: target})
    if given is not None:
        data = Dataset.from_dict({"text": ["the film", "was great", "fine"]})
        found = fitted(name, data, target=given)
        check_scores(found, 3)
        if not target or column == "label":
            assert refused(found)


# -- select


@kind(60, values=columns_of_numbers, k=anything | st.integers(0, 9), fraction=st.none() | anything | st.floats(0, 1))
def test_the_best_rows_by_a_column(values, k, fraction):
    data = dataset_of({"x": [float(value) for value in values]})
    found = outcome(lambda: select(data, "x", k=k, fraction=fraction))
    rows = len(values)
    sizes = [size for size in (k, fraction) if size is not None]
    whole = isinstance(k, int | np.integer) and not isinstance(k, bool) and 1 <= k <= rows
    share = type(fraction) in (int, float) and 0 < fraction <= 1
    if len(sizes) == 1 and (whole or (k is None and share)):
        count = int(k) if whole else max(1, round(fraction * rows))
        best = sorted(range(rows), key=lambda i: (-float(values[i]), i))[:count]
        assert found["x"][:] == [float(values[i]) for i in sorted(best)]
    elif not isinstance(fraction, np.floating):
        assert refused(found)


@kind(30, values=st.lists(scalars, min_size=1, max_size=5), limit=anything)
def test_a_column_of_anything(values, limit):
    data = dataset_of({"x": values})
    if data is None:
        return
    found = outcome(lambda: select(data, "x", threshold=limit))
    stored = data["x"][:]
    number = type(limit) in (int, float) and not math.isnan(limit)
    if number and all(type(x) in (int, float) and not math.isnan(x) for x in stored):
        assert refused(found) or found["x"][:] == [x for x in stored if x >= limit]
    elif not isinstance(limit, np.floating | np.integer) and not all(isinstance(x, bool) for x in stored):
        assert refused(found)


@kind(
    40,
    groups=st.lists(
        scalars | st.sampled_from(["a", "b"]) | st.lists(st.integers(0, 1), max_size=1), min_size=4, max_size=8
    ),
    k=st.integers(0, 9),
)
def test_balance_over_any_column(groups, k):
    data = dataset_of({"x": [float(i) for i in range(len(groups))], "group": groups})
    if data is None:
        return
    found = outcome(lambda: select(data, "x", rule=balance("group", k=k)))
    stored = data["group"][:]
    if refused(found):
        return
    assert len(found) == k
    counts: dict[Any, int] = {}
    for group in found["group"][:]:
        counts[group] = counts.get(group, 0) + 1
    for group in set(stored):
        if counts.get(group, 0) < stored.count(group):  # it could have given more, so no other has much more
            assert counts.get(group, 0) >= max(counts.values()) - 1


@kind(
    40,
    values=columns_of_numbers,
    rule=st.sampled_from([top, sample, quantile, threshold, diverse]),
    size=st.floats(-0.2, 1.2),
    seed=st.integers(-3, 2**65),
)
def test_rules_do_not_look_at_the_order_of_rows(values, rule, size, seed):
    ids = [f"r{i}" for i in range(len(values))]
    texts = [f"the film {i % 3}" for i in range(len(values))]
    data = Dataset.from_dict({"x": [float(v) for v in values], "row_id": ids, "text": texts})
    more = {"seed": seed} if rule is sample else {}
    size_of = {"quantile": {"q": size}, "threshold": {"value": size}}.get(rule.__name__, {"fraction": size})

    def chosen(order: list[int]) -> Any:
        return outcome(lambda: sorted(select(data.select(order), "x", rule=rule(**size_of, **more))["row_id"][:]))

    first, second = chosen(list(range(len(values)))), chosen(list(range(len(values)))[::-1])
    assert refused(first) == refused(second)
    if not refused(first):
        assert first == second
        assert len(set(first)) == len(first)


@kind(
    40,
    by=anything | st.sampled_from(["x", "text", "absent", "length", "bm25", get_filter("length")]),
    options=st.dictionaries(
        st.sampled_from(["target", "rule", "seed", "return_summary", "keep", "unit", "k"]),
        scalars | st.sampled_from(["top", "sample", "words"]),
        max_size=3,
    ),
)
def test_arguments_of_select(by, options):
    data = Dataset.from_dict({"x": [1.0, 2.0, 3.0], "text": ["a", "b c", "d e f"]})
    found = outcome(lambda: select(data, by, **{"k": 2, **options}))
    if not refused(found):
        kept = found[0] if isinstance(found, tuple) else found
        assert len(kept) == options.get("k", 2)


@kind(
    30,
    by=anything | st.sampled_from(["x", "text", "length"]),
    options=st.dictionaries(
        st.sampled_from(["stages", "easy", "within"]),
        odd_numbers | scalars | st.sampled_from(["high", "low", "text", "x"]),
        max_size=2,
    ),
)
def test_a_curriculum(by, options):
    data = Dataset.from_dict({"x": [3.0, 1.0, 2.0], "text": ["a", "b c", "b c"]})
    found = outcome(lambda: curriculum(data, by, **options))
    if refused(found):
        assert not (isinstance(by, str) and by == "x") or options
        return
    stages = found if isinstance(found, list) else [found]
    assert sorted(x for stage in stages for x in stage["x"][:]) == [1.0, 2.0, 3.0]
    if not options:
        assert found["x"][:] == [3.0, 2.0, 1.0]


SAMPLER = ["prompts", "repeat", "turns", "rate", "estimate", "candidates", "success", "prior", "discount", "seed"]


@kind(
    40,
    rows=st.integers(0, 5),
    options=st.dictionaries(
        st.sampled_from(SAMPLER),
        odd_numbers | st.integers(1, 3) | scalars | st.tuples(odd_numbers, odd_numbers),
        max_size=2,
    ),
)
def test_a_sampler_of_prompts(rows, options):
    data = Dataset.from_dict({"prompt": [f"p{i}" for i in range(rows)]})

    def draw() -> list[int]:
        sampler = PromptSampler(data, **{"prompts": 2, **options})
        found = list(itertools.islice(iter(sampler), 12))
        found += list(itertools.islice(iter(sampler), 12))
        return found

    found = outcome(draw)
    if refused(found):
        assert options or rows < 2
    else:
        assert found
        assert set(found) <= set(range(rows))


@kind(
    30,
    names=st.lists(awkward_texts | st.sampled_from(["text", "x"]), min_size=1, max_size=2, unique=True),
    text=anything | st.sampled_from(["text", ["text"], ["x", "text"], []]),
    column=st.none() | awkward_texts,
)
def test_names_of_columns(names, text, column):
    data = dataset_of({name: ["a b", "c"] for name in names})
    if data is None:
        return
    found = fitted("length", data, text=text, column=column)
    check_scores(found, 2)


@kind(
    20,
    form=st.sampled_from([None, "numpy", "torch", "pandas", "arrow"]),
    name=st.sampled_from(["length", "dsir", "combine"]),
    seed=st.integers(0, 9),
)
def test_formats_of_a_dataset_change_nothing(form, name, seed):
    data = filter_rows(5, seed)
    options: dict[str, Any] = {"inputs": ["number"]} if name == "combine" else {}
    plain = fitted(name, data, target=data, **options)
    assert not refused(plain)

    def run() -> Any:
        one = get_filter(name, **options).fit(data.with_format(form), data if name == "dsir" else None)
        return (
            data.with_format(form)
            .map(one, batched=True, load_from_cache_file=False)
            .with_format(None)[one.score_column][:]
        )

    assert outcome(run) == plain
