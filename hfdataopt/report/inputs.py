"""What a report is made of: objects, or what the library has written to disk, recognised by the files that are there."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfdataopt.attribution.scores import Scores
from hfdataopt.errors import DataError, OptionError, first_line
from hfdataopt.files import JsonLines
from hfdataopt.prompting import ledger as ledgers
from hfdataopt.prompting.result import FILE as RESULT
from hfdataopt.prompting.result import PromptResult
from hfdataopt.selection.summary import SelectionSummary

DEPTH = 4  # of folders that are searched
EVALUATION = ("label_noise", "linear_datamodeling_score", "curves")
# Likelihoods are calls of the scored model.
ROLES = {"likelihood": "model"}


@dataclass
class Role:
    """What was asked of one of the models of a search, by its ledger.

    Attributes:
        requests: sent, once each. answers: that arrived. again: requests that a killed run had sent already.
        prompt_tokens, completion_tokens: of the answers.
    """

    requests: int = 0
    answers: int = 0
    again: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def open(self) -> int:
        """Requests without an answer."""
        return max(self.requests - self.answers, 0)


@dataclass
class Search:
    """A prompt search: its result as ``result.json`` has it, and its ledger.

    Attributes:
        result: None where the search has not ended. settings: of the ledger, None without one.
        roles: by name; empty without a ledger.
    """

    name: str
    result: dict[str, Any] | None = None
    settings: dict[str, Any] | None = None
    roles: dict[str, Role] = field(default_factory=dict)
    folder: str | None = None


@dataclass
class Inputs:
    """Everything that was given or found.

    Attributes:
        folders: where scores were read, by name.
    """

    scores: dict[str, Scores] = field(default_factory=dict)
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    searches: list[Search] = field(default_factory=list)
    folders: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.scores or self.summaries or self.evaluation or self.searches)


# -- objects


def gather(scores: Any, summaries: Any, evaluation: Any, prompt_result: Any) -> Inputs:
    """Everything that was handed over, as objects or as paths.

    Raises:
        DataError, StoreError: a path holds something else. OptionError: an object of a type that no section has a use for.
    """
    found = Inputs()
    for name, one in _named(scores, "scores"):
        folder = None
        if not isinstance(one, Scores):
            folder = _path(one, "scores", "Scores or folders of scores")
            one = Scores.load(folder)
        chosen = _add(found.scores, name or one.scorer, one)
        if folder is not None:
            found.folders[chosen] = folder
    for name, one in _named(summaries, "summaries"):
        if isinstance(one, SelectionSummary):
            one = one.as_dict()
        elif not isinstance(one, dict):
            one = _read_json(Path(_path(one, "summaries", "SelectionSummary objects or files of them")))
        _add(found.summaries, name or str(one.get("by")), _summary(one, str(name or "a summary")))
    if evaluation is not None:
        found.evaluation = _evaluation_of(evaluation)
    for name, one in _named(prompt_result, "prompt_result"):
        if isinstance(one, PromptResult):
            found.searches.append(Search(name or "prompt search", one.to_json()))
        else:
            where = Path(_path(one, "prompt_result", "PromptResult objects or folders of searches"))
            found.searches.append(read_search(where, name))
    return found


def _named(given: Any, what: str) -> list[tuple[str | None, Any]]:
    if given is None:
        return []
    if what == "summaries" and isinstance(given, Mapping) and "kept_ids" in given:
        return [(None, given)]
    if isinstance(given, Mapping):
        return [(str(name), one) for name, one in given.items()]
    if isinstance(given, Sequence) and not isinstance(given, str):
        return [(None, one) for one in given]
    return [(None, given)]


def _path(given: Any, argument: str, takes: str) -> str:
    if not isinstance(given, str | os.PathLike):
        raise OptionError(f"report: {argument} takes {takes}; got {type(given).__name__}")
    return os.fspath(given)


def _add(into: dict[str, Any], name: str, one: Any) -> str:
    """Add under this name, or under one like it where it is taken; returns the name."""
    number, chosen = 2, name
    while chosen in into:
        chosen, number = f"{name} ({number})", number + 1
    into[chosen] = one
    return chosen


def _evaluation_of(given: Any) -> dict[str, Any]:
    """A document like ``evaluation.json``, from one, from its path, or from the objects of ``hfdataopt.evaluation``."""
    if isinstance(given, str | os.PathLike):
        where = Path(given)
        given = _read_json(where / "evaluation.json" if where.is_dir() else where)
    if not isinstance(given, Mapping) or not set(given) <= set(EVALUATION) or not given:
        got = sorted(map(str, given)) if isinstance(given, Mapping) else type(given).__name__
        raise DataError(f"report: an evaluation has one or more of {', '.join(EVALUATION)}; got {got}")
    plain = json.loads(json.dumps(given, default=lambda one: one.as_dict()))
    return check_evaluation(plain)


def check_evaluation(document: dict[str, Any]) -> dict[str, Any]:
    """The document, after reading every number that the report shows.

    Raises:
        DataError: one is missing, or is no number.
    """
    try:
        for one in document.get("label_noise", {}).values():
            _interval(one["auc"])
            int(one["flipped"]), int(one["rows"])
        for name, one in document.get("linear_datamodeling_score", {}).items():
            if name != "reliability":
                _interval(one["score"])
                int(one["subsets"])
        curves = document.get("curves")
        if curves is not None:
            _interval(curves["everything"])
            str(curves["metric"]), int(curves["seeds"])
            for point in curves["points"]:
                str(point["kind"]), str(point["scores"]), float(point["fraction"]), int(point["rows"])
                _interval(point["utility"])
                if point["gain"] is not None:
                    _interval(point["gain"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"report: the evaluation is not as `hfdataopt evaluate` writes it: {type(error).__name__}: {first_line(error)}"
        ) from error
    return document


def _interval(one: Mapping[str, Any]) -> None:
    for part in ("value", "low", "high"):
        if one[part] is not None:
            float(one[part])


def _summary(document: dict[str, Any], what: str) -> dict[str, Any]:
    try:
        SelectionSummary(**document)
        rows = [row for side in ("best", "last_kept", "first_dropped", "worst") for row in document[side]]
        if any(not {"row_id", "score", "text"} <= set(row) for row in rows):
            raise ValueError("a row without row_id, score or text")
        if len(document["edges"]) != len(document["histogram"]) + 1:
            raise ValueError("edges and histogram do not fit")
    except (TypeError, ValueError) as error:
        raise DataError(
            f"report: {what} is not as `hfdataopt select --summary` writes it: {first_line(error)}"
        ) from error
    return document


# -- files


def find(paths: Sequence[str | os.PathLike[str]]) -> Inputs:
    """What is in files and folders, and in folders below them.

    A folder of scores has ``scores.json``, one of a prompt search ``ledger.jsonl`` or ``result.json``, one of ``hfdataopt
    evaluate`` ``evaluation.json``. A summary of ``hfdataopt select`` is named itself, or its name ends in ``summary.json``.

    Raises:
        DataError: a path has nothing of these; it is named.
    """
    found = Inputs()
    loaded: list[tuple[str, Scores]] = []
    for given in paths:
        where = Path(given)
        if not where.exists():
            raise DataError(f"report: {str(where)!r} does not exist")
        before = (len(loaded), len(found.summaries), len(found.evaluation), len(found.searches))
        if where.is_dir():
            _look(where, found, loaded, DEPTH)
        else:
            _file(where, found)
        if before == (len(loaded), len(found.summaries), len(found.evaluation), len(found.searches)):
            raise DataError(
                f"report: {str(where)!r} has nothing to report: no scores (scores.json), prompt search (ledger.jsonl), "
                "evaluation (evaluation.json) or summary of a selection (named itself, or *summary.json)"
            )
    names = [one.scorer for _, one in loaded]
    for (folder, one), name in zip(loaded, names, strict=True):
        chosen = name if names.count(name) == 1 else f"{name} ({folder})"
        found.scores[chosen], found.folders[chosen] = one, folder
    return found


def _look(folder: Path, found: Inputs, loaded: list[tuple[str, Scores]], depth: int) -> None:
    if (folder / "scores.json").is_file():
        loaded.append((str(folder), Scores.load(folder)))
        return
    if (folder / ledgers.FILE).is_file() or (folder / RESULT).is_file():
        found.searches.append(read_search(folder))
        return
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"report: {str(folder)!r} cannot be read: {error.strerror}") from error
    for entry in entries:
        if entry.name == "evaluation.json" or entry.name.endswith("summary.json"):
            _file(entry, found)
        elif entry.is_dir() and not entry.name.startswith(".") and not entry.is_symlink() and depth:
            _look(entry, found, loaded, depth - 1)


def _file(path: Path, found: Inputs) -> None:
    if path.name in (ledgers.FILE, RESULT) and path.parent.is_dir():
        found.searches.append(read_search(path.parent))
        return
    document = _read_json(path)
    if "kept_ids" in document:
        _add(found.summaries, f"{document.get('by')} ({path.stem})", _summary(document, repr(str(path))))
    elif set(document) & set(EVALUATION):
        found.evaluation |= _evaluation_of({name: document[name] for name in EVALUATION if name in document})
    else:
        raise DataError(f"report: {str(path)!r} is neither an evaluation nor a summary of a selection")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"report: {str(path)!r} cannot be read: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(document, dict):
        raise DataError(f"report: {str(path)!r} holds a {type(document).__name__}; expected a JSON object")
    return document


def read_search(folder: Path, name: str | None = None) -> Search:
    """A prompt search from its folder, finished or not.

    Raises:
        DataError: the folder has neither a ledger nor a result.
    """
    there = [file for file in (ledgers.FILE, RESULT) if (folder / file).is_file()]
    if not there:
        raise DataError(f"report: {str(folder)!r} has no prompt search (no {ledgers.FILE}, no {RESULT})")
    search = Search(name or folder.name, folder=str(folder))
    if RESULT in there:
        search.result = _read_json(folder / RESULT)
        if not {"best", "status", "leaders", "history", "spent"} <= set(search.result):
            raise DataError(f"report: {str(folder / RESULT)!r} is not as PromptTrainer writes it")
    if ledgers.FILE in there:
        _replay(folder, search)
    return search


def _replay(folder: Path, search: Search) -> None:
    sent: dict[str, set[str]] = {}
    for line in JsonLines(folder / ledgers.FILE, "report").read():
        kind, name = line.get("kind"), str(line.get("role"))
        if kind == "search":
            search.settings = line.get("settings")
        if kind not in ("request", "answer") or name == "reward":
            continue
        role = search.roles.setdefault(ROLES.get(name, name), Role())
        waiting = sent.setdefault(name, set())
        if kind == "request":
            role.again += line["key"] in waiting
            role.requests += line["key"] not in waiting
            waiting.add(line["key"])
            continue
        role.requests += line["key"] not in waiting  # encoders and likelihoods note no request
        waiting.discard(line["key"])
        role.answers += 1
        into, out = line.get("tokens", (0, 0))
        role.prompt_tokens += into
        role.completion_tokens += out
