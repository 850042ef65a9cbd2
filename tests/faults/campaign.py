"""Kills in great number: every activity is killed at random, begun again, and compared with a run that nobody disturbed."""

import argparse
import contextlib
import importlib
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .activities import ACTIVITIES, Activity
from .harness import Fault, Told, damage, draw, files_of, run

IN_A_ROW = 4  # kills of one sequence, at most


@dataclass
class Row:
    """Figures of one activity."""

    activity: Activity
    kills: dict[str, int] = field(default_factory=dict)
    sequences: int = 0
    same: int = 0
    lost: int = 0
    twice: int = 0
    uncertain: int = 0
    miscounted: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.kills.values())


def make(activity: Activity, folder: Path) -> None:
    """All that there is before the work begins."""
    folder.parent.mkdir(parents=True)
    if activity.prepare is not None:
        activity.prepare(folder)


class Undisturbed:
    """An activity's run without a fault: its outcome, and what faults are drawn from."""

    def __init__(self, activity: Activity, folder: Path) -> None:
        make(activity, folder)
        with activity.beside(folder) if activity.beside else contextlib.nullcontext():
            self.told = run(activity.work, folder)
        assert self.told.ended, f"{activity.name}: undisturbed: {self.told.error}"
        for name in self.told.modules:  # once here, and not in every process that is killed
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        self.outcome = activity.outcome(folder)
        self.sizes = [path.stat().st_size for path in files_of(folder)]


def sequence(activity: Activity, whole: Undisturbed, folder: Path, rng: random.Random, kills: int, row: Row) -> None:
    """Kill the activity up to ``kills`` times, let it end, and compare."""
    runs: list[Told] = []
    faults: list[str] = []

    def fail(what: str) -> None:
        row.failures.append(f"{activity.name}: after {', '.join(faults) or 'no kill'}: {what}")

    row.sequences += 1
    make(activity, folder)
    with activity.beside(folder) if activity.beside else contextlib.nullcontext():
        for _ in range(kills):
            fault = draw(rng, whole.told, whole.sizes, activity.kinds)
            told = run(activity.work, folder, fault)
            runs.append(told)
            if told.error:
                return fail(told.error)
            if told.ended:
                break
            faults.append(f"{fault}{f' ({told.where})' if told.where else ''}")
            row.kills[fault.kind] = row.kills.get(fault.kind, 0) + 1
            if activity.killed is not None:
                try:
                    activity.killed(folder, whole.outcome)
                except Exception as error:
                    return fail(f"{type(error).__name__}: {error}")
        if not runs or runs[-1].killed:
            runs.append(run(activity.work, folder))
            if not runs[-1].ended:
                return fail(runs[-1].error)
    try:
        outcome = activity.outcome(folder)
    except Exception as error:
        return fail(f"no outcome: {type(error).__name__}: {error}")
    if outcome != whole.outcome:
        fail("another outcome than undisturbed")
    else:
        row.same += 1
    found = activity.found(folder, runs, [whole.told])
    row.lost, row.twice = row.lost + found.lost, row.twice + found.twice
    row.uncertain, row.miscounted = row.uncertain + found.uncertain, row.miscounted + found.miscounted
    if found.lost or found.twice or found.miscounted:
        fail(f"{found}")


