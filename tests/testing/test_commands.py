"""``check-plugin``, ``new-plugin``, ``plugins`` and ``--trace`` from the shell."""

import importlib
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hfdataopt import cli, hookimpl
from hfdataopt.commands.new_plugin import MODULES
from hfdataopt.plugins import Failure, Source, host
from hfdataopt.testing import check_filter, check_optimizer, check_scorer
from tests.testing.broken import BROKEN, GoodFilter


@pytest.fixture
def call(capsys: Any) -> Any:
    def run(*argv: str) -> tuple[int, list[str], list[str]]:
        capsys.readouterr()
        try:
            status = cli.main(list(argv))
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capsys.readouterr()
        return status, out.splitlines(), err.splitlines()

    return run


@pytest.fixture
def acme() -> Any:
    """A distribution of two filters, of which one is not independent of the batch size, and a hook."""
    plugin = ModuleType("acme")

    def register_filters(register: Any) -> None:
        register(GoodFilter)
        register(BROKEN["filter"]["batch-size"][0], name="batched")

    def after_selection(dataset: Any, kept: Any, by: str) -> None: ...

    vars(plugin).update(register_filters=hookimpl(register_filters), after_selection=hookimpl(after_selection))
    host().register(plugin, Source("acme-filters", "acme", "2.1"))
    yield
    host().manager.unregister(plugin)
    for name in ("brevity", "batched"):
        del host().components["filter"][name]


def test_a_component_that_keeps_its_promises(call: Any, acme: Any) -> None:
    status, out, err = call("check-plugin", "brevity", "--power", "2")
    assert (status, err) == (0, [])
    assert out[0] == "filter 'brevity' of plugin 'acme-filters' (acme 2.1)"
    assert any(line.split()[:2] == ["passed", "batch-size"] for line in out)
    assert out[-1] == "  14 passed, 2 not checked"


def test_a_distribution_of_which_one_component_fails(call: Any, acme: Any) -> None:
    status, out, _ = call("check-plugin", "acme")
    assert status == 1
    (line,) = [line for line in out if line.startswith("  FAILED")]
    assert "batch-size" in line
    assert "Let score(batch) look at each row alone" in line
    assert out[-1] == "1 of 2 components keep all promises that could be checked"
    status, out, _ = call("check-plugin", "batched", "--expect", "batch-size=it counts rows")
    assert status == 0
    assert any(line.split()[:2] == ["expected", "batch-size"] and "it counts rows" in line for line in out)
    assert call("check-plugin", "brevity", "--expect", "batch-size=it counts rows")[0] == 1


def test_a_plugin_that_failed_to_load(call: Any) -> None:
    host().failures.append(Failure(Source("wrecked", "globex", "3"), "ImportError: no", ""))
    try:
        assert call("check-plugin", "globex")[:2] == (1, ["FAILED 'wrecked' (globex 3): ImportError: no"])
    finally:
        host().failures.pop()


