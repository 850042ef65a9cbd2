"""``Scores``: ranking, joining to the right data and no other, explaining, saving."""

import contextlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from hfdataopt import Scores, with_row_ids
from hfdataopt.attribution.rows import row_hashes, sample_hashes
from hfdataopt.attribution.scores import count_of, row_text
from hfdataopt.errors import DataError, MissingDependencyError, OptionError, StoreError

from ..tiny import tokenizer

N = 6
DATA = Dataset.from_dict({"text": [f"text {i}" for i in range(N)], "label": [i % 2 for i in range(N)]})
VALUES = [0.5, -1.0, 2.0, 0.5, float("nan"), 1.0]


def score(pool, values=VALUES, **fields):
    """Scores as a run makes them for this pool."""
    by_position = "row_id" not in pool.column_names
    ids = list(range(len(pool))) if by_position else pool["row_id"][:]
    metadata = {"scorer": "toy-scorer", "meaning": "helpfulness", "by_position": by_position}
    metadata["sample"] = sample_hashes(pool, ids)
    return Scores(np.array(values), ids, metadata=metadata | fields.pop("metadata", {}), **fields)


def named(ids=None, data=DATA):
    return data.add_column("row_id", ids or [f"r{i}" for i in range(len(data))])


# -- ranking


def test_top_and_bottom_order_ties_by_row_id_and_leave_out_unscored_rows():
    scores = score(DATA)
    assert scores.top(k=5) == [2, 5, 0, 3, 1]
    assert scores.bottom(k=5) == [1, 0, 3, 5, 2]
    assert scores.top(k=2) == scores.top(k=np.int64(2)) == [2, 5]
    assert scores.top(fraction=0.6) == [2, 5, 0], "of the five rows that have a score"
    assert scores.bottom(fraction=1.0) == [1, 0, 3, 5, 2]
    assert scores.bottom(fraction=0.01) == [1]


def test_more_rows_than_have_a_score_are_refused():
    for method in ("top", "bottom"):
        with pytest.raises(OptionError, match="toy-scorer: 6 rows were asked for but only 5 have a score"):
            getattr(score(DATA), method)(k=6)


