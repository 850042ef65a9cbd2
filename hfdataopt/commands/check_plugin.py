"""``hfdataopt check-plugin NAME``: the conformance kit on a component, or on every component of a plugin or distribution."""

import argparse
import difflib
import sys
import warnings
from pathlib import Path
from typing import Any

from hfdataopt.commands.arguments import Parser, add_component_options, component_options, parse_with_component
from hfdataopt.console import quiet
from hfdataopt.errors import OptionError, PluginError, first_line
from hfdataopt.plugins import KINDS, Component, PluginWarning, host


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="of a component, of an entry point, or of a distribution")
    parser.add_argument("--kind", choices=KINDS, help="where a scorer and a filter, say, have the same name")
    parser.add_argument(
        "--expect",
        action="append",
        default=[],
        metavar="CHECK=REASON",
        help="a check that is known to fail, and why; may be given several times",
    )


def run(parser: argparse.ArgumentParser, argv: list[str]) -> int:
    """Print a table of the checks of each component; status 1 if one failed, or the only component could not be checked."""
    early = Parser(prog=parser.prog, add_help=False)
    add_arguments(early)
    if any(word in ("-h", "--help") for word in argv) and argv[0].startswith("-"):
        parser.parse_args(argv)
    given, _ = early.parse_known_args(argv)
    components, failures = _found(given.name, given.kind)
    options: dict[str, Any] = {}
    if len(components) == 1:
        add_component_options(parser, components[0])
        arguments = parse_with_component(parser, argv, components[0])
        options = component_options(components[0], arguments)
    else:
        parser.parse_args(argv)
    for failure in failures:
        print(f"FAILED {failure.source}: {failure.reason}")
    expected = dict(map(_expected, given.expect))
    _check_names(expected, {one.kind for one in components})
    debug = getattr(parser, "debug", False)
    kept = [_check(component, options, expected, debug) for component in components]
    checked = [one for one in kept if one is not None]
    if len(kept) > 1:
        skipped = len(kept) - len(checked)
        more = f"; {skipped} need options, and are checked by name: check-plugin NAME --OPTION VALUE" if skipped else ""
        print(f"{sum(checked)} of {len(checked)} components keep all promises that could be checked{more}")
    unchecked = len(kept) == 1 and not checked  # asked for by its own name
    return 1 if failures or unchecked or not all(checked) else 0


def _found(name: str, kind: str | None) -> tuple[list[Component], list[Any]]:
    """The components of that name, else those of the plugin or distribution; and plugins of it that failed to load."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)  # what they say is printed
        loaded = host()
    every = [one for one in loaded.all_components() if kind in (None, one.kind)]
    failures = [one for one in loaded.failures if name in (one.source.plugin, one.source.distribution)]
    found = [one for one in every if one.name == name]
    if len({one.kind for one in found}) > 1:
        kinds = " and a ".join(one.kind for one in found)
        raise OptionError(f"{name!r} is the name of a {kinds}; say which with --kind")
    found = found or [one for one in every if name in (one.source.plugin, one.source.distribution)]
    if not found and not failures:
        names = {word for one in every for word in (one.name, one.source.distribution)}
        near = difflib.get_close_matches(name, sorted(names), n=1)
        raise PluginError(
            f"no installed {kind or 'component, plugin or distribution'} is called {name!r}"
            + (
                f"; the folder {name} is not installed: run pip install -e {name}"
                if Path(name).is_dir()
                else f" (did you mean {near[0]!r}?)"
                if near
                else "; 'hfdataopt plugins' lists what there is"
            )
        )
    return found, failures


def _expected(text: str) -> tuple[str, str]:
    name, equals, reason = text.partition("=")
    if not equals or not reason.strip():
        raise OptionError(f"--expect {text!r}: write CHECK=REASON, such as 'batch-size=ranks rows of a batch'")
    return name.strip(), reason.strip()


def _check_names(expected: dict[str, str], kinds: set[str]) -> None:
    from hfdataopt.testing.kit import checks_of

    known = {name: None for kind in sorted(kinds) for name in checks_of(kind)}
    for name in expected:
        if name not in known:
            raise OptionError(f"--expect {name}=...: no check is called {name!r}; there are: {', '.join(known)}")


def _check(component: Component, options: dict[str, Any], expected: dict[str, str], debug: bool) -> bool | None:
    """Whether a component keeps its promises; None where it cannot be checked without options."""
    from hfdataopt.testing.kit import checks_of, make_case, run_checks

    mine = {name: reason for name, reason in expected.items() if name in checks_of(component.kind)}
    who = f"{component.kind} {component.name!r} of plugin {component.source}"
    try:
        case = make_case(component.name, component.kind, **options)
        _try(case)
    except OptionError as error:
        print(f"{who}\n  NOT CHECKED, needs options: {first_line(error)}")
        return None
    case.who = f"{component.kind} {component.name!r}"
    report = run_checks(case, mine)
    print(f"{who}{', ' * bool(case.place)}{case.place}\n{str(report).partition(chr(10))[2]}")
    if debug and (raised := report.tracebacks()):
        print(raised, file=sys.stderr)
    return report.passed


def _try(case: Any) -> None:
    """Run it once; an ``OptionError`` says that it does not work with these options."""
    try:
        with quiet():
            case.baseline  # noqa: B018 - it is computed
    except OptionError:
        raise
    except Exception:  # which the checks find, and tell more of
        return
