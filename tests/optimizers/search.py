"""The searches without models of ``hfdataopt.testing``."""

from hfdataopt.prompting.candidate import Candidate, Query, Trial  # noqa: F401 - for the tests
from hfdataopt.testing.search import PlainServices, duel, run, task, trial, vote  # noqa: F401 - for the tests
