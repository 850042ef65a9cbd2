"""Settings for every test: one thread, offline, quiet, no progress bars."""

import os
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Results do not depend on the machine, and workers do not fight for cores."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


def _restoring() -> Iterator[None]:
    before = dict(os.environ)
    yield
    if dict(os.environ) != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(autouse=True, scope="module")
def _environment_of_a_module() -> Iterator[None]:
    """What fixtures of a whole module set is gone after it."""
    yield from _restoring()


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """What a test, or a script that it imports, sets is gone after it."""
    yield from _restoring()
