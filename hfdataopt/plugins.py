"""Finds plugins, loads each in isolation, and keeps a table ``kind -> name -> Component`` with provenance.

Plugins are entry points of the group ``hfdataopt``; the methods that ship with the package enter by the same door.
pluggy's own loader is not used: it skips a second entry point of the same name silently, and one failing import stops
all. ``HFDATAOPT_PLUGINS`` is an allow list and ``HFDATAOPT_DISABLE`` a block list: comma-separated names of entry points
or distributions. ``HFDATAOPT_TRACE=1`` prints hook calls to stderr.
"""

import dataclasses
import difflib
import functools
import importlib
import importlib.metadata
import inspect
import itertools
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pluggy

from hfdataopt import hookspecs
from hfdataopt.errors import OptionError, PluginError, frame_of, module_of, place_of
from hfdataopt.options import option_names

GROUP = "hfdataopt"
PACKAGE = "hfdataopt"  # the distribution whose plugins are its own
KINDS = {
    "scorer": "register_scorers",
    "filter": "register_filters",
    "optimizer": "register_optimizers",
    "generator": "register_generators",
}
# An option of such a name could never be reached.
RESERVED = {
    # of `attribute` and `AttributionCallback`
    "scorer": {
        *("model", "pool", "queries", "scorer", "checkpoints", "processing_class", "data_collator"),
        *("batch_size", "output_dir", "trainer", "when", "query_group", "aggregate"),
    },
    # of `get_filter` and `select`, and methods that a field of that name would replace
    "filter": {
        *("keep", "dataset", "by", "target", "fraction", "k", "threshold", "return_summary"),
        *("reads", "learn", "score", "scores", "vectors", "fit", "learned", "fitted", "set", "batch", "columns"),
        *("score_column", "score_all"),
    },
    # methods and state that a field of that name would replace
    "optimizer": {
        *("task", "trials", "votes", "needs", "feedback", "experimental", "start", "ask", "tell", "forget"),
        *("best", "leaders", "mistakes", "model"),
    },
}
BASES = {
    "scorer": "hfdataopt.attribution.scorer:Scorer",
    "filter": "hfdataopt.selection.filter:Filter",
    "optimizer": "hfdataopt.prompting.optimizer:PromptOptimizer",
    "generator": "hfdataopt.generation.generator:Generator",
}  # what a component of that kind must inherit from
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
TRACED = 12  # lines of a traced hook call, at most


class PluginWarning(UserWarning):
    """A plugin was found but could not be loaded; everything else works."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a plugin comes from: the entry point's name, its distribution and version."""

    plugin: str
    distribution: str = "unknown"
    version: str = ""

    def __str__(self) -> str:
        return f"{self.plugin!r} ({' '.join(filter(None, (self.distribution, self.version)))})"


@dataclasses.dataclass(frozen=True)
class Component:
    """One registered class: its kind, name, and the plugin that registered it."""

    kind: str
    name: str
    cls: type
    source: Source

    @property
    def options(self) -> list[str]:
        return option_names(self.cls)

    @property
    def experimental(self) -> str:
        """What was not shown of it yet; empty where nothing is known to be missing."""
        return getattr(self.cls, "experimental", "")

    def create(self, /, **options: Any) -> Any:
        """An instance with these hyperparameters; an unknown one is an error that lists those accepted."""
        for option in options:
            if option not in self.options:
                near = difflib.get_close_matches(option, self.options, n=1)
                raise OptionError(
                    f"{self.kind} {self.name!r} of plugin {self.source} has no option {option!r}"
                    + (f" (did you mean {near[0]!r}?)" if near else "")
                    + f"; it accepts: {', '.join(self.options) or 'none'}"
                )
        missing = [
            field.name
            for field in dataclasses.fields(self.cls)
            if field.init
            and field.default is field.default_factory is dataclasses.MISSING
            and field.name not in options
        ]
        if missing:
            raise OptionError(f"{self.kind} {self.name!r} of plugin {self.source} needs the option {missing[0]!r}")
        return self.cls(**options)


