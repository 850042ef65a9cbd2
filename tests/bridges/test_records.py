"""Votes and suspected labels go to Argilla's records and come back; the real package reads and writes them."""

import json
import re
import uuid

import numpy as np
import pytest
from datasets import Dataset

from hfdataopt.attribution.scores import Scores
from hfdataopt.errors import DataError, OptionError
from hfdataopt.prompting.candidate import Candidate, Comparison, Duel, Exemplar, Vote
from hfdataopt.prompting.optimizer import Item
from hfdataopt_plugins.bridges.argilla_records import (
    LABEL,
    PREFERENCE,
    VOTE_SETTINGS,
    label_settings,
    read_records,
    records_to_labels,
    records_to_votes,
    suspicions_to_records,
    votes_to_records,
    write_records,
)

ITEMS = [Item("a", "prompt a", "prompt a", None), Item(7, "prompt 7", "prompt 7", None)]
ONE = Candidate('say "ja"\n<b>', (Exemplar("x", "ü"),), latent=(0.5, 1.0), parents=("p",), origin="induce")
TWO = Candidate("say no")
VOTES = [
    Vote(Duel(ONE, TWO, "a"), Comparison(0, "preferred"), ("yes", "no"), "ann"),
    Vote(Duel(TWO, ONE, 7), Comparison(1, "preferred"), ("no", "yes"), ""),
    Vote(Duel(ONE, TWO, 7), Comparison(None, "tie"), ("yes", "no"), "bob"),
    Vote(Duel(ONE, TWO, "a"), Comparison(None, "skip"), ("yes", "no"), "ann"),
]
NAMES = ["bad", "good", "other"]


def same(vote):
    return vote.duel.first.to_json(), vote.duel.second.to_json(), vote.duel.item, vote.comparison, vote.answers, vote.by


def through_argilla(records):
    """What the real package makes of our records and writes again."""
    rg = pytest.importorskip("argilla", reason="the package argilla is not installed: tests/bridges/run.py makes it so")
    return [json.loads(json.dumps(rg.Record.from_dict(record).to_dict(), default=str)) for record in records]


def test_votes_come_back_as_they_were(tmp_path):
    file = write_records(votes_to_records(VOTES, ITEMS), tmp_path / "votes.jsonl")
    assert len(file.read_text().splitlines()) == 4
    assert [same(vote) for vote in records_to_votes(read_records(file))] == [same(vote) for vote in VOTES]


def test_votes_come_back_through_the_real_package(tmp_path):
    records = through_argilla(votes_to_records(VOTES, ITEMS))
    assert [same(vote) for vote in records_to_votes(records)] == [same(vote) for vote in VOTES]
    file = tmp_path / "list.json"  # as its records.to_json writes them
    file.write_text(json.dumps(records))
    assert [same(vote) for vote in records_to_votes(read_records(file))] == [same(vote) for vote in VOTES]


def test_what_people_answer_there_becomes_votes():
    open_ = votes_to_records([Vote(Duel(ONE, TWO, "a"), Comparison(None, "invalid"), ("yes", "no"))], ITEMS)
    assert open_[0]["responses"] == {}
    ann, bob = uuid.uuid4(), uuid.uuid4()
    open_[0]["responses"] = {
        PREFERENCE: [
            {"value": "second", "user_id": str(ann), "status": "submitted"},
            {"value": "first", "user_id": str(bob), "status": "draft"},
            {"value": "tie", "user_id": str(bob), "status": "submitted"},
            {"value": None, "user_id": str(bob), "status": "discarded"},
        ]
    }
    first, second = records_to_votes(open_, users={"ann": ann})
    assert (first.by, first.comparison.winner) == ("ann", 1)
    assert (second.by, second.comparison.outcome) == (str(bob), "tie")
    open_[0]["responses"][PREFERENCE][0]["value"] = "both"
    with pytest.raises(DataError, match="'both', not first, second, tie, skip"):
        records_to_votes(open_)


def test_a_vote_on_an_unknown_item_and_a_foreign_record_are_named():
    with pytest.raises(DataError, match="item 'a', which is not among the items"):
        votes_to_records(VOTES, ITEMS[1:])
    with pytest.raises(DataError, match="record 'x' is no duel"):
        records_to_votes([{"id": "x", "fields": {}, "metadata": {}}])


def suspicious(ids=None):
    rows = {"text": [f"text {i}" for i in range(6)], "label": [0, 1, 0, 1, 2, 0]}
    rows |= {"row_id": ids} if ids else {}
    values = np.array([0.9, 0.1, 0.8, np.nan, 0.2, 0.7])
    scores = Scores(
        values,
        ids or list(range(6)),
        metadata={"scorer": "cv-confidence", "meaning": "suspicion", "by_position": not ids},
    )
    return Dataset.from_dict(rows), scores


@pytest.mark.parametrize("ids", [None, [f"r{i}" for i in range(6)]])
def test_the_most_suspicious_rows_are_asked_about(ids, tmp_path):
    dataset, scores = suspicious(ids)
    named = list(ids or range(6))
    records = suspicions_to_records(dataset, scores, NAMES, 3, predicted={named[1]: 0})
    assert [json.loads(one["metadata"]["row_id"]) for one in records] == [named[1], named[4], named[5]]
    assert records[0]["fields"] == {"text": "text 1", "given_label": "good"}
    assert records[0]["suggestions"] == {LABEL: {"value": "bad", "agent": "cv-confidence"}}
    assert records[1]["suggestions"] == {}
    assert set(records[0]["fields"]) == set(label_settings(NAMES)["fields"])

    def said(*words):
        return {LABEL: [{"value": word, "user_id": str(uuid.uuid4()), "status": "submitted"} for word in words]}

    records[0]["responses"], records[1]["responses"] = said("bad", "bad", "other"), said("good", "bad")
    again = read_records(write_records(records, tmp_path / "labels.jsonl"))
    assert records_to_labels(again, NAMES) == {named[1]: 0}


def test_labels_come_back_through_the_real_package():
    dataset, scores = suspicious()
    records = suspicions_to_records(dataset, scores, NAMES, 2, predicted={1: 0})
    records[0]["responses"] = {LABEL: [{"value": "other", "user_id": str(uuid.uuid4()), "status": "submitted"}]}
    there = through_argilla(records)
    assert there[0]["suggestions"][LABEL]["value"] == "bad"
    assert there[0]["metadata"] == records[0]["metadata"]
    assert records_to_labels(there, NAMES) == {1: 2}


def test_fields_and_questions_have_names_that_a_server_takes():
    for settings in (VOTE_SETTINGS, label_settings(NAMES)):
        for name in (*settings["fields"], *settings["questions"]):
            assert re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name)


def test_helpfulness_is_refused():
    dataset, scores = suspicious()
    scores.metadata["meaning"] = "helpfulness"
    with pytest.raises(OptionError, match="do not measure suspicion"):
        suspicions_to_records(dataset, scores, NAMES, 2)


def test_what_is_no_record_is_named(tmp_path):
    (tmp_path / "x").write_text("{}\n")
    with pytest.raises(DataError, match="record 0"):
        read_records(tmp_path / "x")
    (tmp_path / "x").write_text("no")
    with pytest.raises(DataError, match="neither JSON lines nor a JSON list"):
        read_records(tmp_path / "x")
