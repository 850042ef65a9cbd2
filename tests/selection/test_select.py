"""``select``: exactly one size, rows in their order, ties and draws by row id."""

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from hfdataopt import Scores, balance, diverse, get_filter, hookimpl, quantile, sample, select, top, with_row_ids
from hfdataopt.attribution.rows import row_hashes, sample_hashes
from hfdataopt.errors import DataError, OptionError
from hfdataopt.plugins import host

VALUES = [0.1, 0.9, 0.5, 0.5, -0.2, 0.7]
DATA = Dataset.from_dict({"text": list("abcdef"), "value": VALUES})


def scores(pool=DATA, values=VALUES, meaning="helpfulness"):
    by_position = "row_id" not in pool.column_names
    ids = list(range(len(pool))) if by_position else pool["row_id"][:]
    metadata = {"scorer": "toy", "meaning": meaning, "by_position": by_position, "sample": sample_hashes(pool, ids)}
    return Scores(np.array(values), ids, metadata=metadata)


def kept(*args, **options):
    return "".join(select(*args, **options)["text"])


# -- sizes


@pytest.mark.parametrize("by", ["value", scores()], ids=["column", "scores"])
def test_the_best_rows_are_kept_in_their_order(by):
    assert kept(DATA, by, k=2) == "bf"
    assert kept(DATA, by, k=3) == "bcf", "a tie goes to the lower row id"
    assert kept(DATA, by, fraction=0.5) == "bcf"
    assert kept(DATA, by, threshold=0.5) == "bcdf", "a threshold keeps rows at it"
    assert kept(DATA, by, threshold=5.0) == ""
    assert kept(DATA, by, fraction=1.0) == "abcdef"


def test_a_tie_goes_by_row_id_wherever_the_row_stands():
    data = DATA.add_column("row_id", ["r5", "r4", "r3", "r2", "r1", "r0"])
    assert kept(data, "value", k=3) == "bdf"
    moved = data.select([3, 2, 0, 5, 4, 1])
    assert set(kept(moved, "value", k=3)) == set("bdf")
    assert set(kept(moved, scores(data), k=3)) == set("bdf")


