"""What a property test of bad input says: a named error of ours in one clear line, or a right answer.

``@kind(draws, name=strategy, ...)`` makes a test of one kind of input; it is counted, and a kind that made fewer draws than
it promises fails. ``HYPOTHESIS_PROFILE=slow`` (``make test-properties``) makes ten times as many, from other seeds.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings

from hfdataopt.errors import LONGEST, HfDataOptError

SLOW = os.environ.get("HYPOTHESIS_PROFILE") == "slow"
TIMES = 10 if SLOW else 1


@dataclass
class Kind:
    """One kind of input: the draws that its test promises, those made, and how many of these ended in an error of ours."""

    draws: int
    made: int = 0
    refused: int = 0


KINDS: dict[str, Kind] = {}
_running: list[Kind] = []


def kind(draws: int, **strategies: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test of one kind of input on ``draws`` draws of these strategies, which become its arguments."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        name = f"{test.__module__.rpartition('.')[2]}::{test.__name__}"
        counter = KINDS[name] = Kind(draws)

        def counted(**drawn: Any) -> None:
            counter.made += 1
            _running.append(counter)
            try:
                test(**drawn)
            finally:
                _running.pop()

        counted.__name__, counted.__doc__, counted.__module__ = test.__name__, test.__doc__, test.__module__
        phases = [Phase.explicit, Phase.generate, Phase.shrink]
        rules = settings(
            max_examples=draws * TIMES,
            derandomize=not SLOW,
            database=None,
            deadline=None,
            print_blob=True,
            phases=phases,
            suppress_health_check=list(HealthCheck),
        )
        made = rules(given(**strategies)(counted))
        made.kind = counter  # type: ignore[attr-defined]
        return made

    return decorate


@dataclass(frozen=True)
class Refusal:
    """An error of ours, which said what it should."""

    error: HfDataOptError

    def __str__(self) -> str:
        return str(self.error)


def outcome(call: Callable[[], Any]) -> Any:
    """What the call returns, or the :class:`Refusal`; any other exception fails the test.

    The message must be one line, not longer than a few lines of a terminal, and no echo of another error alone.
    """
    try:
        return call()
    except HfDataOptError as error:
        refusal = Refusal(error)
    said = str(refusal)
    assert said.strip(), f"{type(refusal.error).__name__} says nothing"
    assert len(said.splitlines()) == 1, f"not one line: {said!r}"
    assert len(said) <= LONGEST, f"{len(said)} characters: {said[:300]!r} ..."
    assert len(said.split()) >= 4, f"not a sentence: {said!r}"
    if _running:
        _running[-1].refused += 1
    return refusal


def refused(found: Any) -> bool:
    return isinstance(found, Refusal)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """An empty folder for one draw."""
    with tempfile.TemporaryDirectory(prefix="hfdataopt-properties-") as name:
        yield Path(name)