@dataclasses.dataclass(frozen=True)
class Failure:
    """A plugin that was not loaded: which one, why, and the traceback for its author."""

    source: Source
    reason: str
    details: str = ""


class Host:
    """The plugin manager and the tables of components. ``host()`` gives the one with all installed plugins."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(hookspecs.PROJECT)
        self.manager.add_hookspecs(hookspecs)
        self.components: dict[str, dict[str, Component]] = {kind: {} for kind in KINDS}
        self.failures: list[Failure] = []
        self.blocked: list[Source] = []
        self.sources: dict[str, Source] = {}  # of the registered plugins, by their name in the manager
        self.unknown: list[str] = []  # names in the two variables that no installed plugin has
        self._clashes: dict[tuple[str, str], str] = {}

    @property
    def hook(self) -> Any:
        """The hook callers, for example ``host().hook.after_scoring(scores=scores)``."""
        return self.manager.hook

    # -- loading

    def load_entry_points(self, entry_points: Iterable[Any] | None = None) -> None:
        """Load every allowed entry point; one that fails is recorded in ``failures`` and warned about, the rest load."""
        found = list(importlib.metadata.entry_points(group=GROUP)) if entry_points is None else list(entry_points)
        allowed, blocked = _names_in("HFDATAOPT_PLUGINS"), _names_in("HFDATAOPT_DISABLE") or set()
        known = {name for entry in found for name in (entry.name, _source_of(entry).distribution)}
        for variable, names in (("HFDATAOPT_PLUGINS", allowed or set()), ("HFDATAOPT_DISABLE", blocked)):
            for name in sorted(names - known):
                self.unknown.append(f"{variable} names {name!r}, but no such plugin is installed")
                warnings.warn(self.unknown[-1], PluginWarning, stacklevel=2)
        for entry in found:
            source = _source_of(entry)
            names = {entry.name, source.distribution}
            if names & blocked or (allowed is not None and not names & allowed):
                self.blocked.append(source)
                continue
            try:
                self.register(entry.load(), source)
            except (Exception, SystemExit) as error:  # one broken plugin must not stop the others
                reason = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
                self.failures.append(Failure(source, reason, traceback.format_exc()))
                warnings.warn(f"plugin {source} was not loaded: {reason}", PluginWarning, stacklevel=2)

    def register(self, plugin: Any, source: Source | None = None) -> None:
        """Register one plugin object (usually a module) and the components it offers, all of them or none.

        Raises:
            PluginError: an unknown hook, a wrong signature, or a component that is malformed or whose name is taken.
        """
        source = source or Source(getattr(plugin, "__name__", type(plugin).__name__), "registered by hand")
        if isinstance(plugin, type):
            raise PluginError(f"plugin {source} is the class {plugin.__name__}; register a module or an instance of it")
        self._check_hook_names(plugin, source)
        if self.manager.is_registered(plugin):
            other = self.manager.get_name(plugin)
            raise PluginError(f"plugin {source} is the same object as {other!r}, which is registered already")
        try:
            self.manager.register(plugin, name=f"{source.distribution}:{source.plugin}")
        except pluggy.PluginValidationError as error:
            raise PluginError(f"plugin {source}: {error}") from error
        except ValueError as error:
            raise PluginError(
                f"plugin {source}: another plugin of that name and distribution is registered already; rename one of them"
            ) from error
        before = {kind: dict(table) for kind, table in self.components.items()}
        try:
            others = [other for other in self.manager.get_plugins() if other is not plugin]
            for kind, hook in KINDS.items():
                register = functools.partial(self._add, kind, source)
                self.manager.subset_hook_caller(hook, remove_plugins=others)(register=register)
        except Exception:
            self.components = before
            self.manager.unregister(plugin)
            raise
        self.sources[f"{source.distribution}:{source.plugin}"] = source

    def _check_hook_names(self, plugin: Any, source: Source) -> None:
        known = [name for name, value in vars(hookspecs).items() if hasattr(value, f"{hookspecs.PROJECT}_spec")]
        for name in dir(plugin):
            options = self.manager.parse_hookimpl_opts(plugin, name)
            if options is None and name in known and inspect.isroutine(getattr(plugin, name)):
                raise PluginError(
                    f"plugin {source} defines {name} without marking it; write @hfdataopt.hookimpl above it"
                )
            hook = (options and options.get("specname")) or name
            if options is None or hook in known or options.get("optionalhook"):
                continue
            near = difflib.get_close_matches(hook, known, n=1)
            raise PluginError(
                f"plugin {source} implements the hook {hook!r}, which hfdataopt does not have"
                + (f"; did you mean {near[0]!r}?" if near else "")
                + f" Hooks of hfdataopt: {', '.join(sorted(known))}"
            )

    def _add(self, kind: str, source: Source, cls: type, *, name: str | None = None) -> None:
        name = name if name is not None else getattr(cls, "name", None)
        who = f"plugin {source} registers the {kind} {name!r}"
        if not isinstance(cls, type):
            raise PluginError(f"{who} as the object {cls!r}; register the class, not an instance")
        if "__dataclass_fields__" not in vars(cls):
            raise PluginError(f"{who} as {cls.__name__}, which is not a dataclass; write @dataclass above the class")
        module, _, base = BASES.get(kind, "builtins:object").partition(":")
        if not issubclass(cls, getattr(importlib.import_module(module), base)):
            raise PluginError(f"{who} as {cls.__name__}, which does not inherit from {module}.{base}")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise PluginError(f"{who}; a name is lower-case words joined by dashes: set the class attribute `name`")
        clash = RESERVED.get(kind, set()) & set(option_names(cls))
        if clash:
            raise PluginError(
                f"{who} with the options {sorted(clash)}; these words belong to hfdataopt: rename the fields"
            )
        taken = self.components[kind].get(name)
        if taken is not None:
            names = [
                (s.plugin if source.plugin != taken.source.plugin else s.distribution) for s in (source, taken.source)
            ]
            self._clashes[kind, name] = (
                f"{who}, but plugin {taken.source} has that name already; rename one of them, or switch one off with "
                f"HFDATAOPT_DISABLE={names[0]} (or {names[1]})"
            )
            raise PluginError(self._clashes[kind, name])
        self.components[kind][name] = Component(kind, name, cls, source)

    # -- use

    def get(self, kind: str, name: str) -> Component:
        """The component of that kind and name.

        Raises:
            PluginError: nobody registered the name (the message lists what exists, what failed to load and what is
                switched off), or two plugins did: which of them came first is chance, so neither is taken.
        """
        table = self.components[kind]
        if not isinstance(name, str):
            raise PluginError(
                f"the name of a {kind} is a text, such as {min(table, default='mine')!r}; got {name!r:.200}"
            )
        if (kind, name) in self._clashes:
            raise PluginError(self._clashes[kind, name])
        if name in table:
            return table[name]
        near = difflib.get_close_matches(str(name), table, n=1)
        message = f"no {kind} is called {name!r}" + (f" (did you mean {near[0]!r}?)" if near else "")
        message += f"; there are: {', '.join(sorted(table)) or 'none'}"
        for failure in self.failures:
            message += f"\nplugin {failure.source} failed to load: {failure.reason}"
        if self.blocked:
            message += f"\nswitched off by HFDATAOPT_PLUGINS or HFDATAOPT_DISABLE: {', '.join(map(str, self.blocked))}"
        raise PluginError(message)

    def create(self, kind: str, name: str, /, **options: Any) -> Any:
        return self.get(kind, name).create(**options)

    def all_components(self) -> list[Component]:
        return [table[name] for table in self.components.values() for name in sorted(table)]

    def hooks(self) -> list[tuple[Source, list[str]]]:
        """Every registered plugin, and the hooks it implements."""
        found = []
        for name, source in self.sources.items():
            plugin = self.manager.get_plugin(name)
            if plugin is not None:
                callers = self.manager.get_hookcallers(plugin) or []
                found.append((source, sorted(caller.name for caller in callers)))
        return found

    def trace(self) -> Callable[[], None]:
        """Print every hook call, its arguments and its result to stderr, until what is returned is called."""
        self.manager.trace.root.setwriter(_write_trace)
        return self.manager.enable_tracing()


def author_of(error: BaseException) -> tuple[Source | None, str]:
    """The plugin in whose own code an error was raised, and where; ``(None, "")`` where it was in hfdataopt's, or in none.

    hfdataopt's own plugins are not told: what they raise is a fault of this package.
    """
    if not host.cache_info().currsize:  # no plugin is loaded
        return None, ""
    loaded = host()
    named = {getattr(loaded.manager.get_plugin(name), "__name__", ""): one for name, one in loaded.sources.items()}
    packages = {module.partition(".")[0] for module, one in named.items() if one.distribution != PACKAGE} - {""}
    frame = frame_of(error, lambda module: module.partition(".")[0] in packages)
    if frame is None:
        return None, ""
    module = module_of(frame[0])
    near = max(named, key=lambda name: _shared(name, module))
    return named[near], place_of(frame)


def _shared(one: str, other: str) -> int:
    """With how many equal packages two names of modules begin."""
    pairs = zip(one.split("."), other.split("."), strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _write_trace(text: str) -> None:
    """pluggy's own lines, each cut: arguments may be whole models."""
    for line in [one for one in text.splitlines() if one.strip()][:TRACED]:
        print(line if len(line) <= 160 else f"{line[:157]}...", file=sys.stderr)