@pytest.mark.parametrize(
    ("sizes", "got"),
    [
        ({}, "none"),
        ({"k": 1, "fraction": 0.5}, "fraction, k"),
        ({"k": 1, "fraction": 0.5, "threshold": 0.0}, "fraction, k, threshold"),
    ],
)
def test_exactly_one_size_must_be_given(sizes, got):
    with pytest.raises(OptionError, match=f"give exactly one of fraction, k and threshold; got {got}$"):
        select(DATA, "value", **sizes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k=0 must be a whole number from 1 to 6"),
        ({"k": 7}, "k=7 must be"),
        ({"k": "2"}, "k='2' must be"),
        ({"fraction": 0}, "fraction=0 must be above 0"),
        ({"fraction": 1.1}, "fraction=1.1 must be"),
        ({"threshold": "high"}, "threshold='high' must be a number"),
        ({"threshold": float("nan")}, "threshold=nan must be a number"),
        ({"threshold": 0.1, "rule": "sample"}, "goes with rule='top' only"),
        (
            {"k": 1, "rule": "best"},
            "rule='best' is unknown; there are: 'top', 'sample', and as instances .*balance, diverse",
        ),
        ({"k": 1, "rule": "divers"}, "rule='divers' is unknown .did you mean 'diverse'"),
        ({"k": 1, "rule": "diverse"}, r"diverse is given as an instance .*: rule=hfdataopt.diverse\(k=1\)"),
        ({"k": 1, "edited": True}, "edited=True is for Scores.*; column 'value' has no use for it"),
        ({"k": 1, "target": DATA}, "target= is used only by a filter; column 'value' has no use for it"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(OptionError, match=message):
        select(DATA, "value", **options)


# -- by


def test_a_column_must_be_there_and_hold_numbers():
    with pytest.raises(DataError, match="has no column 'score'; it has: text, value"):
        select(DATA, "score", k=1)
    with pytest.raises(DataError, match="column 'text' must hold numbers; got 'a'"):
        select(DATA, "text", k=1)
    with pytest.raises(OptionError, match="by must be a filter, Scores, or the name of a filter or a column; got int"):
        select(DATA, 3, k=1)


@pytest.mark.parametrize("hole", [float("nan"), None])
def test_a_column_with_holes_is_an_error(hole):
    data = Dataset.from_dict({"text": ["a", "b", "c"], "value": [1.0, hole, 2.0]})
    with pytest.raises(DataError, match="column 'value' is NaN or None in 1 rows, first in row 1; drop or fill them"):
        select(data, "value", k=1)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_formatted_column_is_read(kind):
    assert select(DATA.with_format(kind), "value", k=2).with_format(None)["text"][:] == ["b", "f"]


def test_a_row_without_a_score_is_never_kept():
    by = scores(values=[0.1, float("nan"), 0.5, -5.0, float("nan"), 0.7])
    assert kept(DATA, by, k=3) == "acf"
    assert kept(DATA, by, k=4) == "acdf"
    assert kept(DATA, by, threshold=-10.0) == "acdf"
    assert set(kept(DATA, by, k=4, rule="sample")) == set("acdf")
    with pytest.raises(OptionError, match="top asks for 5 rows but only 4 have a score"):
        select(DATA, by, k=5)
    with pytest.raises(DataError, match="no row has a score by toy"):
        select(DATA, scores(values=[float("nan")] * 6), k=1)


def test_a_fraction_is_of_the_rows_that_have_a_score(capsys):
    by = scores(values=[0.1, float("nan"), 0.5, -5.0, float("nan"), 0.7])
    assert kept(DATA, by, fraction=0.5) == "cf"
    assert "2 of 6 rows have no score and are not kept; fraction=0.5 is of the other 4" in capsys.readouterr().err
    assert kept(DATA, by, fraction=1.0) == "acdf"
    assert kept(DATA, by, rule=diverse(fraction=0.75)) != ""


def test_edited_rows_keep_their_scores_where_that_is_asked_for(capsys):
    by = scores()
    by.row_hashes = row_hashes(DATA)
    mended = DATA.map(lambda row: {"value": 7.0} if row["text"] == "c" else {})
    with pytest.raises(DataError, match=r"row 2 has another value in column 'value'.*select first and edit afterwards"):
        select(mended, by, k=2)
    assert kept(mended, by, k=2, edited=True) == "bf"
    assert "1 of 6 rows were edited since they were scored (columns value): 2; they keep" in capsys.readouterr().err
    with pytest.raises(OptionError, match="edited=True is for Scores"):
        select(mended, get_filter("random"), k=2, edited=True)


def test_several_filters_at_a_time():
    with pytest.raises(OptionError, match=r"one filter, Scores or a column at a time; got 2\. The filter 'combine'"):
        select(DATA, ["length", "random"], k=1)


def test_scores_of_another_dataset_are_refused():
    with pytest.raises(DataError, match="with_row_ids"):
        select(DATA.select(range(5)), scores(), k=1)
    with pytest.raises(DataError, match="another order"):
        select(DATA.select([1, 0, 2, 3, 4, 5]), scores(), k=1)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (DATA.to_iterable_dataset(), "is a stream"),
        (DATA.select([]), "is empty"),
        (DatasetDict(train=DATA), "dict of datasets"),
    ],
)
def test_what_cannot_be_selected_from(dataset, message):
    with pytest.raises(DataError, match=message):
        select(dataset, "value", k=1)


