"""Many trainings on subsets of the pool, each done once and kept on disk, and the base of the scorers that need them."""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np

from hfdataopt.attribution.identity import fingerprint
from hfdataopt.attribution.processes import Processes
from hfdataopt.attribution.reader import write_json
from hfdataopt.attribution.rows import Rows
from hfdataopt.attribution.scorer import Scorer
from hfdataopt.console import say
from hfdataopt.errors import OptionError, StoreError
from hfdataopt.files import no_link
from hfdataopt.gradients import weights_hash
from hfdataopt.options import check_range
from hfdataopt.retraining import Metric, Recipe, Train, UtilityName, fine_tune, name_of, utility


class Trainings:
    """Utilities of models trained on subsets of the pool; each subset and seed is trained once, and kept in ``folder``.

    Args:
        model: the initial weights; their utility is that of no rows.
        training: a :class:`Recipe` (default: ``Recipe()``), or the user's ``train(positions, seed) -> model``.
        batch_size: query rows per forward pass.
        folder: each outcome is a line of ``outcomes-0.jsonl`` there; what is there is not trained again.
        who: for messages.

    Attributes:
        trained: trainings done by this process.

    Raises:
        StoreError: the folder holds outcomes of another model, pool, queries, training or utility.
    """

    def __init__(
        self,
        model: Any,
        pool: Rows,
        queries: Rows,
        *,
        training: Recipe | Train | None = None,
        metric: Metric = "log-likelihood",
        batch_size: int = 32,
        folder: str | os.PathLike[str] | None = None,
        processes: Processes | None = None,
        who: str = "retraining",
    ):
        if not callable(metric) and metric not in get_args(UtilityName):
            raise OptionError(
                f"{who}: the utility {metric!r} is unknown; it is one of {', '.join(get_args(UtilityName))}, or a callable"
            )
        self.model, self.pool, self.queries = model, pool, queries
        self.training, self.metric, self.batch_size, self.who = training or Recipe(), metric, batch_size, who
        self.folder = None if folder is None else Path(folder)
        self.processes = processes or Processes.current()
        self.trained = 0
        self._expected: tuple[int, int] | None = None
        self._found: dict[str, np.ndarray] = {}
        if self.folder is not None:
            self.processes.run_on_main(self._open)
            self._read()

    def of(self, positions: Iterable[int], seed: int = 0) -> np.ndarray:
        """Utility ``[queries]`` float64 of the model trained on these rows of the pool."""
        where = sorted(int(position) for position in positions)
        key = hashlib.sha256(json.dumps([seed if where else 0, where]).encode()).hexdigest()[:32]
        if key not in self._found:
            started = time.monotonic()
            model = self._train(where, seed) if where else self.model
            values = utility(model, self.queries, self.metric, self.batch_size).numpy()
            seconds = time.monotonic() - started
            self._found[key] = values
            if self.folder is not None:
                self._append(
                    {"key": key, "rows": len(where), "seed": seed, "seconds": seconds, "values": values.tolist()}
                )
            if where:
                self.trained += 1
                self._estimate(len(where), seconds)
        return self._found[key]

    def of_all(self, jobs: Sequence[tuple[Any, int]]) -> np.ndarray:
        """Utilities ``[jobs, queries]`` of all ``(positions, seed)``, announced, and divided among the processes."""
        from tqdm.auto import tqdm

        self.announce(len(jobs), sum(len(positions) for positions, _ in jobs))
        self.share(lambda job: self.of(*job), jobs)
        bar = tqdm(jobs, desc=f"{self.who}: trainings", leave=False, delay=2, disable=not self.processes.is_main)
        return np.stack([self.of(*job) for job in bar])

    def announce(self, trainings: int, rows: int, at_most: bool = False) -> None:
        """Say what is to come: how many trainings on how many ``rows`` in all; the time follows after the first one."""
        known = f"; {len(self._found)} utilities are in {self.folder} already" if self._found else ""
        self._expected = (trainings, rows)
        self._say(
            f"{'at most ' if at_most else ''}{trainings:,} trainings, on {rows / trainings:.0f} rows each on average{known}"
        )

    def share(self, function: Callable[[Any], Any], items: Sequence[Any]) -> None:
        """With several processes: ``function`` of each item in one of them, so that all find the outcomes on disk."""
        if self.processes.count > 1 and self.folder is not None:
            mine = items[self.processes.index :: self.processes.count]

            def work() -> None:
                for item in mine:
                    function(item)

            self.processes.together(work)
            self._read()

    def _train(self, positions: list[int], seed: int) -> Any:
        if isinstance(self.training, Recipe):
            return fine_tune(self.model, self.pool, positions, seed=seed, **dataclasses.asdict(self.training))
        model = self.training(positions, seed)
        if not hasattr(model, "forward"):
            raise OptionError(
                f"{self.who}: train={name_of(self.training)} returned {type(model).__name__}; return a model"
            )
        return model

    def _estimate(self, rows: int, seconds: float) -> None:
        if self._expected is not None:
            count, in_all = self._expected
            self._expected = None
            share = self.processes.count if self.folder is not None else 1
            self._say(
                f"a training on {rows} rows took {seconds:.1f} s; {count:,} may take {_duration(seconds / rows * in_all / share)}"
            )

    def _say(self, message: str) -> None:
        if self.processes.is_main:
            say(f"{self.who}: {message}")

    # -- disk

    def _open(self) -> None:
        assert self.folder is not None
        recipe = dataclasses.asdict(self.training) if isinstance(self.training, Recipe) else fingerprint(self.training)
        manifest = {
            "format": 1,
            "kind": "trainings",
            "model": type(self.model).__name__,
            "weights": weights_hash(self.model),
            "training": recipe,
            "utility": fingerprint(self.metric) if callable(self.metric) else self.metric,
        }
        for rows in (self.pool, self.queries):
            ids = hashlib.sha256(json.dumps(rows.ids).encode()).hexdigest()[:16]
            manifest[rows.side] = [len(rows), ids, rows.contents]
        file = self.folder / "manifest.json"
        try:
            found = json.loads(file.read_text()) if file.is_file() else None
        except (OSError, ValueError) as error:
            raise StoreError(f"{self.who}: {str(file)!r} cannot be read: {error}; choose another folder") from error
        if found is None:
            write_json(file, manifest, self.who)
            return
        differs = [name for name in manifest if found.get(name) != manifest[name]]
        if differs:
            raise StoreError(
                f"{self.who}: {str(self.folder)!r} holds trainings whose {' and '.join(differs)} differ from this run's; "
                "choose another folder or remove it"
            )

    def _read(self) -> None:
        assert self.folder is not None
        for file in sorted(self.folder.glob("outcomes-*.jsonl")):
            for line in file.read_text().splitlines():
                try:
                    entry = json.loads(line)
                    self._found[entry["key"]] = np.array(entry["values"], dtype=np.float64)
                except (ValueError, KeyError):  # a line that a killed run did not finish
                    continue

    def _append(self, entry: dict[str, Any]) -> None:
        assert self.folder is not None
        file = self.folder / f"outcomes-{self.processes.index}.jsonl"
        try:
            with open(file, "ab+", opener=no_link) as stream:
                if stream.tell():
                    stream.seek(-1, os.SEEK_END)
                    whole = stream.read(1) == b"\n"
                    stream.write(b"" if whole else b"\n")
                stream.write(json.dumps(entry, allow_nan=False).encode() + b"\n")
        except OSError as error:
            raise StoreError(f"{self.who}: an outcome cannot be written to {str(file)!r}: {error}") from error


