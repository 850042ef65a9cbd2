"""``hfdataopt report``: one HTML file about what was scored, selected, tested and searched."""

import argparse

from hfdataopt.commands.arguments import apply_config_file, load_rows
from hfdataopt.errors import OptionError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs",
        nargs="+",
        help="folders and files that hfdataopt wrote: scores, evaluations, searches for prompts, summaries of selections; "
        "folders are searched",
    )
    parser.add_argument("--config", help="YAML file of these arguments but the inputs; the command line wins")
    parser.add_argument(
        "--dataset",
        help="the rows that were scored, for their text: .jsonl/.csv/.parquet, a saved dataset, or hub id[:split]",
    )
    parser.add_argument("--queries", help="the validation data, likewise")
    parser.add_argument("--text", help="text column (default: text, else all columns of texts or messages)")
    parser.add_argument("--label", help="label column (default: label)")
    parser.add_argument("--flipped", metavar="COLUMN", help="column of the dataset that marks known label errors")
    parser.add_argument("--output", default="report.html", help="the file to write; one that is there is replaced")
    parser.add_argument("--card", metavar="FILE.md", help="write a section for a model or dataset card to this file")
    parser.add_argument("--figures", metavar="FOLDER", help="write the charts as PNG to this folder")
    parser.add_argument("--title", help="heading of the report")
    parser.add_argument("--question", help="what was asked, in your words")
    parser.add_argument("--show", type=int, default=10, help="rows at each end of a ranking")


def run(parser: argparse.ArgumentParser, argv: list[str]) -> int:
    """Write the report and say where it is."""
    config = _config(argv)
    if config:
        apply_config_file(parser, config)
    arguments = parser.parse_args(argv)
    for flag in ("text", "label", "flipped"):
        if getattr(arguments, flag) is not None and arguments.dataset is None:
            raise OptionError(f"--{flag} names a column of --dataset, which is missing")
    from hfdataopt.report.inputs import find
    from hfdataopt.report.write import write_inputs

    inputs = find(arguments.inputs)
    dataset = None if arguments.dataset is None else load_rows(arguments.dataset, "train")
    queries = None if arguments.queries is None else load_rows(arguments.queries, "validation")
    where = write_inputs(
        arguments.output,
        inputs,
        dataset=dataset,
        queries=queries,
        text=arguments.text,
        label=arguments.label,
        flipped=arguments.flipped,
        title=arguments.title,
        question=arguments.question,
        show=arguments.show,
        figures=arguments.figures,
        card=arguments.card,
        source=arguments.dataset or "",
    )
    counts = {
        "scores": len(inputs.scores),
        "summaries of selections": len(inputs.summaries),
        "evaluations": int(bool(inputs.evaluation)),
        "prompt searches": len(inputs.searches),
    }
    print(f"{where}: {', '.join(f'{count} {name}' for name, count in counts.items() if count)}")
    for name in ("card", "figures"):
        if getattr(arguments, name) is not None:
            print(f"{getattr(arguments, name)}: {'a section for a card' if name == 'card' else 'the charts as PNG'}")
    return 0


def _config(argv: list[str]) -> str | None:
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config")
    return early.parse_known_args(argv)[0].config
