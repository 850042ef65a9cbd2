"""``hfdataopt plugins``: every component by kind and name with its plugin, the hooks of plugins, and what failed to load."""

import argparse
import warnings

from hfdataopt.plugins import KINDS, PluginWarning, host


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--options", action="store_true", help="also list the options of each component")
    parser.add_argument("--hooks", action="store_true", help="also list the hooks that each plugin implements")
    parser.add_argument("--traceback", action="store_true", help="print the traceback of each plugin that failed")


def run(parser: argparse.ArgumentParser, argv: list[str]) -> int:
    """Print the table; status 1 if a plugin failed to load."""
    arguments = parser.parse_args(argv)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)  # what they say is printed below
        loaded = host()
    components = loaded.all_components()
    width = max((len(f"{c.kind}/{c.name}") for c in components), default=0)
    for component in components:
        note = f"  experimental: {component.experimental}" if component.experimental else ""
        print(f"{f'{component.kind}/{component.name}':<{width}}  {component.source}{note}")
        if arguments.options:
            print(f"{'':<{width}}  {', '.join(component.options) or 'no options'}")
    if not components:
        print("no components: no plugin is installed, or all are blocked")
    for source, hooks in loaded.hooks():
        observes = [hook for hook in hooks if hook not in KINDS.values()]
        if arguments.hooks or observes or not hooks:
            print(f"hooks of {source}: {', '.join(hooks) or 'none; is @hfdataopt.hookimpl missing?'}")
    for source in loaded.blocked:
        print(f"switched off: {source}")
    for message in loaded.unknown:
        print(f"WARNING {message}")
    for failure in loaded.failures:
        print(f"FAILED {failure.source}: {failure.reason}")
        if arguments.traceback:
            print(failure.details)
    return 1 if loaded.failures else 0
