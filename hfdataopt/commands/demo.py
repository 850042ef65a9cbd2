"""``hfdataopt demo``: train a text classifier, score its training rows with FreeShap, list the most suspicious, drop them
and retrain; then find a better prompt for a small model that follows instructions. Without arguments it is offline and uses
embedded sentences with 10 % of the labels flipped; with ``--dataset`` and ``--model`` it is the first job on your own data.
"""

import argparse
import csv
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfdataopt.attribution.rows import with_row_ids
from hfdataopt.commands.arguments import (
    DATA,
    add_config,
    encode_labels,
    label_names,
    load_pretrained,
    load_rows,
    parse,
    rename_columns,
)
from hfdataopt.console import quiet
from hfdataopt.errors import DataError, MissingDependencyError, OptionError, StoreError

FLIPPED = 0.10
DROPPED = 0.10
RIVALS = ("label-consistency", "loss", "cv-confidence", "random")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", help="encoder folder or hub id (default: the small encoder that ships with hfdataopt)"
    )
    add_config(parser)
    parser.add_argument("--dataset", nargs="+", help=f"training data (default: embedded): {DATA}")
    parser.add_argument("--text", help="text column of --dataset (default: text)")
    parser.add_argument("--label", help="label column of --dataset (default: label)")
    parser.add_argument(
        "--queries", nargs="+", help="clean validation data (default: the validation or test split of --dataset)"
    )
    parser.add_argument(
        "--flip", type=float, help=f"share of labels to flip first (default: {FLIPPED} embedded, 0 for --dataset)"
    )
    parser.add_argument("--limit", type=int, help="use at most this many training rows of --dataset (default: 2000)")
    parser.add_argument("--epochs", type=float, help="epochs per training (default: 6 embedded, 3 for --dataset)")
    parser.add_argument("--learning_rate", type=float, help="default: 1e-3 embedded, 5e-5 for --dataset")
    parser.add_argument("--seeds", type=int, default=5, help="trainings on each side of the comparison; 0 skips it")
    parser.add_argument("--show", type=int, default=10, help="how many suspicious rows to list")
    parser.add_argument("--output_dir", default="demo-output", help="where table, plot and scores are written")
    parser.add_argument(
        "--smoke", action="store_true", help="a run of a few seconds on a small sample, to check an installation"
    )
    parser.add_argument("--seed", type=int, default=0)


@dataclass
class Task:
    """Everything the demo needs of its data: splits with text and label, names of the classes, and known flips."""

    pool: Any
    queries: Any
    test: Any
    names: list[str]
    flipped: list[bool] | None
    model: str
    epochs: float
    learning_rate: float
    held_out: bool = False


def run(parser: argparse.ArgumentParser, argv: list[str]) -> int:
    """Run the demo and print its report."""
    arguments = parse(parser, argv)
    started = time.monotonic()
    _check(arguments)
    import datasets
    import torch
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not arguments.model and not arguments.dataset:
        torch.set_num_threads(1)  # the embedded model is too small for threads to pay
    task = _own_task(arguments) if arguments.dataset else _embedded_task(arguments)
    train = _Training(task)

    clean = "" if task.held_out else " clean"
    print(
        f"Training on {len(task.pool)} rows"
        + (f", {sum(task.flipped)} of them with a flipped label" if task.flipped else "")
        + f"; scoring them on {len(task.queries)}{clean} queries."
    )
    from hfdataopt import AttributionCallback

    names = ("freeshap", *(RIVALS if task.flipped else ()))
    with _working_folder(arguments.output_dir) as work, quiet():  # the report below says it once
        queries = train.tokenize(task.queries)
        callbacks = [AttributionCallback(name, queries=queries, output_dir=work / name) for name in names]
        accuracy = train(task.pool, arguments.seed, callbacks)
    scores = {callback.scorer.name: callback.scores for callback in callbacks if callback.scores is not None}
    freeshap = scores["freeshap"]
    count = max(1, round(DROPPED * len(task.pool)))
    suspicious = _lowest(freeshap, count)
    _print_rows(task, freeshap, suspicious[: arguments.show])
    if task.flipped:
        _print_flips(task, scores, count)
    comparison = _compare(task, train, suspicious, arguments, accuracy) if arguments.seeds else None
    _write(task, scores, suspicious, comparison, arguments)
    if not arguments.model and not arguments.dataset:
        from hfdataopt.demo.prompt_search import find_prompt

        with quiet():
            find_prompt(arguments.output_dir, seed=arguments.seed, smoke=arguments.smoke)
    _report(task, scores, arguments)
    print(f"Done in {time.monotonic() - started:.0f} s.")
    return 0


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file in the error when it cannot be written."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}") from error


