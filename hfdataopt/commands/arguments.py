"""Arguments that several verbs share: datasets by hub id or path, a YAML file of arguments, options of a component."""

import argparse
import dataclasses
import difflib
import glob
import os
import re
import shutil
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hfdataopt.errors import DataError, OptionError, first_line
from hfdataopt.hub import why_not_on_hub
from hfdataopt.options import describe, option_help

if TYPE_CHECKING:
    from hfdataopt.plugins import Component

LOADERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
DATA = (
    "a .jsonl/.json/.csv/.parquet file, several, or a pattern; a saved dataset or a folder of files; or hub id[:split]"
)


# `name=`, `name='value'`, `name=3`, but not inside of a call such as top(fraction=0.1).
_IN_PYTHON = re.compile(
    r"""(?<![\w.(\-])(?P<name>[a-z]\w*)=(?P<value>'[^']*'|"[^"]*"|-?\d[\w.+-]*(?<![.])|True|False|None)?(?![=(\[{\w])"""
)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and which takes no abbreviated flags.

    Attributes:
        debug: whether tracebacks are wanted.
        beside: other parsers of the same command line.
    """

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)
        self.debug = False
        self.beside: list[argparse.ArgumentParser] = []

    def spelled(self, message: str) -> str:
        """A message in which options stand as in Python, with those of this command line as they are typed: ``text=`` and
        ``on_nan='drop'`` are ``--text`` and ``--on_nan drop``."""
        flags = {
            action.dest.removeprefix(OWN): flag
            for parser in (self, *self.beside)
            for action in parser._actions
            for flag in action.option_strings
            if flag.startswith("--")
        }

        def typed(found: re.Match[str]) -> str:
            name, value = found["name"], found["value"] or ""
            if name not in flags:
                return found[0]
            value = value[1:-1] if value[:1] in "'\"" and " " not in value else value
            return f"{flags[name]} {value}".rstrip()

        return _IN_PYTHON.sub(typed, message)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, but an argument given twice is an error: the last would win without a word."""
        flags = {flag: action for action in self._actions for flag in action.option_strings}
        once = [flags.get(str(word).partition("=")[0]) for word in args or ()]
        for action in {action.dest: action for action in once if type(action) is argparse._StoreAction}.values():
            if once.count(action) > 1:
                more = ", with its values one after another" if action.nargs in ("+", "*") else ""
                self.error(f"{action.option_strings[0]} is given {once.count(action)} times; give it once{more}")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{message} ('{self.prog} --help' lists the arguments)")


def load_rows(given: str | Sequence[str], default_split: str, streaming: bool = False) -> Any:
    """The dataset at a path or hub id.

    Args:
        given: a .jsonl, .json, .csv or .parquet file, a pattern such as ``"data/*.jsonl"``, or several of them of one kind, which
            are read one after another; a ``save_to_disk`` folder or a folder of such files; or a hub id. A folder or id
            may end in ``:SPLIT``.
        default_split: which is taken where none is named.
        streaming: whether it is to be a stream.

    Raises:
        DataError: nothing is there; the message repeats what arrived.
    """
    import datasets

    specs = [given] if isinstance(given, str) else list(given)
    files = _files(specs)
    try:
        if files:
            kind = LOADERS[Path(files[0]).suffix]
            if kind == "json":
                _check_json(files)
            return datasets.load_dataset(kind, data_files=files, split="train", streaming=streaming)
        path, split = _split_of(specs[0])
        if (why := why_not_on_hub(path)) is not None:
            raise DataError(f"the dataset {path!r} {why}")
        if (Path(path) / "dataset_info.json").is_file() or (Path(path) / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(path)
        else:
            loaded = datasets.load_dataset(path, streaming=streaming)
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"the dataset {' '.join(specs)!r} could not be loaded{_neither(specs[0])}: {type(error).__name__}: {first_line(error)}"
        ) from error
    split = split or default_split
    if isinstance(loaded, datasets.DatasetDict | datasets.IterableDatasetDict):
        if split not in loaded:
            raise DataError(
                f"the dataset {path!r} has no split {split!r}; it has: {', '.join(loaded)}. Write {path}:SPLIT"
            )
        loaded = loaded[split]
    return loaded.to_iterable_dataset() if streaming and isinstance(loaded, datasets.Dataset) else loaded


