"""A user's typed script passes mypy against the package, and a wrong one does not: ``py.typed`` is there and means it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hfdataopt

pytest.importorskip("mypy", reason="mypy comes with the extra dev")

RIGHT = """
from hfdataopt import PromptConfig, Scores, get_filter, top

config = PromptConfig(max_calls=4, items=2)
scores: Scores = Scores.load("folder")
rows: list[str | int] = list(scores.bottom(k=2))
rule = top(fraction=0.5)
"""
WRONG = """
from hfdataopt import PromptConfig, Scores

config = PromptConfig(max_calls="four")
Scores.load(3)
"""


@pytest.mark.slow
def test_a_typed_script(tmp_path: Path) -> None:
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text(WRONG)
    paths = {
        **os.environ,
        "MYPYPATH": str(Path(hfdataopt.__file__).parents[1]),
    }  # mypy does not see an editable installation
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--ignore-missing-imports"]
    done = subprocess.run([*command, "right.py", "wrong.py"], cwd=tmp_path, env=paths, capture_output=True, text=True)
    assert "right.py" not in done.stdout, done.stdout
    assert done.stdout.count("[arg-type]") == 2, done.stdout