def campaign(kills: int, seed: int, folder: Path, only: str = "", log: Any = None) -> list[Row]:
    """At least ``kills`` kills, spread evenly over the activities; every failure names the seed and the kill points."""
    chosen = [activity for activity in ACTIVITIES if only in f"{activity.area} {activity.name}"]
    rows = []
    for place, activity in enumerate(chosen):
        row, target = Row(activity), -(-kills // len(chosen))
        rows.append(row)
        whole = Undisturbed(activity, folder / f"{place}-whole" / "run")
        while row.total < target:
            number = row.sequences
            if number > 20 + 10 * target:
                row.failures.append(f"{activity.name}: it ends before every kill point")
                break
            rng = random.Random(f"{seed}/{activity.name}/{number}")
            before, here = len(row.failures), folder / f"{place}-{number}" / "run"
            sequence(activity, whole, here, rng, min(rng.randint(1, IN_A_ROW), target - row.total), row)
            row.failures[before:] = [f"seed {seed}, sequence {number}: {one}" for one in row.failures[before:]]
        if log:
            print(line(row), *row.failures, sep="\n  ", file=log, flush=True)
    return rows


def trouble(activity: Activity, whole: Undisturbed, folder: Path, rng: random.Random, kind: str) -> str:
    """Begin, kill, and go on on a disk that is full or read-only, or with a damaged file; once more when that is over.

    Returns ``refused`` (a named error of ours) or ``same`` (it came to the right outcome all the same).

    Raises:
        AssertionError: it did neither, or the end is another one.
    """
    make(activity, folder)
    with activity.beside(folder) if activity.beside else contextlib.nullcontext():
        run(activity.work, folder, Fault("event", rng.randint(1, whole.told.events)))
        files, what, fault = files_of(activity.ours(folder)), kind, Fault()
        if kind == "damaged" and files:
            what = damage(rng, rng.choice(files))
        elif kind == "full":
            fault = Fault(kind, rng.randrange(max(rng.choice(whole.sizes), 2)))
        elif kind == "read-only":
            fault = Fault(kind)
        with writable(folder, kind != "read-only"):
            told = run(activity.work, folder, fault)
        assert not told.killed, f"{what} {fault}: {told.error}"
        refused = bool(told.error)
        named = "HfDataOptError" in told.kinds or activity.with_others
        assert not refused or named, f"{what} {fault}: {told.error}"
        if refused and kind == "damaged":
            return "refused"
        if refused:
            told = run(activity.work, folder)
            assert told.ended, f"again after {fault}: {told.error}"
    assert activity.outcome(folder) == whole.outcome, f"another outcome after {what} {fault}"
    return "refused" if refused else "same"


@contextlib.contextmanager
def writable(folder: Path, yes: bool) -> Iterator[None]:
    """Take the right to write to a folder and all in it, for a while."""
    folder.mkdir(exist_ok=True)
    paths = [] if yes else [folder, *folder.rglob("*")]
    modes = [path.stat().st_mode for path in paths]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        yield
    finally:
        for path, mode in zip(paths, modes, strict=True):
            path.chmod(mode)


TROUBLES = ("full", "read-only", "damaged")


@dataclass
class Troubles:
    """Figures of one activity under one kind of trouble."""

    activity: Activity
    kind: str
    ends: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def troubles(
    draws: int, seed: int, folder: Path, only: str = "", kinds: Sequence[str] = TROUBLES, log: Any = None
) -> list[Troubles]:
    """Each activity with each kind of trouble, ``draws`` times."""
    found = []
    for place, activity in enumerate(one for one in ACTIVITIES if only in f"{one.area} {one.name}"):
        whole = Undisturbed(activity, folder / f"{place}-whole" / "run")
        for kind in kinds:
            row = Troubles(activity, kind)
            found.append(row)
            for number in range(draws if kind != "damaged" or activity.taken_up else 0):
                rng = random.Random(f"{seed}/{activity.name}/{kind}/{number}")
                try:
                    row.ends.append(trouble(activity, whole, folder / f"{place}-{kind}-{number}" / "run", rng, kind))
                except Exception as error:
                    row.failures.append(f"seed {seed}, {activity.name}, draw {number}: {type(error).__name__}: {error}")
            if log:
                print(trouble_line(row), *row.failures, sep="\n  ", file=log, flush=True)
    return found


def trouble_line(row: Troubles) -> str:
    ends = [row.ends.count("refused"), row.ends.count("same"), len(row.failures)]
    return f"| {row.kind} | {row.activity.area} | {row.activity.name} | {' | '.join(map(str, ends))} |"


def trouble_table(rows: Sequence[Troubles]) -> str:
    head = "| disk | area | activity | refused by an error of ours | same outcome | anything else |"
    lines = [trouble_line(row) for row in rows if row.ends or row.failures]
    return "\n".join([head, "|---|---|---|--:|--:|--:|", *lines])


HEAD = "| area | activity | kills (time / event / byte) | sequences | same outcome | lost | counted twice | uncertain | uncertain not said |"


def line(row: Row) -> str:
    kinds = " / ".join(str(row.kills.get(kind, 0)) for kind in ("time", "event", "byte"))
    cells = [row.activity.area, row.activity.name, f"{row.total} ({kinds})", row.sequences, row.same]
    return "| " + " | ".join(map(str, [*cells, row.lost, row.twice, row.uncertain, row.miscounted])) + " |"


def table(rows: Sequence[Row]) -> str:
    total = Row(Activity("all", "", None, None))  # type: ignore[arg-type]
    for row in rows:
        for kind, count in row.kills.items():
            total.kills[kind] = total.kills.get(kind, 0) + count
        for name in ("sequences", "same", "lost", "twice", "uncertain", "miscounted"):
            setattr(total, name, getattr(total, name) + getattr(row, name))
    rule = "|---|---|" + "--:|" * 7
    return "\n".join([HEAD, rule, *map(line, [*rows, total])])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="in all, at least")
    parser.add_argument("--draws", type=int, default=3, help="of each activity and kind of trouble with the disk")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="activities with this in their area or name")
    parser.add_argument("--keep", help="folder for what the runs write; default: a temporary one")
    given = parser.parse_args(arguments)
    with contextlib.ExitStack() as stack:
        folder = Path(given.keep or stack.enter_context(tempfile.TemporaryDirectory()))
        rows = campaign(given.kills, given.seed, folder / "kills", given.only, sys.stderr) if given.kills else []
        others = troubles(given.draws, given.seed, folder / "disk", given.only, log=sys.stderr) if given.draws else []
    print(table(rows), trouble_table(others), sep="\n\n")
    failures = [one for row in [*rows, *others] for one in row.failures]
    print(*failures, sep="\n", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    sys.exit(main())
