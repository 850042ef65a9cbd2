"""Scores, selections and trials in the tracker that is switched on: wandb, mlflow, tensorboard, trackio and what else accelerate has.

Switched on for a while by ``with track("tensorboard", folder="runs"):``, or for the process by the environment variable
``HFDATAOPT_TRACK=wandb,mlflow`` (files, if any, then go to ``HFDATAOPT_TRACK_FOLDER``, by default the working folder). A prompt
search with ``report_to`` logs its steps itself; here each trial is logged, whatever search it is of.
"""

import atexit
import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from hfdataopt.attribution.scores import Scores
from hfdataopt.hookspecs import hookimpl
from hfdataopt.prompting.candidate import Vote
from hfdataopt.prompting.tracking import start_trackers, tracker_names

VARIABLE, FOLDER = "HFDATAOPT_TRACK", "HFDATAOPT_TRACK_FOLDER"
PERCENTILES = (5, 25, 50, 75, 95)


class _Run:
    """Trackers that are open, and how many events they were told."""

    def __init__(self, names: list[str], project: str, run: str, folder: str | None) -> None:
        self.trackers = start_trackers(names, project=project, run=run, folder=folder)
        self.step = 0
        self.votes: Counter[str] = Counter()

    def log(self, numbers: dict[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log(numbers, step=self.step)
        self.step += 1

    def finish(self) -> None:
        for tracker in self.trackers:
            tracker.finish()


_open: list[_Run] = []
_by_variable: dict[str, _Run] = {}


@contextlib.contextmanager
def track(
    *names: str, project: str = "hfdataopt", run: str = "hfdataopt", folder: str | os.PathLike[str] | None = None
) -> Iterator[None]:
    """Log what happens inside to these trackers.

    Args:
        names: as in ``PromptConfig(report_to=...)``.
        folder: for trackers that write files (tensorboard); by default the working folder.

    Raises:
        OptionError: there is no such tracker. MissingDependencyError: its package is not installed.
    """
    opened = _Run(tracker_names(list(names), "track: name"), project, run, None if folder is None else str(folder))
    _open.append(opened)
    try:
        yield
    finally:
        _open.remove(opened)
        opened.finish()


def _runs() -> list[_Run]:
    """All that is switched on."""
    value = os.environ.get(VARIABLE, "")
    names = [name for name in (part.strip() for part in value.split(",")) if name]
    if names and value not in _by_variable:
        _by_variable[value] = _Run(tracker_names(names, VARIABLE), "hfdataopt", "hfdataopt", os.environ.get(FOLDER))
        atexit.register(_by_variable[value].finish)
    return [*_open, *([_by_variable[value]] if names else [])]


@hookimpl
def after_scoring(scores: Scores) -> None:
    """The numbers of a histogram."""
    if runs := _runs():
        numbers = summary(scores.values)
        if scores.standard_errors is not None:
            numbers["standard_error"] = float(np.nanmean(scores.standard_errors))
        for run in runs:
            run.log({f"scores/{scores.scorer}/{name}": value for name, value in numbers.items()})


@hookimpl
def after_selection(dataset: Any, kept: list[Any], by: str) -> None:
    """How many rows were kept; of a stream their number is not known before."""
    numbers: dict[str, float] = {"selection/kept": len(kept)}
    if hasattr(dataset, "__len__"):
        numbers |= {"selection/rows": len(dataset), "selection/share": len(kept) / max(len(dataset), 1)}
    for run in _runs():
        run.log(numbers)


@hookimpl
def after_trial(trial: Any) -> None:
    """A trial's mean reward, or the count of votes by outcome."""
    for run in _runs():
        if isinstance(trial, Vote):
            run.votes[trial.comparison.outcome] += 1
            run.log({f"votes/{outcome}": count for outcome, count in run.votes.items()})
        else:
            numbers = {"trial/items": float(len(trial.items))}
            if not np.isnan(trial.score):
                numbers["trial/score"] = trial.score
            run.log(numbers)


def summary(values: np.ndarray) -> dict[str, float]:
    """Rows, those with a score, and mean, standard deviation, least, greatest and percentiles of the scores."""
    known = values[~np.isnan(values)]
    found: dict[str, float] = {"rows": len(values), "scored": len(known)}
    if len(known):
        found |= {"mean": known.mean(), "std": known.std(), "min": known.min(), "max": known.max()}
        found |= {
            f"p{share:02}": value for share, value in zip(PERCENTILES, np.percentile(known, PERCENTILES), strict=True)
        }
    return {name: float(value) for name, value in found.items()}
