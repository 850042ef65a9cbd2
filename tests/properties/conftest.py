"""Counts the draws of every kind; a test that made fewer than it promises fails."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from .kinds import KINDS, TIMES

LIMIT = 120 * TIMES  # seconds of one test: nothing that is drawn here may hang


def pytest_collection_modifyitems(items: list[Any]) -> None:
    for item in items:
        if hasattr(getattr(item, "function", None), "kind"):
            item.add_marker(pytest.mark.timeout(LIMIT))


@pytest.fixture(autouse=True)
def _draws_are_made(request: pytest.FixtureRequest) -> Iterator[None]:
    """The draws that a kind promises were made; warnings of the libraries are not the point here."""
    counter = getattr(request.function, "kind", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    if counter is not None and not request.session.testsfailed:
        assert counter.made >= counter.draws * TIMES, f"{counter.made} draws of {counter.draws * TIMES}: too few inputs"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    ran = [kind for kind in KINDS.values() if kind.made]
    if ran:
        terminalreporter.write_line(
            f"bad input: {len(ran)} kinds, {sum(kind.made for kind in ran)} draws, "
            f"{sum(kind.refused for kind in ran)} named errors"
        )