# -- data


def _embedded_task(arguments: argparse.Namespace) -> Task:
    from hfdataopt.demo.sentences import demo_dataset, flip_labels

    sizes = {"train": 120, "validation": 60, "test": 200} if arguments.smoke else {}
    splits = demo_dataset(seed=arguments.seed, **sizes)
    if arguments.smoke:
        arguments.seeds = min(arguments.seeds, 2)
    fraction = FLIPPED if arguments.flip is None else arguments.flip
    labels, flipped = flip_labels(list(splits["train"]["label"][:]), fraction, seed=arguments.seed)
    return Task(
        _relabelled(splits["train"], list(labels)),
        splits["validation"],
        splits["test"],
        splits["train"].features["label"].names,
        [bool(value) for value in flipped] if fraction else None,
        arguments.model or str(Path(__file__).parent.parent / "demo" / "encoder"),
        arguments.epochs if arguments.epochs is not None else 1 if arguments.smoke else 6,
        arguments.learning_rate if arguments.learning_rate is not None else 1e-3,
    )


def _own_task(arguments: argparse.Namespace) -> Task:
    if not arguments.model:
        raise OptionError(
            "--dataset needs --model, an encoder folder or hub id, for example sentence-transformers/all-MiniLM-L6-v2"
        )
    pool = rename_columns(load_rows(arguments.dataset, "train"), arguments.text, arguments.label, "dataset")
    for column in ("text", "label"):
        if column not in pool.column_names:
            raise DataError(
                f"the dataset has no column {column!r}; it has: {', '.join(pool.column_names)}. Name it with --{column}"
            )
    pool = with_row_ids(pool)
    if len(pool) > arguments.limit:
        print(f"Using {arguments.limit} of {len(pool)} training rows, drawn at random (--limit).")
        pool = pool.shuffle(seed=arguments.seed).select(range(arguments.limit))
    names = label_names(pool)
    queries, test = _other_splits(arguments, pool)
    held_out = queries is None
    if held_out:
        parts = pool.train_test_split(test_size=0.3, seed=arguments.seed)
        pool, queries = parts["train"], parts["test"]
        print("No validation data found: 30 % of the rows are held out as queries (their labels may be wrong, too).")
    pool, queries = encode_labels(pool, names, "dataset"), encode_labels(queries, names, "queries")
    if test is None and not arguments.seeds:
        test = queries
    elif test is None:
        if len(queries) < 2:
            raise DataError(
                f"the queries have {len(queries)} row; at least 2 are needed, half of them to compare trainings on"
            )
        halves = queries.train_test_split(test_size=0.5, seed=arguments.seed)
        queries, test = halves["train"], halves["test"]
        print("Half of the validation rows are kept back to compare trainings on.")
    else:
        test = encode_labels(test, names, "test split")
    for rows, what in ((pool, "dataset"), (queries, "queries"), (test, "test split")):
        _check_rows(rows, what)
    if names is None:
        names = [str(value) for value in range(max(pool["label"][:]) + 1)]
    flipped = None
    if arguments.flip:
        from hfdataopt.demo.sentences import flip_labels

        labels, marks = flip_labels(list(pool["label"][:]), arguments.flip, seed=arguments.seed, classes=len(names))
        pool, flipped = _relabelled(pool, list(labels)), [bool(value) for value in marks]
    if len(queries) > arguments.limit:
        queries = queries.shuffle(seed=arguments.seed).select(range(arguments.limit))
    epochs = 3 if arguments.epochs is None else arguments.epochs
    rate = 5e-5 if arguments.learning_rate is None else arguments.learning_rate
    return Task(pool, queries, test, names, flipped, arguments.model, epochs, rate, held_out)


def _other_splits(arguments: argparse.Namespace, pool: Any) -> tuple[Any, Any]:
    """Queries and test data: ``--queries``, else the validation and test splits of a hub dataset or saved folder."""
    found: list[Any] = []
    for spec, splits in ((arguments.queries, ("validation",)), (arguments.dataset, ("validation", "test"))):
        for split in splits if spec else ():
            try:
                dataset = rename_columns(load_rows(spec, split), arguments.text, arguments.label, "queries")
            except DataError:
                if spec == arguments.queries:
                    raise
                continue
            single_file = len(spec) > 1 or Path(spec[0]).is_file()
            if {"text", "label"} <= set(dataset.column_names) and not (single_file and spec == arguments.dataset):
                found.append(dataset)
        if found and spec == arguments.queries:
            return found[0], None
    return (found[0] if found else None), (found[1] if len(found) > 1 else None)


