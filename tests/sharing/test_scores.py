"""Scores on the hub: what comes back is what went there, a stranger's repository is checked, and the card quotes."""

import hashlib
import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from hfdataopt import Scores, attribute
from hfdataopt.errors import OptionError, StoreError

from ..tiny import bert, encoded, tokenizer
from .conftest import load

HOSTILE = "x`|\n---\nconfigs: []\n<script>alert(1)</script> [a](http://evil.example) ![i](x) **b** \u202e\x00 é"


def scores_of(rows=5, queries=3, **metadata):
    generator = np.random.default_rng(0)
    matrix = generator.normal(size=(rows, queries))
    values = matrix.mean(1)
    values[1] = np.nan
    facts = {
        "scorer": "tracin",
        "options": {"seed": 0},
        "meaning": "helpfulness",
        "query_ids": list("abcdefgh"[:queries]),
    }
    return Scores(
        values,
        [f"r{row}" for row in range(rows)],
        matrix,
        generator.random(rows),
        {**facts, "by_position": False, "sample": [], **metadata},
        [[1, 2, 3], [4], [5, 6], [7], [8, 9]][:rows],
        [[1], [2, 3], [4]][:queries],
        tokenizer(),
    )


def same(one, other, tokens):
    np.testing.assert_array_equal(one.values, other.values)
    np.testing.assert_array_equal(one.matrix, other.matrix)
    np.testing.assert_array_equal(one.standard_errors, other.standard_errors)
    assert (one.row_ids, one.metadata) == (other.row_ids, other.metadata)
    assert other.pool_tokens == (one.pool_tokens if tokens else None)
    assert other.query_tokens == (one.query_tokens if tokens else None)


@pytest.mark.parametrize("tokens", [False, True])
def test_what_comes_back_is_what_went_there(hub, tokens):
    scores = scores_of()
    assert scores.push_to_hub("me/scores", tokens=tokens) == "https://hub.example/datasets/me/scores"
    same(scores, Scores.from_hub("me/scores"), tokens)


def test_scores_of_a_real_run_join_their_dataset_and_no_other(hub):
    pool = encoded(6, 1, ids=True)
    made = attribute(bert(), pool, encoded(4, 2), "tracin", processing_class=tokenizer())
    made.push_to_hub("me/scores", model="me/model", dataset="me/data")
    found = Scores.from_hub("me/scores")
    np.testing.assert_array_equal(found.align(pool), made.values)
    assert found.explain(1, 2, dataset=pool).helpful[0].row_id == made.explain(1, 2).helpful[0].row_id
    with pytest.raises(Exception, match="another dataset"):
        found.align(encoded(6, 3, ids=True))
    card = (hub.folder("me/scores") / "README.md").read_text()
    for said in (
        "tracin",
        "me/model",
        "me/data",
        "Higher = more helpful",
        made.metadata["pool"]["contents"],
        "hfdataopt 0",
    ):
        assert said in card.replace("&#95;", "_").replace("&#58;", ":")


def test_the_repository_is_an_ordinary_dataset(hub):
    scores = scores_of()
    scores.push_to_hub("me/scores", tokens=True)
    folder = str(hub.folder("me/scores"))
    assert datasets.get_dataset_config_names(folder) == ["scores", "queries"]
    table = load(folder)
    assert table["row_id"][:] == scores.row_ids
    assert table["score"][:] == [None if np.isnan(value) else value for value in scores.values]
    np.testing.assert_array_equal(np.array(table["per_query"][:]), scores.matrix)
    asked = load(folder, "queries")
    assert asked["query_id"][:] == scores.metadata["query_ids"]
    assert asked["input_ids"][:] == scores.query_tokens


def test_scores_without_queries_errors_or_ids(hub):
    plain = Scores(np.array([1.0, -2.0]), [0, 1], metadata={"scorer": "loss", "by_position": True, "sample": []})
    plain.push_to_hub("me/plain")
    found = Scores.from_hub("me/plain")
    assert (found.matrix, found.standard_errors, found.row_ids) == (None, None, [0, 1])
    assert datasets.get_dataset_config_names(str(hub.folder("me/plain"))) == ["scores"]


def test_revision_private_and_token_pass_through(hub):
    scores_of(4).push_to_hub("me/scores")
    scores_of(3).push_to_hub("me/scores", revision="second", private=True, token="secret", commit_message="less")
    assert ("create_repo", {"repo_id": "me/scores", "private": True, "token": "secret"}) in hub.calls
    assert ("upload_folder", {"revision": "second", "message": "less"}) in hub.calls
    assert len(Scores.from_hub("me/scores", revision="second", token="other")) == 3
    assert hub.calls[-1] == ("snapshot_download", {"revision": "second", "token": "other"})
    assert len(Scores.from_hub("me/scores")) == 4
    with pytest.raises(StoreError, match=r"'me/scores' at revision 'third' could not be downloaded"):
        Scores.from_hub("me/scores", revision="third")


def test_a_second_upload_replaces_the_first_and_nothing_else_is_overwritten(hub):
    scores_of(4).push_to_hub("me/scores")
    scores_of(5).push_to_hub("me/scores")
    assert len(Scores.from_hub("me/scores")) == 5
    other = hub.folder("me/data") / "data"
    other.mkdir(parents=True)
    (other / "train.parquet").write_bytes(b"mine")
    with pytest.raises(
        StoreError, match=r"'me/data' holds something else \(data/train.parquet\); nothing was uploaded"
    ):
        scores_of().push_to_hub("me/data")
    assert (other / "train.parquet").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["../up", "a/../b", "a//b", "", "a b", "/etc"])
