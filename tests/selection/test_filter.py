"""The contract of filters, by two toy ones: the same rows however the data is read, and one clear line for each mistake."""

import importlib
import linecache
import pickle
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset, load_from_disk
from datasets.fingerprint import Hasher

from hfdataopt import TextFilter, balance, diverse, get_filter, quantile, sample, threshold, top, with_row_ids
from hfdataopt.errors import DataError, OptionError
from hfdataopt.selection import filter as host
from hfdataopt.selection.filter import WholeFilter


@dataclass(frozen=True)
class Vowels(TextFilter):
    """The share of vowels, less the mean of the fitted rows."""

    name: ClassVar[str] = "vowels"
    weight: float = 1.0
    mean: float = field(default=0.0, init=False, repr=False, compare=False)

    def learn(self, pool, target):
        self.set(mean=float(np.mean([_share(text) for text in pool.texts()])))

    def score(self, batch):
        return np.array([self.weight * (_share(text) - self.mean) if text else np.nan for text in batch.texts])


@dataclass(frozen=True)
class Rarity(WholeFilter):
    """Minus the number of rows of the same first letter; the later of equal texts scores lower."""

    name: ClassVar[str] = "rarity"
    by_order: bool = False

    def score_all(self, pool, target):
        texts = list(pool.texts())
        counts = [-sum(t[0] == text[0] for t in texts) for text in texts]
        return np.array(counts, float) - (np.arange(len(texts)) / 1000 if self.by_order else 0)


def _share(text):
    return sum(letter in "aeiou" for letter in text) / max(1, len(text))


WORDS = [
    f"{word} {number % 17}" for number, word in enumerate(["banana", "tree", "rhythm", "audio", "stone", "queue"] * 20)
]
DATA = Dataset.from_dict({"text": WORDS, "label": [i % 3 for i in range(120)], "row_id": [f"r{i}" for i in range(120)]})
WITHOUT_IDS = Dataset.from_dict({"text": [f"{text} {i}" for i, text in enumerate(WORDS)], "label": DATA["label"][:]})
RULES = [
    top(fraction=0.1),
    top(k=7),
    threshold(0.05),
    quantile(0.8),
    sample(k=9, temperature=0.2),
    balance("label", k=10),
    diverse(k=8),
    diverse(k=8, method="farthest-first"),
]


def rows_kept(dataset, fitted, **options):
    return [row["text"] for row in dataset.filter(fitted.keep, batched=True, input_columns=fitted.columns, **options)]


# -- invariance


@pytest.mark.parametrize("data", [DATA, WITHOUT_IDS], ids=["row_id", "text"])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_same_rows_however_they_are_read(rule, data):
    fitted = Vowels(rule=rule).fit(data)
    kept = rows_kept(data, fitted)
    assert 0 < len(kept) < len(data)
    assert rows_kept(data, fitted, batch_size=7) == kept
    stream = data.to_iterable_dataset(num_shards=4)
    assert rows_kept(stream, fitted) == kept
    assert rows_kept(stream, fitted, batch_size=7) == kept
    moved = np.random.default_rng(0).permutation(len(data))
    assert sorted(rows_kept(data.select(moved), fitted)) == sorted(kept)
    again = Vowels(rule=rule).fit(data.select(moved))
    assert sorted(rows_kept(data, again)) == sorted(kept), "nor does the order at fit matter"


@pytest.mark.parametrize("rule", [top(k=7), sample(k=9), diverse(k=8)], ids=str)
def test_the_same_rows_in_several_processes(rule):
    fitted = Vowels(rule=rule).fit(DATA)
    assert rows_kept(DATA, fitted, num_proc=4) == rows_kept(DATA, fitted)
    assert (
        DATA.map(fitted, batched=True, num_proc=4)["score_vowels"][:]
        == DATA.map(fitted, batched=True, batch_size=7)["score_vowels"][:]
    )


def test_the_same_rows_from_a_stream_of_several_workers():
    fitted = Vowels(rule=top(k=7)).fit(DATA)
    stream = DATA.to_iterable_dataset(num_shards=4).filter(fitted.keep, batched=True, input_columns=fitted.columns)
    loader = torch.utils.data.DataLoader(stream, batch_size=None, num_workers=2)
    assert sorted(row["row_id"] for row in loader) == sorted(
        row["row_id"] for row in DATA.filter(fitted.keep, batched=True, input_columns=fitted.columns)
    )


