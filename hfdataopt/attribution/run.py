"""One scoring run: a scorer on a pool at one or more moments, kept on disk as it goes, combined into ``Scores``.

Layout of a run's folder::

    run.json                         scorer, options, fingerprints of pool and queries, the moments so far, and the one under way
    learning_rates.jsonl             one line per optimizer step, for sums over checkpoints
    step-000120-1f0c2a9b/            one moment: step and a hash of the weights
        result.safetensors, result.json
        ...                          shards of features, permutations, whatever the scorer keeps there
    scores.safetensors, scores.json  the combined result
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import load_file, save

from hfdataopt.attribution.identity import fingerprint
from hfdataopt.attribution.moment import Moment
from hfdataopt.attribution.processes import Processes
from hfdataopt.attribution.quiet import untouched
from hfdataopt.attribution.reader import write_json
from hfdataopt.attribution.rows import ROW_ID, Rows, row_hashes, sample_hashes
from hfdataopt.attribution.scorer import MEANINGS, Result, Scorer, mean_over_queries
from hfdataopt.attribution.scores import Scores
from hfdataopt.attribution.view import View
from hfdataopt.console import say
from hfdataopt.errors import DataError, OptionError, StoreError
from hfdataopt.files import is_intact, sealed, with_checksum, without_checksum, write_whole
from hfdataopt.gradients import MemoryLimit, weights_hash
from hfdataopt.plugins import host
from hfdataopt.versions import installed

Aggregate = Literal["mean", "max"]
_MOMENT_FOLDER = re.compile(r"step-\d{6,}-[0-9a-f]{8}")
EXPLAIN_TOKENS = 20_000_000  # input_ids kept beside the scores for `explain`, at most (80 MB)


class ScoringRun:
    """Runs a scorer at moments and combines them. Used by the callback and by ``attribute``.

    Args:
        folder: where everything is kept; None keeps nothing (then nothing can resume).
        replace: what to do with a folder that holds another run: replace it and say so, or raise.
        at_start: whether the scorer looks before the first step, so that a fresh start finds its own moment there.
        query_group, aggregate: a column of the queries; scores are averaged over the queries of a group, then the ``mean`` or
            ``max`` over groups is taken (LESS, Xia et al. 2024, section 4.2, takes the max over subtasks).
        identity: JSON values that say what is scored; a folder with others holds another run.
        initial_weights: a hash of the weights that training starts from, where it starts; finished scores of a training from others
            are another run's.
    """

    def __init__(
        self,
        scorer: Scorer,
        pool: Rows,
        queries: Rows | None,
        *,
        folder: str | os.PathLike[str] | None,
        batch_size: int,
        processing_class: Any = None,
        autocast: str | None = None,
        replace: bool = False,
        at_start: bool = False,
        query_group: str | None = None,
        aggregate: Aggregate = "mean",
        identity: dict[str, Any] | None = None,
        initial_weights: str | None = None,
    ):
        if folder is not None and not (isinstance(folder, str | os.PathLike) and os.fspath(folder)):
            raise OptionError(f"{scorer.name}: output_dir={folder!r:.80} must be the path of a folder, or None")
        self.scorer = scorer
        self.pool = pool
        self.queries = queries if scorer.needs_queries else None
        self.folder = Path(folder) if folder is not None else None
        self.batch_size = batch_size
        self.processing_class = processing_class
        self.autocast = autocast
        self.replace = replace
        self.at_start = at_start
        self.processes = Processes.current()
        self.results: list[tuple[Moment, str, Result]] = []
        self.pending: int | None = None  # the step that an earlier process was scoring when it was stopped
        self.taken_up = False  # whether the folder holds what this very run recorded before it was stopped
        self.memory = MemoryLimit()
        self.half_precision: dict[str, Any] = {}  # by target; compared at the first moment
        self.shared: dict[str, Any] = {}  # what scorers keep in memory from moment to moment where there is no folder
        self.groups = _read_groups(scorer, self.queries, query_group, aggregate)
        self.query_group, self.aggregate = query_group, aggregate
        self.seconds = 0.0
        self._document = {
            "scorer": scorer.name,
            "options": _json_options(scorer),
            "pool": _fingerprint(self.pool),
            "queries": _fingerprint(self.queries) if self.queries is not None else None,
            "autocast": autocast,
            **(identity or {}),
            **({} if initial_weights is None else {"initial_weights": initial_weights}),
        }

    # -- the folder

    def open(self, resumed_step: int = 0) -> None:
        """Open the folder: take over the moments up to ``resumed_step`` that this very run recorded before it was stopped.

        Raises:
            StoreError: the folder holds another run, or cannot be written.
        """
        if self.folder is None:
            return
        self.taken_up, kept = self.processes.run_on_main(lambda: self._prepare_folder(resumed_step))
        self._document.update(kept)
        self.processes.check_shared(self.folder, self.scorer.name)
        recorded = self.processes.run_on_main(self._recorded)
        for entry in recorded["moments"]:
            if not _MOMENT_FOLDER.fullmatch(entry["folder"]):
                raise StoreError(
                    f"{str(self.folder / 'run.json')!r} names {entry['folder']!r:.80}, no folder of a moment"
                )
            result = self._load_result(self.folder / entry["folder"])
            if result is not None:
                moment = Moment(entry["step"], entry["learning_rate"], entry["epoch"])
                self._take(moment, entry["weights"], result)
            elif entry["step"] < resumed_step:
                raise StoreError(
                    f"{self.scorer.name}: the scores of step {entry['step']} in {str(self.folder / entry['folder'])!r} are damaged or "
                    "gone, and so are the weights of that step; train again from the beginning in another folder, or score the "
                    "checkpoints that are left: attribute(..., checkpoints=[...])"
                )
        self.pending = recorded["pending"]

    def _prepare_folder(self, resumed_step: int) -> tuple[bool, dict[str, Any]]:
        """Make the folder ready; whether this very run was recorded there, and what a resumed run keeps of its record."""
        assert self.folder is not None
        file = self.folder / "run.json"
        taken_up, kept = False, {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if file.is_file():
                found = without_checksum(json.loads(file.read_text()))
                compared = set(self._document)
                if not (self.folder / "scores.json").is_file():  # nothing that was finished is lost
                    compared.discard("initial_weights")
                differs = [
                    name for name in self._document if name in compared and found.get(name) != self._document[name]
                ]
                taken_up = not differs
                if taken_up and resumed_step and "initial_weights" in found:
                    kept = {"initial_weights": found["initial_weights"]}
                if differs and not self.replace:
                    raise StoreError(
                        f"{str(self.folder)!r} holds a run of scorer {found.get('scorer')!r} whose {_words(differs)} differ from this "
                        f"run's; choose another output_dir or remove the folder"
                    )
                if differs:
                    say(
                        f"{self.scorer.name}: replacing the scores of an earlier run with other {_words(differs)} "
                        f"in {self.folder}; output_dir= of the callback keeps both"
                    )
                    shutil.rmtree(self.folder)
                    self.folder.mkdir(parents=True)
            recorded = self._recorded()
            moments = [entry for entry in recorded["moments"] if entry["step"] <= resumed_step]
            if resumed_step == 0:
                moments = [entry for entry in moments if entry["step"] == 0 and self.at_start]
            pending = recorded["pending"] if recorded["pending"] == resumed_step > 0 else None
            self._write_record({**self._document, **kept, "moments": moments, "pending": pending})
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{self.scorer.name}: the folder {str(self.folder)!r} cannot be used: {error}; choose another output_dir, or remove "
                "the folder"
            ) from error
        return taken_up, kept

    def _recorded(self) -> dict[str, Any]:
        """The finished moments in ``run.json``, and the step of the pending one or None."""
        assert self.folder is not None
        file = self.folder / "run.json"
        found = without_checksum(json.loads(file.read_text())) if file.is_file() else {}
        return {"moments": found.get("moments", []), "pending": found.get("pending")}

    @contextlib.contextmanager
    def _folder_of(self, moment: Moment, weights: str) -> Iterator[Path | None]:
        """Where a moment is kept. Several processes meet in a folder, so without one they get a temporary one."""
        if self.folder is not None or self.processes.count == 1:
            yield None if self.folder is None else self.folder / _moment_folder(moment, weights)
            return
        shared = self.processes.shared_folder()
        try:
            yield Path(shared)
            self.processes.wait()
        finally:
            if self.processes.is_main:
                shutil.rmtree(shared, ignore_errors=True)

    # -- moments

    def view(
        self,
        model: Any,
        moment: Moment,
        *,
        optimizer: Any = None,
        folder: Path | None = None,
        weights: str | None = None,
    ) -> View:
        return View(
            model,
            self.pool,
            self.queries,
            moment=moment,
            optimizer=optimizer,
            folder=folder,
            batch_size=self.batch_size,
            processing_class=self.processing_class,
            autocast=self.autocast,
            processes=self.processes,
            name=self.scorer.name,
            weights=weights,
            memory=self.memory,
            half_precision=self.half_precision,
            run_folder=self.folder,
            shared=self.shared,
        )

    def check(self, model: Any, optimizers: Sequence[Any] = ()) -> None:
        """Let the scorer raise what can be known before training, or before the first checkpoint is scored."""
        with untouched(model):
            self.scorer.check(self.view(model, Moment(0)))
            for optimizer in optimizers:
                self.scorer.check_optimizer(self.view(model, Moment(0), optimizer=optimizer))

    def prepare(self, model: Any) -> None:
        """Let the scorer do what needs no particular weights; kept in the run's folder."""
        if self.folder is not None or self.processes.count == 1:
            with untouched(model):
                self.scorer.prepare(self.view(model, Moment(0), folder=self.folder))

    def observe(self, model: Any, moment: Moment, optimizer: Any = None) -> Result:
        """Score at this moment; a result already on disk for the same weights is taken instead."""
        started = time.monotonic()
        if self.folder is not None:
            self.processes.run_on_main(lambda: self._record_moments(moment.step))
        weights = weights_hash(model)
        with self._folder_of(moment, weights) as folder:
            # The main process looks, for all: another might already see what it saves a little later.
            there = folder is not None and self.processes.run_on_main(lambda: (folder / "result.json").is_file())
            result = self._load_result(folder) if there and folder is not None else None
            if result is None:
                result = self._score(model, moment, optimizer, folder, weights)
        self._take(moment, weights, result)
        if self.folder is not None:
            self.processes.run_on_main(self._record_moments)
        self.seconds += time.monotonic() - started
        return result

    def _take(self, moment: Moment, weights: str, result: Result) -> None:
        self.results = [entry for entry in self.results if entry[0].step != moment.step]
        self.results.append((moment, weights, result))
        self.half_precision = {**result.metadata.get("half_precision", {}), **self.half_precision}

    def _score(self, model: Any, moment: Moment, optimizer: Any, folder: Path | None, weights: str) -> Result:
        with untouched(model):
            view = self.view(model, moment, optimizer=optimizer, folder=folder, weights=weights)
            queries = len(self.queries) if self.queries is not None else 0
            result = Result.of(self.scorer.score(view), len(self.pool), queries, self.scorer.name)
            if self.groups is not None and result.matrix is None:
                raise DataError(
                    f"{self.scorer.name}: query_group={self.query_group!r} needs a score for each query, and this scorer gives one "
                    "for all; leave query_group out"
                )
            result.metadata = {**view.facts, **result.metadata}
        if folder is not None:
            self.processes.run_on_main(lambda: self._save_result(folder, result))
        return result

    def _record_moments(self, pending: int | None = None) -> None:
        assert self.folder is not None
        moments = [
            {**dataclasses.asdict(moment), "weights": weights, "folder": _moment_folder(moment, weights)}
            for moment, weights, _ in self.results
        ]
        self._write_record({**self._document, "moments": moments, "pending": pending})

    def _write_record(self, document: dict[str, Any]) -> None:
        assert self.folder is not None
        write_json(self.folder / "run.json", with_checksum(document), self.scorer.name)

    def _save_result(self, folder: Path, result: Result) -> None:
        arrays = {
            name: getattr(result, name)
            for name in ("values", "matrix", "standard_errors")
            if getattr(result, name) is not None
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            data = save({k: np.ascontiguousarray(v) for k, v in arrays.items()})
            write_whole(folder / "result.safetensors", sealed(data))
        except OSError as error:
            raise StoreError(f"{self.scorer.name}: the result cannot be written to {str(folder)!r}: {error}") from error
        write_json(folder / "result.json", with_checksum(result.metadata), self.scorer.name)

    def _load_result(self, folder: Path) -> Result | None:
        """What :meth:`_save_result` wrote; None where it is not there, or is damaged."""
        if not (folder / "result.json").is_file() or not is_intact(folder / "result.safetensors"):
            return None
        try:
            metadata = without_checksum(json.loads((folder / "result.json").read_text()))
        except (OSError, ValueError):
            return None
        arrays = load_file(folder / "result.safetensors")
        return Result(arrays["values"], arrays.get("matrix"), arrays.get("standard_errors"), metadata)

    # -- the end

    def _keep(self, scores: Scores) -> None:
        """Save the scores, and drop the moments of earlier runs in this folder."""
        assert self.folder is not None
        scores.save(self.folder)
        current = {_moment_folder(moment, weights) for moment, weights, _ in self.results}
        for folder in self.folder.iterdir():
            if _MOMENT_FOLDER.fullmatch(folder.name) and folder.name not in current:
                shutil.rmtree(folder, ignore_errors=True)

    def _tell(self, scores: Scores) -> None:
        host().hook.after_scoring(scores=scores)

    def finish(self) -> Scores:
        """Combine the moments, save, tell observers, and print one line."""
        if not self.results:
            raise StoreError(f"{self.scorer.name}: no moment was scored; training ended before the first one")
        results = sorted(self.results, key=lambda entry: entry[0].step)
        combine = self.scorer.combine
        if combine == "last":
            results = results[-1:]
        telling = [entry for entry in results if not np.isnan(entry[2].values).all()]
        if len(telling) < len(results) and self.processes.is_main:
            silent = [moment.step for moment, _, _ in results if not any(moment is kept for kept, _, _ in telling)]
            say(f"{self.scorer.name}: no row got a score at step {', '.join(map(str, silent))}")
        results = telling or results
        weights = [
            moment.learning_rate if combine == "learning-rate-sum" else 1.0 / len(results) for moment, _, _ in results
        ]
        errors = [result.standard_errors for _, _, result in results]
        values = sum(w * r.values for w, (_, _, r) in zip(weights, results, strict=True))
        matrices = [result.matrix for _, _, result in results]
        matrix = None if any(x is None for x in matrices) else _sum_matrices(weights, matrices)
        if matrix is not None and all(
            np.allclose(r.values, mean_over_queries(r.matrix), equal_nan=True) for _, _, r in results
        ):
            values = mean_over_queries(matrix)
        if self.groups is not None:
            assert matrix is not None
            values, errors = _over_groups(matrix, self.groups, self.aggregate), [None]
        scores = Scores(
            values=values,
            row_ids=self.pool.ids,
            matrix=matrix,
            standard_errors=None
            if any(error is None for error in errors)
            else np.sqrt(sum((w * error) ** 2 for w, error in zip(weights, errors, strict=True))),
            metadata={
                **self._document,
                "meaning": self.scorer.meaning,
                "explanation": MEANINGS.get(self.scorer.meaning, self.scorer.meaning),
                "combine": combine,
                **({} if self.groups is None else {"query_group": self.query_group, "aggregate": self.aggregate}),
                "rows": len(self.pool),
                "by_position": ROW_ID not in (getattr(self.pool.source, "column_names", None) or []),
                "dropped": self.pool.dropped,
                "sample": sample_hashes(self.pool.source, self.pool.ids),
                "query_ids": None if self.queries is None else self.queries.ids,
                "moments": [{**dataclasses.asdict(m), "weights": w, **r.metadata} for m, w, r in results],
                "versions": installed(),
            },
            pool_tokens=_tokens(self.pool),
            query_tokens=_tokens(self.queries) if self.queries is not None else None,
            tokenizer=self.processing_class,
            row_hashes=row_hashes(self.pool.source),
        )
        if self.folder is not None:
            self.processes.run_on_main(lambda: self._keep(scores))
        self.processes.run_on_main(lambda: self._tell(scores))
        if self.processes.is_main:
            where = f"; saved in {self.folder}" if self.folder is not None else ""
            say(f"{scores}; {len(results)} moment{'s' * (len(results) > 1)}, {self.seconds:.1f} s{where}")
        return scores


def _words(names: list[str]) -> str:
    return " and ".join(name.replace("_", " ") for name in names)


def _read_groups(
    scorer: Scorer, queries: Rows | None, query_group: str | None, aggregate: str
) -> dict[Any, list[int]] | None:
    """Positions of the queries of each group, or None without groups."""
    if not isinstance(aggregate, str) or aggregate not in ("mean", "max"):
        raise OptionError(f"{scorer.name}: aggregate={aggregate!r} is unknown; it is 'mean' or 'max'")
    if query_group is None:
        if aggregate != "mean":
            raise OptionError(
                f"{scorer.name}: aggregate={aggregate!r} is over groups of queries; give query_group= too"
            )
        return None
    if not isinstance(query_group, str):
        raise OptionError(f"{scorer.name}: query_group={query_group!r:.80} must be the name of a column of the queries")
    if queries is None or not scorer.scores_each_query:
        raise OptionError(
            f"{scorer.name}: query_group={query_group!r} needs a score for each query"
            + ("; this scorer reads no queries" if queries is None else "; set per_query=True")
        )
    values = queries.column(query_group)
    if values is None:
        columns = ", ".join(getattr(queries.source, "column_names", None) or []) or "no columns"
        raise DataError(f"{scorer.name}: query_group={query_group!r} is no column of the queries; they have {columns}")
    groups: dict[Any, list[int]] = {}
    for position, value in enumerate(values):
        if isinstance(value, list | dict):
            raise DataError(
                f"{scorer.name}: query_group={query_group!r} holds {value!r:.80} for query {queries.ids[position]!r}; a group is named "
                "by a text or a number"
            )
        groups.setdefault(value, []).append(position)
    return groups


def _sum_matrices(weights: list[float], matrices: list[np.ndarray]) -> np.ndarray:
    """Weighted sum over moments. A query that no row has a score for at a moment adds nothing there; NaN if at none."""
    total, scored = np.zeros_like(matrices[0]), np.zeros(matrices[0].shape[1], dtype=bool)
    for weight, matrix in zip(weights, matrices, strict=True):
        has = ~np.isnan(matrix).all(axis=0)
        total[:, has] += weight * matrix[:, has]
        scored |= has
    total[:, ~scored] = np.nan
    return total


def _over_groups(matrix: np.ndarray, groups: dict[Any, list[int]], aggregate: str) -> np.ndarray:
    """Mean over the queries of each group, then mean or max over groups: ``[rows]``. A group without scores is left out."""
    means = np.stack([mean_over_queries(matrix[:, positions]) for positions in groups.values()], axis=1)
    if aggregate == "mean":
        return mean_over_queries(means)
    scored = ~np.isnan(means).all(axis=0)
    return means[:, scored].max(axis=1) if scored.any() else np.full(len(matrix), np.nan)


def _moment_folder(moment: Moment, weights: str) -> str:
    return f"step-{moment.step:06d}-{weights[:8]}"


def _json_options(scorer: Scorer) -> dict[str, Any]:
    """The hyperparameters as they are now, copied, without those that are not to be shown (``repr=False``: keys), and those
    that change no score (``metadata={"changes_scores": False}``)."""
    shown = [
        field.name
        for field in dataclasses.fields(scorer)
        if field.init and field.repr and field.metadata.get("changes_scores", True)
    ]
    options = {name: getattr(scorer, name) for name in shown}
    return {name: _json_copy(value) for name, value in options.items()}


def _json_copy(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return [_json_copy(part) for part in value] if isinstance(value, list | tuple) else fingerprint(value)


def _fingerprint(rows: Rows) -> dict[str, Any]:
    """Length, a hash of all ids and a hash of sampled contents."""
    ids = hashlib.sha256(json.dumps(rows.ids).encode()).hexdigest()[:16]
    return {"rows": len(rows), "ids": ids, "contents": rows.contents}


def _tokens(rows: Rows) -> list[list[int]] | None:
    tokens = rows.column("input_ids")
    if tokens is None or sum(len(row) for row in tokens) > EXPLAIN_TOKENS:
        return None
    return [[int(token) for token in row] for row in tokens]