def _check_json(files: Sequence[str]) -> None:
    """``DataError`` for a file whose first value is no row: a first ``null`` ends Arrow and the process."""
    for file in files:
        with open(file, "rb") as stream:
            begin = stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        first = begin.removeprefix(b"[").lstrip()
        if first and first[:1] not in (b"{", b"]"):
            shown = begin[:20].decode(errors="replace")
            raise DataError(
                f"the data file {file!r} holds no rows: it begins with {shown!r}, where a JSON object is expected"
            )


def _neither(spec: str) -> str:
    """That there is no such path here, for an error of what was then looked up on the hub."""
    path = Path(_split_of(spec)[0])
    if path.exists():
        return ""
    folder = "" if path.parent == Path() or path.parent.is_dir() else f" (there is no folder {str(path.parent)!r})"
    return f": it is no file or folder here{folder}, and no dataset of the hub that can be read"


def _split_of(spec: str) -> tuple[str, str]:
    """``PATH:SPLIT`` in its parts; the split is empty where none is named."""
    if ":" not in spec or Path(spec).exists():
        return spec, ""
    path, _, split = spec.rpartition(":")
    return path, split


def _files(specs: Sequence[str]) -> list[str]:
    """The data files that are named, all of one kind; none where a single folder or hub id is."""
    found: list[str] = []
    for spec in specs:
        path, split = _split_of(spec)
        pattern = glob.has_magic(path) and not Path(path).exists()
        if not pattern and Path(path).suffix not in LOADERS:
            if len(specs) > 1:
                raise DataError(
                    f"{spec!r} is not a data file ({', '.join(LOADERS)}); a saved dataset or a hub id is given alone"
                )
            return []
        if split:
            raise DataError(f"{spec!r}: a file has no splits; name the file of the split {split!r} itself")
        matching = sorted(glob.glob(path, recursive=True)) if pattern else [path]
        if not matching:
            raise DataError(f"no file matches the pattern {path!r}")
        for file in matching:
            if not Path(file).is_file():
                raise DataError(f"the data file {file!r} does not exist")
        found += matching
    kinds = {LOADERS.get(Path(file).suffix) for file in found}
    if None in kinds or len(kinds) > 1:
        raise DataError(
            f"the data files {', '.join(found[:3])}{' ...' * (len(found) > 3)} must all be of one kind of: {', '.join(LOADERS)}"
        )
    return found


def load_pretrained(auto: Any, where: str, *, trust_remote_code: bool = False, **options: Any) -> Any:
    """``auto.from_pretrained(where)``; whatever goes wrong is one error that names the folder or hub id."""
    if (why := why_not_on_hub(where)) is not None:
        raise DataError(f"the model folder {where!r} {why}")
    try:
        return auto.from_pretrained(where, trust_remote_code=trust_remote_code, **options)
    except Exception as error:  # a missing folder, a broken file, no network: anything, from several libraries
        what = auto.__name__.removeprefix("Auto")
        place = (
            f"the folder {where!r}"
            if Path(where).exists()
            else f"{where!r} (no folder here, and no model of the hub that can be read)"
        )
        raise DataError(
            f"no {what} could be loaded from {place}: {type(error).__name__}: {first_line(error)}"
        ) from error


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


def label_names(dataset: Any, what: str = "dataset") -> list[str] | None:
    """Names of the classes of column ``label``: a ClassLabel's, or the sorted strings that occur; None for whole numbers."""
    feature = dataset.features["label"]
    if hasattr(feature, "names"):
        return list(feature.names)
    values = _labels(dataset, what)
    return sorted({str(value) for value in values}) if any(isinstance(value, str) for value in values) else None


def encode_labels(dataset: Any, names: list[str] | None, what: str) -> Any:
    """The dataset with whole-number labels; a string that is no class name is an error."""
    values = _labels(dataset, what)
    if not any(isinstance(value, str) for value in values):
        return dataset
    classes = names or []
    for position, value in enumerate(values):
        if value not in classes:
            raise DataError(
                f"the {what}: row {position} has the label {value!r}, which is not among the classes "
                f"{', '.join(classes) or 'of the pool, which are whole numbers'}"
            )
    return dataset.remove_columns("label").add_column("label", [classes.index(value) for value in values])


