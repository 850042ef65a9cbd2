"""What is imported is declared, and what is declared is imported."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {"hfdataopt", "hfdataopt_plugins"}
# Neither required nor of an extra, and why.
ELSEWHERE = {
    "bergson": "a bridge; its dependencies disturb ours, so that it has an environment of its own",
    "kronfluence": "likewise",
    "optuna": "comes by dspy[optuna]",
    "scikit-learn": "comes with cleanlab, beside which it is used",
    "pytest": "of the kit for authors of plugins, who have it",
    "scipy": "of the report on how the demo's model was made; comes with scikit-learn in the test environment",
}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\[><=]", name)[0]).lower()


def imports(*roots: str) -> dict[str, set[str]]:
    """Distribution of every import below the folders -> files; a module that is not installed stands for itself."""
    known, found = packages_distributions(), dict[str, set[str]]()
    for path in [file for root in roots for file in (ROOT / root).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for module in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - OURS:
                for name in known.get(module, [module])[:1]:
                    found.setdefault(normal(name), set()).add(path.relative_to(ROOT).as_posix())
    return found


def declared(*extras: str) -> set[str]:
    chosen = [PROJECT["optional-dependencies"][extra] for extra in extras] if extras else [PROJECT["dependencies"]]
    return {normal(line) for lines in chosen for line in lines}


EXTRAS = [name for name in PROJECT["optional-dependencies"] if name not in ("test", "dev")]


def test_every_import_is_declared() -> None:
    found = imports("hfdataopt", "plugins")
    allowed = declared() | declared(*EXTRAS) | set(ELSEWHERE)
    assert {name: files for name, files in found.items() if name not in allowed} == {}


def test_every_requirement_is_imported() -> None:
    found = set(imports("hfdataopt", "plugins"))
    assert declared() <= found
    assert declared(*EXTRAS) - {"ray"} <= found  # ray calls a filter as a function, which imports nothing of it
