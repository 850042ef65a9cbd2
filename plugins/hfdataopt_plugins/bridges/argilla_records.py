"""Votes and suspected labels as records of Argilla, and back: JSON lines of what ``argilla.Record.to_dict`` writes.

    write_records(votes_to_records(result.votes, items), "votes.jsonl")
    records = [rg.Record.from_dict(json.loads(line)) for line in open("votes.jsonl")]  # for dataset.records.log(records)

The dataset in Argilla needs the fields and questions of ``VOTE_SETTINGS`` or ``label_settings``.
"""

import json
import os
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hfdataopt.attribution.rows import ROW_ID
from hfdataopt.attribution.scores import Scores
from hfdataopt.errors import DataError, OptionError
from hfdataopt.files import write_whole
from hfdataopt.prompting.candidate import Candidate, Comparison, Duel, RowId, Vote
from hfdataopt.prompting.optimizer import Item

Record = dict[str, Any]
PREFERENCE, LABEL = "preference", "label"
WORDS = ("first", "second", "tie", "skip")
VOTE_SETTINGS = {"fields": ["prompt", "first", "second"], "questions": {PREFERENCE: list(WORDS)}}
USERS = uuid.UUID("6d0d7b0e-5a34-4f0e-9a53-1f2b0a7e6c11")  # namespace in which a voter's name becomes a user id


def label_settings(names: Sequence[str]) -> dict[str, Any]:
    """Fields and questions that records of suspected labels need, as :data:`VOTE_SETTINGS`."""
    return {"fields": ["text", "given_label"], "questions": {LABEL: list(names)}}


# -- files


def write_records(records: Iterable[Record], path: str | os.PathLike[str]) -> Path:
    """One record per line."""
    file = Path(path)
    write_whole(file, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode())
    return file


def read_records(path: str | os.PathLike[str]) -> list[Record]:
    """Records of a file with one per line, or of a JSON list such as Argilla's ``records.to_json`` writes.

    Raises:
        DataError: a line is no record.
    """
    text = Path(path).read_text()
    try:
        records = (
            json.loads(text)
            if text.lstrip().startswith("[")
            else [json.loads(line) for line in text.splitlines() if line]
        )
    except ValueError as error:
        raise DataError(f"read_records: {str(path)!r} is neither JSON lines nor a JSON list: {error}") from error
    for number, record in enumerate(records):
        if not isinstance(record, dict) or "fields" not in record:
            raise DataError(f"read_records: record {number} of {str(path)!r} has no fields")
    return records


# -- votes


def votes_to_records(
    votes: Iterable[Vote], items: Iterable[Item], users: Mapping[str, uuid.UUID | str] | None = None
) -> list[Record]:
    """A record per vote: prompt and both answers as fields, the vote as a response; a duel without outcome is left to be judged.

    Args:
        items: those that the votes are about, for their prompts.
        users: Argilla's user id of each voter (``Vote.by``); others get one that is made from their name.

    Raises:
        DataError: a vote is on an item that is not there.
    """
    texts = {item.id: item.input for item in items}
    records = []
    for number, vote in enumerate(votes):
        duel, outcome = vote.duel, vote.comparison
        if duel.item not in texts:
            raise DataError(f"votes_to_records: a vote is on item {duel.item!r}, which is not among the items")
        word = WORDS[outcome.winner] if outcome.winner is not None else outcome.outcome
        responses = {}
        if word in WORDS:
            user = (users or {}).get(vote.by) or uuid.uuid5(USERS, vote.by)
            responses[PREFERENCE] = [{"value": word, "user_id": str(user), "status": "submitted"}]
        records.append(
            {
                "id": f"vote-{number}-{duel.first.key}-{duel.second.key}",
                "fields": {"prompt": texts[duel.item], "first": vote.answers[0], "second": vote.answers[1]},
                "metadata": {
                    "item": json.dumps(duel.item),
                    "first": json.dumps(duel.first.to_json(), ensure_ascii=False),
                    "second": json.dumps(duel.second.to_json(), ensure_ascii=False),
                    "by": vote.by,
                },
                "suggestions": {},
                "responses": responses,
                "vectors": {},
            }
        )
    return records