def test_names_that_are_none(hub, name):
    with pytest.raises(OptionError, match="is no name of a repository"):
        scores_of().push_to_hub(name)
    with pytest.raises(OptionError, match="is no name of a repository"):
        Scores.from_hub(name)
    assert hub.calls == []


def test_text_of_others_is_quoted_in_the_card(hub):
    hostile = scores_of(scorer=HOSTILE, meaning=HOSTILE, options={HOSTILE: [HOSTILE]})
    hostile.push_to_hub("me/scores", model=HOSTILE, dataset=HOSTILE)
    text = (hub.folder("me/scores") / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    assert [one["config_name"] for one in yaml.safe_load(head)["configs"]] == ["scores", "queries"]
    for mark in ("<", "`x", "](", "![", "**b", "\u202e", "\x00", "---\n"):
        assert mark not in body.replace("|---|---|\n", "")
    rows = [line for line in body.splitlines() if line.startswith("| ")]
    assert all(line.count("|") == 3 for line in rows)
    assert Scores.from_hub("me/scores").scorer == HOSTILE
    assert len(load(str(hub.folder("me/scores")))) == 5


# -- a stranger's repository


@pytest.fixture
def broken(hub):
    """Change the document, then say what ``from_hub`` makes of it."""
    scores_of(by_position=False).push_to_hub("a/b", tokens=True)
    folder = hub.folder("a/b")

    def change(**values):
        document = json.loads((folder / "scores.json").read_text())
        for key, value in values.items():
            part, _, name = key.partition("__")
            if name:
                document[part][name] = value
            else:
                document[part] = value
        (folder / "scores.json").write_text(json.dumps(document))
        with pytest.raises(StoreError) as caught:
            Scores.from_hub("a/b")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return change


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"kind": "other"}, "is not of the kind 'hfdataopt-scores'"),
        ({"format": 2}, "has format 2; this version reads format 1"),
        ({"rows": "5"}, "rows is '5', not of the type int"),
        ({"rows": True}, "rows is True"),
        ({"rows": 10**12}, "has 5 rows; the document says 1000000000000"),
        ({"columns": ["row_id"]}, "it has the columns"),
        ({"sha256": {}}, "is not the file that the document was written with"),
        ({"sha256": {"../../secret.parquet": "00"}}, "is not the file"),
        ({"queries": 2}, "has 3 rows; the document says 2"),
        ({"queries": "../x"}, "not a number of queries"),
        ({"queries": None}, "there are scores per query, but no queries"),
        ({"metadata": []}, "metadata is [], not of the type dict"),
        ({"metadata__scorer": 3}, "metadata.scorer is 3, not of the type str"),
        ({"metadata__sample": [{"row_id": "r0"}]}, "metadata.sample holds"),
        ({"metadata__by_position": True}, "known by position, but their ids are others"),
        ({"metadata__query_ids": ["x"]}, "metadata.query_ids are not the queries"),
    ],
)
def test_a_document_that_is_wrong(broken, values, says):
    assert says in broken(**values)


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("row_id", ["r0", "r0", "r1", "r2", "r3"], "has an id twice"),
        ("row_id", [0.5, 1, 2, 3, 4], "has the type double; expected int64 or string"),
        ("row_id", [None, "a", "b", "c", "d"], "has 1 missing values"),
        ("score", ["1", "2", "3", "4", "5"], "has the type string; expected double"),
        ("standard_error", [1, 2, 3, 4, 5], "has the type int64; expected double"),
        ("per_query", [[1.0], [1.0], [1.0], [1.0], [1.0]], "column 'per_query' has the type"),
        ("input_ids", [["a"]] * 5, "column 'input_ids' has the type"),
    ],
)
def test_a_table_that_is_wrong(hub, broken, column, values, says):
    file = hub.folder("a/b") / "data" / "scores.parquet"
    table = pq.read_table(file)
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.array(values)), file)
    hashes = json.loads((hub.folder("a/b") / "scores.json").read_text())["sha256"]
    assert says in broken(sha256={**hashes, "data/scores.parquet": hashlib.sha256(file.read_bytes()).hexdigest()})


def test_files_that_are_missing_or_garbage(hub, broken):
    folder = hub.folder("a/b")
    (folder / "data" / "scores.parquet").write_bytes(b"PAR1 nonsense")
    digest = hashlib.sha256(b"PAR1 nonsense").hexdigest()
    assert "cannot be read" in broken(sha256={"data/scores.parquet": digest})
    (folder / "data" / "scores.parquet").unlink()
    assert "cannot be read: FileNotFoundError" in broken()
    (folder / "scores.json").write_text("[" * 100_000)
    with pytest.raises(StoreError, match="cannot be read"):
        Scores.from_hub("a/b")


def test_nothing_that_could_be_code_is_fetched(hub):
    scores_of().push_to_hub("me/scores")
    (hub.folder("me/scores") / "scores.py").write_text("raise SystemExit('executed')")
    (hub.folder("me/scores") / "tokenizer").mkdir()
    (hub.folder("me/scores") / "tokenizer" / "tokenizer_config.json").write_text(
        '{"auto_map": {"AutoTokenizer": ["x.X", null]}}'
    )
    assert len(Scores.from_hub("me/scores")) == 5
    (copy,) = (hub.root / ".cache").iterdir()
    names = {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()}
    assert names == {"scores.json", "data/scores.parquet", "data/queries.parquet"}