@pytest.mark.parametrize("kind", ["numpy", "torch", "pandas", "arrow"])
def test_formatted_datasets_are_read(kind):
    fitted = Vowels(rule=top(k=7)).fit(DATA)
    formatted = DATA.with_format(kind)
    assert Vowels(rule=top(k=7)).fit(formatted).cut == fitted.cut
    if kind != "arrow":  # whose batches are tables
        kept = formatted.filter(fitted.keep, batched=True, input_columns=fitted.columns).with_format(None)
        assert kept["text"][:] == rows_kept(DATA, fitted)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("data", [DATA, WITHOUT_IDS], ids=["ids", "no ids"])
def test_formatted_streams_are_read(kind, data):
    fitted = get_filter("random", keep=top(k=9)).fit(data)
    expected = rows_kept(data, fitted)
    assert len(expected) == 9
    assert list(map(str, rows_kept(data.to_iterable_dataset().with_format(kind), fitted))) == expected


@pytest.mark.parametrize("kind", [None, "numpy", "pandas", "arrow"])
def test_input_columns_may_be_left_out(kind):
    data = WITHOUT_IDS.select_columns(["text"])
    fitted = get_filter("random", keep=top(k=9)).fit(data)
    kept = data.with_format(kind).filter(fitted.keep, batched=True).with_format(None)
    assert kept["text"][:] == rows_kept(data, fitted)


def test_every_split_of_a_dict():
    splits = DatasetDict(train=DATA.select(range(100)), test=DATA.select(range(100, 120)))
    fitted = Vowels(rule=threshold(0.0)).fit(splits["train"])
    scored = splits.map(fitted, batched=True)
    for name, split in splits.items():
        assert scored[name]["score_vowels"][:] == fitted(split[:])["score_vowels"].tolist()
    assert set(splits.filter(fitted.keep, batched=True, input_columns=fitted.columns)) == {"train", "test"}
    with pytest.raises(DataError, match=r"vowels: the dataset is a dict of datasets .train, test.; pass one of them"):
        Vowels().fit(splits)


# -- sizes


@pytest.mark.parametrize("data", [DATA, WITHOUT_IDS], ids=["row_id", "text"])
@pytest.mark.parametrize(
    ("rule", "count"),
    [(top(k=7), 7), (top(fraction=0.1), 12), (sample(k=9), 9), (balance("label", k=11), 11), (diverse(k=8), 8)],
)
def test_exactly_as_many_as_asked_for(rule, count, data):
    assert len(rows_kept(data, Vowels(rule=rule).fit(data))) == count


def test_equal_texts_without_ids_are_kept_together_and_that_is_said(capsys):
    data = Dataset.from_dict({"text": ["aa", "bb", "aa", "aa", "cc"]})
    assert rows_kept(data, Vowels(rule=top(k=2)).fit(data)) == ["aa", "aa", "aa"]
    assert (
        "keep holds 1 more rows than asked for, whose text equals that of kept rows; with_row_ids"
        in capsys.readouterr().err
    )
    data = with_row_ids(data)
    kept = data.filter((f := Vowels(rule=top(k=2)).fit(data)).keep, batched=True, input_columns=f.columns)
    assert kept["row_id"][:] == [0, 2]


def test_draws_by_text_are_said_once(capsys):
    from hfdataopt.selection.fit_rule import say_once_that_text_is_the_key

    say_once_that_text_is_the_key.cache_clear()
    for _ in range(2):
        Vowels(rule=sample(k=2)).fit(WITHOUT_IDS)
    Vowels(rule=sample(k=2)).fit(DATA)
    assert capsys.readouterr().err.count("draws go by the text of a row") == 1


# -- streams


def test_a_stream_keeps_ties_and_counts_them(capsys):
    stream = DATA.to_iterable_dataset(num_shards=3)
    exact = rows_kept(DATA, Vowels(rule=top(k=7)).fit(DATA))
    fitted = Vowels(rule=top(k=7), fit_rows=120).fit(stream)
    kept = rows_kept(stream, fitted)
    assert set(exact) < set(kept)
    said = capsys.readouterr().err
    assert f"vowels: {len(kept) - 7} more rows tie at the lowest score that is kept" in said
    assert "vowels: fitted on the first 120 rows of the stream, keep rule fitted on all 120 rows" in said


