"""The index of methods: an entry for every registered component and no other, with all its parts."""

import re
from functools import cache

import pytest

from hfdataopt.plugins import host

from .blocks import ROOT

KINDS = {"Scorers": "scorer", "Filters": "filter", "Optimizers": "optimizer", "Generators": "generator"}
PARTS = ("Computes", "Paper", "Cost", "Not for", "Differs")


@cache
def entries() -> dict[tuple[str, str], str]:
    """Text by kind and name."""
    found: dict[tuple[str, str], str] = {}
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        for part in re.split(r"^### ", body, flags=re.MULTILINE)[1:]:
            name, _, entry = part.partition("\n")
            assert (KINDS[title], name) not in found, f"{name} stands twice under {title}"
            found[KINDS[title], name] = entry
    return found


def registered() -> set[tuple[str, str]]:
    """Kind and name of what comes with this package."""
    return {(one.kind, one.name) for one in host().all_components() if one.cls.__module__.startswith("hfdataopt")}


def test_an_entry_for_every_method_and_no_other() -> None:
    assert set(entries()) == registered()
    assert {kind for kind, _ in entries()} == set(KINDS.values())


@pytest.mark.parametrize(("kind", "name"), entries(), ids=lambda value: value)
def test_parts(kind: str, name: str) -> None:
    entry = entries()[kind, name]
    found = re.findall(r"^- \*\*(.+?)\*\* \S", entry, re.MULTILINE)
    assert tuple(found) == PARTS, f"{kind} {name} must have {', '.join(PARTS)}, in this order"


def test_order_is_that_of_the_sections() -> None:
    kinds = [kind for kind, _ in entries()]
    assert kinds == sorted(kinds, key=list(KINDS.values()).index)
