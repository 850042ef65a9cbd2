"""What authors of plugins test with: the promises of a component as named checks, and tiny models and data to run them on.

- :func:`check_scorer`, :func:`check_filter`, :func:`check_optimizer`, :func:`check_generator`: all checks at once
- :func:`conformance`: a pytest decorator, one test per check
- ``hfdataopt check-plugin NAME``: the same from the shell
- :mod:`hfdataopt.testing.tiny`: models, a tokenizer and datasets that are made in milliseconds, offline
- :mod:`hfdataopt.testing.search`: prompt searches without models, and a scripted proposer

In a plugin's tests::

    from hfdataopt.testing import conformance

    @conformance(MyFilter(), expected_failures={"same-on-a-stream": "ranks rows among each other"})
    def test_contract(check):
        check()

The checks and what they promise: ``docs/plugins.md``, or ``CHECKS``.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hfdataopt.testing.kit import (
        CHECKS,
        CheckFailure,
        Report,
        check_filter,
        check_generator,
        check_optimizer,
        check_scorer,
        conformance,
    )

__all__ = [
    "CHECKS",
    "CheckFailure",
    "Report",
    "check_filter",
    "check_generator",
    "check_optimizer",
    "check_scorer",
    "conformance",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("hfdataopt.testing.kit"), name)
    raise AttributeError(f"module 'hfdataopt.testing' has no attribute {name!r}")