@pytest.mark.parametrize(
    ("filter", "said"),
    [
        (Vowels(), "vowels: fitted on the first 120 rows of the stream\n"),
        (Vowels(fit_rows=50, rule=quantile(0.5)), "vowels: fitted on the first 50 rows of the stream\n"),
        (get_filter("length", keep=top(k=5)), "length: keep rule fitted on all 120 rows\n"),
        (get_filter("length", keep=threshold(1.0)), "length: needed no row of the stream\n"),
    ],
)
def test_fit_says_how_many_rows_of_a_stream_it_used(filter, said, capsys):
    filter.fit(DATA.to_iterable_dataset())
    assert capsys.readouterr().err.endswith(said)


def test_k_of_a_stream_is_counted_over_all_of_it_and_a_fraction_over_the_first_rows():
    values = np.random.default_rng(1).permutation(30_000)
    stream = Dataset.from_dict({"text": [str(value) for value in values]}).to_iterable_dataset()
    fitted = Number(rule=top(k=100), fit_rows=50).fit(stream)
    assert sorted(map(int, rows_kept(stream, fitted))) == list(range(29_900, 30_000))
    fraction = Number(rule=top(fraction=0.1), fit_rows=50).fit(stream)
    assert sorted(map(int, rows_kept(stream, fraction))) == list(range(sorted(values[:50])[-5], 30_000))


@dataclass(frozen=True)
class Number(TextFilter):
    name: ClassVar[str] = "number"

    def score(self, batch):
        return np.array([float(text) for text in batch.texts])


def test_ties_of_a_stream_are_counted_over_all_of_it(capsys):
    values = ["5"] * 20_000 + ["9"] * 3 + ["5"] * 11_000
    stream = Dataset.from_dict({"text": values}).to_iterable_dataset()
    assert len(rows_kept(stream, Number(rule=top(k=10)).fit(stream))) == 31_003
    assert "number: 30993 more rows tie" in capsys.readouterr().err
    with pytest.raises(OptionError, match="top asks for 40000 rows but only 31003 of 31003 have a score"):
        Number(rule=top(k=40_000)).fit(stream)


def test_what_needs_the_whole_refuses_a_stream():
    stream = DATA.to_iterable_dataset()
    with pytest.raises(
        DataError,
        match=r"the rule diverse needs the whole dataset.*rules for streams: top, threshold, quantile, sample, balance$",
    ):
        Vowels(rule=diverse(k=2)).fit(stream)
    with pytest.raises(DataError, match=r"rarity: must see the whole dataset.*filters for streams: .*length.*random"):
        Rarity().fit(stream)
    with pytest.raises(OptionError, match="balance takes fraction= on a stream; k=4"):
        Vowels(rule=balance("label", k=4)).fit(stream)


def test_a_stream_after_a_map_function_has_no_column_names_and_works():
    stream = IterableDataset.from_generator(lambda: iter(DATA)).map(lambda row: {"more": 1})
    assert stream.column_names is None
    assert rows_kept(stream, Vowels(rule=threshold(0.0)).fit(stream)) == rows_kept(
        DATA, Vowels(rule=threshold(0.0)).fit(DATA)
    )


# -- the cache of datasets


def test_the_fingerprint_is_that_of_version_options_and_state(tmp_path):
    fitted = Vowels(rule=top(k=7)).fit(DATA)
    assert Hasher.hash(fitted) == Hasher.hash(Vowels(rule=top(k=7)).fit(DATA))
    assert Hasher.hash(fitted.keep) == Hasher.hash(pickle.loads(pickle.dumps(fitted)).keep)
    newer = Vowels(rule=top(k=7)).fit(DATA)
    newer.set(version=2)
    others = [
        newer,
        Vowels(rule=top(k=8)).fit(DATA),
        Vowels(weight=2.0, rule=top(k=7)).fit(DATA),
        Vowels(rule=top(k=7)).fit(WITHOUT_IDS),
    ]
    assert len({Hasher.hash(one) for one in [fitted, *others]}) == 5
    before = Hasher.hash(fitted)
    fitted(DATA[:])
    rows_kept(DATA, fitted)
    assert Hasher.hash(fitted) == before, "use does not change it"


