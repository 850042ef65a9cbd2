"""Every hook has a heading with its exact signature, a test of this module and a caller in hfdataopt; so do the checks of the kit."""

import ast
import functools
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from datasets import Dataset

import hfdataopt
from hfdataopt import attribute, hookimpl, hookspecs, select
from hfdataopt.generation import Completion
from hfdataopt.generation.generator import Generator
from hfdataopt.plugins import KINDS, Host, Source, host
from hfdataopt.testing import tiny
from hfdataopt.testing.kit import CHECKS, checks_of
from tests.prompting.searches import Listed, candidates, trainer
from tests.testing.broken import GoodFilter, GoodOptimizer, GoodScorer

PAGE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()
HOOKS = {name: value for name, value in vars(hookspecs).items() if hasattr(value, f"{hookspecs.PROJECT}_spec")}


def faults(hooks: dict[str, Any], page: str, tests: Any) -> list[str]:
    """What is missing of these hooks: a heading, a test, a caller."""
    found = []
    headings = re.findall(r"^### (.+)$", page, re.MULTILINE)
    for name, spec in hooks.items():
        signature = f"{name}({', '.join(inspect.signature(spec).parameters)})"
        if signature not in headings:
            found.append(f"docs/plugins.md has no heading ### {signature}")
        elif "```python" not in page.split(f"### {signature}\n")[1].split("\n### ")[0]:
            found.append(f"docs/plugins.md has no example of {name}")
        if not hasattr(tests, f"test_hook_{name}"):
            found.append(f"there is no test_hook_{name}")
        if name not in called():
            found.append(f"nothing in hfdataopt calls {name}")
    return found + [
        f"docs/plugins.md tells of {one}, which is no hook" for one in headings if one.split("(")[0] not in hooks
    ]


@functools.cache
def called() -> set[str]:
    """Hooks that are called: as an attribute of ``.hook``, or for registration."""
    found = set(KINDS.values())
    for path in Path(hfdataopt.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value
                if isinstance(owner, ast.Attribute) and owner.attr == "hook":
                    found.add(node.func.attr)
    return found


def test_every_hook_has_a_heading_a_test_and_a_caller() -> None:
    assert faults(HOOKS, PAGE, sys.modules[__name__]) == []


def test_a_new_hook_without_them_is_found() -> None:
    def before_lunch(menu: Any, guests: Any) -> None: ...

    assert faults({**HOOKS, "before_lunch": before_lunch}, PAGE, sys.modules[__name__]) == [
        "docs/plugins.md has no heading ### before_lunch(menu, guests)",
        "there is no test_hook_before_lunch",
        "nothing in hfdataopt calls before_lunch",
    ]
    without = {name: value for name, value in HOOKS.items() if name != "after_trial"}
    assert faults(without, PAGE, sys.modules[__name__]) == [
        "docs/plugins.md tells of after_trial(trial), which is no hook"
    ]
    assert "after_trial" not in {name for name in called() if name.startswith("register")}


def test_the_table_of_checks_is_that_of_the_kit() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| ([a-z, ]+) \| (.+) \|$", PAGE, re.MULTILINE)
    told = {name: set(kinds.split(", ")) for name, kinds, _ in rows}
    there: dict[str, set[str]] = {}
    for kind in CHECKS:
        for name in checks_of(kind):
            there.setdefault(name, set()).add(kind)
    assert told == there


# -- a test of each hook


def made(**hooks: Any) -> ModuleType:
    """A module with these hooks."""
    plugin = ModuleType("made")
    vars(plugin).update({name: hookimpl(function) for name, function in hooks.items()})
    return plugin


def registered(component: type, kind: str) -> list[str]:
    """Names after registering a plugin with this component, and one by another name."""

    def register_them(register: Any) -> None:
        register(component)
        register(component, name="other")

    register_them.__name__ = KINDS[kind]
    alone = Host()
    alone.register(made(**{KINDS[kind]: register_them}), Source("made"))
    assert alone.hooks() == [(Source("made"), [KINDS[kind]])]
    return sorted(alone.components[kind])


def test_hook_register_scorers() -> None:
    assert registered(GoodScorer, "scorer") == ["margin", "other"]


def test_hook_register_filters() -> None:
    assert registered(GoodFilter, "filter") == ["brevity", "other"]


def test_hook_register_optimizers() -> None:
    assert registered(GoodOptimizer, "optimizer") == ["other", "wordings"]


@dataclass
class Echo(Generator):
    """Completes a prompt with itself."""

    name: ClassVar[str] = "echo"

    def describe(self) -> dict[str, Any]:
        return {"kind": "echo"}

    def generate(self, prompts: Any, n: int, **_: Any) -> Any:
        return [[Completion(str(prompt)) for _ in range(n)] for prompt in prompts]


def test_hook_register_generators() -> None:
    assert registered(Echo, "generator") == ["echo", "other"]


@contextmanager
def observing(**hooks: Any) -> Iterator[None]:
    """These hooks, registered with the host that everybody uses."""
    plugin = made(**hooks)
    host().register(plugin, Source("observer"))
    try:
        yield
    finally:
        host().manager.unregister(plugin)


def test_hook_per_example_loss() -> None:
    asked = []

    def per_example_loss(model: Any, batch: Any) -> Any:
        asked.append(len(batch["labels"]))
        return torch.full((len(batch["labels"]),), 7.0), torch.ones(len(batch["labels"]))

    with observing(per_example_loss=per_example_loss):
        scores = attribute(tiny.bert().eval(), tiny.encoded(5), None, "loss")
    assert scores.values.tolist() == [-7.0] * 5
    assert sum(asked) >= 5


def test_hook_after_scoring() -> None:
    heard: list[Any] = []
    with observing(after_scoring=lambda scores: heard.append(scores)):
        found = attribute(tiny.bert().eval(), tiny.encoded(4), None, GoodScorer())
    assert heard == [found]


def test_hook_after_selection() -> None:
    heard: list[Any] = []
    data = Dataset.from_dict({"value": [0.1, 0.9, 0.5]})
    with observing(after_selection=lambda dataset, kept, by: heard.append((dataset, kept, by))):
        select(data, "value", k=2)
    assert heard == [(data, [1, 2], "column 'value'")]


def test_hook_after_trial() -> None:
    heard: list[Any] = []
    with observing(after_trial=lambda trial: heard.append(trial.candidate.instruction)):
        trainer(Listed(candidates(2)), leaders=0).train()
    assert heard == ["instruction 0", "instruction 1"]


# -- tracing


def test_tracing_prints_calls_and_results_cut(capsys: Any) -> None:
    alone = Host()
    alone.register(made(per_example_loss=lambda model, batch: ("x" * 999, 3)), Source("long"))
    stop = alone.trace()
    alone.hook.per_example_loss(model="a model", batch={})
    stop()
    alone.hook.per_example_loss(model="another", batch={})
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert "per_example_loss [hook]" in lines[0]
    assert any("model: 'a model'" in line for line in lines)
    assert any("finish per_example_loss --> ('xxx" in line and line.endswith("...") for line in lines)
    assert max(map(len, lines)) <= 160
    assert "another" not in err


@pytest.mark.parametrize("value", ["0", ""])
def test_tracing_is_off_unless_it_is_asked_for(value: str, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("HFDATAOPT_TRACE", value)
    select(Dataset.from_dict({"value": [1.0, 2.0]}), "value", k=1)
    assert "[hook]" not in capsys.readouterr().err