def test_ties_go_by_row_id_and_not_by_position():
    scores = score(named(["d", "c", "b", "a", "f", "e"]), [1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    assert scores.top(k=6) == ["a", "b", "c", "d", "e", "f"]
    assert scores.bottom(k=6) == ["e", "f", "a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({}, "exactly one of k and fraction"),
        ({"k": 1, "fraction": 0.5}, "exactly one of k and fraction"),
        ({"k": 0}, "k=0 must be a whole number from 1 to 6"),
        ({"k": 7}, "k=7 must be a whole number from 1 to 6"),
        ({"k": 2.0}, r"k=2\.0 must be a whole number"),
        ({"k": True}, "k=True must be a whole number"),
        ({"fraction": 0.0}, r"fraction=0\.0 must be above 0"),
        ({"fraction": 1.5}, r"fraction=1\.5 must be above 0"),
        ({"fraction": True}, "fraction=True must be above 0"),
        ({"fraction": float("nan")}, "fraction=nan must be above 0"),
    ],
)
def test_sizes_out_of_range(size, message):
    with pytest.raises(OptionError, match=message):
        score(DATA).top(**size)


def test_a_fraction_is_at_least_one_row():
    assert [count_of(None, f, 10) for f in (0.001, 0.1, 0.25, 1.0)] == [1, 1, 2, 10]


def test_the_printed_line_says_meaning_and_missing_rows():
    line = str(score(DATA, metadata={"meaning": "suspicion"}))
    assert line.startswith(
        "toy-scorer: 6 rows (min -1, median 0.5, max 2, 1 without a score); suspicion stored negated"
    )
    assert "none" in str(score(DATA, [float("nan")] * N))


def test_scores_are_read_by_row_id_in_order_and_as_a_table():
    scores = score(named(["d", "c", "b", "a", "f", "e"]), standard_errors=np.full(N, 0.1))
    assert (scores["c"], scores["e"]) == (-1.0, 1.0)
    np.testing.assert_array_equal(scores[1:3], [-1.0, 2.0])
    np.testing.assert_array_equal(np.asarray(scores), VALUES)
    np.testing.assert_array_equal(np.array(list(scores)), VALUES)
    assert score(DATA)[2] == 2.0
    table = scores.to_pandas()
    assert table.loc["b"].to_dict() == {"score": 2.0, "standard_error": 0.1}
    assert table.index.name == "row_id"
    for wrong in ("z", 0, -1, None, ["a"]):
        with pytest.raises(
            DataError, match=r"no row has the id .*; scores\[row_id\] takes one of 'd', 'c', 'b', \.\.\."
        ):
            scores[wrong]


# -- joining


def test_join_by_position_adds_a_column_and_none_where_a_row_has_no_score():
    scores = score(DATA)
    joined = scores.join(DATA)
    assert joined["score_toy_scorer"][:] == [0.5, -1.0, 2.0, 0.5, None, 1.0]
    assert joined["text"][:] == DATA["text"][:]
    assert scores.metadata["join_check"] == "hash of columns ['label', 'text']"
    assert "mine" in scores.join(DATA, "mine").column_names
    with pytest.raises(DataError, match="has a column 'label' already; pass column="):
        scores.join(DATA, "label")


@pytest.mark.parametrize("ids", [[f"r{i}" for i in range(N)], [10 * i for i in range(N)]], ids=["str", "int"])
def test_join_by_id_follows_the_rows_wherever_they_went(ids):
    pool = named(ids)
    scores = score(pool)
    moved = pool.shuffle(seed=1).select([0, 2, 5])
    expected = {row: None if np.isnan(value) else value for row, value in zip(ids, VALUES, strict=True)}
    joined = scores.join(moved)
    assert joined["score_toy_scorer"][:] == [expected[row] for row in moved["row_id"]]
    assert scores.metadata["join_check"] == "hash of columns ['label', 'text']"


def test_rows_that_were_dropped_before_scoring_get_none_and_never_zero():
    pool = named()
    scores = score(pool.select([0, 1, 2]), VALUES[:3])
    assert scores.join(pool)["score_toy_scorer"][:] == [0.5, -1.0, 2.0, None, None, None]


def test_another_length_is_refused_naming_the_ways_out():
    with pytest.raises(DataError) as caught:
        score(DATA).join(DATA.select(range(5)))
    message = str(caught.value)
    assert "6 prepared rows identified by position, but the dataset has 5" in message
    for way in ("trainer=", "pool=", "with_row_ids"):
        assert way in message


def test_another_order_is_refused():
    with pytest.raises(DataError, match=r"has another value in column .* another order"):
        score(DATA).join(DATA.select([1, 0, 2, 3, 4, 5]))


@pytest.mark.parametrize("pool", [DATA, named()], ids=["positions", "ids"])
def test_other_contents_are_refused_naming_row_and_column(pool):
    changed = pool.map(lambda row: {"label": 1 - row["label"]} if row["text"] == "text 3" else {})
    row = pool["row_id"][3] if "row_id" in pool.column_names else 3
    with pytest.raises(DataError, match=f"row {row!r} has another value in column 'label'"):
        score(pool).join(changed)
    assert score(pool).join(changed.remove_columns("label")) is not None


def hashed(pool, **fields):
    return score(pool, row_hashes=row_hashes(pool), **fields)


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("rows", [[0], [199], [70, 71, 72]])
def test_an_edited_label_is_seen_wherever_it_is(ids, rows, tmp_path, capsys):
    pool = Dataset.from_dict({"text": [f"text {i}" for i in range(200)], "label": [0] * 200})
    pool = with_row_ids(pool) if ids else pool
    labels = [int(i in rows) for i in range(200)]
    mended = pool.remove_columns("label").add_column("label", labels)
    made = score(pool, [float(i) for i in range(200)], row_hashes=row_hashes(pool))
    made.save(tmp_path)
    for scores in (made, Scores.load(tmp_path)):
        more = f" .and {len(rows) - 1} more of 200 rows." if len(rows) > 1 else ""
        with pytest.raises(DataError, match=f"row {rows[0]}{more} has another value in column 'label'.*edited=True"):
            scores.align(mended)
        np.testing.assert_array_equal(scores.align(mended, edited=True), scores.values)
        assert f"{len(rows)} of 200 rows were edited since they were scored (columns label)" in capsys.readouterr().err
        assert scores.metadata["join_check"] == f"hash of columns ['label', 'text']; {len(rows)} rows edited"
        np.testing.assert_array_equal(scores.align(pool), scores.values)
    if ids:  # a part of the rows, in another order
        part = mended.shuffle(seed=2).select(range(150))
        there = sum(row in rows for row in part["row_id"])
        if there:
            with pytest.raises(DataError, match="has another value in column 'label'"):
                made.align(part)
        np.testing.assert_array_equal(made.align(part, edited=True), part["row_id"][:])


def test_dropped_rows_are_said_and_never_matched_unseen(capsys):
    kept = Dataset.from_dict({"input_ids": [[i] for i in range(N)]})
    scores = hashed(kept, metadata={"dropped": 2})
    assert "by position among the rows that the trainer kept (2 dropped)" in str(scores)
    with pytest.raises(DataError, match=r"trainer dropped 2 rows while it prepared them\. Score with ids instead"):
        scores.join(Dataset.from_dict({"text": ["a"] * (N + 2)}))
    for dropped in (2, None):
        with pytest.raises(DataError, match=r"no column in common.*with_row_ids"):
            hashed(kept, metadata={"dropped": dropped}).align(DATA)
    np.testing.assert_array_equal(scores.align(kept), VALUES)
    np.testing.assert_array_equal(hashed(kept).align(DATA), VALUES)
    assert "rows were matched by position only" in capsys.readouterr().err


def test_without_a_common_column_the_weaker_check_is_recorded():
    raw = Dataset.from_dict({"other": list(range(N))})
    scores = score(DATA)
    scores.join(raw)
    assert scores.metadata["join_check"] == "length only: no sampled row or no column in common"
    scores = score(named())
    scores.join(named(data=raw))
    assert scores.metadata["join_check"] == "row ids only: no sampled row or no column in common"


def test_ids_are_needed_where_the_pool_had_them():
    with pytest.raises(DataError, match="keyed by row_id, but the dataset has no such column"):
        score(named()).join(DATA)
    with pytest.raises(DataError, match="no row_id of the dataset has a score: it is another dataset"):
        score(named()).join(named([f"q{i}" for i in range(N)]))
    with pytest.raises(DataError, match="no row_id of the dataset has a score"):
        score(with_row_ids(DATA)).join(named([str(i) for i in range(N)]))


def test_a_stream_an_empty_dataset_and_duplicate_ids_are_refused():
    with pytest.raises(DataError, match="is a stream"):
        score(DATA).join(DATA.to_iterable_dataset())
    with pytest.raises(DataError, match="is empty"):
        score(DATA).join(DATA.select([]))
    with pytest.raises(DataError, match="duplicates"):
        score(named()).join(named(["r0"] * N))


def test_a_formatted_dataset_is_the_same_dataset():
    scores = score(with_row_ids(DATA))
    assert scores.align(with_row_ids(DATA).with_format("torch"))[2] == 2.0
    assert "hash of columns" in scores.metadata["join_check"]


# -- explaining

MATRIX = np.array([[0.1, -1.0], [0.2, 0.0], [-0.3, 1.0], [0.2, 0.0], [np.nan, np.nan], [0.0, 2.0]])


class Words:
    def decode(self, tokens, skip_special_tokens):
        assert skip_special_tokens
        return " ".join(f"w{token}" for token in tokens)


def test_explain_from_the_dataset():
    explanation = score(DATA, matrix=MATRIX).explain(0, 2, dataset=DATA)
    assert [(row.row_id, row.score) for row in explanation.helpful] == [(1, 0.2), (3, 0.2)]
    assert [(row.row_id, row.score) for row in explanation.harmful] == [(2, -0.3), (5, 0.0)]
    assert explanation.helpful[1].text == "text 3 [label 1]"
    assert explanation.query_text is None
    assert str(explanation).splitlines() == [
        "query 0",
        "  most helpful",
        "    +0.2  row 1  text 1 [label 1]",
        "    +0.2  row 3  text 3 [label 1]",
        "  most harmful, or least helpful",
        "    -0.3  row 2  text 2 [label 0]",
        "    +0  row 5  text 5 [label 1]",
    ]


def test_explain_by_id_from_a_shuffled_dataset():
    pool = named()
    explanation = score(pool, matrix=MATRIX).explain(1, 1, dataset=pool.shuffle(seed=0))
    assert (explanation.helpful[0].row_id, explanation.helpful[0].text) == ("r5", "text 5 [label 1]")
    assert (explanation.harmful[0].row_id, explanation.harmful[0].text) == ("r0", "text 0 [label 0]")
    partly = score(pool, matrix=MATRIX).explain(1, 2, dataset=pool.select([0, 1]))
    assert [row.text for row in partly.helpful] == [None, None]


def test_explain_from_stored_tokens():
    tokens = {"pool_tokens": [[i, i + 1] for i in range(N)], "query_tokens": [[7, 8], [9]]}
    decoded = score(DATA, matrix=MATRIX, tokenizer=Words(), **tokens).explain(1, 1)
    assert decoded.query_text == "w9"
    assert decoded.helpful[0].text == "w5 w6"
    assert score(DATA, matrix=MATRIX, **tokens).explain(1, 1).helpful[0].text == "2 tokens: [5, 6]"
    assert score(DATA, matrix=MATRIX).explain(1, 1).helpful[0].text is None


def test_explain_refuses_what_it_cannot_know():
    with pytest.raises(DataError, match=r"'toy-scorer' have no per-query matrix; .* per_query=True"):
        score(DATA).explain(0)
    scores = score(DATA, matrix=MATRIX)
    for query in (2, -1):
        with pytest.raises(OptionError, match=f"query={query} is not among the 2 queries"):
            scores.explain(query)
    with pytest.raises(OptionError, match="k=0 must be at least 1"):
        scores.explain(0, 0)
    with pytest.raises(DataError, match="another"):
        scores.explain(0, dataset=DATA.select([1, 0, 2, 3, 4, 5]))


def test_of_a_row_the_columns_that_were_read_are_shown():
    row = {"source": "a site", "category": "qa", "prompt": "why", "completion": "so", "other": "no", "label": "x"}
    assert row_text(row) == "why | so [label x]"
    assert row_text(row, read=("other",)) == "no [label x]"
    assert row_text(row, read=("row_id",)) == "why | so [label x]", "an id is no text"
    assert row_text({"source": "a", "question": "b"}) == "a | b"


def test_the_text_of_a_row():
    assert row_text({"row_id": "x", "text": "a", "label": 2, "n": 3}) == "a [label 2]"
    assert row_text({"premise": "a", "hypothesis": "b", "label": "no"}) == "a | b [label no]"
    assert row_text({"messages": [{"role": "user", "content": "hi"}], "labels": [-100, 3]}) == "user: hi"
    assert row_text({"text": "word " * 100}).endswith("word ...")


# -- disk


@pytest.mark.parametrize("pool", [DATA, named(), named([5, 3, 1, 0, 2, 4])], ids=["positions", "str", "int"])
def test_what_was_saved_is_loaded(tmp_path, pool):
    tokens = [[1, 2], [], [3], [4, 5, 6], [7], [8]]
    scores = score(
        pool,
        matrix=np.asfortranarray(MATRIX),
        standard_errors=np.arange(2 * N, dtype=float)[::2],
        pool_tokens=tokens,
        query_tokens=[[9], [10, 11]],
    )
    scores.save(tmp_path / "deep" / "folder")
    loaded = Scores.load(tmp_path / "deep" / "folder")
    for name in ("values", "matrix", "standard_errors"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(scores, name))
        assert getattr(loaded, name).dtype == np.float64
    assert loaded.row_ids == scores.row_ids
    assert [type(value) for value in loaded.row_ids] == [type(value) for value in scores.row_ids]
    assert (loaded.pool_tokens, loaded.query_tokens) == (tokens, [[9], [10, 11]])
    assert loaded.metadata == scores.metadata
    assert loaded.tokenizer is None
    assert loaded.join(pool)["score_toy_scorer"][:] == scores.join(pool)["score_toy_scorer"][:]
    assert loaded.top(k=3) == scores.top(k=3)


def test_scores_without_extras_come_back_without_them(tmp_path):
    score(DATA).save(tmp_path)
    loaded = Scores.load(str(tmp_path))
    assert (loaded.matrix, loaded.standard_errors, loaded.pool_tokens, loaded.query_tokens) == (None,) * 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.json", "scores.safetensors"]


def test_the_tokenizer_is_kept(tmp_path):
    score(DATA, matrix=MATRIX, pool_tokens=[[2, 6]] * N, tokenizer=tokenizer()).save(tmp_path)
    assert Scores.load(tmp_path).explain(0, 1).helpful[0].text == "fine"
    Scores.load(tmp_path).save(tmp_path / "again")
    assert Scores.load(tmp_path / "again").explain(0, 1).helpful[0].text == "fine"
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(StoreError, match="does not hold readable scores"):
        Scores.load(tmp_path)


def test_a_tokenizer_without_a_file_is_not_kept_and_that_is_said(tmp_path, capsys):
    score(DATA, matrix=MATRIX, pool_tokens=[[2, 6]] * N, tokenizer=tokenizer()).save(tmp_path)
    score(DATA, matrix=MATRIX, pool_tokens=[[2, 6]] * N, tokenizer=Words()).save(tmp_path)
    assert "Words has no tokenizer.json" in capsys.readouterr().err
    assert Scores.load(tmp_path).explain(0, 1).helpful[0].text == "2 tokens: [2, 6]"


def test_numbers_that_json_lacks_are_saved_as_none(tmp_path):
    score(DATA, metadata={"full_utility": float("nan"), "list": [float("inf"), 1.0]}).save(tmp_path)
    metadata = Scores.load(tmp_path).metadata
    assert (metadata["full_utility"], metadata["list"]) == (None, [None, 1.0])


def cut(path, share=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "scores.json").unlink(),
        lambda folder: (folder / "scores.safetensors").unlink(),
        lambda folder: cut(folder / "scores.json"),
        lambda folder: cut(folder / "scores.safetensors"),
        lambda folder: cut(folder / "scores.safetensors", 0.01),
        lambda folder: flip(folder / "scores.safetensors"),
        lambda folder: (folder / "scores.json").write_text("[]"),
        lambda folder: (folder / "scores.json").write_text("{}"),
        lambda folder: edit(folder, format=99),
        lambda folder: edit(folder, row_ids=[0, 1]),
    ],
    ids=["no-json", "no-numbers", "cut-json", "cut-numbers", "cut-header", "one-bit", "list", "empty", "format", "ids"],
)
def test_a_damaged_folder_is_an_error_that_names_it(tmp_path, damage):
    score(DATA, pool_tokens=[[1, 2]] * N).save(tmp_path)
    damage(tmp_path)
    with pytest.raises(StoreError) as caught:
        Scores.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def edit(folder, **changes):
    document = json.loads((folder / "scores.json").read_text())
    (folder / "scores.json").write_text(json.dumps(document | changes))


