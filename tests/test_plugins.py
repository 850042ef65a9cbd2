"""The host: plugins are loaded in isolation, keep their provenance, and break the contract only with a clear error."""

import ast
import inspect
import os
import subprocess
import sys
import types
import warnings
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import hfdataopt
from hfdataopt import Filter, plugins
from hfdataopt.attribution.scorer import Scorer
from hfdataopt.errors import OptionError, PluginError
from hfdataopt.hookspecs import hookimpl
from hfdataopt.plugins import Host, PluginWarning, Source, get_scorer


@dataclass
class Example(Scorer):
    name: ClassVar[str] = "example"
    needs_queries: ClassVar[bool] = False

    size: int = 1
    parts: list[str] = field(default_factory=list)

    def score(self, view: Any) -> Any:
        return np.arange(len(view.pool), dtype=float)


def scorer(name: str, **namespace: Any) -> type:
    """A scorer class of that name."""
    return dataclass(type("Made", (Scorer,), {"name": name, "__module__": __name__, **namespace}))


def module(**names: Any) -> types.ModuleType:
    """A module with these names in it."""
    made = types.ModuleType("made")
    vars(made).update(names)
    return made


def plugin(*components: Any, kind: str = "scorer", **names: Any) -> types.ModuleType:
    """A plugin that registers these components."""

    def register_them(register):
        for component in components:
            register(component, **names)

    register_them.__name__ = plugins.KINDS[kind]
    return module(**{plugins.KINDS[kind]: hookimpl(register_them)})


@dataclass(frozen=True)
class Entry:
    """What importlib.metadata gives for an entry point, as far as the host looks."""

    name: str
    loads: Any
    distribution: str | None = None
    version: str = "1.0"

    @property
    def dist(self) -> Any:
        return self.distribution and types.SimpleNamespace(name=self.distribution, version=self.version)

    def load(self) -> Any:
        if isinstance(self.loads, BaseException):
            raise self.loads
        return self.loads


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    monkeypatch.delenv("HFDATAOPT_PLUGINS", raising=False)
    monkeypatch.delenv("HFDATAOPT_DISABLE", raising=False)


def load(*entries: Entry) -> Host:
    """A host with these entry points; a warning is an error."""
    host = Host()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        host.load_entry_points(entries)
    return host


def names_of(host: Host) -> list[str]:
    return [f"{c.kind}/{c.name}" for c in host.all_components()]


# -- isolation and provenance


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModuleNotFoundError("No module named 'absent'"), "ModuleNotFoundError: No module named 'absent'"),
        (SystemExit(3), "SystemExit: 3"),
        (SyntaxError("bad"), "SyntaxError: bad"),
    ],
)
def test_a_broken_plugin_is_reported_and_the_rest_load(error, reason):
    host = Host()
    with pytest.warns(PluginWarning, match=r"'broken' \(acme 2\.1\) was not loaded: ") as caught:
        host.load_entry_points(
            [
                Entry("one", plugin(scorer("one")), "a"),
                Entry("broken", error, "acme", "2.1"),
                Entry("two", plugin(scorer("two")), "b"),
            ]
        )
    assert len(caught) == 1
    assert names_of(host) == ["scorer/one", "scorer/two"]
    (failure,) = host.failures
    assert failure.source == Source("broken", "acme", "2.1")
    assert failure.reason == reason
    assert "Traceback" in failure.details


def test_an_error_while_registering_is_isolated_too():
    @hookimpl
    def register_scorers(register):
        raise ZeroDivisionError("division by zero")

    host = Host()
    with pytest.warns(PluginWarning, match="ZeroDivisionError: division by zero"):
        host.load_entry_points(
            [
                Entry("bad", module(register_scorers=register_scorers)),
                Entry("good", plugin(scorer("good"))),
            ]
        )
    assert names_of(host) == ["scorer/good"]
    host.manager.check_pending()


