"""All text generators that ship keep the promises of the kit; the endpoint is asked over HTTP, at a server on this machine."""

from collections.abc import Iterator
from typing import Any

import pytest

from hfdataopt.plugins import host
from hfdataopt.testing import tiny
from hfdataopt.testing.kit import NotChecked, make_case, run_check
from tests.generation.test_endpoint import Server
from tests.testing.test_own_scorers import parameters

NAMES = [name for name, one in host().components["generator"].items() if one.source.distribution == "hfdataopt"]
CASES: dict[str, Any] = {}


@pytest.fixture(scope="module")
def options() -> Iterator[dict[str, dict[str, Any]]]:
    server = Server()
    yield {
        "endpoint": {"model": "some/model", "base_url": server.url, "api_key": "none"},
        "transformers": {"model": tiny.speaker(), "processing_class": tiny.reader(), "max_new_tokens": 6},
    }
    server.close()


@pytest.mark.parametrize(("name", "check"), parameters("generator", NAMES, {}))
def test_contract(name: str, check: Any, options: dict[str, dict[str, Any]]) -> None:
    if name not in CASES:
        CASES[name] = make_case(name, "generator", **options[name])
    try:
        run_check(check, CASES[name])
    except NotChecked as reason:
        pytest.skip(str(reason))


def test_the_names_are_those_that_are_checked(options: dict[str, dict[str, Any]]) -> None:
    assert set(NAMES) == set(options)