def _duration(seconds: float) -> str:
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


@dataclass
class RetrainingScorer(Scorer):
    """The options of every scorer that trains the model again.

    The weights of the model given to ``attribute`` are where each training starts, and the utility of no rows.

    Args:
        epochs, learning_rate, train_batch_size, weight_decay: of each training (see ``hfdataopt.retraining.fine_tune``).
        train: your own ``train(positions, seed) -> model`` instead, from the same initial weights for every subset.
        utility: what is measured on the queries: ``log-likelihood``, ``margin`` (log odds of the label), ``accuracy``, or
            ``(model, batch) -> [b]``.
        seed: of the trainings, and of everything else that is drawn.
    """

    retrains: ClassVar[bool] = True

    epochs: int = field(default=3, kw_only=True)
    learning_rate: float = field(default=5e-5, kw_only=True)
    train_batch_size: int = field(default=8, kw_only=True)
    weight_decay: float = field(default=0.0, kw_only=True)
    train: Callable[..., Any] | None = field(default=None, kw_only=True)
    utility: UtilityName | Callable[..., Any] = field(default="log-likelihood", kw_only=True)
    seed: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "epochs", at_least=1)
        check_range(self, "learning_rate", above=0)
        check_range(self, "train_batch_size", at_least=1)
        check_range(self, "weight_decay", at_least=0)
        check_range(self, "seed", at_least=0)
        for name in ("epochs", "learning_rate", "train_batch_size", "weight_decay") if self.train is not None else ():
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise OptionError(
                    f"{self.name}: train= does its own training, so {name}={getattr(self, name)!r} has no use; drop one"
                )

    def check(self, view: Any) -> None:
        view.check_labels()

    def workload(self, rows: int) -> tuple[int, int] | None:
        """How many trainings a pool of so many rows takes at most, and on how many rows in all; None: not known."""
        return None

    def trainings(self, view: Any) -> Trainings:
        """The trainings of this moment, kept in its folder."""
        recipe = Recipe(self.epochs, self.learning_rate, self.train_batch_size, self.weight_decay)
        return Trainings(
            view.model,
            view.pool,
            view.queries,
            training=self.train or recipe,
            metric=self.utility,
            batch_size=view.batch_size,
            folder=None if view.folder is None else view.folder / "trainings",
            processes=view.processes,
            who=self.name,
        )
