"""Killed at random points and begun again: nothing is lost, nothing counts twice, uncertain calls are counted as such."""

import os
import random
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the judging page needs the extra ui")
pytest.importorskip("uvicorn", reason="the judging page needs the extra ui")

from .activities import Activity
from .campaign import Row, Undisturbed, campaign, sequence, table, troubles
from .harness import Tell, Work

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

QUICK = ("attribute: tracin", "hfdataopt select: .jsonl", "search: rewards", "page: pairs")


def in_halves(folder: Path, tell: Tell) -> None:
    """What must not be: a file that is seen before it is whole."""
    folder.mkdir(exist_ok=True)
    if not (folder / "file").exists():
        with (folder / "file").open("w") as stream:
            stream.write("half")
            stream.flush()
            os.fsync(stream.fileno())
            stream.write("half")


def at_every_start(folder: Path, tell: Tell) -> None:
    """What must not be: work that counts again when it is begun again."""
    folder.mkdir(exist_ok=True)
    tell("made", "piece")
    with (folder / "file").open("a") as stream:
        stream.write("one more\n")
    tell("kept", "piece")
    (folder / "end").write_text("x")


@pytest.mark.parametrize(
    ("work", "said"), [(in_halves, "another outcome than undisturbed"), (at_every_start, "lost=1")]
)
def test_what_is_wrong_is_found_out(tmp_path: Path, work: Work, said: str) -> None:
    activity = Activity("wrong", "test", work, lambda folder: (folder / "file").read_text(), kinds=("event",))
    row, whole = Row(activity), Undisturbed(activity, tmp_path / "whole" / "run")
    for number in range(8):
        sequence(activity, whole, tmp_path / f"{number}" / "run", random.Random(number), 1, row)
    assert row.same < row.sequences
    assert any(said in one and "event" in one for one in row.failures)


@pytest.mark.parametrize("activity", QUICK)
def test_a_few_kills(tmp_path: Path, activity: str) -> None:
    (row,) = campaign(4, 1, tmp_path, activity)
    assert not row.failures, "\n".join(row.failures)
    assert row.total >= 4
    assert row.same == row.sequences


@pytest.mark.parametrize(("activity", "kind"), [(QUICK[0], "damaged"), (QUICK[1], "full"), (QUICK[2], "read-only")])
def test_a_bad_disk(tmp_path: Path, activity: str, kind: str) -> None:
    (row,) = troubles(2, 1, tmp_path, activity, [kind])
    assert not row.failures, "\n".join(row.failures)
    assert len(row.ends) == 2


@pytest.mark.slow
def test_two_hundred_kills(tmp_path: Path) -> None:
    rows = campaign(200, 0, tmp_path / "kills")
    failures = [one for row in rows for one in row.failures]
    assert not failures, "\n".join([table(rows), *failures])
    assert sum(row.total for row in rows) >= 200


@pytest.mark.slow
def test_bad_disks(tmp_path: Path) -> None:
    failures = [one for row in troubles(3, 0, tmp_path) for one in row.failures]
    assert not failures, "\n".join(failures)