def test_a_new_version_is_not_served_from_the_cache(tmp_path):
    DATA.save_to_disk(tmp_path / "data")
    data = load_from_disk(tmp_path / "data")
    fitted = Vowels().fit(data)
    first = data.map(fitted, batched=True)
    assert data.map(Vowels().fit(data), batched=True).cache_files == first.cache_files
    newer = Vowels().fit(data)
    newer.set(version=2)
    assert data.map(newer, batched=True).cache_files != first.cache_files


def test_the_fingerprint_of_a_plugin_is_the_same_in_another_process():
    program = (
        "from datasets import Dataset; from datasets.fingerprint import Hasher; from hfdataopt import get_filter, top\n"
        "data = Dataset.from_dict({'text': ['a b', 'c', 'd e f']})\n"
        "print(Hasher.hash(get_filter('length', keep=top(k=2)).fit(data)))"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    data = Dataset.from_dict({"text": ["a b", "c", "d e f"]})
    assert other == Hasher.hash(get_filter("length", keep=top(k=2)).fit(data))


def test_other_code_is_another_fingerprint(tmp_path, monkeypatch):
    """The source of the class's module is part of the state, since ``datasets`` hashes a class by its name alone."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    hashes = []
    for body in ("1.0", "20.0"):
        (tmp_path / "own_filter.py").write_text(
            "from dataclasses import dataclass\nimport numpy as np\nfrom hfdataopt import TextFilter\n\n\n@dataclass(frozen=True)\n"
            f"class Own(TextFilter):\n    name = 'own'\n\n    def score(self, batch):\n        return np.full(len(batch), {body})\n"
        )
        monkeypatch.delitem(sys.modules, "own_filter", raising=False)
        importlib.invalidate_caches()
        linecache.checkcache()
        own = importlib.import_module("own_filter").Own().fit(Dataset.from_dict({"text": ["a"]}))
        assert own({"text": ["a"]})["score_own"].tolist() == [float(body)]
        hashes.append(Hasher.hash(own))
    monkeypatch.delitem(sys.modules, "own_filter")
    assert hashes[0] != hashes[1]


def test_another_engine_is_another_fingerprint(tmp_path, monkeypatch):
    """A score may change by what a filter's module calls, as the words of ``dsir``."""
    before = Hasher.hash(Vowels().fit(DATA))
    for path in Path(host.__file__).parent.glob("*.py"):
        (tmp_path / path.name).write_text(path.read_text())
    monkeypatch.setattr(host, "__file__", str(tmp_path / "filter.py"))
    host._code.cache_clear()
    assert Hasher.hash(Vowels().fit(DATA)) == before
    with (tmp_path / "words.py").open("a") as file:
        file.write("# changed\n")
    host._code.cache_clear()
    assert Hasher.hash(Vowels().fit(DATA)) != before
    host._code.cache_clear()


# -- text


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}, "hi\nyo"),
        ({"prompt": "a", "completion": "b"}, "a\nb"),
        ({"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}, "a\nb"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "a\nb"),
        ({"text": "t", "prompt": "p"}, "t"),
        ({"prompt": "p"}, "p"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "see"}]}
                ]
            },
            "see",
        ),
    ],
)
def test_the_text_of_trl_formats(row, text):
    fitted = Vowels().fit(Dataset.from_list([row]))
    assert fitted.batch(Dataset.from_list([row])[:]).texts == [text]


def test_the_text_of_named_columns():
    data = Dataset.from_dict({"title": ["T"], "body": ["B"], "text": ["x"]})
    fitted = Vowels(text=["title", "body"]).fit(data)
    assert fitted.columns == ["title", "body"]
    assert fitted.batch(data[:]).texts == ["T\nB"]


# -- whole filters


def test_scores_of_a_whole_filter_are_found_again():
    fitted = Rarity(rule=top(k=5)).fit(DATA)
    assert fitted(DATA[3:9])["score_rarity"].tolist() == fitted(DATA[:])["score_rarity"][3:9].tolist()
    with pytest.raises(DataError, match="rarity: row 'new' was not in the dataset the filter was fitted on"):
        fitted({"text": ["x"], "row_id": ["new"]})


