"""``hfdataopt select``: a dataset or a stream reduced to the rows that a filter, scores or a column rank best."""

import argparse
import json
from pathlib import Path
from typing import Any

from hfdataopt.commands.arguments import (
    DATA,
    Parser,
    add_component_options,
    add_config,
    add_dry_run,
    apply_config_file,
    component_options,
    load_rows,
    named_component,
    parse_with_component,
    typed_flags,
    write_rows,
)
from hfdataopt.console import say
from hfdataopt.errors import DataError, OptionError
from hfdataopt.files import write_whole

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", "")
SIZES = ("fraction", "k", "threshold", "quantile")
# A flag -> the rules that take it.
FLAGS = {
    "balance_by": ("balance",),
    "temperature": ("sample",),
    "diverse_method": ("diverse",),
    "diverse_candidates": ("diverse",),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--filter",
        required=True,
        help="name of a filter; 'hfdataopt plugins' lists them, and --filter NAME --help its options",
    )
    add_config(parser, " and the filter's options")
    parser.add_argument("--dataset", required=True, nargs="+", help=f"training data: {DATA}")
    parser.add_argument("--target", nargs="+", help="validation data to compare with, likewise")
    parser.add_argument(
        "--output", required=True, help="where the rows go: .jsonl, .csv, .parquet, or a folder for save_to_disk"
    )
    parser.add_argument("--fraction", type=float, help="keep this share of the rows")
    parser.add_argument("--k", type=int, help="keep this many rows")
    parser.add_argument("--threshold", type=float, help="keep rows with at least this score")
    parser.add_argument("--quantile", type=float, help="keep rows at or above this quantile of the scores")
    parser.add_argument(
        "--rule", choices=("top", "sample", "balance", "diverse"), help="how to keep k or a fraction (default: top)"
    )
    parser.add_argument("--balance_by", help="column whose classes get equally many rows, for --rule balance")
    parser.add_argument("--temperature", type=float, help="of --rule sample (default: 1)")
    parser.add_argument("--diverse_method", choices=("facility-location", "farthest-first"), help="of --rule diverse")
    parser.add_argument(
        "--diverse_candidates", type=float, help="of --rule diverse: choose among this many times as many rows"
    )
    parser.add_argument("--seed", type=int, default=0, help="of --rule sample, and of a filter that draws")
    parser.add_argument(
        "--streaming", action="store_true", help="read the dataset as a stream, for one larger than memory"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an output that is there already")
    parser.add_argument("--summary", help="write a JSON summary of the selection to this file")
    parser.add_argument(
        "--overlap", nargs="+", help="summaries of other selections of the same dataset to compare with"
    )
    add_dry_run(parser)
    parser.add_argument("--quiet", action="store_true", help="do not print the summary")


def run(parser: argparse.ArgumentParser, argv: list[str]) -> int:
    """Select, write the rows, and print what was kept and dropped; without a size, add the score column to every row."""
    component, config = named_component(parser, argv, "filter")
    add_component_options(parser, component, leave_out=("rule",))
    if config:
        apply_config_file(parser, config, _losing(typed_flags(parser, argv), argv))
    arguments = parse_with_component(parser, argv, component)
    options = component_options(component, arguments)
    if "seed" in component.options:
        options.setdefault("seed", arguments.seed)
    filter_ = component.create(**options)
    rule = _rule(arguments)
    if arguments.streaming and (arguments.summary or arguments.overlap):
        raise OptionError("--summary and --overlap need the whole dataset; leave out --streaming")
    if rule is None and (arguments.summary or arguments.overlap):
        raise OptionError("--summary and --overlap go with a size; give --fraction, --k, --threshold or --quantile")

    from hfdataopt.selection.select import select
    from hfdataopt.selection.summary import overlap

    _check_output(arguments)
    others = {Path(path).stem: _kept_ids(path) for path in arguments.overlap or []}
    dataset = load_rows(arguments.dataset, "train", arguments.streaming)
    target = load_rows(arguments.target, "validation") if arguments.target else None
    if arguments.dry_run:
        return _plan(arguments, filter_, dataset, target)
    if rule is None:
        fitted = filter_.fit(dataset, target)
        write_rows(dataset.map(fitted, batched=True), arguments.output)
        say(
            f"select: no size was given, so all rows are in {arguments.output}, with their scores in {fitted.score_column}"
        )
        return 0
    if arguments.streaming:
        write_rows(select(dataset, filter_, target=target, rule=rule), arguments.output)
        say(f"select: wrote {arguments.output}")
        return 0
    kept, summary = select(dataset, filter_, target=target, rule=rule, return_summary=True)
    if arguments.summary:
        try:
            Path(arguments.summary).parent.mkdir(parents=True, exist_ok=True)
            write_whole(Path(arguments.summary), json.dumps(summary.as_dict(), indent=1).encode())
        except OSError as error:
            raise DataError(f"--summary {arguments.summary}: {error}") from error
    write_rows(kept, arguments.output)  # last: where it is there, all is there
    if not arguments.quiet:
        print(summary)
    if others:
        print(overlap({component.name: summary, **others}))
    return 0


def _plan(arguments: argparse.Namespace, filter_: Any, dataset: Any, target: Any) -> int:
    from hfdataopt.commands import estimate

    kept = arguments.k
    if not arguments.streaming:
        if arguments.fraction is not None:
            kept = max(1, round(arguments.fraction * len(dataset)))
        elif arguments.threshold is not None or arguments.quantile is not None:
            kept = len(dataset)
    estimate.show(
        f"{filter_.name} selects from {' '.join(arguments.dataset)}", estimate.selecting(filter_, dataset, target, kept)
    )
    return 0


def _rule(arguments: argparse.Namespace) -> Any:
    """The keep rule of the flags; None where none is given."""
    from hfdataopt.selection import rules

    given = [name for name in SIZES if getattr(arguments, name) is not None]
    name = arguments.rule or "top"
    for flag, takers in FLAGS.items():
        if getattr(arguments, flag) is not None and name not in takers:
            raise OptionError(f"--{flag} goes with --rule {' or '.join(takers)}")
    if not given and arguments.rule is None:
        return None
    if len(given) != 1:
        raise OptionError(
            f"give exactly one of {', '.join(f'--{size}' for size in SIZES)}; got {', '.join(given) or 'none'}"
        )
    size = given[0]
    value = getattr(arguments, size)
    if size in ("threshold", "quantile"):
        if arguments.rule is not None:
            raise OptionError(f"--{size} goes without --rule, which keeps --k or a --fraction")
        return rules.threshold(value) if size == "threshold" else rules.quantile(value)
    sizes: dict[str, Any] = {size: value}
    if name == "balance":
        if arguments.balance_by is None:
            raise OptionError("--rule balance needs --balance_by COLUMN")
        return rules.balance(arguments.balance_by, **sizes)
    if name == "sample":
        return rules.sample(**sizes, seed=arguments.seed, **_given(temperature=arguments.temperature))
    if name == "diverse":
        more = _given(method=arguments.diverse_method, candidates=arguments.diverse_candidates)
        return rules.diverse(**sizes, **more)
    return rules.top(**sizes)


def _losing(typed: set[str], argv: list[str]) -> set[str]:
    """What a file does not decide where the command line gives another size, or another rule."""
    losing = set(SIZES) - typed if typed & set(SIZES) else set()
    if typed & {"threshold", "quantile"}:
        losing.add("rule")
    early = Parser(add_help=False)
    early.add_argument("--rule")
    rule = early.parse_known_args(argv)[0].rule
    if rule is not None or "rule" in losing:
        losing |= {flag for flag, takers in FLAGS.items() if (rule or "top") not in takers}
    return losing - typed


def _check_output(arguments: argparse.Namespace) -> None:
    where = Path(arguments.output)
    if where.suffix not in SUFFIXES:
        raise OptionError(
            f"--output {where}: the name must end in {', '.join(filter(None, SUFFIXES))}, or have no ending, for a folder"
        )
    for name in ("dataset", "target"):
        inputs = [Path(given) for given in getattr(arguments, name) or [] if Path(given).exists()]
        if where.exists() and any(where.samefile(given) for given in inputs):
            raise OptionError(f"--output {where}: is the --{name} itself; write to another place")
    if where.exists() and not arguments.overwrite:
        raise OptionError(f"--output {where}: is there already; pass --overwrite to replace it")


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _kept_ids(path: str) -> list[Any]:
    try:
        return json.loads(Path(path).read_text())["kept_ids"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"--overlap {path}: not a summary written by --summary: {type(error).__name__}: {error}"
        ) from error