def _labels(dataset: Any, what: str) -> list[Any]:
    """The column ``label``; a dataset without it, or a row without a label, is an error."""
    from hfdataopt.attribution.rows import as_list

    if "label" not in dataset.column_names:
        raise DataError(
            f"the {what} has no column 'label'; it has: {', '.join(dataset.column_names)}. Say which it is with --label"
        )
    values = as_list(dataset["label"])
    if None in values:
        raise DataError(f"the {what}: row {values.index(None)} has no label")
    return values


OWN = "option_"  # dest of a component's option, so that it cannot be mistaken for an argument of the verb


def add_component_options(
    parser: argparse.ArgumentParser,
    component: "Component",
    leave_out: Sequence[str] = (),
    taken: Sequence[str] = (),
) -> None:
    """One flag per hyperparameter; values are read as YAML, so ``0.1``, ``auto``, ``[a, b]`` and ``null`` all work.

    An option whose name is also an argument of the verb (of the parser, or in ``taken``) has the flag ``--option_NAME``.
    """
    group = parser.add_argument_group(f"options of {component.kind} {component.name}")
    names = {action.dest for action in parser._actions}.union(taken)
    hints, texts = typing.get_type_hints(component.cls), option_help(component.cls)
    for field in dataclasses.fields(component.cls):
        if field.init and field.name not in leave_out:
            group.add_argument(
                f"--{OWN if field.name in names else ''}{field.name}",
                dest=f"{OWN}{field.name}",
                default=argparse.SUPPRESS,
                metavar="VALUE",
                type=_yaml,
                help=_help_of(field, hints[field.name], texts.get(field.name, "")).replace("%", "%%"),
            )


def _help_of(field: Any, hint: Any, text: str) -> str:
    """What an option is, what it takes and what it is by default."""
    if field.default_factory is not dataclasses.MISSING:
        default = f"default: {field.default_factory()}"
    else:
        default = "required" if field.default is dataclasses.MISSING else f"default: {field.default}"
    text = re.sub(r":(?:class|func|mod|meth):`~?([^`]+)`", r"\1", text).replace("``", "").rstrip(".")
    kind = "" if hint is Any else describe(hint)
    return f"{text} [{'; '.join(filter(None, (kind, default)))}]".strip()


