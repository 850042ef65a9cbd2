"""``check-plugin``, ``new-plugin``, ``plugins`` and ``--trace`` from the shell."""

import importlib
import re
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from hfdataopt import cli, hookimpl
from hfdataopt.commands.new_plugin import MODULES
from hfdataopt.errors import OptionError
from hfdataopt.plugins import KINDS, Failure, Source, host
from hfdataopt.testing import check_filter, check_generator, check_optimizer, check_scorer
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
    assert out[0].startswith("filter 'brevity' of plugin 'acme-filters' (acme 2.1), /")
    assert re.search(r"/broken\.py:\d+$", out[0])
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
    assert out[1].startswith("  NOT CHECKED, needs options: filter 'combine'")
    assert out[1].endswith("needs the option 'inputs'")


@dataclass(frozen=True)
class NeedsWords(GoodFilter):
    """One that says at fit which option it needs."""

    name: ClassVar[str] = "needs-words"
    words: str | None = None

    def learn(self, pool: Any, target: Any) -> None:
        if self.words is None:
            raise OptionError("needs-words: give words=, what to look for")


def test_a_component_of_several_that_needs_options_is_no_failure(call: Any) -> None:
    plugin = ModuleType("wordy")

    def register_filters(register: Any) -> None:
        register(GoodFilter)
        register(NeedsWords)

    plugin.register_filters = hookimpl(register_filters)  # type: ignore[attr-defined]
    with registered(plugin, "brevity", "needs-words"):
        status, out, err = call("check-plugin", "wordy")
        assert (status, err) == (0, [])
        assert "  NOT CHECKED, needs options: needs-words: give words=, what to look for" in out
        assert out[-1].startswith("1 of 1 components keep all promises that could be checked; 1 need options")
        assert call("check-plugin", "needs-words")[0] == 1
        assert call("check-plugin", "needs-words", "--words", "film")[0] == 0


# -- what the author's own code raises


@dataclass(frozen=True)
class Divides(GoodFilter):
    """One that fails in a function of its own module."""

    name: ClassVar[str] = "divides"

    def score(self, batch: Any) -> Any:
        return share(0)


def share(words: int) -> float:
    return 1 / words


@dataclass(frozen=True)
class Assigns(GoodFilter):
    """One that forgets that it is frozen."""

    name: ClassVar[str] = "assigns"
    count: int = field(default=0, init=False)

    def learn(self, pool: Any, target: Any) -> None:
        self.count = 3  # type: ignore[misc]


@contextmanager
def registered(plugin: ModuleType, *names: str) -> Iterator[None]:
    host().register(plugin, Source(plugin.__name__, plugin.__name__, "1"))
    try:
        yield
    finally:
        host().manager.unregister(plugin)
        del host().sources[f"{plugin.__name__}:{plugin.__name__}"]
        for name in names:
            del host().components["filter"][name]


@pytest.fixture
def faulty() -> Any:
    """This module as a plugin, as if its filters were registered by it."""
    plugin = ModuleType(__name__)

    def register_filters(register: Any) -> None:
        register(Divides)
        register(Assigns)

    plugin.register_filters = hookimpl(register_filters)  # type: ignore[attr-defined]
    with registered(plugin, "divides", "assigns"):
        yield


def line_of(text: str) -> int:
    return next(i for i, line in enumerate(Path(__file__).read_text().splitlines(), 1) if line.strip() == text)


SAID = {
    "divides": ("ZeroDivisionError: division by zero", "return 1 / words", "share", "Mend that line"),
    "assigns": (
        "FrozenInstanceError: cannot assign to field 'count'",
        "self.count = 3  # type: ignore[misc]",
        "learn",
        "write self.set(count=...) for self.count = ...",
    ),
}


@pytest.mark.parametrize("name", SAID)
def test_what_an_author_raised_is_located(call: Any, faulty: Any, name: str) -> None:
    error, line, function, advice = SAID[name]
    status, out, err = call("check-plugin", name)
    assert (status, err) == (1, [])
    (failed,) = [row for row in out if row.startswith("  FAILED")]
    assert "one-score-per-row" in failed
    assert f"{error} ({__file__}:{line_of(line)}, in {function})" in failed
    assert advice in failed
    assert "Name the columns it reads" not in failed
    _, _, err = call("check-plugin", name, "--debug")
    assert err[0] == "one-score-per-row:"
    assert err[1] == "Traceback (most recent call last):"
    assert any(f'{Path(__file__).name}", line {line_of(line)}, in {function}' in row for row in err)
    assert err[-1].endswith(error)


@pytest.mark.parametrize("name", SAID)
def test_a_verb_names_the_plugin_that_raised(call: Any, faulty: Any, name: str, tmp_path: Path) -> None:
    error, line, function, _ = SAID[name]
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a"}\n{"text": "b c"}\n')
    argv = ["select", "--filter", name, "--k", "1", "--dataset", str(rows), "--output", str(tmp_path / "kept.jsonl")]
    status, out, err = call(*argv)
    assert (status, out, len(err)) == (1, [], 1)
    where = f"{__file__}:{line_of(line)}, in {function}"
    assert err[0].startswith(f"hfdataopt select: plugin {__name__!r} ({__name__} 1) raised {error} ({where}). ")
    assert ("self.set(count=...)" in err[0]) == (name == "assigns")
    assert "please report it" not in err[0]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["check-plugin"], "the following arguments are required: NAME"),
        (["check-plugin", "lenght"], "is called 'lenght' (did you mean 'length'?)"),
        (["check-plugin", "length", "--kind", "scorer"], "no installed scorer is called 'length'"),
        (["check-plugin", "length", "--kind", "model"], "argument --kind: invalid choice"),
        (["check-plugin", "length", "--kind", "generator"], "no installed generator is called 'length'"),
        (
            ["check-plugin", "random"],
            "'random' is the name of a scorer and a filter and a optimizer; say which with --kind",
        ),
        (["check-plugin", "length", "--expect", "finite"], "--expect 'finite': write CHECK=REASON"),
        (["check-plugin", "length", "--expect", "finit=x"], "no check is called 'finit'"),
        (["check-plugin", "length", "--bset", "longest"], "unknown argument '--bset' (did you mean --best?)"),
        (["new-plugin", "x-y"], "the following arguments are required: --kind"),
        (["new-plugin", "x-y", "--kind", "model"], "argument --kind: invalid choice"),
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
    ("kind", "check"),
    [
        ("scorer", check_scorer),
        ("filter", check_filter),
        ("optimizer", check_optimizer),
        ("generator", check_generator),
    ],
)
def test_what_new_plugin_writes_is_small_and_keeps_its_promises(
    call: Any, kind: str, check: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    assert set(MODULES) == set(KINDS)
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