def records_to_votes(
    records: Iterable[Mapping[str, Any]], users: Mapping[str, uuid.UUID | str] | None = None
) -> list[Vote]:
    """A vote per submitted response to the question ``preference`` of records that :func:`votes_to_records` made.

    Args:
        users: names by which to know Argilla's users (name -> id); others are known by their id, the record's own voter by name.

    Raises:
        DataError: a record has no duel in its metadata, or an answer that is not one of first, second, tie, skip.
    """
    names = {str(user): name for name, user in (users or {}).items()}
    votes = []
    for record in records:
        try:
            about = record["metadata"]
            first, second = (Candidate.from_json(json.loads(about[side])) for side in ("first", "second"))
            duel = Duel(first, second, json.loads(about["item"]))
            answers = (record["fields"]["first"], record["fields"]["second"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"records_to_votes: record {record.get('id')!r} is no duel that votes_to_records wrote: {error!r}"
            ) from error
        own = about.get("by", "")
        for response in _submitted(record, PREFERENCE):
            word, user = response["value"], str(response["user_id"])
            if word not in WORDS:
                raise DataError(
                    f"records_to_votes: record {record.get('id')!r} was answered with {word!r}, not {', '.join(WORDS)}"
                )
            winner = WORDS.index(word) if word in WORDS[:2] else None
            by = names.get(user, own if user == str(uuid.uuid5(USERS, own)) else user)
            votes.append(Vote(duel, Comparison.of(winner, "skip" if word == "skip" else "tie"), answers, by))
    return votes


# -- labels


def suspicions_to_records(
    dataset: Any,
    scores: Scores,
    names: Sequence[str],
    k: int,
    *,
    text: str = "text",
    label: str = "label",
    predicted: Mapping[RowId, int] | None = None,
) -> list[Record]:
    """The ``k`` rows of the lowest scores, most suspicious first, to be labelled again.

    Args:
        dataset: the rows that were scored.
        scores: of a method that measures suspicion, such as ``cv-confidence`` or the column of ``label-errors``.
        names: of the classes; a label is a position in them or a name.
        predicted: row id -> class that a model would give, shown as a suggestion.

    Raises:
        OptionError: higher scores of this method do not mean less suspicion. DataError: the scores are of other rows.
    """
    if scores.metadata.get("meaning", "suspicion") != "suspicion":
        raise OptionError(
            f"suspicions_to_records: scores of {scores.scorer!r} do not measure suspicion: {scores.meaning}"
        )
    values = scores.align(dataset)
    ids = list(range(len(dataset))) if scores.by_position else list(dataset[ROW_ID])
    where = {row: place for place, row in enumerate(ids)}
    records = []
    for rank, row in enumerate(scores.bottom(k), 1):
        place = where[row]
        given = dataset[place][label]
        suggestion = {}
        if predicted is not None and row in predicted:
            suggestion[LABEL] = {"value": names[predicted[row]], "agent": scores.scorer}
        records.append(
            {
                "id": f"row-{json.dumps(row)}",
                "fields": {"text": str(dataset[place][text]), "given_label": _name(given, names)},
                "metadata": {ROW_ID: json.dumps(row), "rank": rank, "score": float(values[place])},
                "suggestions": suggestion,
                "responses": {},
                "vectors": {},
            }
        )
    return records


def records_to_labels(records: Iterable[Mapping[str, Any]], names: Sequence[str]) -> dict[RowId, int]:
    """Row id -> class that most submitted responses gave; rows without one, or with a draw, are left out.

    Raises:
        DataError: a record has no row id in its metadata, or an answer that is no class.
    """
    found = {}
    for record in records:
        try:
            row = json.loads(record["metadata"][ROW_ID])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"records_to_labels: record {record.get('id')!r} has no row id in its metadata") from error
        counts = Counter(response["value"] for response in _submitted(record, LABEL))
        if unknown := sorted(set(counts) - set(names)):
            raise DataError(
                f"records_to_labels: record {record.get('id')!r} was answered with {unknown[0]!r}; the classes are: "
                f"{', '.join(names)}"
            )
        ranked = counts.most_common(2)
        if ranked and (len(ranked) == 1 or ranked[0][1] > ranked[1][1]):
            found[row] = list(names).index(ranked[0][0])
    return found


def _name(value: Any, names: Sequence[str]) -> str:
    return value if isinstance(value, str) else names[value]


def _submitted(record: Mapping[str, Any], question: str) -> list[Mapping[str, Any]]:
    """Responses to a question that are no drafts and were not discarded."""
    responses = (record.get("responses") or {}).get(question) or []
    return [one for one in responses if _status(one) == "submitted"]


def _status(response: Mapping[str, Any]) -> str:
    status = response.get("status") or "submitted"
    return str(getattr(status, "value", status))