def component_options(component: "Component", arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of the component that were given."""
    given = vars(arguments)
    return {name: given[OWN + name] for name in component.options if OWN + name in given}


def add_config(parser: argparse.ArgumentParser, more: str = "") -> None:
    """The argument ``--config``, which :func:`parse` and :func:`apply_config_file` read."""
    parser.add_argument("--config", help=f"YAML file of these arguments{more}; the command line wins")


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run",
        "--dry_run",
        action="store_true",
        help="say what would be computed, and about what it costs; write nothing",
    )


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> Any:
    """The arguments of a verb without a component, with what the file of its ``--config`` gives."""
    early = Parser(prog=parser.prog, add_help=False)
    early.add_argument("--config")
    config = early.parse_known_args(argv)[0].config
    if config is not None and not {"-h", "--help"} & set(argv):
        apply_config_file(parser, config)
    return parser.parse_args(argv)


def named_component(parser: argparse.ArgumentParser, argv: Sequence[str], kind: str) -> "tuple[Component, str | None]":
    """The component that ``--KIND`` or the YAML file names, and the file; where neither does, the parser says so."""
    from hfdataopt.plugins import host

    early = Parser(prog=parser.prog, add_help=False)
    early.add_argument(f"--{kind}", dest="name")
    early.add_argument("--config")
    first, _ = early.parse_known_args(argv)
    name = first.name or (read_config(first.config).get(kind) if first.config else None)
    if name is None:  # says what is missing, or prints --help
        parser.parse_args(argv)
        raise OptionError(f"--config {first.config}: give the name of a {kind}, here or with --{kind}")
    return host().get(kind, name), first.config


def parse_with_component(parser: argparse.ArgumentParser, argv: Sequence[str], component: "Component") -> Any:
    """The arguments; an unknown one is an error that names the component, its plugin and the options it accepts."""
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        near = difflib.get_close_matches(unknown[0].partition("=")[0], flags, n=1)
        raise OptionError(
            f"unknown argument {unknown[0]!r}"
            + (f" (did you mean {near[0]}?)" if near else "")
            + f"; {component.kind} {component.name!r} of plugin {component.source} accepts: {', '.join(component.options) or 'none'}"
        )
    return arguments


# YAML 1.1 reads 1e-6 as a string.
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


def _yaml(text: str) -> Any:
    import yaml

    if text.startswith("*"):  # a name pattern, not a YAML alias
        return text
    try:
        return _number(yaml.safe_load(text))
    except (RecursionError, yaml.YAMLError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a YAML value: {first_line(error)}") from error


def read_config(path: str) -> dict[str, Any]:
    """The entries of a YAML file of arguments."""
    import yaml

    try:
        document = yaml.safe_load(Path(path).read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise OptionError(f"--config {path}: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise OptionError(
            f"--config {path}: expected a mapping of argument names to values; got {type(document).__name__}"
        )
    return document


def typed_flags(parser: argparse.ArgumentParser, argv: Sequence[str]) -> set[str]:
    """The arguments (``dest``) that a command line gives."""
    flags = {flag: action.dest for action in parser._actions for flag in action.option_strings}
    return {flags[flag] for word in argv if (flag := word.partition("=")[0]) in flags}


def apply_config_file(parser: argparse.ArgumentParser, path: str, losing: Iterable[str] = ()) -> None:
    """Make the entries of a YAML file the parser's defaults; the command line wins. Unknown keys are an error.

    ``losing``: arguments to which the command line gives an alternative, and which the file therefore does not set.
    """
    known = {
        flag.removeprefix("--"): action
        for action in parser._actions
        for flag in action.option_strings
        if flag.startswith("--") and flag not in ("--help", "--config", "--debug")
    }
    for name, value in read_config(path).items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            raise OptionError(
                f"--config {path}: unknown argument {name!r}"
                + (f" (did you mean {near[0]!r}?)" if near else "")
                + f"; there are: {', '.join(sorted(known))}"
            )
        known[name].required = False
        checked = _checked(known[name], value, f"--config {path}: {name}")
        if known[name].dest not in losing:
            parser.set_defaults(**{known[name].dest: checked})


def _checked(action: argparse.Action, value: Any, who: str) -> Any:
    """A value from a file, held to what the command line would accept: argparse does not check defaults."""
    if action.dest.startswith(OWN):
        return _number(value)
    if action.nargs == "+":
        return [_one(action, item, who) for item in (value if isinstance(value, list) and value else [value])]
    return _one(action, value, who)


def _one(action: argparse.Action, value: Any, who: str) -> Any:
    if action.nargs == 0:
        kinds: Any = bool
    else:
        kinds = action.type if isinstance(action.type, type) else str
    if kinds is float and type(value) is int:
        return float(value)
    if type(value) is not kinds:
        several = " or a list of them" if action.nargs == "+" else ""
        raise OptionError(f"{who} takes {kinds.__name__}{several}; got {value!r}")
    if action.choices is not None and value not in action.choices:
        raise OptionError(f"{who} is one of {', '.join(map(str, action.choices))}; got {value!r}")
    return value


def write_rows(rows: Any, output: str) -> None:
    """Write a dataset, or a stream row by row, in the format that the name says; it appears when it is complete."""
    import datasets

    where = Path(output)
    if not where.suffix and isinstance(rows, datasets.IterableDataset):
        raise OptionError(f"--output {output}: a stream is written to a .jsonl, .csv or .parquet file")
    if where.is_dir() and not all(file.name.startswith(("data-", "dataset_info", "state")) for file in where.iterdir()):
        raise OptionError(f"--output {output}: the folder holds other files than a dataset; write to another place")
    partial, old = (where.with_name(f".{where.stem}.{os.getpid()}.{name}{where.suffix}") for name in ("partial", "old"))
    try:
        where.parent.mkdir(parents=True, exist_ok=True)
        if where.suffix in (".jsonl", ".json"):
            rows.to_json(partial)
        elif where.suffix == ".csv":
            rows.to_csv(partial)
        elif where.suffix == ".parquet":
            rows.to_parquet(partial)
        else:
            rows.save_to_disk(partial)
            if where.exists():
                os.replace(where, old)
        os.replace(partial, where)
    except OSError as error:
        if old.exists():
            os.replace(old, where)
        raise DataError(f"--output {output}: {error}") from error
    finally:
        for rest in (partial, old):
            if rest.is_dir():
                shutil.rmtree(rest)
            else:
                rest.unlink(missing_ok=True)
