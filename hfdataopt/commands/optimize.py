"""``hfdataopt optimize``: search for a better prompt, by rewards, by a model's preference, or by people's."""

import argparse
import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfdataopt.commands.arguments import (
    DATA,
    Parser,
    add_component_options,
    add_config,
    component_options,
    load_rows,
    named_component,
    write_rows,
)
from hfdataopt.console import say
from hfdataopt.errors import OptionError, first_line


@dataclass
class OptimizeArguments:
    """What is optimized; :class:`~hfdataopt.prompting.config.PromptConfig` says how and within which budget."""

    optimizer: str = field(metadata={"help": "Name of an optimizer; 'hfdataopt plugins' lists them."})
    model: str = field(metadata={"help": "The scored model: folder or hub id; with --base_url a name at that server."})
    dataset: list[str] = field(metadata={"help": f"Rows with 'prompt': {DATA}."})
    eval_dataset: list[str] | None = field(default=None, metadata={"help": "Fresh rows for the leaders, likewise."})
    prompt_column: str | None = field(default=None, metadata={"help": "The column that holds the prompt."})
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "module:function (from the working folder or a package), or a reward model; several if you like."
        },
    )
    judge: str | None = field(
        default=None,
        metadata={
            "help": "human (a page in the browser), terminal, or a model that compares answers: folder or hub id, with --base_url a "
            "name at that server."
        },
    )
    criterion: str = field(default="", metadata={"help": "What makes an answer better, for the judge."})
    port: int = field(default=0, metadata={"help": "Of the page of --judge human; 0 = a free one."})
    dry_run: bool = field(
        default=False, metadata={"help": "Say what the search would do, and about what it costs; write nothing."}
    )
    output: str | None = field(
        default=None,
        metadata={"help": "Write the dataset with the prompt applied here (.jsonl, .csv, .parquet, folder)."},
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--optimizer", required=True, help="name of an optimizer; --optimizer NAME --help: its options")
    add_config(parser)


def run(parser: argparse.ArgumentParser, argv: list[str]) -> int:
    """Search, print the leaders, and write the prompt."""
    component, _ = named_component(parser, argv, "optimizer")
    own = Parser(prog=parser.prog, add_help=False, usage=argparse.SUPPRESS)
    add_component_options(own, component, taken=[*OptimizeArguments.__dataclass_fields__, *_fields_of_config()])
    everything = _trl_parser(parser.prog, parser.description)
    parser.beside = [everything, own]  # type: ignore[attr-defined]
    if "-h" in argv or "--help" in argv:
        print(everything.format_help())
        print("  --config CONFIG       YAML file of these arguments (all but the optimizer's options, which go under")
        print("                        optimizer_options); the command line wins\n")
        print(own.format_help())
        return 0
    given, rest = own.parse_known_args(argv)
    arguments, config = _parse(everything, rest, component)
    typed = {word.partition("=")[0] for word in rest}
    for one, other in (("judge", "reward_funcs"), ("reward_funcs", "judge")):
        if f"--{one}" in typed and f"--{other}" not in typed:
            setattr(arguments, other, None)  # of the file, to which the command line gives the alternative
    options = {**dict(config.optimizer_options or {}), **component_options(component, given)}
    config.optimizer_options = None
    return _search(arguments, config, component.create(**options))


def _fields_of_config() -> list[str]:
    from hfdataopt.prompting.config import PromptConfig

    return list(PromptConfig.__dataclass_fields__)


def _trl_parser(prog: str, description: str | None) -> Any:
    from trl import TrlParser

    from hfdataopt.prompting.config import PromptConfig

    kinds: Any = [OptimizeArguments, PromptConfig]
    parser = TrlParser(kinds, prog=prog, description=description, allow_abbrev=False)
    return parser


def _parse(parser: Any, argv: Sequence[str], component: Any) -> tuple[OptimizeArguments, Any]:
    """Both dataclasses; whatever is wrong is one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            arguments, config = parser.parse_args_and_config(list(argv))
    except SystemExit as end:
        message = (said.getvalue().strip().splitlines() or ["wrong arguments"])[-1]
        raise OptionError(
            f"{message.partition('error: ')[2] or message} ('{parser.prog} --help' lists the arguments)"
        ) from end
    except (ValueError, OSError) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(
            f"{first_line(error)}; optimizer {component.name!r} of plugin {component.source} accepts: "
            f"{', '.join(component.options) or 'none'} ('{parser.prog} --help' lists the arguments)"
        ) from error
    return arguments, config


def _search(arguments: OptimizeArguments, config: Any, optimizer: Any) -> int:
    from hfdataopt.attribution.processes import Processes
    from hfdataopt.prompting.trainer import PromptTrainer

    if (arguments.judge is None) == (arguments.reward_funcs is None):
        raise OptionError(f"give --reward_funcs or --judge; got {'neither' if arguments.judge is None else 'both'}")
    if arguments.criterion and arguments.judge in (None, "terminal"):
        raise OptionError("--criterion is for --judge human, or for a judge that is a model")
    if arguments.port and arguments.judge != "human":
        raise OptionError("--port is for --judge human")
    if arguments.output is not None and Path(arguments.output).exists():
        raise OptionError(f"--output {arguments.output}: is there already; name another place")
    if config.output_dir is None and not arguments.dry_run:
        config.output_dir = f"prompt-search-{optimizer.name}"
        say(f"optimize: the search is kept in {config.output_dir}/ (--output_dir names another place)")
    dataset = _rows(arguments.dataset, arguments.prompt_column)
    fresh = None if arguments.eval_dataset is None else _rows(arguments.eval_dataset, arguments.prompt_column)
    trainer = PromptTrainer(
        optimizer,
        model=arguments.model,
        args=config,
        reward_funcs=arguments.reward_funcs,
        judge=_judge(arguments, config),
        train_dataset=dataset,
        eval_dataset=fresh,
    )
    if arguments.dry_run:
        from hfdataopt.commands import estimate

        estimate.show(f"{optimizer.name} searches for a prompt of {arguments.model}", estimate.searching(trainer))
        return 0
    try:
        result = trainer.train()
    finally:
        if arguments.judge == "human":
            trainer.judge.close()  # type: ignore[union-attr]
    if not Processes.current().is_main:  # of several that a launcher started
        return 0
    print(result)
    if result.best.completion is not None:  # answers were chosen, and there is no prompt
        print(f"\nthe votes are in {config.output_dir}/result.json; --output writes them as preference rows")
        if arguments.output is not None:
            write_rows(trainer.preferences(), arguments.output)
        return 0
    print(f"\n{trainer.best_prompt}\n")
    print(
        f"written to {config.output_dir}/prompt.json; in Python: dataset.map(ApplyPrompt.load({config.output_dir!r}))"
    )
    if arguments.output is not None:
        write_rows(dataset.map(trainer.apply_prompt), arguments.output)
    return 0


def _rows(spec: list[str], prompt_column: str | None) -> Any:
    dataset = load_rows(spec, "train")
    if prompt_column is None or prompt_column == "prompt":
        return dataset
    if prompt_column not in dataset.column_names:
        raise OptionError(f"the dataset has no column {prompt_column!r}; it has: {', '.join(dataset.column_names)}")
    if "prompt" in dataset.column_names:
        dataset = dataset.remove_columns("prompt")
    return dataset.rename_column(prompt_column, "prompt")


def _judge(arguments: OptimizeArguments, config: Any) -> Any:
    """The judge or None; a model is one at the server of ``base_url`` where there is one, as the scored model is."""
    from hfdataopt.prompting.judges import ModelJudge, TerminalJudge
    from hfdataopt.prompting.judges.model import LONGEST

    name = arguments.judge
    if name is None:
        return None
    if name == "human" and not arguments.dry_run:
        from hfdataopt.prompting.page import WebJudge

        folder = Path(config.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        return WebJudge(
            port=arguments.port, criterion=arguments.criterion, address_file=folder / "page.json"
        )  # the same link after a restart
    if name in ("terminal", "human"):
        return TerminalJudge()
    if config.base_url is None:
        return ModelJudge(name, arguments.criterion)
    from hfdataopt.generation import EndpointGenerator

    options: dict[str, Any] = {"max_new_tokens": LONGEST, "temperature": 0.0, "concurrency": config.concurrency}
    return ModelJudge(EndpointGenerator(name, base_url=config.base_url, **options), arguments.criterion)
