"""``hfdataopt score``: scores of a dataset by a model in a folder (or on the hub), or by saved checkpoints."""

import argparse

from hfdataopt.commands.arguments import (
    add_component_options,
    apply_config_file,
    component_options,
    encode_labels,
    label_names,
    load_rows,
    rename_columns,
)
from hfdataopt.errors import OptionError
from hfdataopt.plugins import host


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scorer", required=True, help="name of a scorer; 'hfdataopt plugins' lists them")
    parser.add_argument("--config", help="YAML file of these arguments and the scorer's options; the command line wins")
    parser.add_argument("--model", help="model folder or hub id; default: the last of --checkpoints")
    parser.add_argument("--checkpoints", nargs="+", help="checkpoint folders to score at, as the Trainer writes them")
    parser.add_argument(
        "--pool", required=True, help="training data: .jsonl/.csv/.parquet, a saved dataset, or hub id[:split]"
    )
    parser.add_argument("--queries", help="validation data, likewise")
    parser.add_argument("--text", help="text column (default: text)")
    parser.add_argument("--label", help="label column (default: label)")
    parser.add_argument("--task", choices=("classification", "causal"), help="default: by the model's architecture")
    parser.add_argument("--batch_size", type=int, default=16, help="rows per forward pass")
    parser.add_argument("--output_dir", required=True, help="where scores are written; a killed run resumes here")
    parser.add_argument("--show", type=int, default=5, help="how many of the best and worst rows to print")
    parser.add_argument("--trust_remote_code", action="store_true", help="allow the model's own code from the hub")


def run(parser: argparse.ArgumentParser, argv: list[str]) -> int:
    """Score, save, and print the best and worst rows."""
    early = argparse.ArgumentParser(add_help=False)
    early.add_argument("--scorer")
    early.add_argument("--config")
    first, _ = early.parse_known_args(argv)
    name = first.scorer
    if first.config and not name:
        import yaml

        with open(first.config) as stream:
            name = (yaml.safe_load(stream) or {}).get("scorer")
    component = host().get("scorer", name) if name else None
    if component is not None:
        add_component_options(parser, component)
    if first.config:
        apply_config_file(parser, first.config)
    arguments = parser.parse_args(argv)
    assert component is not None
    scorer = component.create(**component_options(component, arguments))
    if arguments.model is None and not arguments.checkpoints:
        raise OptionError("give --model or --checkpoints")

    from hfdataopt import attribute

    where = arguments.model or arguments.checkpoints[-1]
    pool = rename_columns(load_rows(arguments.pool, "train"), arguments.text, arguments.label, "pool")
    queries = None
    if arguments.queries:
        queries = rename_columns(load_rows(arguments.queries, "validation"), arguments.text, arguments.label, "queries")
    names = label_names(pool) if "label" in pool.column_names else None
    model, tokenizer = _load(where, arguments.task, names, arguments.trust_remote_code)
    if "label" in pool.column_names:
        names = _names_of(model, names)
        pool = encode_labels(pool, names, "pool")
        queries = None if queries is None else encode_labels(queries, names, "queries")
    scores = attribute(
        model,
        pool,
        queries,
        scorer,
        checkpoints=arguments.checkpoints,
        processing_class=tokenizer,
        batch_size=arguments.batch_size,
        output_dir=arguments.output_dir,
    )
    from hfdataopt.attribution.scores import row_text

    print(scores)
    where_is = {row: position for position, row in enumerate(scores.row_ids)}
    count = min(arguments.show, len(scores))
    for title, ids in (("lowest", scores.bottom(k=count)), ("highest", scores.top(k=count))) if count else ():
        print(f"{title} {count}:")
        for row in ids:
            print(f"  {scores.values[where_is[row]]:+.4g}  row {row}  {row_text(pool[where_is[row]])}")
    return 0


def _load(where: str, task: str | None, names: list[str] | None, trust_remote_code: bool):  # type: ignore[no-untyped-def]
    """Model and tokenizer; without ``--task``, the class that the config names."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(where, trust_remote_code=trust_remote_code)
    architecture = (config.architectures or [""])[0]
    if task is None:
        task = "causal" if architecture.endswith(("ForCausalLM", "LMHeadModel")) else "classification"
        if architecture.endswith("ForMaskedLM"):
            raise OptionError(
                f"{where} is a {architecture}; say --task classification to put a classification head on it"
            )
    kind = transformers.AutoModelForCausalLM if task == "causal" else transformers.AutoModelForSequenceClassification
    extra = (
        {"num_labels": len(names)}
        if task == "classification" and names and not architecture.endswith("ForSequenceClassification")
        else {}
    )
    model = kind.from_pretrained(where, trust_remote_code=trust_remote_code, **extra)
    tokenizer = transformers.AutoTokenizer.from_pretrained(where, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), tokenizer


def _names_of(model, names: list[str] | None) -> list[str] | None:  # type: ignore[no-untyped-def]
    """Class names in the order of the model's own ids where it knows these names, else as they come."""
    own = [model.config.id2label[index] for index in sorted(model.config.id2label)]
    return own if names is not None and set(names) <= set(own) else names