def test_components_keep_their_provenance():
    host = load(Entry("entry", plugin(Example), "acme-scorers", "3.2.1"))
    component = host.get("scorer", "example")
    assert component.source == Source("entry", "acme-scorers", "3.2.1")
    assert str(component.source) == "'entry' (acme-scorers 3.2.1)"
    assert component.cls is Example


def test_entry_points_of_one_name_from_two_distributions_both_load():
    host = load(Entry("same", plugin(scorer("one")), "a"), Entry("same", plugin(scorer("two")), "b"))
    assert names_of(host) == ["scorer/one", "scorer/two"]


def test_one_object_under_two_entry_points_is_named():
    shared = plugin(scorer("one"))
    host = Host()
    with pytest.warns(PluginWarning, match=r"'second' \(b 1\.0\) is the same object as 'a:first'"):
        host.load_entry_points([Entry("first", shared, "a"), Entry("second", shared, "b")])
    assert names_of(host) == ["scorer/one"]


def test_a_plugin_may_register_several_components_under_given_names():
    host = Host()
    host.register(plugin(Example, name="renamed"), Source("first"))
    assert names_of(host) == ["scorer/renamed"]
    host.register(plugin(scorer("a"), scorer("b")), Source("second"))
    assert names_of(host) == ["scorer/a", "scorer/b", "scorer/renamed"]


def test_other_peoples_hooks_and_plain_names_are_left_alone():
    host = Host()
    host.register(module(register_everything=lambda: None, hookimpl=hookimpl))
    assert names_of(host) == []


# -- allow list and block list

