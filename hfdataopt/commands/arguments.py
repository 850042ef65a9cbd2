"""Arguments that several verbs share: datasets by hub id or path, a YAML file of arguments, options of a component."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from hfdataopt.errors import DataError, OptionError
from hfdataopt.plugins import Component

LOADERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def load_rows(spec: str, default_split: str) -> Any:
    """A dataset from ``PATH`` (.jsonl, .json, .csv, .parquet, or a ``save_to_disk`` folder) or a hub id, ``SPEC:SPLIT``.

    Raises:
        DataError: nothing is there; the message repeats what arrived.
    """
    import datasets

    path, _, split = spec.rpartition(":") if ":" in spec and not Path(spec).exists() else (spec, "", "")
    split = split or default_split
    where = Path(path)
    try:
        if where.suffix in LOADERS:
            if not where.is_file():
                raise DataError(f"the data file {path!r} does not exist")
            return datasets.load_dataset(LOADERS[where.suffix], data_files=str(where), split="train")
        if (where / "dataset_info.json").is_file() or (where / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(path)
        else:
            loaded = datasets.load_dataset(path)
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"the dataset {spec!r} could not be loaded: {type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise DataError(
                f"the dataset {path!r} has no split {split!r}; it has: {', '.join(loaded)}. Write {path}:SPLIT"
            )
        return loaded[split]
    return loaded


def rename_columns(dataset: Any, text: str | None, label: str | None, what: str) -> Any:
    """The dataset with its text column called ``text`` and its label column called ``label``."""
    for given, name in ((text, "text"), (label, "label")):
        if given is None or given == name:
            continue
        if given not in dataset.column_names:
            raise DataError(f"the {what} has no column {given!r}; it has: {', '.join(dataset.column_names)}")
        if name in dataset.column_names:
            dataset = dataset.remove_columns(name)
        dataset = dataset.rename_column(given, name)
    return dataset


def label_names(dataset: Any) -> list[str] | None:
    """Names of the classes of column ``label``: a ClassLabel's, or the sorted strings that occur; None for whole numbers."""
    feature = dataset.features["label"]
    if hasattr(feature, "names"):
        return list(feature.names)
    values = dataset["label"][:]
    return sorted(set(values)) if values and isinstance(values[0], str) else None


def encode_labels(dataset: Any, names: list[str] | None, what: str) -> Any:
    """The dataset with whole-number labels; a string that is no class name is an error."""
    values = dataset["label"][:]
    if names is None or (values and not isinstance(values[0], str)):
        return dataset
    unknown = sorted({str(value) for value in values} - set(names))
    if unknown:
        raise DataError(f"the {what} has the label {unknown[0]!r}, which is not among the classes {', '.join(names)}")
    return dataset.remove_columns("label").add_column("label", [names.index(value) for value in values])


def add_component_options(parser: argparse.ArgumentParser, component: Component) -> None:
    """One flag per hyperparameter; values are read as YAML, so ``0.1``, ``auto``, ``[a, b]`` and ``null`` all work."""
    group = parser.add_argument_group(f"options of {component.kind} {component.name}")
    for field in dataclasses.fields(component.cls):
        if field.init:
            default = None if field.default is dataclasses.MISSING else field.default
            group.add_argument(
                f"--{field.name}",
                default=argparse.SUPPRESS,
                metavar="VALUE",
                type=_yaml,
                help=f"{field.type} (default: {default})",
            )


def component_options(component: Component, arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in vars(arguments).items() if name in component.options}


def _yaml(text: str) -> Any:
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a value: {error}") from error
    if isinstance(value, str):  # YAML 1.1 reads 1e-6 as a string
        try:
            return float(value)
        except ValueError:
            return value
    return value


def apply_config_file(parser: argparse.ArgumentParser, path: str) -> None:
    """Make the entries of a YAML file the parser's defaults; the command line wins. Unknown keys are an error."""
    import yaml

    try:
        document = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise OptionError(f"--config {path}: {error}") from error
    if not isinstance(document, dict):
        raise OptionError(
            f"--config {path}: expected a mapping of argument names to values; got {type(document).__name__}"
        )
    known = {action.dest: action for action in parser._actions}
    for name, value in document.items():
        if name not in known or name in ("help", "config"):
            raise OptionError(
                f"--config {path}: unknown argument {name!r}; there are: {', '.join(sorted(set(known) - {'help', 'config'}))}"
            )
        known[name].required = False
        parser.set_defaults(**{name: value})
