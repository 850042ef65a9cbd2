"""``Scores``: one number per training row, with what is needed to join it to the right dataset, save it and explain it."""

import functools
import hashlib
import json
import math
import os
import shutil
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from hfdataopt.attribution.prepare import TEXT_COLUMNS
from hfdataopt.attribution.rows import ROW_ID, RowIds, check_map_style, row_hashes, row_ids, sample_hashes
from hfdataopt.attribution.scorer import MEANINGS
from hfdataopt.console import say
from hfdataopt.errors import DataError, MissingDependencyError, OptionError, StoreError
from hfdataopt.files import with_checksum, without_checksum, write_whole
from hfdataopt.gradients import name_rows

FORMAT = 1
NUMBERS, PREVIOUS = "scores.safetensors", "scores.previous.safetensors"
# What a row is called by for a person; the first that it has.
SHOWN = (("messages",), ("prompt", "completion"), ("prompt", "chosen"), *TEXT_COLUMNS, ("chosen",), ("prompt",))
KEEP_IDS = (
    "Score with ids instead: train_dataset=with_row_ids(dataset), then trainer.add_callback(AttributionCallback(..., "
    "trainer=trainer)), or pass pool= the dataset that was prepared"
)


@dataclass(eq=False, repr=False)
class Scores:
    """Scores of a pool. Higher = more helpful, always; ``meaning`` says what a low score stands for.

    Attributes:
        values: ``[rows]`` float64; NaN where a row could not be scored (it is never kept, and never gets 0).
        row_ids: ``[rows]``, the column ``row_id`` of the pool, else positions.
        matrix: ``[rows, queries]`` or None.
        standard_errors: ``[rows]`` Monte Carlo errors or None.
        metadata: scorer, options, meaning, moments, length and sampled hashes of the pool, precision and the like.
        pool_tokens, query_tokens: ``input_ids`` of the rows, for :meth:`explain`; None where the rows have none.
        row_hashes: column of the pool -> ``[rows]`` uint64, by which :meth:`join` sees what was edited. They stay on this disk:
            on the hub is a sample, which is compared in their place.

    ``scores[row_id]`` is a row's score and ``scores[2:5]`` an array in the order of the pool, as are ``list(scores)`` and
    ``numpy.asarray(scores)``.
    """

    values: np.ndarray
    row_ids: RowIds
    matrix: np.ndarray | None = None
    standard_errors: np.ndarray | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    pool_tokens: list[list[int]] | None = field(default=None, repr=False)
    query_tokens: list[list[int]] | None = field(default=None, repr=False)
    tokenizer: Any = field(default=None, repr=False)
    row_hashes: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.values = _numbers(self.values, "values", (len(_ids(self.row_ids)),))
        rows = len(self.row_ids)
        if self.matrix is not None:
            self.matrix = _numbers(self.matrix, "matrix", (rows, None))
        if self.standard_errors is not None:
            self.standard_errors = _numbers(self.standard_errors, "standard_errors", (rows,))
        if self.pool_tokens is not None and len(self.pool_tokens) != rows:
            raise DataError(f"Scores: pool_tokens of {len(self.pool_tokens)} rows arrived for {rows} row ids")
        for name, hashes in self.row_hashes.items():
            if np.shape(hashes) != (rows,):
                raise DataError(
                    f"Scores: row_hashes[{name!r}] of shape {list(np.shape(hashes))} arrived for {rows} row ids"
                )
        _check_metadata(self.metadata)
        if self.by_position and self.row_ids != list(range(rows)):
            raise DataError("Scores: the rows are said to be known by position (by_position), but their ids are others")

    def __len__(self) -> int:
        return len(self.row_ids)

    def __iter__(self) -> Iterator[float]:
        return iter(self.values.tolist())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype=dtype, copy=copy)

    def __getitem__(self, which: Any) -> Any:
        if isinstance(which, slice):
            return self.values[which]
        try:
            return float(self.values[self._positions[which]])
        except (KeyError, TypeError):
            some = ", ".join(map(repr, self.row_ids[:3]))
            raise DataError(
                f"scores of {self.scorer!r}: no row has the id {which!r}; scores[row_id] takes one of {some}{', ...' * (len(self) > 3)}"
            ) from None

    @functools.cached_property
    def _positions(self) -> dict[Any, int]:
        return {row: position for position, row in enumerate(self.row_ids)}

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with the columns ``score`` and ``standard_error`` (where there is one), indexed by row id."""
        import pandas as pd

        columns = {"score": self.values}
        if self.standard_errors is not None:
            columns["standard_error"] = self.standard_errors
        return pd.DataFrame(columns, index=pd.Index(self.row_ids, name=ROW_ID))

    @property
    def scorer(self) -> str:
        return self.metadata.get("scorer", "unknown")

    @property
    def meaning(self) -> str:
        """What high and low scores of this method say, as printed in reports."""
        return MEANINGS.get(
            self.metadata.get("meaning", ""), str(self.metadata.get("meaning", "higher = more helpful"))
        )

    @property
    def by_position(self) -> bool:
        """Whether the row ids are positions in the pool, because it had no column ``row_id``."""
        return bool(self.metadata.get("by_position", False))

    @property
    def dropped(self) -> int | None:
        """How many rows the trainer had left out before the others were counted by position; None where it is not known."""
        return self.metadata.get("dropped", 0) if self.by_position else 0

    def __repr__(self) -> str:
        return f"<Scores {self}>"

    def __str__(self) -> str:
        scored = self.values[~np.isnan(self.values)]
        spread = (
            f"min {scored.min():.4g}, median {np.median(scored):.4g}, max {scored.max():.4g}" if len(scored) else "none"
        )
        missing = len(self) - len(scored)
        kept = (
            "" if not self.dropped else f"; by position among the rows that the trainer kept ({self.dropped} dropped)"
        )
        return f"{self.scorer}: {len(self)} rows ({spread}{f', {missing} without a score' if missing else ''}){kept}; {self.meaning}"

    # -- ranking

    def top(self, k: int | None = None, fraction: float | None = None) -> list[Any]:
        """Row ids of the best ``k`` rows, or of the best ``fraction`` of those that have a score, best first; ties by row id.

        Raises:
            OptionError: not exactly one size, one out of range, or more rows than have a score.
        """
        return self._first(k, fraction, worst_first=False)

    def bottom(self, k: int | None = None, fraction: float | None = None) -> list[Any]:
        """Row ids of the worst rows, worst first: the ones to inspect. Ties by row id; raises as :meth:`top`."""
        return self._first(k, fraction, worst_first=True)

    def _first(self, k: int | None, fraction: float | None, worst_first: bool) -> list[Any]:
        ranked = self._ranked(worst_first)
        count = count_of(k, fraction, len(self) if k is not None else len(ranked))
        if count > len(ranked):
            raise OptionError(f"{self.scorer}: {count} rows were asked for but only {len(ranked)} have a score")
        return [self.row_ids[i] for i in ranked[:count]]

    def _ranked(self, worst_first: bool = False) -> list[int]:
        sign = 1.0 if worst_first else -1.0
        scored = [i for i in range(len(self)) if not np.isnan(self.values[i])]
        return sorted(scored, key=lambda i: (sign * self.values[i], self.row_ids[i]))

    # -- joining

    def join(self, dataset: Any, column: str | None = None, *, edited: bool = False) -> Any:
        """The dataset with a column of these scores (None where a row has none), after checking that it is the same data.

        Rows are matched by the column ``row_id`` where the pool had one, else by position, and then the length must be
        equal. Every row is compared by hash over the columns both have (of scores from the hub only sampled rows); the check
        that was made is recorded in ``metadata["join_check"]``. Where there is no common column to compare, that is said.

        Args:
            edited: whether the rows may have been edited since; then their number is said, and it is no error.

        Raises:
            DataError: another length, other ids, or other contents.
        """
        if column is not None and (not isinstance(column, str) or not column or "\0" in column):
            raise OptionError(f"join: column={column!r:.80} must be the name of a column")
        check_map_style(dataset, "join: the dataset")
        if not hasattr(dataset, "add_column"):
            raise DataError(
                f"join: the dataset is a {type(dataset).__name__}; make it a datasets.Dataset, for example with Dataset.from_list"
            )
        values = self.align(dataset, edited=edited)
        name = column or f"score_{self.scorer}".replace("-", "_")
        if name in dataset.column_names:
            raise DataError(f"join: the dataset has a column {name!r} already; pass column=")
        return dataset.add_column(name, [None if np.isnan(value) else float(value) for value in values])

    def align(self, dataset: Any, *, edited: bool = False) -> np.ndarray:
        """``[len(dataset)]`` scores in the order of the dataset, NaN where a row has none; checks as :meth:`join`."""
        check_map_style(dataset, "join: the dataset")
        has_ids = ROW_ID in (getattr(dataset, "column_names", None) or [])
        if self.by_position:
            if len(dataset) != len(self):
                why = "may have dropped rows" if not self.dropped else f"dropped {self.dropped} rows"
                raise DataError(
                    f"these scores belong to {len(self)} prepared rows identified by position, but the dataset has {len(dataset)}. "
                    f"The trainer {why} while it prepared them. {KEEP_IDS}"
                )
            positions = list(range(len(self)))
        else:
            if not has_ids:
                raise DataError(
                    "these scores are keyed by row_id, but the dataset has no such column; join the dataset that has it"
                )
            positions = [self._positions.get(value, -1) for value in row_ids(dataset, "join: the dataset")]
            if all(position < 0 for position in positions):
                raise DataError("no row_id of the dataset has a score: it is another dataset")
        self._check_contents(dataset, np.array(positions), edited)
        return np.array([self.values[p] if p >= 0 else np.nan for p in positions])

    def _check_contents(self, dataset: Any, positions: np.ndarray, edited: bool) -> None:
        """Compare the rows of a dataset with those that were scored, at ``positions [rows]`` of the pool (-1: none there)."""
        compared, differing = self._differing(dataset, positions)
        if not compared and self.by_position:
            if self.dropped != 0:
                raise DataError(
                    "these scores are by position among the rows that the trainer kept, and the dataset has no column in common with "
                    f"them that could show that it holds the same rows. {KEEP_IDS}"
                )
            say(
                f"{self.scorer}: rows were matched by position only, since the dataset and the rows that were scored have no column "
                "in common; with_row_ids(dataset) and trainer= keep ids"
            )
        rows = {row for column in differing.values() for row in column}
        if rows:
            name, column = next(iter(differing.items()))
            more = f" (and {len(rows) - 1} more of {int((positions >= 0).sum())} rows)" if len(rows) > 1 else ""
            if not edited:
                raise DataError(
                    f"row {column[0]!r}{more} has another value in column {name!r} than when it was scored: another dataset, another "
                    "order or another preparation; or it was edited: then select first and edit afterwards, score again, or pass "
                    "edited=True to take the scores of the rows as they were"
                )
            say(
                f"{self.scorer}: {len(rows)} of {int((positions >= 0).sum())} rows were edited since they were scored (columns "
                f"{', '.join(differing)}): {name_rows(sorted(rows))}; they keep their scores"
            )
        without = "no sampled row or no column in common"
        self.metadata["join_check"] = (
            f"hash of columns {sorted(compared)}" + (f"; {len(rows)} rows edited" if rows else "")
            if compared
            else f"{'length' if self.by_position else 'row ids'} only: {without}"
        )

    def _differing(self, dataset: Any, positions: np.ndarray) -> tuple[set[str], dict[str, list[Any]]]:
        """The columns that could be compared, and those with other values: their rows."""
        found: dict[str, list[Any]] = {}
        if self.row_hashes:
            there = np.flatnonzero(positions >= 0)
            columns = [name for name in getattr(dataset, "column_names", None) or [] if name in self.row_hashes]
            given = row_hashes(dataset.select_columns(columns) if columns else dataset)
            compared = given.keys() & self.row_hashes.keys()
            for name in sorted(compared):
                other = there[given[name][there] != self.row_hashes[name][positions[there]]]
                if len(other):
                    found[name] = [self.row_ids[positions[place]] for place in other]
            return compared, found
        place_of = {int(position): place for place, position in enumerate(positions) if position >= 0}
        compared = set()
        for sample in self.metadata.get("sample", []):
            place = place_of.get(self._positions.get(sample["row_id"], -1))
            if place is None:
                continue
            hashed = sample_hashes(_OneRow(dataset[place]), [sample["row_id"]])
            got = hashed[0]["columns"] if hashed else {}  # none of a row without columns
            for name in sorted(sample["columns"].keys() & got.keys()):
                compared.add(name)
                if sample["columns"][name] != got[name]:
                    found.setdefault(name, []).append(sample["row_id"])
        return compared, found

    # -- explaining

    def explain(self, query: int, k: int = 5, *, dataset: Any = None) -> "Explanation":
        """The rows that help and harm one query most.

        Args:
            query: position of the query in the queries.
            k: rows on each side.
            dataset: where to take the rows' text from; None decodes the stored ``input_ids``.

        Raises:
            DataError: the method has no per-query scores; the message says which option keeps them.
        """
        if self.matrix is None:
            raise DataError(
                f"scores of {self.scorer!r} have no per-query matrix; a scorer with the option per_query keeps one with per_query=True"
            )
        queries = self.matrix.shape[1]
        if isinstance(query, bool) or not isinstance(query, Integral) or not 0 <= query < queries:
            raise OptionError(f"explain: query={query!r} is not among the {queries} queries (0 to {queries - 1})")
        if isinstance(k, bool) or not isinstance(k, Integral) or k < 1:
            raise OptionError(f"explain: k={k!r} must be at least 1, and whole")
        column = self.matrix[:, query]
        scored = [i for i in range(len(column)) if not np.isnan(column[i])]
        best, worst = (sorted(scored, key=lambda i: (s * column[i], self.row_ids[i]))[:k] for s in (-1.0, 1.0))
        texts = self._texts(dataset)
        entry = lambda i: ExplainedRow(self.row_ids[i], float(column[i]), texts(i))  # noqa: E731
        query_text = self._decode(self.query_tokens[query]) if self.query_tokens else None
        return Explanation(query, query_text, [entry(i) for i in best], [entry(i) for i in worst], self.meaning)

    def _texts(self, dataset: Any) -> Any:
        if dataset is None:
            tokens = self.pool_tokens
            return (lambda i: self._decode(tokens[i])) if tokens is not None else (lambda i: None)
        self.align(dataset)
        ids = range(len(dataset)) if self.by_position else row_ids(dataset)
        where = {value: position for position, value in enumerate(ids)}
        return lambda i: row_text(dataset[where[self.row_ids[i]]]) if self.row_ids[i] in where else None

    def _decode(self, tokens: Sequence[int]) -> str:
        if self.tokenizer is None:
            return f"{len(tokens)} tokens: {list(tokens)[:12]}"
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    # -- disk

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a folder: ``scores.safetensors`` (numbers) and ``scores.json`` (ids, metadata), and ``tokenizer.json`` if any.

        A process that is killed on the way leaves either the scores that the folder held before or the new ones.
        """
        folder = Path(path)
        arrays = {
            name: np.ascontiguousarray(getattr(self, name))
            for name in ("values", "matrix", "standard_errors")
            if getattr(self, name) is not None
        }
        for name in ("pool_tokens", "query_tokens"):
            tokens = getattr(self, name)
            if tokens is not None:
                arrays[name] = np.array([t for row in tokens for t in row], dtype=np.int32)
                arrays[f"{name}_lengths"] = np.array([len(row) for row in tokens], dtype=np.int64)
        for number, hashes in enumerate(self.row_hashes.values()):
            arrays[f"row_hashes_{number}"] = hashes
        document = {
            "format": FORMAT,
            "row_ids": self.row_ids,
            "metadata": finite(self.metadata),
            "hashed": list(self.row_hashes),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as work:
                save_file(arrays, Path(work) / NUMBERS)
                document["numbers"] = _sha256(Path(work) / NUMBERS)
                (Path(work) / "scores.json").write_text(json.dumps(with_checksum(document), allow_nan=False))
                kept = folder / PREVIOUS
                if _are_whole(folder):  # they stay until both files are replaced; else those kept before do
                    shutil.copyfile(folder / NUMBERS, Path(work) / PREVIOUS)
                    os.replace(Path(work) / PREVIOUS, kept)
                for name in (NUMBERS, "scores.json"):
                    os.replace(Path(work) / name, folder / name)
                kept.unlink(missing_ok=True)
            self._save_tokenizer(folder / "tokenizer.json")
        except (OSError, TypeError, ValueError, SafetensorError) as error:  # metadata that JSON cannot hold
            raise StoreError(f"scores of {self.scorer!r} could not be written to {str(folder)!r}: {error}") from error

    def _save_tokenizer(self, file: Path) -> None:
        """Its vocabulary and rules alone: a configuration can name files elsewhere, which loading would read."""
        backend = getattr(getattr(self.tokenizer, "tokenizer", self.tokenizer), "backend_tokenizer", None)
        if backend is not None:
            write_whole(file, backend.to_str().encode())
            return
        file.unlink(missing_ok=True)
        if self.tokenizer is not None and (self.pool_tokens is not None or self.query_tokens is not None):
            kind = type(self.tokenizer).__name__
            say(
                f"scores of {self.scorer!r}: {kind} has no tokenizer.json, so that loaded scores show numbers of tokens"
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Scores":
        """Scores from a folder written by :meth:`save`. Nothing in it is executed."""
        folder = Path(path)
        try:
            document = without_checksum(json.loads((folder / "scores.json").read_text()))
            if document["format"] != FORMAT:
                raise StoreError(f"{str(folder)!r} has format {document['format']}; this version reads format {FORMAT}")
            numbers = _numbers_of(folder, document["numbers"])
            if numbers is None and (folder / NUMBERS).exists():
                raise StoreError(
                    f"{str(folder)!r}: scores.safetensors is not the file that scores.json was written with"
                )
            arrays = load_file(numbers or folder / NUMBERS)
            ids, metadata, values = document["row_ids"], document["metadata"], arrays["values"]
            tokens = {name: _ragged(arrays, name) for name in ("pool_tokens", "query_tokens")}
            hashes = {name: arrays[f"row_hashes_{number}"] for number, name in enumerate(document.get("hashed", []))}
            tokenizer = _load_tokenizer(folder / "tokenizer.json")
        except StoreError:
            raise
        except Exception as error:
            raise StoreError(
                f"{str(folder)!r} does not hold readable scores: {type(error).__name__}: {error}"
            ) from error
        try:
            return cls(
                values,
                ids,
                arrays.get("matrix"),
                arrays.get("standard_errors"),
                metadata,
                tokenizer=tokenizer,
                row_hashes=hashes,
                **tokens,
            )
        except DataError as error:
            raise StoreError(f"{str(folder)!r} holds something else than scores of ours: {error}") from error

    # -- the hub

    def push_to_hub(
        self,
        repo_id: str,
        *,
        tokens: bool = False,
        model: str | None = None,
        dataset: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload scores",
    ) -> str:
        """Upload as a dataset repository that ``datasets.load_dataset`` reads (parquet and a data card); its URL.

        Args:
            tokens: whether the ``input_ids`` of rows and queries go along, from which their texts can be read.
            model, dataset: what was scored, for the card.
            private, token, revision: as ``huggingface_hub`` takes them; a branch that is not there is made.

        Raises:
            StoreError: the hub cannot be reached, or a repository of that name holds something else.
        """
        from hfdataopt.sharing.repository import upload
        from hfdataopt.sharing.scores import DOCUMENT, write_scores

        return upload(
            lambda folder: write_scores(self, folder, tokens=tokens, model=model, dataset=dataset),
            repo_id,
            DOCUMENT,
            private=private,
            token=token,
            revision=revision,
            commit_message=commit_message,
        )

    @classmethod
    def from_hub(cls, repo_id: str, *, revision: str | None = None, token: str | bool | None = None) -> "Scores":
        """Scores of a dataset repository that :meth:`push_to_hub` made. Nothing in it is executed; there is no tokenizer.

        Raises:
            StoreError: it cannot be reached, or anything in it is not as it should be.
        """
        from hfdataopt.sharing.repository import download
        from hfdataopt.sharing.scores import FILES, read_scores

        return read_scores(download(repo_id, FILES, token=token, revision=revision))

    def plot(self, path: str | os.PathLike[str] | None = None, *, highlight: Sequence[bool] | None = None) -> Any:
        """Rank plot of the scores, with the standard errors where there are any; saved to ``path`` if given.

        Args:
            highlight: ``[rows]``, rows to mark (known label errors, say).
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingDependencyError("Scores.plot needs matplotlib: pip install 'hfdataopt[plot]'") from error
        try:
            marks = None if highlight is None else np.asarray(highlight, dtype=bool)
        except (TypeError, ValueError):
            marks = np.empty(0)
        if marks is not None and marks.shape != (len(self),):
            entries = "x".join(map(str, marks.shape)) or "no"
            raise OptionError(f"plot: highlight has {entries} entries for {len(self)} rows; give a boolean for each")
        order = np.array(self._ranked(worst_first=True), dtype=int)
        values = self.values[order]
        figure = Figure(figsize=(7.5, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.plot(values, lw=1.2, color="tab:blue", label="score")
        if self.standard_errors is not None:
            errors = self.standard_errors[order]
            axes.fill_between(
                range(len(order)), values - errors, values + errors, alpha=0.25, lw=0, label="± standard error"
            )
        if marks is not None:
            marked = np.flatnonzero(marks[order])
            axes.plot(marked, values[marked], "|", color="tab:red", ms=9, label="marked rows")
        axes.axhline(0, color="0.6", lw=0.8)
        axes.set(xlabel="rows, most suspicious first", ylabel="score", title=f"{self.scorer}: {len(self)} rows")
        axes.legend(frameon=False)
        axes.text(
            0.99,
            0.02,
            textwrap.shorten(self.meaning, 90),
            transform=axes.transAxes,
            ha="right",
            fontsize=7,
            color="0.4",
        )
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=120)
        return figure


@dataclass(frozen=True)
class ExplainedRow:
    """One training row in an explanation."""

    row_id: Any
    score: float
    text: str | None


@dataclass(frozen=True)
class Explanation:
    """The rows that help and harm one query most, best and worst first."""

    query: int
    query_text: str | None
    helpful: list[ExplainedRow]
    harmful: list[ExplainedRow]
    meaning: str

    def __str__(self) -> str:
        lines = [f"query {self.query}" + (f": {self.query_text}" if self.query_text else "")]
        for title, rows in (("most helpful", self.helpful), ("most harmful, or least helpful", self.harmful)):
            lines.append(f"  {title}")
            lines += [f"    {row.score:+.4g}  row {row.row_id}  {row.text or ''}".rstrip() for row in rows]
        return "\n".join(lines)


class _OneRow:
    """A dataset of one row, for hashing it as the pool's rows were hashed."""

    def __init__(self, row: Any):
        self.row = row

    def __getitem__(self, _: int) -> Any:
        return self.row


def row_text(row: Any, width: int = 160, read: Sequence[str] | None = None) -> str:
    """The text of a row for a person: of the columns ``read`` (else of the usual text columns, else of all that hold text),
    messages joined, shortened; a label follows where there is one."""
    usual = next((names for names in SHOWN if all(name in row for name in names)), None)
    others = [name for name in row if name not in (ROW_ID, "label", "labels")]
    parts: list[str] = []
    for names in (read, usual, others):
        parts = parts or [
            text for name in names or () if name in row and name != ROW_ID for text in _texts_in(row[name])
        ]
    text = textwrap.shorten(" | ".join(parts), width, placeholder=" ...")
    label = row.get("label", row.get("labels"))
    return text if np.ndim(label) or label is None else f"{text} [label {label}]"


def _texts_in(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value and isinstance(value[0], dict) and "content" in value[0]:
        return [f"{message.get('role', '')}: {message['content']}" for message in value]
    return []


def finite(value: Any) -> Any:
    """The same JSON document with None for the numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _load_tokenizer(file: Path) -> Any:
    if file.is_symlink():
        raise StoreError(f"{str(file)!r} is a link; scores are read from their own folder only")
    if not file.exists():
        return None
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(file))


def _numbers_of(folder: Path, digest: str) -> Path | None:
    """The file of numbers with this SHA-256."""
    files = (folder / name for name in (NUMBERS, PREVIOUS))
    return next((file for file in files if file.is_file() and _sha256(file) == digest), None)


def _are_whole(folder: Path) -> bool:
    """Whether the numbers in a folder are those that its document names, and not those kept before."""
    try:
        digest = json.loads((folder / "scores.json").read_text())["numbers"]
        return _numbers_of(folder, digest) == folder / NUMBERS
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _ids(given: Any) -> RowIds:
    """Row ids, which are a list of whole numbers or of texts, none twice."""
    if not isinstance(given, list) or {type(value) for value in given} not in (set(), {int}, {str}):
        raise DataError(f"Scores: row_ids must be a list of only ints or only strings; got {given!r:.80}")
    if len(set(given)) != len(given):
        raise DataError(f"Scores: {len(given) - len(set(given))} row ids occur more than once; ids must be unique")
    return given


def _numbers(given: Any, what: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """Numbers in float64, in this shape (None: any size of at least 1)."""
    try:
        found = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"Scores: {what} must be numbers, one per row; got {given!r:.80}") from error
    if len(found.shape) != len(shape) or any(
        size != wanted if wanted is not None else not size for size, wanted in zip(found.shape, shape, strict=True)
    ):
        raise DataError(f"Scores: {what} of shape {list(found.shape)} arrived for {shape[0]} row ids")
    return found


def _check_metadata(metadata: Any) -> None:
    """What ``Scores`` reads of its metadata has the types that it relies on."""
    if not isinstance(metadata, dict):
        raise DataError(f"Scores: metadata is a {type(metadata).__name__}, not a dict")
    for key, kind in {"scorer": str, "meaning": str, "by_position": bool, "sample": list, "options": dict}.items():
        if key in metadata and not isinstance(metadata[key], kind):
            raise DataError(f"Scores: metadata[{key!r}] is {metadata[key]!r:.80}, not of the type {kind.__name__}")
    for one in metadata.get("sample", []):
        columns = one.get("columns") if isinstance(one, dict) else None
        if not isinstance(columns, dict) or not isinstance(one.get("row_id"), str | int):
            raise DataError(f"Scores: metadata['sample'] holds {one!r:.80}; expected row_id and hashes of columns")


def _ragged(arrays: dict[str, np.ndarray], name: str) -> list[list[int]] | None:
    if name not in arrays:
        return None
    ends = np.cumsum(arrays[f"{name}_lengths"])
    return [part.tolist() for part in np.split(arrays[name], ends[:-1])] if len(ends) else []


def count_of(k: int | None, fraction: float | None, rows: int) -> int:
    """How many rows ``k`` or ``fraction`` asks for; exactly one must be given."""
    if (k is None) == (fraction is None):
        raise OptionError(f"give exactly one of k and fraction; got k={k}, fraction={fraction}")
    if k is not None:
        if isinstance(k, bool) or not isinstance(k, Integral) or not 0 < k <= rows:
            raise OptionError(f"k={k!r} must be a whole number from 1 to {rows}, the number of rows")
        return int(k)
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction <= 1:
        raise OptionError(f"fraction={fraction!r} must be above 0 and at most 1")
    return max(1, round(fraction * rows))
