"""What is installed is what is in the tree; what is pinned is what is needed; what is promised on the first page is there."""

import configparser
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from hfdataopt.plugins import Host, host

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
METHODS = ROOT / "plugins" / "hfdataopt_plugins"
# Of an entry point's name; names of methods may repeat across kinds.
PREFIX = {
    "scorers": "",
    "filters": "filter-",
    "optimizers": "optimizer-",
    "generators": "generator-",
    "observers": "observer-",
}


def modules_in_tree() -> set[str]:
    found = [path.relative_to(root) for root in (ROOT, ROOT / "plugins") for path in root.glob("hfdataopt*/**/*.py")]
    return {path.as_posix() for path in found}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel, built from a copy of the tree (so that no stale build folder has a say), offline."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("hfdataopt", "plugins"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_modules_in_the_wheel_are_those_in_the_tree(wheel):
    packed = {name for name in wheel.namelist() if name.endswith(".py")}
    assert packed == modules_in_tree()
    assert {name.partition("/")[0] for name in packed} == {"hfdataopt", "hfdataopt_plugins"}


def test_the_data_files_and_the_licence_are_in_the_wheel(wheel):
    names = set(wheel.namelist())
    assert "hfdataopt/py.typed" in names
    assert any(re.fullmatch(r"hfdataopt-.*\.dist-info/licenses/LICENSE", name) for name in names)
    data = [p for p in (ROOT / "hfdataopt").rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")]
    assert {path.relative_to(ROOT).as_posix() for path in data} <= names


def test_the_wheel_is_small(wheel):
    weights = sum(info.compress_size for info in wheel.infolist() if info.filename.endswith(".safetensors"))
    assert weights < 2_500_000
    assert sum(info.compress_size for info in wheel.infolist()) - weights < 1_500_000


def test_the_entry_points_in_the_wheel_are_those_of_the_project(wheel):
    (name,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    parser = configparser.ConfigParser()
    parser.read_string(wheel.read(name).decode())
    assert dict(parser["hfdataopt"]) == PROJECT["entry-points"]["hfdataopt"]
    assert dict(parser["console_scripts"]) == {"hfdataopt": "hfdataopt.cli:main"}


def test_every_method_has_an_entry_point_and_every_entry_point_a_method():
    modules = {
        f"hfdataopt_plugins.{path.parent.name}.{path.stem}"
        for path in METHODS.glob("*/*.py")
        if not path.stem.startswith("_") and path.parent.name != "bridges"  # functions that people call
    }
    declared = list(PROJECT["entry-points"]["hfdataopt"].values())
    assert set(declared) == modules
    assert len(declared) == len(set(declared))


def test_an_entry_point_has_the_name_of_a_component_it_registers():
    for name, module in PROJECT["entry-points"]["hfdataopt"].items():
        folder = module.split(".")[1]
        prefix = PREFIX[folder]
        if folder == "observers":  # they register nothing
            assert name.startswith(prefix)
            continue
        registered = {component.name for component in host().all_components() if component.source.plugin == name}
        assert name in {prefix + one for one in registered}


def test_all_methods_that_ship_load():
    loaded = Host()
    loaded.load_entry_points()
    assert [failure for failure in loaded.failures if failure.source.distribution == "hfdataopt"] == []


# -- requirements


def pins() -> dict[str, str]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    found = {}
    for line in filter(None, lines):
        name, exact, version = line.partition("==")
        assert exact, f"constraints.txt: {line!r} is not an exact pin"
        found[normal(name)] = version
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def required() -> dict[str, str]:
    lists = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    found = {}
    for requirement in [requirement for one in lists for requirement in one]:
        name, version = re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[.*\])?\s*([<>=!~].*)?", requirement).groups()
        found[normal(name)] = version
    found.pop("hfdataopt")
    return found


def test_every_requirement_is_pinned_within_its_bounds():
    pinned = pins()
    assert pinned["torch"] == "2.13.0"
    assert set(required()) <= set(pinned)
    for name, bound in required().items():
        assert bound, f"{name} has no lower bound"
        operator, low = re.fullmatch(r"(>=|==)([\d.]+)", bound).groups()
        numbers = [[int(part) for part in version.split(".")] for version in (pinned[name], low)]
        assert numbers[0] >= numbers[1] if operator == ">=" else pinned[name] == low, name


def test_required_packages_are_the_declared_ones_and_light():
    names = {normal(re.split(r"[<>=\[]", requirement)[0]) for requirement in PROJECT["dependencies"]}
    allowed = {"torch", "transformers", "datasets", "accelerate", "trl", "evaluate", "pluggy", "safetensors", "numpy"}
    allowed |= {"jinja2", "markupsafe"}  # which torch brings
    allowed |= {
        "huggingface-hub",
        "pandas",
        "pyarrow",
        "pyyaml",
        "regex",
        "tokenizers",
        "tqdm",
    }  # transformers, datasets
    assert names == allowed
    assert PROJECT["requires-python"] == ">=3.11"


# -- commands


def test_the_readme_has_the_two_commands():
    text = (ROOT / "README.md").read_text()
    if not text.strip():
        pytest.skip("README.md is not written yet")
    commands = re.findall(r"^\s*(?:\$ )?(make [a-z-]+)", text, re.MULTILINE)
    assert commands[:2] == ["make demo", "make test"]


def test_ci_runs_the_readmes_test_command_lint_and_the_install():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert {"make lint", "make test", "make test-install"} <= set(lines)
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100, ".ci/run is executable"


def test_make_knows_the_commands_and_takes_torch_first():
    text = (ROOT / "Makefile").read_text()
    for verb in ("demo", "test", "test-install", "lint"):
        assert re.search(rf"^{verb}:", text, re.MULTILINE)
    assert "-c constraints.txt" in text
    assert "TORCH_INDEX" in text
