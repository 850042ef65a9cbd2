"""Every block of code in README, docs and examples does what it says, with tiny models in the place of those it presupposes.

Blocks of output are left out: those without a language, or marked ``text``, that do not begin with a command.
"""

import argparse
import importlib
import os
import runpy
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from hfdataopt import cli
from hfdataopt.errors import MissingDependencyError
from hfdataopt.plugins import Source, host

from .blocks import PAGES, ROOT, Block, blocks
from .worlds import WORLDS, hub, world_of

# A page, or the first line of a block, that cannot run as it stands, and why; its code is compiled.
NOT_RUN = {
    "docs/bridges.md": "each block needs a package in an environment of its own, where tests/bridges runs what the blocks show",
    "from hfdataopt.prompting.page import serve_judge": "returns when people have voted; tests/prompting/test_page.py votes",
}
# Beginnings of commands that are only read by the parser, and why; those with ``...`` are read as far as they go.
ONLY_PARSED = {
    "hfdataopt demo": "trains for a minute; tests/test_demo.py runs it",
    "hfdataopt check-plugin": "runs all checks; tests/testing runs it",
}


def of_kind(*kinds: str) -> list[Any]:
    found = [block for page in PAGES for block in blocks(page) if block.kind in kinds]
    return [pytest.param(block, id=block.where) for block in found]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder is empty, and the hub's cache has tiny models under the ids that the pages name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    hub(tmp_path.parent / f"{tmp_path.name}-hub", monkeypatch)
    return tmp_path


@pytest.fixture(autouse=True)
def example_plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The plugin of examples/write_a_plugin, as if it were installed."""
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "write_a_plugin"))
    module = importlib.import_module("hfdataopt_repetition")
    host().register(module, Source("repetition"))
    yield
    host().manager.unregister(module)
    host().components["filter"].pop("repetition")
    del sys.modules["hfdataopt_repetition"]


@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(b.kind == "python" for b in blocks(p))], ids=lambda p: str(p.relative_to(ROOT))
)
def test_python_blocks_run(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("page_of_the_docs")  # a real one, for what looks up the source of a class or pickles it
    module.__file__ = str(folder / "page_of_the_docs.py")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    names, known, lines = vars(module), None, ""
    for block in blocks(page):
        if block.kind != "python":
            continue
        where = str(page.relative_to(ROOT))
        code = compile("\n" * (block.line - 1) + block.text, where, "exec", dont_inherit=True)
        if {where, block.text.splitlines()[0]} & set(NOT_RUN):
            continue
        world = world_of(block.text) or known or WORLDS["alone"]
        if world is not known:
            names |= world(folder)
            known = world
        lines += "\n" * (block.line - 1 - lines.count("\n")) + block.text
        Path(module.__file__).write_text(lines)
        try:
            exec(code, names)
        except Exception as error:
            raise AssertionError(
                f"{block.where} in the world {world.__name__}: {type(error).__name__}: {error}"
            ) from error


def test_what_is_not_run_is_there() -> None:
    first_lines = {block.text.splitlines()[0] for page in PAGES for block in blocks(page) if block.kind == "python"}
    assert set(NOT_RUN) <= first_lines | {str(page.relative_to(ROOT)) for page in PAGES}


@pytest.mark.parametrize("block", of_kind("toml"))
def test_toml_blocks(block: Block) -> None:
    assert tomllib.loads(block.text)


@pytest.mark.parametrize("block", of_kind("yaml"))
def test_yaml_blocks(block: Block) -> None:
    assert yaml.safe_load(block.text)


class Parsed(Exception):
    """The parser of a script took its arguments."""


def commands() -> list[Any]:
    found = [
        (block, command)
        for page in PAGES
        for block in blocks(page)
        if block.kind == "shell"
        for command in block.commands
    ]
    return [pytest.param(command, id=f"{block.where} {command[:60]}") for block, command in found]


@pytest.mark.parametrize("command", commands())
def test_commands(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(command, comments=True)
    fragment = "..." in words
    words = [word for word in words if word != "..."]
    if words[0] == "python":
        check_script(words[1:], monkeypatch)
    elif words[0] == "make":
        makefile = (ROOT / "Makefile").read_text()
        assert all(f"\n{target}:" in makefile for target in words[1:] if "=" not in target)
    elif words[0] == "pip":
        check_extras(words)
    else:
        status = run_verb(words[1:], folder, command)
        _, err = capsys.readouterr()
        wrong = [line for line in err.splitlines() if "--help' lists the arguments" in line or "accepts:" in line]
        assert [line for line in wrong if not (fragment and "arguments are required" in line)] == []
        if not only_parsed(command):
            assert status == 0, err


def only_parsed(command: str) -> bool:
    return " ..." in command or command.startswith(tuple(ONLY_PARSED))


def run_verb(words: list[str], folder: Path, command: str) -> int:
    if not only_parsed(command):
        WORLDS["shell"](folder)
    try:
        return cli.main([*words, "--help"] if command.startswith("hfdataopt demo") else words)
    except SystemExit as stop:  # of --help
        return int(stop.code or 0)


def check_script(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The script is there and its own parser takes the arguments."""
    script = ROOT / words[0]
    assert script.is_file()
    parse = argparse.ArgumentParser.parse_args

    def parsed(self: argparse.ArgumentParser, *arguments: Any, **named: Any) -> Any:
        parse(self, *arguments, **named)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    monkeypatch.setattr(sys, "argv", [str(script), *words[1:]])
    monkeypatch.syspath_prepend(str(script.parent))
    before, environment = set(sys.modules), dict(os.environ)
    try:
        with pytest.raises(Parsed):
            runpy.run_path(str(script), run_name="__main__")
    except (ModuleNotFoundError, MissingDependencyError) as error:
        pytest.skip(f"{script.name} needs a package that is not installed: {error}")
    finally:
        os.environ.clear()  # scripts set variables of their own
        os.environ.update(environment)
        for name in set(sys.modules) - before:
            if (
                getattr(sys.modules[name], "__file__", None)
                and script.parent in Path(str(sys.modules[name].__file__)).parents
            ):
                del sys.modules[name]


def check_extras(words: list[str]) -> None:
    """``pip install 'hfdataopt[extra]'``: the extra exists."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words[2:]:
        if word.startswith("hfdataopt["):
            assert set(word[len("hfdataopt[") : -1].split(",")) <= set(extras)