def test_equal_texts_of_different_scores_need_ids():
    data = Dataset.from_dict({"text": ["aa", "bb", "aa"]})
    assert Rarity().fit(data)(data[:])["score_rarity"].tolist() == [-2, -1, -2]
    with pytest.raises(
        DataError, match="rows of equal text have different scores and cannot be told apart; fit on with_row_ids"
    ):
        Rarity(by_order=True).fit(data)
    assert Rarity(by_order=True).fit(with_row_ids(data))(with_row_ids(data)[:])["score_rarity"].tolist() == [
        -2,
        -1.001,
        -2.002,
    ]


# -- mistakes


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (
            lambda: Vowels(text="body").fit(DATA),
            DataError,
            "vowels: the dataset has no column 'body'; it has: text, label, row_id",
        ),
        (lambda: Vowels(text="label").fit(DATA), DataError, "column 'label' must hold text or messages; got int"),
        (
            lambda: Vowels().fit(Dataset.from_dict({"label": [1]})),
            DataError,
            "none of the usual text columns .*say which with text=; it has: label",
        ),
        (lambda: Vowels().fit(DATA.select([])), DataError, "vowels: the dataset is empty"),
        (lambda: Vowels().fit(DATA.to_iterable_dataset().filter(lambda row: False)), DataError, "the dataset is empty"),
        (lambda: Vowels().fit([{"text": "a"}]), DataError, "the dataset is a list; it must be a datasets.Dataset"),
        (lambda: Vowels().fit(DATA, DATA), OptionError, "vowels: has no use for target=; leave it out"),
        (lambda: Vowels()(DATA[:]), OptionError, "vowels: the filter was used before fit"),
        (lambda: Vowels(rule=top(k=1)).keep, OptionError, "vowels: keep was used before fit"),
        (lambda: Vowels().columns, OptionError, "vowels: columns was used before fit"),
        (
            lambda: Vowels().fit(DATA).keep,
            OptionError,
            "vowels: has no keep rule; give one, e.g. get_filter.'vowels', keep=top",
        ),
        (lambda: Vowels(rule=top(k=121)).fit(DATA), OptionError, "k=121 must be a whole number from 1 to 120"),
        (
            lambda: Vowels(rule=balance("kind", k=3)).fit(DATA),
            DataError,
            "vowels: the dataset has no column 'kind' to balance",
        ),
        (
            lambda: Vowels(rule=balance("kinds", k=1)).fit(Dataset.from_dict({"text": ["a"], "kinds": [[1, 2]]})),
            DataError,
            r"vowels: column 'kinds' must hold classes, one per row; got .1, 2.",
        ),
        (
            lambda: Vowels(rule=top(k=1)).fit(DATA).keep(["a"]),
            OptionError,
            "keep takes the columns .'text', 'row_id'.; write input_columns=f.columns",
        ),
        (lambda: Vowels(fit_rows=0), OptionError, "vowels: fit_rows=0 must be at least 1"),
        (lambda: Vowels(on_nan="skip"), OptionError, "on_nan='skip' is not allowed"),
        (
            lambda: get_filter("length", keep="top"),
            OptionError,
            "filter 'length': keep='top' is no keep rule; there are: top, threshold",
        ),
        (lambda: get_filter("length", unitt="words"), OptionError, "no option 'unitt' .did you mean 'unit'"),
    ],
)
def test_one_clear_line(act, error, message):
    with pytest.raises(error, match=message) as raised:
        act()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "b", "a"], "has 1 values more than once, for example .'a'."),
        ([1.5, 2.5, 3.5], "must hold only ints or only strings; got 1.5"),
        (["a", None, "b"], "got None"),
    ],
)
def test_row_ids_must_be_unique(ids, message, stream):
    data = Dataset.from_dict({"text": ["a", "b", "c"], "row_id": ids})
    with pytest.raises(DataError, match=message):
        Vowels(rule=top(k=1)).fit(data.to_iterable_dataset() if stream else data)


