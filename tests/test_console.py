"""What is said at the terminal: one line each."""

import subprocess
import sys

import pytest

from hfdataopt.console import warn


def test_a_warning_is_one_line_without_source_and_comes_once() -> None:
    code = "from hfdataopt.console import warn\nfor _ in range(3):\n    warn('look at this')\nwarn('and this')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["hfdataopt:0: UserWarning: look at this", "hfdataopt:0: UserWarning: and this"]


@pytest.mark.filterwarnings("error")
def test_a_warning_can_be_made_an_error_and_caught() -> None:
    with pytest.raises(UserWarning, match="look"):
        warn("look")
    for _ in range(2):
        with pytest.warns(UserWarning, match="look"):
            warn("look")