def test_suspicion_at_the_top_is_warned_about(recwarn):
    with pytest.warns(UserWarning, match="'toy' measures suspicion, so its top 2 of 6 rows are the least suspicious"):
        select(DATA, scores(meaning="suspicion"), k=2)
    with pytest.warns(UserWarning, match="measures suspicion"):
        select(DATA, scores(meaning="suspicion"), threshold=0.7)
    recwarn.clear()
    select(DATA, scores(meaning="suspicion"), fraction=0.9)
    select(DATA, scores(), k=2)
    select(DATA, "value", k=2)
    assert not list(recwarn)


# -- sampling

MANY = with_row_ids(Dataset.from_dict({"text": [f"t{i}" for i in range(400)], "value": [i / 100 for i in range(400)]}))


def test_a_sample_depends_on_seed_and_row_ids_only():
    def drawn(dataset, **options):
        return set(select(dataset, "value", k=40, rule="sample", **options)["row_id"])

    assert drawn(MANY, seed=1) == drawn(MANY, seed=1) == drawn(MANY.shuffle(seed=7), seed=1)
    assert drawn(MANY, seed=1) != drawn(MANY, seed=2)
    assert len(drawn(MANY, seed=1)) == 40
    rows = select(MANY, "value", k=40, rule="sample")["row_id"][:]
    assert rows == sorted(rows), "the order of the dataset is kept"


def test_a_sample_takes_rows_by_the_exponential_of_their_score():
    """Of two groups of 200 rows whose scores differ by ln 3, the first 40 draws take about three times as many."""
    data = MANY.remove_columns("value").add_column("value", [float(np.log(3)) * (i % 2) for i in range(400)])
    high = [np.mean(np.array(select(data, "value", k=40, rule="sample", seed=s)["row_id"]) % 2) for s in range(30)]
    assert np.mean(high) == pytest.approx(0.74, abs=0.03)  # a little below 3/4: no row is drawn twice


# -- observers


@pytest.fixture
def observer():
    calls = []

    class Observer:
        @hookimpl
        def after_selection(self, dataset, kept, by):
            calls.append((len(dataset), kept, by))

    plugin = Observer()
    host().register(plugin)
    yield calls
    host().manager.unregister(plugin)


def test_observers_are_told_what_was_kept(observer):
    select(DATA, "value", k=2)
    named = DATA.add_column("row_id", [f"r{i}" for i in range(6)])
    select(named, scores(named), fraction=0.2)
    assert observer == [
        (6, [1, 5], "column 'value'"),
        (6, ["r1"], "toy (higher = more helpful to the queries)"),
    ]


def test_what_was_done_is_said(capsys):
    select(DATA, scores(values=[*VALUES[:5], float("nan")]), k=2)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "hfdataopt: select: 1 of 6 rows have no score and are not kept"
    assert said[1] == "hfdataopt: select: kept 2 of 6 rows by toy (higher = more helpful to the queries)"


# -- filters


TEXTS = Dataset.from_dict(
    {"text": [f"{'word ' * (i * 5 % 13)}{i}" for i in range(30)], "kind": [i % 2 for i in range(30)]}
)


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize(
    "rule", [top(k=4), quantile(0.7), sample(k=5, temperature=3), balance("kind", k=6), diverse(k=5)], ids=str
)
def test_a_filter_selects_what_its_map_function_keeps(rule, ids):
    data = with_row_ids(TEXTS) if ids else TEXTS
    fitted = get_filter("length", keep=rule).fit(data)
    expected = data.filter(fitted.keep, batched=True, input_columns=fitted.columns)["text"][:]
    assert select(data, "length", rule=rule)["text"][:] == expected
    assert select(data, get_filter("length", keep=rule))["text"][:] == expected
    assert select(data, get_filter("length"), rule=rule)["text"][:] == expected
    unruled = get_filter("length").fit(data)
    assert select(data, unruled, rule=rule)["text"][:] == expected
    assert select(data, fitted)["text"][:] == expected, "a fitted filter is used as it is"