def test_a_place_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="'toy-scorer' could not be written"):
        score(DATA).save(tmp_path / "file" / "folder")
    with pytest.raises(StoreError, match="JSON serializable"):
        score(DATA, metadata={"tensor": object()}).save(tmp_path / "scores")
    assert list((tmp_path / "scores").iterdir()) == [], "nothing half-written is left"


def test_saving_again_replaces_the_old_scores(tmp_path):
    score(DATA).save(tmp_path)
    score(DATA, [1.0] * N).save(tmp_path)
    assert Scores.load(tmp_path).values.tolist() == [1.0] * N


@pytest.mark.parametrize("second", range(1, 6))
@pytest.mark.parametrize("first", range(1, 6))
def test_kills_while_saving_leave_the_old_or_the_new_scores(tmp_path, monkeypatch, first, second):
    old, new, last = (Scores(np.array([x, 2.0]), ["a", "b"], metadata={"which": x}) for x in (1.0, 3.0, 5.0))
    old.save(tmp_path)

    class Killed(BaseException):
        pass

    def save(scores, calls):
        """Die before the ``calls``-th change of a file's name."""
        left = [calls]

        def dying(work):
            def run(*args, **options):
                left[0] -= 1
                if left[0] == 0:
                    raise Killed
                return work(*args, **options)

            return run

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying(os.replace))
            patch.setattr(Path, "unlink", dying(Path.unlink))
            with contextlib.suppress(Killed):
                scores.save(tmp_path)
        found = Scores.load(tmp_path)
        assert found.values[0] == found.metadata["which"]
        return found.metadata["which"]

    assert save(new, first) == (3.0 if first > 3 else 1.0)
    assert save(last, second) in ((3.0, 5.0) if first > 3 else (1.0, 5.0))
    last.save(tmp_path)
    assert Scores.load(tmp_path).metadata["which"] == 5.0
    assert not (tmp_path / "scores.previous.safetensors").exists()


def test_nothing_saved_is_pickled(tmp_path):
    score(DATA, matrix=MATRIX, pool_tokens=[[2, 6]] * N, tokenizer=tokenizer()).save(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt", ".jinja"}
    assert not any(path.read_bytes().startswith((b"\x80", b"PK")) for path in files)


# -- plots


def test_plot_is_written_without_a_display(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.delenv("DISPLAY", raising=False)
    scores = score(DATA, standard_errors=np.full(N, 0.1))
    figure = scores.plot(tmp_path / "plot.png", highlight=[True] + [False] * (N - 1))
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    line, marks, _ = figure.axes[0].get_lines()
    assert line.get_ydata().tolist() == [-1.0, 0.5, 0.5, 1.0, 2.0]
    assert marks.get_xdata().tolist() == [1]
    assert score(DATA, [float("nan")] * N).plot() is not None
    with pytest.raises(OptionError, match="highlight has 2 entries for 6 rows"):
        scores.plot(highlight=[True, False])


def test_plot_without_matplotlib_names_the_pip_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'hfdataopt\[plot\]'"):
        score(DATA).plot()