def test_a_component_that_needs_an_option(call: Any) -> None:
    status, out, _ = call("check-plugin", "combine")
    assert status == 1
    assert out[1].startswith("  NOT CHECKED: filter 'combine'")
    assert out[1].endswith("needs the option 'inputs'")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["check-plugin"], "the following arguments are required: NAME"),
        (["check-plugin", "lenght"], "is called 'lenght' (did you mean 'length'?)"),
        (["check-plugin", "length", "--kind", "scorer"], "no installed scorer is called 'length'"),
        (["check-plugin", "length", "--kind", "generator"], "argument --kind: invalid choice"),
        (
            ["check-plugin", "random"],
            "'random' is the name of a scorer and a filter and a optimizer; say which with --kind",
        ),
        (["check-plugin", "length", "--expect", "finite"], "--expect 'finite': write CHECK=REASON"),
        (["check-plugin", "length", "--expect", "finit=x"], "no check is called 'finit'"),
        (["check-plugin", "length", "--bset", "longest"], "unknown argument '--bset' (did you mean --best?)"),
        (["new-plugin", "x-y"], "the following arguments are required: --kind"),
        (["new-plugin", "x-y", "--kind", "generator"], "argument --kind: invalid choice"),
        (["new-plugin", "My-Filter", "--kind", "filter"], "must be lower-case words joined by dashes"),
        (["new-plugin", "2fast", "--kind", "filter"], "beginning with a letter"),
        (["new-plugin", "a_b", "--kind", "filter"], "must be lower-case words joined by dashes"),
        (["new-plugin", "../up", "--kind", "filter"], "must be lower-case words joined by dashes"),
        (["new-plugin", "class", "--kind", "filter"], "NAME='class' must be"),
        (["new-plugin", "json", "--kind", "filter"], "Python has a module 'json' already"),
        (["new-plugin", "hfdataopt", "--kind", "filter"], "Python has a module 'hfdataopt' already"),
        (["new-plugin", "hfdataopt-length", "--kind", "filter"], "has a filter of the name 'length' already"),
        (["new-plugin", "there", "--kind", "scorer"], "'there' exists already"),
        (["new-plugin", "new", "--kind", "scorer", "--directory", "file"], "'file/new' cannot be written"),
    ],
)
def test_mistakes_are_one_line(call: Any, argv: list[str], says: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("")
    status, out, err = call(*argv)
    assert (status, out, len(err)) == (2, [], 1), err
    assert says in err[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "there"]


@pytest.mark.parametrize(
    ("kind", "check"), [("scorer", check_scorer), ("filter", check_filter), ("optimizer", check_optimizer)]
)
def test_what_new_plugin_writes_is_small_and_keeps_its_promises(
    call: Any, kind: str, check: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    assert set(MODULES) == {"scorer", "filter", "optimizer"}
    status, out, err = call("new-plugin", f"hfdataopt-own-{kind}", "--kind", kind, "--directory", str(tmp_path))
    assert (status, err) == (0, [])
    folder = tmp_path / f"hfdataopt-own-{kind}"
    assert [line.removeprefix("wrote ") for line in out[:-1]] == [
        str(folder / name)
        for name in ("pyproject.toml", "README.md", f"hfdataopt_own_{kind}.py", "tests/test_contract.py")
    ]
    python = [line for file in folder.rglob("*.py") for line in file.read_text().splitlines() if line.strip()]
    assert len(python) < 40
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    ((name, module),) = project["entry-points"]["hfdataopt"].items()
    assert (project["name"], name, module) == (f"hfdataopt-own-{kind}", f"own-{kind}", f"hfdataopt_own_{kind}")
    monkeypatch.syspath_prepend(str(folder))
    try:
        made = vars(importlib.import_module(module))[f"Own{kind.capitalize()}"]
        assert made.name == name
        assert check(made()).passed
    finally:
        sys.modules.pop(module, None)


def test_plugins_lists_hooks(call: Any, acme: Any) -> None:
    _, out, _ = call("plugins")
    assert "hooks of 'acme-filters' (acme 2.1): after_selection, register_filters" in out
    assert not any(line.startswith("hooks of 'filter-length'") for line in out)
    _, out, _ = call("plugins", "--hooks")
    assert any(
        line.startswith("hooks of 'filter-length' (hfdataopt ") and line.endswith(": register_filters") for line in out
    )


def test_the_trace_of_a_verb_goes_to_stderr(call: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a"}\n{"text": "b c"}\n')
    argv = [
        "select",
        "--filter",
        "length",
        "--k",
        "1",
        "--dataset",
        str(rows),
        "--output",
        str(tmp_path / "kept.jsonl"),
    ]
    _, out, err = call(*argv, "--trace")
    assert any("after_selection [hook]" in line for line in err)
    assert not any("[hook]" in line for line in out)
    _, _, err = call(*argv[:-1], str(tmp_path / "again.jsonl"))
    assert not any("[hook]" in line for line in err)