def test_a_missing_text_or_score_is_an_error_or_dropped():
    data = Dataset.from_dict({"text": ["aa", None, "b", ""], "row_id": list("wxyz")})
    with pytest.raises(DataError, match=r"vowels: row 'x' is None in column 'text'; fill it, or pass on_nan='drop'"):
        Vowels(rule=top(k=1)).fit(data)
    with pytest.raises(DataError, match=r"vowels: row 'z' has no score .NaN.; drop such rows with on_nan='drop'"):
        Vowels(rule=top(k=1)).fit(data.select([0, 2, 3]))
    fitted = Vowels(rule=threshold(-9.0), on_nan="drop").fit(data)
    assert np.isnan(data.map(fitted, batched=True)["score_vowels"][:]).tolist() == [False, True, False, True]
    assert rows_kept(data, fitted) == ["aa", "b"]
    with pytest.raises(DataError, match="none of the 2 rows has a score"):
        Vowels(rule=top(k=1), on_nan="drop").fit(data.select([1, 3]))
    with pytest.raises(OptionError, match="top asks for 3 rows but only 2 have a score"):
        Vowels(rule=top(k=3), on_nan="drop").fit(data)


def test_a_column_that_went_missing_is_named():
    fitted = Vowels().fit(DATA)
    with pytest.raises(DataError, match="the rows have no column 'text', which was there at fit"):
        fitted({"body": ["a"]})


def test_fit_works_on_a_copy_and_columns_can_be_named():
    plain = Vowels(column="share")
    fitted = plain.fit(DATA)
    assert not plain.fitted
    assert fitted.fitted
    assert "share" in DATA.map(fitted, batched=True).column_names
    assert plain == fitted, "options are equal, state does not count"


def test_a_column_whose_first_rows_have_no_score():
    """``datasets`` takes the type of a new column from the first batch."""
    data = Dataset.from_dict({"text": [""] * 1500 + ["aa", "b"]})
    scored = data.map(Vowels(on_nan="drop").fit(data), batched=True)["score_vowels"][:]
    assert np.isnan(scored[:1500]).all()
    assert scored[1500] > scored[1501]


def test_numbers_are_the_same_in_formats_that_shorten_them():
    """numpy's and torch's formats have 32 bits; fit reads 64."""
    data = Dataset.from_dict({"a": [0.1 + i / 7 for i in range(50)], "big": [2**53 + i for i in range(50)]})
    fitted = get_filter("combine", inputs=["a", "big"], keep=top(k=5)).fit(data)
    plain = data.map(fitted, batched=True)["score_combine"][:]
    for kind in ("numpy", "torch"):
        scored = data.with_format(kind).map(fitted, batched=True).with_format(None)
        assert scored["score_combine"][:] == plain
        kept = data.with_format(kind).filter(fitted.keep, batched=True, input_columns=fitted.columns)
        assert kept.with_format(None)["a"][:] == data["a"][-5:]


def test_a_class_that_a_stream_shows_late_is_dropped_and_said(capsys):
    from hfdataopt.selection.rules import _say_that_it_is_dropped

    _say_that_it_is_dropped.cache_clear()
    data = Dataset.from_dict({"text": [f"{'a' * (i % 5)}b {i}" for i in range(60)], "label": [0] * 30 + [1] * 30})
    stream = data.to_iterable_dataset()
    fitted = Vowels(rule=balance("label", fraction=0.5), fit_rows=30).fit(stream)
    kept = list(stream.filter(fitted.keep, batched=True, batch_size=7, input_columns=fitted.columns))
    assert {row["label"] for row in kept} == {0}
    assert capsys.readouterr().err.count("the class 1 was not among the first rows of the stream") == 1


def test_what_is_not_a_batch_is_said():
    fitted = Vowels(rule=top(k=7)).fit(DATA)
    for act in (
        lambda: DATA.map(fitted),
        lambda: DATA.filter(fitted.keep, input_columns=fitted.columns),
        lambda: list(DATA.to_iterable_dataset().map(fitted)),
    ):
        with pytest.raises(OptionError, match="vowels: got a single row; write batched=True"):
            act()
    with pytest.raises(
        OptionError, match=r"vowels: the map function takes whole batches; write map\(f, batched=True\)"
    ):
        DATA.map(fitted, batched=True, input_columns=fitted.columns)