THREE = [
    Entry("one", plugin(scorer("one")), "first"),
    Entry("two", plugin(scorer("two")), "second"),
    Entry("three", plugin(scorer("three")), "second"),
]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, {"one", "two", "three"}),
        ({"HFDATAOPT_PLUGINS": "one"}, {"one"}),
        ({"HFDATAOPT_PLUGINS": " one , three,"}, {"one", "three"}),
        ({"HFDATAOPT_PLUGINS": "second"}, {"two", "three"}),
        ({"HFDATAOPT_PLUGINS": ""}, set()),
        ({"HFDATAOPT_DISABLE": "two"}, {"one", "three"}),
        ({"HFDATAOPT_DISABLE": "second"}, {"one"}),
        ({"HFDATAOPT_DISABLE": ""}, {"one", "two", "three"}),
        ({"HFDATAOPT_PLUGINS": "second", "HFDATAOPT_DISABLE": "two"}, {"three"}),
    ],
)
def test_allow_list_and_block_list(monkeypatch, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    host = load(*THREE)
    assert {c.name for c in host.all_components()} == expected
    assert {source.plugin for source in host.blocked} == {"one", "two", "three"} - expected


def test_a_blocked_plugin_is_not_imported(monkeypatch):
    monkeypatch.setenv("HFDATAOPT_DISABLE", "broken")
    assert load(Entry("broken", ImportError("never"))).failures == []


@pytest.mark.parametrize("variable", ["HFDATAOPT_PLUGINS", "HFDATAOPT_DISABLE"])
def test_an_unknown_name_in_a_list_is_warned_about(monkeypatch, variable):
    monkeypatch.setenv(variable, "one,onee")
    host = Host()
    with pytest.warns(PluginWarning, match=f"{variable} names 'onee', but no such plugin is installed"):
        host.load_entry_points(THREE)
    assert len(host.unknown) == 1


def test_what_is_switched_off_is_said_when_it_is_asked_for(monkeypatch):
    monkeypatch.setenv("HFDATAOPT_DISABLE", "two")
    with pytest.raises(
        PluginError, match=r"switched off by HFDATAOPT_PLUGINS or HFDATAOPT_DISABLE: 'two' \(second 1\.0\)"
    ):
        load(*THREE).get("scorer", "two")


# -- breaking the contract


def test_a_name_clash_names_both_parties_and_neither_is_taken():
    host = Host()
    with pytest.warns(PluginWarning, match="was not loaded"):
        host.load_entry_points(
            [Entry("one", plugin(scorer("same")), "acme", "1.0"), Entry("two", plugin(scorer("same")), "globex", "2.0")]
        )
    with pytest.raises(PluginError) as caught:
        host.get("scorer", "same")
    message = str(caught.value)
    assert "'one' (acme 1.0)" in message
    assert "'two' (globex 2.0)" in message
    assert "HFDATAOPT_DISABLE=two (or one)" in message


def test_a_clash_of_entry_points_of_one_name_is_settled_by_distribution():
    host = Host()
    with pytest.warns(PluginWarning, match=r"HFDATAOPT_DISABLE=globex \(or acme\)"):
        host.load_entry_points(
            [Entry("same", plugin(scorer("same")), "acme"), Entry("same", plugin(scorer("same")), "globex")]
        )


def test_across_kinds_a_name_may_repeat():
    made = dataclass(frozen=True)(type("Made", (Filter,), {"name": "random", "__module__": __name__}))
    host = load(Entry("one", plugin(scorer("random")), "a"), Entry("two", plugin(made, kind="filter"), "b"))
    assert names_of(host) == ["scorer/random", "filter/random"]


def hooks(**functions: Any) -> types.ModuleType:
    return module(**{name: hookimpl(function) for name, function in functions.items()})


@pytest.mark.parametrize(
    ("broken", "parts"),
    [
        (hooks(register_scorer=lambda register: None), ["'register_scorer'", "did you mean 'register_scorers'?"]),
        (hooks(xyz=lambda: None), ["'xyz'", "Hooks of hfdataopt: after_scoring, "]),
        (
            hooks(register_scorers=lambda registry: None),
            ["'register_scorers'", "definition: <lambda>(registry)", "{'registry'}"],
        ),
        (
            hooks(after_scoring=lambda scores, extra: None),
            ["'after_scoring'", "definition: <lambda>(scores, extra)", "{'extra'}"],
        ),
        (module(register_scorers=lambda register: None), ["register_scorers", "@hfdataopt.hookimpl"]),
        (Example, ["class Example"]),
        (plugin(Example(size=2)), ["Example(size=2", "the class, not an instance"]),
        (plugin(type("Plain", (Scorer,), {"name": "plain"})), ["Plain", "@dataclass"]),
        (plugin(dataclass(type("Other", (), {"name": "other"}))), ["'other'", "hfdataopt.attribution.scorer.Scorer"]),
        (plugin(scorer("Upper")), ["'Upper'", "lower-case words joined by dashes"]),
        (plugin(scorer("under_score")), ["'under_score'", "lower-case words joined by dashes"]),
        (plugin(scorer("-dash")), ["'-dash'"]),
        (plugin(scorer("")), ["''"]),
        (plugin(Scorer), ["None", "set the class attribute `name`"]),
        (
            plugin(scorer("words", __annotations__={"queries": int, "when": int}, queries=1, when=2)),
            ["['queries', 'when']", "rename the fields"],
        ),
    ],
)
def test_a_broken_plugin_gets_an_error_that_names_it(broken, parts):
    host = Host()
    with pytest.raises(PluginError) as caught:
        host.register(broken, Source("entry", "acme", "2.0"))
    assert "'entry' (acme 2.0)" in str(caught.value)
    for part in parts:
        assert part in str(caught.value)
    assert names_of(host) == []
    assert not host.manager.get_plugins()


def test_every_argument_of_attribute_and_of_the_callback_is_reserved():
    from hfdataopt import AttributionCallback, attribute

    taken = {*inspect.signature(attribute).parameters, *inspect.signature(AttributionCallback.__init__).parameters}
    assert taken - {"self", "options", "scorer_options"} == plugins.RESERVED["scorer"]


def test_every_argument_of_select_and_every_method_of_a_filter_is_reserved():
    from hfdataopt import get_filter, select
    from hfdataopt.selection.filter import WholeFilter

    taken = {*inspect.signature(select).parameters, *inspect.signature(get_filter).parameters} - {
        "name",
        "options",
        "seed",
        "rule",
        "edited",  # handed on to the filter `scores`
    }
    methods = {name for name in dir(WholeFilter) if not name.startswith("_")} - {f.name for f in fields(WholeFilter)}
    facts = {"name", "meaning", "needs_target", "streams", "draws", "no_score"}
    assert taken | (methods - facts) == plugins.RESERVED["filter"]
    made = dataclass(frozen=True)(
        type(
            "Made", (Filter,), {"name": "own", "target": 1, "__annotations__": {"target": int}, "__module__": __name__}
        )
    )
    with pytest.raises(
        PluginError, match=r"the options \['target'\]; these words belong to hfdataopt: rename the fields"
    ):
        Host().register(plugin(made, kind="filter"), Source("first"))


def test_a_plugin_registers_all_of_its_components_or_none():
    host = Host()
    host.register(plugin(scorer("taken")), Source("first"))
    with pytest.raises(PluginError, match="'taken'"):
        host.register(plugin(scorer("fresh"), scorer("taken")), Source("second"))
    assert names_of(host) == ["scorer/taken"]
    host.register(plugin(scorer("fresh")), Source("second"))  # nothing of the refused plugin is left behind
    assert names_of(host) == ["scorer/fresh", "scorer/taken"]


# -- asking by name


def test_an_unknown_name_lists_what_exists_and_what_failed():
    host = Host()
    with pytest.warns(PluginWarning):
        host.load_entry_points(
            [Entry("good", plugin(Example), "acme"), Entry("bad", ImportError("no module named zzz"), "globex", "0.9")]
        )
    with pytest.raises(PluginError) as caught:
        host.get("scorer", "exmple")
    message = str(caught.value)
    assert "no scorer is called 'exmple' (did you mean 'example'?); there are: example" in message
    assert "plugin 'bad' (globex 0.9) failed to load: ImportError: no module named zzz" in message
    with pytest.raises(PluginError, match="there are: none"):
        host.get("filter", "example")


def test_an_unknown_option_names_the_plugin_and_what_it_accepts():
    host = load(Entry("entry", plugin(Example), "acme"))
    assert host.create("scorer", "example", size=3) == Example(3)
    with pytest.raises(OptionError) as caught:
        host.create("scorer", "example", sise=3)
    assert str(caught.value) == (
        "scorer 'example' of plugin 'entry' (acme 1.0) has no option 'sise' (did you mean 'size'?); it accepts: size, parts"
    )
    with pytest.raises(OptionError, match="size='3' is not allowed; it takes int"):
        host.create("scorer", "example", size="3")


def test_a_missing_option_is_named():
    host = load(Entry("entry", plugin(scorer("needs", __annotations__={"size": int})), "acme"))
    with pytest.raises(OptionError, match=r"scorer 'needs' of plugin 'entry' \(acme 1\.0\) needs the option 'size'"):
        host.create("scorer", "needs")


def test_get_scorer_takes_the_installed_plugins():
    assert get_scorer("random", seed=4).seed == 4
    with pytest.raises(PluginError, match=r"no scorer is called 'freeshapp' \(did you mean 'freeshap'\?\)"):
        get_scorer("freeshapp")


# -- the host knows no method

SOURCES = sorted(Path(hfdataopt.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(SOURCES[0].parent)))
def test_the_host_never_imports_the_methods(path):
    for node in ast.walk(ast.parse(path.read_text())):
        imported = []
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported = [node.module or ""]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            imported = [node.value]  # importlib.import_module("...")
        assert not any(name.startswith("hfdataopt_plugins") for name in imported), f"{path}:{node.lineno}"


def test_with_the_methods_blocked_the_host_still_works(tmp_path):
    """In a process of its own: the tables are empty, and a scorer built by hand scores."""
    code = """
import sys, dataclasses, torch, transformers, datasets
torch.set_num_threads(1)
import hfdataopt
from hfdataopt.plugins import host
assert host().all_components() == [] and len(host().blocked) >= 10
try:
    hfdataopt.get_scorer("freeshap")
except Exception as error:
    assert "there are: none" in str(error) and "switched off" in str(error), error
else:
    raise AssertionError("found")
@dataclasses.dataclass
class Length(hfdataopt.PointwiseScorer):
    name = "length"
    def score_batch(self, model, batch):
        return batch["attention_mask"].sum(1)
config = transformers.BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
model = transformers.BertForSequenceClassification(config)
pool = datasets.Dataset.from_dict({"input_ids": [[1, 2], [3, 4, 5], [6]], "label": [0, 1, 0]})
print(hfdataopt.attribute(model, pool, None, Length()).values.tolist())
assert not any(name.startswith("hfdataopt_plugins") for name in sys.modules)
"""
    environment = {**os.environ, "HFDATAOPT_PLUGINS": "", "HFDATAOPT_QUIET": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[2.0, 3.0, 1.0]"


# -- a third party's distribution

MODULE = '''
"""A scorer of a third party."""
from dataclasses import dataclass
from typing import ClassVar

import hfdataopt


@dataclass
class Shortest(hfdataopt.PointwiseScorer):
    """Minus the number of tokens."""

    name: ClassVar[str] = "shortest"
    power: float = 1.0

    def score_batch(self, model, batch):
        return -batch["attention_mask"].sum(1) ** self.power


@hfdataopt.hookimpl
def register_scorers(register):
    register(Shortest)
'''
PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "shortest-scorer"
version = "7.8"

[project.entry-points.hfdataopt]
shortest = "shortest_scorer"
wrecked = "shortest_scorer_wrecked"

[tool.setuptools]
py-modules = ["shortest_scorer", "shortest_scorer_wrecked"]
"""


@pytest.fixture(scope="module")
def third_party(tmp_path_factory) -> Path:
    """The folder where a third party's distribution is installed by pip."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "shortest_scorer.py").write_text(MODULE)
    (source / "shortest_scorer_wrecked.py").write_text("import a_package_that_is_not_there\n")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-build-isolation", "--no-index", "--target", str(target), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return target


def run_cli(*arguments: str, path: Path, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(path), **variables}
    return subprocess.run(
        [sys.executable, "-m", "hfdataopt.cli", *arguments], capture_output=True, text=True, env=environment, cwd=path
    )


def test_a_third_partys_plugin_is_listed_by_the_command_line(third_party):
    done = run_cli("plugins", "--options", "--traceback", path=third_party)
    lines = done.stdout.splitlines()
    (place,) = [
        i
        for i, line in enumerate(lines)
        if " ".join(line.split()) == "scorer/shortest 'shortest' (shortest-scorer 7.8)"
    ]
    assert lines[place + 1].split()[-1] == "power"
    assert any(line.startswith("scorer/freeshap ") for line in lines)
    assert (
        "FAILED 'wrecked' (shortest-scorer 7.8): ModuleNotFoundError: No module named 'a_package_that_is_not_there'"
        in lines
    )
    assert done.returncode == 1, "a plugin failed to load"
    assert "Traceback" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_third_partys_plugin_can_be_switched_off(third_party):
    done = run_cli("plugins", path=third_party, HFDATAOPT_DISABLE="shortest-scorer,nobody")
    assert done.returncode == 0, done.stderr
    assert "scorer/shortest" not in done.stdout
    assert "switched off: 'shortest' (shortest-scorer 7.8)" in done.stdout
    assert "WARNING HFDATAOPT_DISABLE names 'nobody', but no such plugin is installed" in done.stdout
