"""The command line: a table of verbs. Each verb is a module with ``add_arguments(parser)`` and ``run(arguments)``.

A new verb is one line in ``VERBS`` and one module in ``hfdataopt/commands``; modules are imported when their verb is used.
"""

import errno
import importlib
import os
import sys
import traceback
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence

from hfdataopt.commands.arguments import Parser
from hfdataopt.errors import HfDataOptError, advice_on

VERBS = {
    "check-plugin": (
        "hfdataopt.commands.check_plugin",
        "check that a component, or all of a plugin, keeps the promises of its kind",
    ),
    "demo": (
        "hfdataopt.commands.demo",
        "find mislabelled rows of a text classifier's training data, from install to report",
    ),
    "evaluate": (
        "hfdataopt.commands.evaluate",
        "measure scores: known label errors, models trained on subsets, on the best rows and without them",
    ),
    "new-plugin": (
        "hfdataopt.commands.new_plugin",
        "write a small distribution with a scorer, filter, optimizer or generator of your own, and its test",
    ),
    "optimize": (
        "hfdataopt.commands.optimize",
        "search for a better prompt by rewards, by a model's preference, or by people's",
    ),
    "plugins": (
        "hfdataopt.commands.plugins",
        "list every installed component, its plugin and options, and what failed to load",
    ),
    "report": (
        "hfdataopt.commands.report",
        "write one HTML file about what was scored, selected, tested and searched",
    ),
    "score": ("hfdataopt.commands.score", "score a dataset with a model or with saved checkpoints"),
    "select": ("hfdataopt.commands.select", "keep the rows of a dataset or a stream that a filter ranks best"),
}

STATUS = {
    0: "done",
    1: "something unexpected went wrong (plugins, check-plugin: a plugin failed)",
    2: "a mistake in the command, the data or a file: one line on stderr says which",
    130: "interrupted; the same command goes on where it was stopped",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status (``STATUS``). Every error is one line on stderr."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    trace = "--trace" in argv
    argv = [word for word in argv if word not in ("--debug", "--trace")]
    if not sys.stderr.isatty():  # bars are for people
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    stop = _start_tracing() if trace else None
    parser = Parser(prog=f"hfdataopt{_verb(argv)}")
    parser.debug = debug
    try:
        status = _run(argv, parser)
        sys.stdout.flush()  # here, where a reader that has gone is expected
        return status
    except BrokenPipeError:  # the reader of a pipe has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        status, message = _explain(error, parser)
        print(f"hfdataopt{_verb(argv)}: {message}", file=sys.stderr)
        return status
    finally:
        if stop is not None:
            stop()


def _start_tracing() -> Callable[[], None]:
    from hfdataopt.plugins import host

    return host().trace()


def _explain(error: BaseException, parser: Parser) -> tuple[int, str]:
    """The exit status of an error, and what is said of it, in one line."""
    from hfdataopt.plugins import author_of

    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted; what is finished is kept, and the same command goes on from it when run again"
    message = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
    if isinstance(error, HfDataOptError):
        return 2, parser.spelled(message)
    if isinstance(error, OSError) and error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
    ):  # of datasets' cache, say
        return 2, (
            f"{message}: the disk is full, or a limit of it is reached; free space, or let HF_HOME name a folder on another disk. "
            "What is finished is kept, and the same command goes on from it"
        )
    source, place = author_of(error)
    if source is not None:
        return 1, (
            f"plugin {source} raised {type(error).__name__}: {message or 'no message'} ({place}). "
            f"{advice_on(error) or 'Its author can mend that line'}; --debug shows the traceback"
        )
    return 1, f"unexpected {type(error).__name__}: {message or 'no message'} (--debug shows where; please report it)"


def _table(title: str, entries: dict[str, str]) -> str:
    width = max(map(len, entries)) + 2
    return "\n".join([f"{title}:", *(f"  {name:<{width}}{text}" for name, text in entries.items())])


def _verb(argv: list[str]) -> str:
    return f" {argv[0]}" if argv and argv[0] in VERBS else ""


def _run(argv: list[str], verb_parser: Parser) -> int:
    parser = Parser(
        prog="hfdataopt",
        description="Which training examples, and which prompts, really make a Hugging Face model better.",
        epilog=_table("verbs", {verb: help_text for verb, (_, help_text) in VERBS.items()})
        + "\n\n"
        + _table("exit status", {str(status): text for status, text in STATUS.items()}),
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error (also after the verb)")
    parser.add_argument("--trace", action="store_true", help="print the calls of plugins' hooks (also after the verb)")
    parser.add_argument("verb", nargs="?", choices=VERBS, help="what to do; 'hfdataopt VERB --help' tells more")
    arguments = parser.parse_args(argv[:1])
    if arguments.version:
        from hfdataopt import __version__

        print(__version__)
        return 0
    if arguments.verb is None:
        parser.print_help()
        return 2
    module_name, help_text = VERBS[arguments.verb]
    command = importlib.import_module(module_name)
    verb_parser.description = help_text
    command.add_arguments(verb_parser)
    verb_parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verb_parser.add_argument("--trace", action="store_true", help="print the calls of plugins' hooks to stderr")
    return command.run(verb_parser, argv[1:])


if __name__ == "__main__":
    sys.exit(main())
