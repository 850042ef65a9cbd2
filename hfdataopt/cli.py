"""The command line: a table of verbs. Each verb is a module with ``add_arguments(parser)`` and ``run(arguments)``.

A new verb is one line in ``VERBS`` and one module in ``hfdataopt/commands``; modules are imported when their verb is used.
"""

import importlib
import os
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence

from hfdataopt.commands.arguments import Parser
from hfdataopt.errors import HfDataOptError

VERBS = {
    "demo": (
        "hfdataopt.commands.demo",
        "find mislabelled rows of a text classifier's training data, from install to report",
    ),
    "evaluate": (
        "hfdataopt.commands.evaluate",
        "measure scores: known label errors, models trained on subsets, on the best rows and without them",
    ),
    "optimize": (
        "hfdataopt.commands.optimize",
        "search for a better prompt by rewards, by a model's preference, or by people's",
    ),
    "plugins": (
        "hfdataopt.commands.plugins",
        "list every installed component, its plugin and options, and what failed to load",
    ),
    "score": ("hfdataopt.commands.score", "score a dataset with a model or with saved checkpoints"),
    "select": ("hfdataopt.commands.select", "keep the rows of a dataset or a stream that a filter ranks best"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status. Errors of ours are one line on stderr and status 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _run(argv)
        sys.stdout.flush()  # here, where a reader that has gone is expected
        return status
    except HfDataOptError as error:
        print(f"hfdataopt{_verb(argv)}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"hfdataopt{_verb(argv)}: interrupted; what is finished is kept, and the same command goes on from it when run again",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:  # the reader of a pipe has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("HFDATAOPT_TRACEBACK", "") not in ("", "0"):
            raise
        print(
            f"hfdataopt{_verb(argv)}: unexpected {type(error).__name__}: {str(error) or 'no message'} "
            "(HFDATAOPT_TRACEBACK=1 shows where; please report it)",
            file=sys.stderr,
        )
        return 1


def _verb(argv: list[str]) -> str:
    return f" {argv[0]}" if argv and argv[0] in VERBS else ""


def _run(argv: list[str]) -> int:
    parser = Parser(
        prog="hfdataopt",
        description="Which training examples, and which prompts, really make a Hugging Face model better.",
        epilog="verbs:\n" + "\n".join(f"  {verb:<10}{help_text}" for verb, (_, help_text) in VERBS.items()),
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
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
    verb_parser = Parser(prog=f"hfdataopt {arguments.verb}", description=help_text)
    command.add_arguments(verb_parser)
    return command.run(verb_parser, argv[1:])


if __name__ == "__main__":
    sys.exit(main())
