"""The examples as modules; what they set for the whole process is put back."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import transformers

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``example("name")`` imports examples/name.py."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    before = set(sys.modules)
    verbosity, bars = transformers.utils.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    yield importlib.import_module
    transformers.utils.logging.set_verbosity(verbosity)
    if not bars:
        datasets.enable_progress_bars()
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and EXAMPLES in Path(sys.modules[name].__file__).parents:
            del sys.modules[name]
