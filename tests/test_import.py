"""Importing the package is quick and light, and every public name is where it is said to be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hfdataopt

MEASURE = "import time; t = time.perf_counter(); import hfdataopt; print(time.perf_counter() - t)"


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_import_takes_less_than_300_ms():
    """The best of five processes: what the import costs when nothing else takes the processor."""
    seconds = [float(python(MEASURE)) for _ in range(5)]
    assert min(seconds) < 0.3, f"import hfdataopt took {sorted(seconds)} seconds"


def test_import_brings_no_heavy_package():
    loaded = python("import sys, hfdataopt; print(*{name.partition('.')[0] for name in sys.modules})").split()
    assert not {"torch", "transformers", "datasets", "numpy", "trl", "evaluate"} & set(loaded)


@pytest.mark.parametrize("argv", [["--version"], ["plugins", "--help"], ["score", "--help"]])
def test_help_imports_no_torch(argv):
    code = f"import sys\nfrom hfdataopt.cli import main\ntry:\n    main({argv!r})\nexcept SystemExit:\n    pass\n"
    assert python(code + "print('torch' in sys.modules)").splitlines()[-1] == "False"


def test_every_public_name_resolves():
    assert hfdataopt.__all__ == sorted(hfdataopt.__all__)
    for name in hfdataopt.__all__:
        found = getattr(hfdataopt, name)
        assert getattr(found, "__name__", name) == name
        assert name in dir(hfdataopt)
    assert hfdataopt.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="no attribute 'scores'"):
        _ = hfdataopt.scores


def test_star_import_gives_exactly_the_public_names():
    names: dict = {}
    exec("from hfdataopt import *", names)
    assert set(hfdataopt.__all__) <= set(names)


def test_hookspecs_import_only_pluggy():
    """Outside TYPE_CHECKING, so that a plugin's import stays light."""
    path = Path(hfdataopt.__file__).with_name("hookspecs.py")
    imported = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"pluggy"}