def _relabelled(dataset: Any, labels: list[int]) -> Any:
    return dataset.remove_columns("label").add_column("label", labels)


@contextmanager
def _working_folder(output_dir: str) -> Iterator[Path]:
    """A folder inside ``output_dir`` that is removed at the end: the demo never resumes an earlier one."""
    try:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        work = tempfile.TemporaryDirectory(prefix=".working-", dir=output_dir)
    except OSError as error:
        raise StoreError(f"--output_dir {output_dir}: cannot be written: {error.strerror}") from error
    with work as folder:
        yield Path(folder)


def _check(arguments: argparse.Namespace) -> None:
    """Refuse arguments that cannot be honoured, before anything is loaded."""
    if not arguments.dataset:
        for name in ("text", "label", "queries", "limit"):
            if getattr(arguments, name) is not None:
                raise OptionError(f"--{name} goes with --dataset, which is missing")
    arguments.limit = 2000 if arguments.limit is None else arguments.limit
    leasts: dict[str, int] = {"seeds": 0, "limit": 20, "show": 0, "seed": 0}
    for name, least in leasts.items():
        if getattr(arguments, name) < least:
            raise OptionError(f"--{name} {getattr(arguments, name)}: must be at least {least}")
    for name in ("epochs", "learning_rate"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < float("inf"):
            raise OptionError(f"--{name} {value}: must be above 0")
    if arguments.flip is not None and not 0 <= arguments.flip < 0.5:
        raise OptionError(f"--flip {arguments.flip}: must be at least 0 and below 0.5")


def _check_rows(rows: Any, what: str) -> None:
    """Every text a string, every label a whole number from 0."""
    for position, text in enumerate(rows["text"][:]):
        if not isinstance(text, str):
            raise DataError(f"the {what}: row {position} has the text {text!r}; it must be a string")
    for position, label in enumerate(rows["label"][:]):
        if not isinstance(label, int) or isinstance(label, bool) or label < 0:
            raise DataError(
                f"the {what}: row {position} has the label {label!r}; it must be a class name or whole number"
            )


# -- training


class _Training:
    """Trains a fresh classifier on rows and returns its accuracy on the test rows."""

    def __init__(self, task: Task):
        import transformers

        self.task = task
        self.tokenizer = load_pretrained(transformers.AutoTokenizer, task.model)
        self.test = self.tokenize(task.test)

    def tokenize(self, rows: Any) -> Any:
        encode: Callable[[Any], Any] = lambda batch: self.tokenizer(batch["text"], truncation=True, max_length=256)  # noqa: E731
        return rows.map(encode, batched=True, load_from_cache_file=False)

    def __call__(self, rows: Any, seed: int, callbacks: list[Any] | None = None) -> float:
        import numpy as np
        import transformers

        transformers.set_seed(seed)
        model = load_pretrained(
            transformers.AutoModelForSequenceClassification, self.task.model, num_labels=len(self.task.names)
        )
        with tempfile.TemporaryDirectory() as work:
            trainer = transformers.Trainer(
                model,
                transformers.TrainingArguments(
                    work,
                    num_train_epochs=self.task.epochs,
                    learning_rate=self.task.learning_rate,
                    per_device_train_batch_size=32,
                    per_device_eval_batch_size=64,
                    seed=seed,
                    report_to=[],
                    save_strategy="no",
                    logging_strategy="no",
                    disable_tqdm=True,
                    dataloader_pin_memory=False,
                ),
                train_dataset=self.tokenize(rows),
                processing_class=self.tokenizer,
                callbacks=callbacks or [],
            )
            trainer.remove_callback(transformers.PrinterCallback)
            for callback in callbacks or []:
                callback.trainer = trainer  # whose dataset keeps the row ids
            trainer.train()
            predicted = trainer.predict(self.test).predictions
        return float((np.argmax(predicted, axis=1) == np.array(self.task.test["label"][:])).mean())


# -- the report


def _lowest(scores: Any, count: int) -> list[int]:
    """Positions in the pool of the rows with the lowest scores, lowest first."""
    where = {row: position for position, row in enumerate(scores.row_ids)}
    return [where[row] for row in scores.bottom(k=count)]


def _print_rows(task: Task, scores: Any, rows: list[int]) -> None:
    import textwrap

    print(f"\nThe {len(rows)} most suspicious rows by freeshap (lowest score first):")
    labels = task.pool["label"][:]
    width = max(len(name) for name in task.names)
    for row in rows:
        mark = "" if task.flipped is None else "FLIPPED " if task.flipped[row] else "        "
        text = textwrap.shorten(task.pool[row]["text"], 90, placeholder=" ...")
        print(
            f"  {scores.values[row]:+.4f}  row {scores.row_ids[row]!s:<5} {task.names[labels[row]]:<{width}}  {mark}{text}"
        )


def _print_flips(task: Task, scores: dict[str, Any], count: int) -> None:
    assert task.flipped is not None
    print(f"\nFlipped labels among the lowest {count} rows (all: {sum(task.flipped)}):")
    found = {name: sum(task.flipped[row] for row in _lowest(result, count)) for name, result in scores.items()}
    for name, hits in found.items():
        print(f"  {name:<18} {hits:>4}  {'#' * round(40 * hits / count)}")
    best = max(found, key=lambda name: found[name])
    if found[best] > found["freeshap"]:
        print(
            f"  Here {best} finds more than freeshap; it needs no queries. freeshap also tells which clean rows help most."
        )


def _compare(
    task: Task, train: Any, suspicious: list[int], arguments: argparse.Namespace, first: float
) -> dict[str, Any]:
    """Held-out accuracy with all rows and without the suspicious ones, paired by seed."""
    from hfdataopt.statistics import mean_interval

    kept = task.pool.select(sorted(set(range(len(task.pool))) - set(suspicious)))
    seeds = [arguments.seed + offset for offset in range(arguments.seeds)]
    with_all = [first] + [train(task.pool, seed) for seed in seeds[1:]]
    without = [train(kept, seed) for seed in seeds]
    mean, low, high = mean_interval([b - a for a, b in zip(with_all, without, strict=True)])
    print(f"\nHeld-out accuracy on {len(task.test)} rows, {len(seeds)} seeds:")
    print(f"  {f'all {len(task.pool)} rows':<30} {sum(with_all) / len(seeds):.3f}")
    print(f"  {f'without the lowest {len(suspicious)} rows':<30} {sum(without) / len(seeds):.3f}")
    interval = "" if low != low else f", 95 % interval {low:+.3f} to {high:+.3f}"
    verdict = "" if low != low else " (better)" if low > 0 else " (worse)" if high < 0 else " (no clear difference)"
    print(f"  {'difference':<29} {mean:+.3f}{interval}{verdict}")
    return {"with_all": with_all, "without": without}


def _report(task: Task, scores: dict[str, Any], arguments: argparse.Namespace) -> None:
    from hfdataopt.report import write_report

    folder = Path(arguments.output_dir)
    names = dict(enumerate(task.names))
    labels = [names[label] for label in task.pool["label"][:]]
    where = write_report(
        folder / "report.html",
        scores=scores,
        dataset=task.pool.remove_columns("label").add_column("label", labels),
        queries=task.queries,
        prompt_result=None if arguments.model or arguments.dataset else folder / "prompt",
        text="text",
        flipped=task.flipped,
        show=arguments.show or 1,
    )
    print(f"Report for people: {where}")


def _write(
    task: Task, scores: dict[str, Any], suspicious: list[int], comparison: Any, arguments: argparse.Namespace
) -> None:
    """The table of all rows, the scores and the plot."""
    folder = Path(arguments.output_dir)
    table = folder / "rows.csv"
    labels = task.pool["label"][:]
    dropped = set(suspicious)
    with writing(table), table.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["row", *scores, "suspicious", "label", *(["flipped"] if task.flipped else []), "text"])
        for row in range(len(task.pool)):
            flipped = [int(task.flipped[row])] if task.flipped else []
            values = [f"{result.values[row]:.6g}" for result in scores.values()]
            writer.writerow(
                [
                    scores["freeshap"].row_ids[row],
                    *values,
                    int(row in dropped),
                    task.names[labels[row]],
                    *flipped,
                    task.pool[row]["text"],
                ]
            )
    for name, result in scores.items():
        result.save(folder / "scores" / name)
    print(f"\nAll rows with their scores: {table}; scores for select() and Scores.load(): {folder / 'scores'}")
    try:
        with writing(folder / "freeshap.png"):
            scores["freeshap"].plot(folder / "freeshap.png", highlight=task.flipped)
        print(f"Plot: {folder / 'freeshap.png'}")
    except MissingDependencyError as error:
        print(f"No plot: {error}")
