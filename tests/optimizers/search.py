"""The searches without models of ``hfdataopt.testing``."""

from hfdataopt.testing.search import PlainServices, duel, run, task, trial, vote  # noqa: F401 - for the tests
