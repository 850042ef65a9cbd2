"""A tiny classifier with a pool in which two labels are wrong, and clean queries."""

from typing import Any

import pytest

from ..tiny import bert, encoded


@pytest.fixture(scope="session")
def pool() -> Any:
    return encoded(15, seed=1, flipped=(3, 8))


@pytest.fixture(scope="session")
def queries() -> Any:
    return encoded(7, seed=2)


@pytest.fixture
def model() -> Any:
    return bert().eval()
