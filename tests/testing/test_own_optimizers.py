"""All prompt optimizers that ship keep the promises of the kit."""

from typing import Any

import pytest

from hfdataopt.plugins import host
from hfdataopt.testing.kit import NotChecked, make_case, run_check
from tests.testing.test_own_scorers import parameters

OPTIONS: dict[str, dict[str, Any]] = {
    **{key: {"pool_size": 6} for key in ("apohf", "copeland-ts", "double-ts", "linear-dueling")},
    **{key: {"pool_size": 12} for key in ("instinct", "zopo")},
    "exemplars": {"base": "ape"},
    "instructzero": {"pool_size": 16},
}
NAMES = [name for name, one in host().components["optimizer"].items() if one.source.distribution == "hfdataopt"]
CASES: dict[str, Any] = {}


@pytest.mark.parametrize(("name", "check"), parameters("optimizer", NAMES, {}))
def test_contract(name: str, check: Any) -> None:
    if name not in CASES:
        CASES.clear()
        CASES[name] = make_case(name, "optimizer", **OPTIONS.get(name, {}))
    try:
        run_check(check, CASES[name])
    except NotChecked as reason:
        pytest.skip(str(reason))


def test_the_table_names_optimizers_that_there_are() -> None:
    assert set(OPTIONS) <= set(NAMES)
