"""The kinds of bad input and the draws of each: as many as are promised."""

import importlib
from pathlib import Path

from .kinds import KINDS, Kind, kind

MODULES = sorted(path.stem for path in Path(__file__).parent.glob("test_*.py") if path.stem != Path(__file__).stem)


def test_there_are_forty_kinds_and_a_thousand_draws():
    for name in MODULES:
        importlib.import_module(f".{name}", __package__)
    assert len(KINDS) >= 40
    assert sum(one.draws for one in KINDS.values()) >= 1000
    assert all(one.draws >= 6 for one in KINDS.values())
    assert len(MODULES) >= 8


def test_a_draw_is_counted():
    """What a kind promises is held to what it made, by a fixture of this folder."""
    from hypothesis import strategies as st

    from .kinds import TIMES, outcome

    seen = []

    @kind(7, number=st.integers())
    def drawn(number: int) -> None:
        seen.append(number)
        outcome(lambda: number)

    counter = drawn.kind  # type: ignore[attr-defined]
    assert isinstance(counter, Kind)
    drawn()
    assert counter.made == len(seen) == 7 * TIMES
    del KINDS[next(name for name, one in KINDS.items() if one is counter)]
