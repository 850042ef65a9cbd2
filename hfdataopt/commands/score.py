"""``hfdataopt score``: scores of a dataset by a model in a folder (or on the hub), or by saved checkpoints."""

import argparse
import functools
from typing import Any

from hfdataopt.commands.arguments import (
    DATA,
    add_component_options,
    add_config,
    add_dry_run,
    apply_config_file,
    component_options,
    encode_labels,
    label_names,
    load_pretrained,
    load_rows,
    named_component,
    parse_with_component,
    rename_columns,
)
from hfdataopt.errors import DataError, OptionError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scorer", required=True, help="name of a scorer; 'hfdataopt plugins' lists them")
    add_config(parser, " and the scorer's options")
    parser.add_argument("--model", help="model folder or hub id; default: the last of --checkpoints")
    parser.add_argument("--checkpoints", nargs="+", help="checkpoint folders to score at, as the Trainer writes them")
    parser.add_argument("--pool", required=True, nargs="+", help=f"training data: {DATA}")
    parser.add_argument("--queries", nargs="+", help="validation data, likewise")
    parser.add_argument("--text", help="text column (default: text)")
    parser.add_argument("--label", help="label column (default: label)")
    parser.add_argument("--task", choices=("classification", "causal"), help="default: by the model's architecture")
    parser.add_argument("--batch_size", type=int, default=16, help="rows per forward pass")
    parser.add_argument("--output_dir", required=True, help="where scores are written; a killed run resumes here")
    parser.add_argument("--query_group", help="column of the queries; scores are averaged within its groups")
    parser.add_argument("--aggregate", choices=("mean", "max"), default="mean", help="over groups of queries")
    parser.add_argument("--show", type=int, default=5, help="how many of the best and worst rows to print")
    add_dry_run(parser)
    parser.add_argument("--trust_remote_code", action="store_true", help="allow the model's own code from the hub")


def run(parser: argparse.ArgumentParser, argv: list[str]) -> int:
    """Score, save, and print the best and worst rows."""
    component, config = named_component(parser, argv, "scorer")
    add_component_options(parser, component)
    if config:
        apply_config_file(parser, config)
    arguments = parse_with_component(parser, argv, component)
    scorer = component.create(**component_options(component, arguments))
    if arguments.model is None and not arguments.checkpoints:
        raise OptionError("give --model or --checkpoints")
    if scorer.needs_queries and not arguments.queries:
        raise OptionError(f"scorer {component.name!r} needs validation data; give --queries")
    if arguments.batch_size < 1 or arguments.show < 0:
        raise OptionError(
            f"--batch_size must be at least 1 and --show at least 0; got {arguments.batch_size} and {arguments.show}"
        )

    from hfdataopt import attribute
    from hfdataopt.attribution.processes import Processes
    from hfdataopt.attribution.scores import row_text

    where = arguments.model or arguments.checkpoints[-1]
    raw = pool = rename_columns(load_rows(arguments.pool, "train"), arguments.text, arguments.label, "pool")
    queries = None
    if arguments.queries:
        queries = rename_columns(load_rows(arguments.queries, "validation"), arguments.text, arguments.label, "queries")
    labelled = "label" in pool.column_names
    names = label_names(pool, "pool") if labelled else None
    model, tokenizer = load_model(where, arguments.task, count_classes(pool, names), arguments.trust_remote_code)
    if labelled:
        names = names_of(model, names)
        pool = encode_labels(pool, names, "pool")
        queries = None if queries is None else encode_labels(queries, names, "queries")
    if arguments.dry_run:
        from hfdataopt.commands import estimate

        lines = estimate.scoring(scorer, model, tokenizer, pool, queries, arguments.batch_size, arguments.checkpoints)
        estimate.show(f"{component.name} scores {len(pool):,} rows", lines)
        return 0
    scores = attribute(
        model,
        pool,
        queries,
        scorer,
        checkpoints=arguments.checkpoints,
        processing_class=tokenizer,
        batch_size=arguments.batch_size,
        output_dir=arguments.output_dir,
        query_group=arguments.query_group,
        aggregate=arguments.aggregate,
    )
    if not Processes.current().is_main:  # of several that a launcher started
        return 0
    where_is = {row: position for position, row in enumerate(scores.row_ids)}
    count = min(arguments.show, sum(value == value for value in scores.values))  # NaN: no score
    for title, ids in (("lowest", scores.bottom(k=count)), ("highest", scores.top(k=count))) if count else ():
        print(f"{title} {count}:")
        for row in ids:
            print(f"  {scores.values[where_is[row]]:+.4g}  row {row}  {row_text(raw[where_is[row]])}")
    return 0


def load_model(where: str, task: str | None, classes: int | None, trust_remote_code: bool) -> tuple[Any, Any]:
    """Model and tokenizer; without ``--task``, the class that the config names."""
    import transformers

    load = functools.partial(load_pretrained, where=where, trust_remote_code=trust_remote_code)
    config = load(transformers.AutoConfig)
    architecture = (config.architectures or [""])[0]
    if task is None:
        task = "causal" if architecture.endswith(("ForCausalLM", "LMHeadModel")) else "classification"
        if architecture.endswith("ForMaskedLM"):
            raise OptionError(
                f"{where} is a {architecture}; say --task classification to put a classification head on it"
            )
    if task == "causal":
        model = load(transformers.AutoModelForCausalLM)
    elif architecture.endswith("ForSequenceClassification") or classes is None:
        model = load(transformers.AutoModelForSequenceClassification)
        if classes is not None and classes > model.config.num_labels:
            raise DataError(f"the pool has {classes} classes, but the model in {where!r} has {model.config.num_labels}")
    else:
        model = load(transformers.AutoModelForSequenceClassification, num_labels=classes)
    tokenizer = load(transformers.AutoTokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), tokenizer


def count_classes(pool: Any, names: list[str] | None) -> int | None:
    """How many classes the pool has, by name or by the largest whole number; None where it has no class labels."""
    if names is not None:
        return len(names)
    from hfdataopt.attribution.rows import as_list

    values = as_list(pool["label"]) if "label" in pool.column_names else []
    if not values or any(isinstance(value, bool) or not isinstance(value, int) for value in values):
        return None
    return max(values) + 1


def names_of(model: Any, names: list[str] | None) -> list[str] | None:
    """Class names in the order of the model's own ids where it knows these names, else as they come."""
    own = [model.config.id2label[index] for index in sorted(model.config.id2label)]
    return own if names is not None and set(names) <= set(own) else names
