"""Killed at random points and begun again: nothing is lost, nothing counts twice, uncertain calls are counted as such."""

import os
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the judging page needs the extra ui")
pytest.importorskip("uvicorn", reason="the judging page needs the extra ui")

from .campaign import campaign, table, troubles

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

QUICK = ("attribute: tracin", "hfdataopt select: .jsonl", "search: rewards", "page: pairs")


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