def _names_in(variable: str) -> set[str] | None:
    value = os.environ.get(variable)
    return None if value is None else {name.strip() for name in value.split(",") if name.strip()}


def _source_of(entry: Any) -> Source:
    distribution = getattr(entry, "dist", None)
    return Source(entry.name, distribution.name, distribution.version) if distribution else Source(entry.name)


@functools.cache
def host() -> Host:
    """The host with every installed plugin, loaded once per process."""
    loaded = Host()
    loaded.load_entry_points()
    if os.environ.get("HFDATAOPT_TRACE", "") not in ("", "0"):
        loaded.trace()
    return loaded


def get_scorer(name: str, **options: Any) -> Any:
    """The scorer of that name with these options, for example ``get_scorer("freeshap", permutations=500)``.

    Raises:
        PluginError: no plugin offers it; the message lists what exists and which plugins failed to load.
        OptionError: it has no such option, or the value is not allowed.
    """
    return host().create("scorer", name, **options)


def get_generator(name: str, **options: Any) -> Any:
    """The text generator of that name with these options, for example ``get_generator("transformers", model="my/model")``.

    Raises:
        PluginError, OptionError: as :func:`get_scorer`.
    """
    return host().create("generator", name, **options)


def get_filter(name: str, *, keep: Any = None, **options: Any) -> Any:
    """The filter of that name with these options, for example ``get_filter("dsir", keep=top(fraction=0.05))``.

    Args:
        keep: a rule of :mod:`hfdataopt.selection.rules`: ``top, threshold, quantile, sample, balance, diverse``.

    Raises:
        PluginError, OptionError: as :func:`get_scorer`.
    """
    from hfdataopt.selection.rules import RULES, Rule

    if keep is not None and not isinstance(keep, Rule):
        raise OptionError(
            f"filter {name!r}: keep={keep!r} is no keep rule; there are: {', '.join(RULES)}, e.g. top(fraction=0.1)"
        )
    return host().create("filter", name, **({} if keep is None else {"rule": keep}), **options)


def get_optimizer(name: str, **options: Any) -> Any:
    """The prompt optimizer of that name with these options, for example ``get_optimizer("instinct", pool_size=200)``.

    Raises:
        PluginError, OptionError: as :func:`get_scorer`.
    """
    return host().create("optimizer", name, **options)