def test_options_and_seed_reach_a_filter_given_by_name():
    assert (
        select(TEXTS, "length", k=3, best="shortest")["text"][:]
        == select(TEXTS, get_filter("length", best="shortest"), k=3)["text"][:]
    )
    assert (
        select(TEXTS, "random", k=5, seed=4)["text"][:] == select(TEXTS, get_filter("random", seed=4), k=5)["text"][:]
    )
    assert select(TEXTS, "random", k=5, seed=4)["text"][:] != select(TEXTS, "random", k=5)["text"][:]


def test_a_filter_on_a_stream():
    stream = TEXTS.to_iterable_dataset(num_shards=3)
    assert [row["text"] for row in select(stream, "length", threshold=9)] == select(TEXTS, "length", threshold=9)[
        "text"
    ][:]
    fitted = get_filter("length", keep=top(k=4)).fit(TEXTS)
    assert [row["text"] for row in select(stream, fitted)] == select(TEXTS, fitted)["text"][:]
    with pytest.raises(OptionError, match="length is fitted already; on a stream fit it with the rule"):
        select(stream, get_filter("length").fit(TEXTS), k=3)


def test_equal_texts_are_told_apart_by_position():
    data = Dataset.from_dict({"text": ["aa b", "c", "aa b", "aa b"]})
    assert len(select(data, "length", k=2)) == 2


def test_rules_work_on_columns_and_scores_too():
    data = TEXTS.add_column("value", [float(i) for i in range(30)])
    assert select(data, "value", rule=balance("kind", k=4))["value"][:] == [26, 27, 28, 29]
    assert len(select(data, "value", rule=diverse(k=4))) == 4
    assert select(data, "value", rule=quantile(0.9))["value"][:] == [27, 28, 29]
    draws = [select(data, "value", rule=sample(k=4, temperature=5, seed=seed))["value"][:] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (
            lambda: select(TEXTS, "value", k=1),
            DataError,
            "no column 'value'; it has: text, kind. And no filter is called so; there are: .*length",
        ),
        (
            lambda: select(TEXTS, "length", rule=top(k=1), k=3),
            OptionError,
            "k= goes with a rule's name; top has its own sizes",
        ),
        (lambda: select(TEXTS, "length", k=1, target=TEXTS), OptionError, "length: has no use for target="),
        (
            lambda: select(TEXTS, "length", k=1, bset="longest"),
            OptionError,
            "has no option 'bset' .did you mean 'best'",
        ),
        (
            lambda: select(TEXTS, get_filter("length"), k=1, best="longest"),
            OptionError,
            "the options .'best'. belong to a filter given by name",
        ),
        (
            lambda: select(TEXTS, "kind", k=1, best="longest"),
            OptionError,
            "best= is used only by a filter; column 'kind'",
        ),
        (
            lambda: select(TEXTS, get_filter("length").fit(TEXTS), k=1, target=TEXTS),
            OptionError,
            "is fitted already and has no use for target=",
        ),
        (lambda: select(TEXTS, "kind", rule=balance("group", k=1)), DataError, "no column 'group' to balance"),
        (lambda: select(TEXTS.to_iterable_dataset(), "length", rule=diverse(k=1)), DataError, "rules for streams: top"),
        (
            lambda: select(TEXTS, get_filter("length", keep=top(k=2)), k=3),
            OptionError,
            r"k= was given, but length has the rule top\(k=2\) of its own; drop one of them",
        ),
        (
            lambda: select(TEXTS, "length", rule=top(k=1), seed=3),
            OptionError,
            r"seed= is used by rule='sample' and by filters given by name that draw; not by top\(k=1\) on length",
        ),
        (
            lambda: select(TEXTS, "length", rule=top(k=99)),
            OptionError,
            "length: top: k=99 must be a whole number from 1 to 30",
        ),
        (lambda: select(TEXTS, "length"), OptionError, "give exactly one of fraction, k and threshold; got none"),
    ],
)
def test_one_clear_line(act, error, message):
    with pytest.raises(error, match=message):
        act()
