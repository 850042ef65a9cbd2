"""The third-party distribution in examples/write_a_plugin passes its own tests; tests/install installs it beside the wheel."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "examples" / "write_a_plugin"


def test_its_own_tests_pass() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(
        command, cwd=FOLDER, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(FOLDER)}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_its_entry_point_names_its_module() -> None:
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text())
    (module,) = project["project"]["entry-points"]["hfdataopt"].values()
    assert [module] == project["tool"]["setuptools"]["py-modules"]
    assert (FOLDER / f"{module}.py").is_file()
