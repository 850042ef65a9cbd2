"""What pluggy does, and why hfdataopt does not use its loader. Written against pluggy 1.7.

Not relied on: ``set_blocked``, ``list_plugin_distributions``, historic hooks.
"""

import types

import pluggy
import pytest

WHO = f"pluggy {pluggy.__version__} (written against 1.7)"
spec, impl = pluggy.HookspecMarker("p"), pluggy.HookimplMarker("p")


class Specs:
    @spec
    def collect(self, one, two):
        """A plain hook."""

    @spec(firstresult=True)
    def answer(self, one):
        """The first result wins."""


class Plugin:
    def __init__(self, value):
        self.value = value

    @impl
    def collect(self, one):
        return self.value

    @impl
    def answer(self):
        return self.value


@pytest.fixture
def manager():
    made = pluggy.PluginManager("p")
    made.add_hookspecs(Specs)
    return made


def test_hooks_take_keywords_and_the_last_registered_runs_first(manager):
    for value in (1, None, 2):
        manager.register(Plugin(value))
    assert manager.hook.collect(one=0, two=0) == [2, 1], WHO
    assert manager.hook.answer(one=0) == 2, WHO
    with pytest.raises(TypeError):
        manager.hook.collect(0, 0)


def test_firstresult_without_an_answer_is_none(manager):
    assert manager.hook.answer(one=0) is None, WHO
    manager.register(Plugin(None))
    assert manager.hook.answer(one=0) is None, WHO


def test_an_implementation_with_more_arguments_is_refused_and_not_registered(manager):
    class More:
        @impl
        def collect(self, one, two, three):
            """Takes what the hook does not give."""

    with pytest.raises(pluggy.PluginValidationError, match="three"):
        manager.register(More())
    assert not manager.get_plugins(), WHO


def test_a_misspelt_hook_is_accepted_until_check_pending(manager):
    class Misspelt:
        @impl
        def colect(self):
            """No such hook."""

    manager.register(Misspelt())
    with pytest.raises(pluggy.PluginValidationError, match="colect"):
        manager.check_pending()


def test_a_name_may_be_registered_once(manager):
    manager.register(Plugin(1), name="same")
    with pytest.raises(ValueError, match="same"):
        manager.register(Plugin(2), name="same")
    plugin = Plugin(3)
    manager.register(plugin, name="one")
    with pytest.raises(ValueError, match="one"):
        manager.register(plugin, name="two")


def test_a_subset_caller_leaves_plugins_out(manager):
    one, two = Plugin(1), Plugin(2)
    manager.register(one)
    manager.register(two)
    assert manager.subset_hook_caller("collect", [two])(one=0, two=0) == [1], WHO
    assert manager.hook.collect(one=0, two=0) == [2, 1], WHO


def test_parse_hookimpl_opts_tells_implementations_from_other_names(manager):
    assert manager.parse_hookimpl_opts(Plugin(1), "collect")["specname"] is None, WHO
    assert manager.parse_hookimpl_opts(Plugin(1), "value") is None, WHO


def entry(name, load):
    return types.SimpleNamespace(name=name, group="p", load=load)


@pytest.fixture
def installed(monkeypatch):
    """Make pluggy find two distributions."""

    def install(*entries):
        distributions = [types.SimpleNamespace(entry_points=[one], metadata={"name": one.name}) for one in entries]
        monkeypatch.setattr("importlib.metadata.distributions", lambda: distributions)

    return install


def test_its_loader_hides_a_second_entry_point_of_the_same_name(manager, installed):
    installed(entry("same", lambda: Plugin(1)), entry("same", lambda: Plugin(2)))
    assert manager.load_setuptools_entrypoints("p") == 1, WHO
    assert manager.hook.collect(one=0, two=0) == [1], WHO


def test_its_loader_lets_one_broken_plugin_stop_all(manager, installed):
    def broken():
        raise ImportError("broken")

    installed(entry("broken", broken), entry("good", lambda: Plugin(2)))
    with pytest.raises(ImportError, match="broken"):
        manager.load_setuptools_entrypoints("p")
    assert manager.hook.collect(one=0, two=0) == [], WHO


def test_properties_of_a_plugin_are_not_executed(manager):
    class Costly(Plugin):
        @property
        def expensive(self):
            raise AssertionError("executed")

    manager.register(Costly(1))
    assert manager.hook.collect(one=0, two=0) == [1], WHO
