"""Which labels of a classifier's training data are wrong, and is the model better without them?

    python examples/find_label_errors.py                                    # offline, embedded sentences, 10 % of the labels flipped
    python examples/find_label_errors.py --model sentence-transformers/all-MiniLM-L6-v2 --dataset stanfordnlp/sst2 --text sentence

1. train as always, with three callbacks: `freeshap` asks whether a row helps on clean validation data, `label-consistency` and
   `cv-confidence` whether its label is what the other rows make one expect
2. list the rows that rank lowest over the three
3. drop a tenth of the rows, train again, compare on test data, with as many rows dropped at random as the control

`hfdataopt demo` does a similar job without any script; this one is for your own Trainer.
"""

import argparse
import itertools
import tempfile
import textwrap
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

from hfdataopt import AttributionCallback, select
from hfdataopt.demo import sentences
from hfdataopt.statistics import mean_interval, ranks

METHODS = ("freeshap", "label-consistency", "cv-confidence")


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(argv)
    train, validation, test = own_data(options) if options.dataset else embedded_data(options)
    names = train.features["label"].names
    tokenizer = AutoTokenizer.from_pretrained(options.model)

    def tokenize(batch: Any) -> Any:
        return tokenizer(batch["text"], truncation=True, max_length=256)

    train, validation, test = (rows.map(tokenize, batched=True) for rows in (train, validation, test))

    def fine_tune(rows: Any, seed: int, callbacks: list[Any] | None = None) -> float:
        """Accuracy on the test data after training on these rows."""
        transformers.set_seed(seed)
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=len(names)),
                TrainingArguments(
                    folder,
                    num_train_epochs=options.epochs,
                    learning_rate=options.learning_rate,
                    per_device_train_batch_size=32,
                    per_device_eval_batch_size=64,
                    dataloader_pin_memory=torch.cuda.is_available(),
                    seed=seed,
                    save_strategy="no",
                    logging_strategy="no",
                    report_to="none",
                    disable_tqdm=True,
                ),
                train_dataset=rows,
                processing_class=tokenizer,
                callbacks=callbacks,
            )
            trainer.remove_callback(transformers.PrinterCallback)
            trainer.train()
            predicted = trainer.predict(test).predictions.argmax(1)
        return float((predicted == np.array(test["label"])).mean())

    # These lines are what you need in a script of your own.
    callbacks = [AttributionCallback(name, queries=validation) for name in METHODS]
    accuracy = fine_tune(train, seed=0, callbacks=callbacks)
    for callback in callbacks:
        train = callback.scores.join(train, callback.scorer.name)  # a column of scores; higher = more helpful, always
    train = train.add_column("mean rank", np.mean([ranks(train[name]) for name in METHODS], axis=0))
    kept = {"all three": select(train, "mean rank", fraction=0.9)}
    kept |= {callback.scorer.name: select(train, callback.scores, fraction=0.9) for callback in callbacks}

    show(train, names, options.show)
    if "flipped" in train.column_names:
        total = sum(train["flipped"])
        print(
            f"\nWrong labels among the {len(train) - len(kept['all three'])} rows dropped ({total} of all {len(train)} are wrong):"
        )
        for name, rows in kept.items():
            print(f"  {name:<18}{total - sum(rows['flipped']):>4}")

    accuracies = {"nothing dropped": [accuracy] + [fine_tune(train, seed) for seed in range(1, options.seeds)]}
    for name in ("all three", "freeshap"):
        accuracies[f"dropped by {name}"] = [fine_tune(kept[name], seed) for seed in range(options.seeds)]
    at_random = [train.shuffle(seed=seed).select(range(len(kept["all three"]))) for seed in range(options.seeds)]
    accuracies["dropped at random"] = [fine_tune(rows, seed) for seed, rows in enumerate(at_random)]
    compare(accuracies, len(test))


def show(train: Any, names: list[str], count: int) -> None:
    """The rows that rank lowest over the three methods, with their place in each."""
    print(f"\nThe {count} most suspicious of {len(train)} rows (place in each method, 1 = most suspicious):")
    places = {name: ranks(train[name]) for name in METHODS}
    print("  " + "".join(f"{name:>18}" for name in METHODS) + "   row  label")
    for row in np.argsort(train["mean rank"], kind="stable")[:count].tolist():
        text = textwrap.shorten(train[row]["text"], 90, placeholder=" ...")
        mark = "" if "flipped" not in train.column_names else " WRONG" if train[row]["flipped"] else "      "
        numbers = "".join(f"{places[name][row]:>18.0f}" for name in METHODS)
        print(f"  {numbers}  {row:>4}  {names[train[row]['label']]}{mark}  {text}")


def compare(accuracies: dict[str, list[float]], rows: int) -> None:
    """Mean accuracies, and paired differences to dropping nothing with 95 % t intervals over the seeds."""
    first, *_ = accuracies.values()
    print(f"\nAccuracy on {rows} test rows, {len(first)} trainings each:")
    for name, values in accuracies.items():
        line = f"  {name:<24}{np.mean(values):.3f}"
        if values is not first:
            mean, low, high = mean_interval([one - other for one, other in zip(values, first, strict=True)])
            verdict = "better" if low > 0 else "worse" if high < 0 else "no clear difference"
            line += f"   {mean:+.3f} ({low:+.3f} to {high:+.3f})  {verdict}"
        print(line)


def embedded_data(options: argparse.Namespace) -> list[Any]:
    """Sentences that ship with hfdataopt; a tenth of the training labels is wrong, and column ``flipped`` knows which."""
    sizes = {"train": 120, "validation": 60, "test": 200} if options.smoke else {}
    splits = sentences.demo_dataset(**sizes)
    labels, flipped = sentences.flip_labels(splits["train"]["label"], 0.1, seed=0)
    feature = splits["train"].features["label"]
    train = splits["train"].remove_columns("label").add_column("label", labels, feature=feature)
    return [train.add_column("flipped", flipped), splits["validation"], splits["test"]]


def own_data(options: argparse.Namespace) -> list[Any]:
    """Training, validation and test rows with the columns ``text`` and ``label``."""
    if options.dataset.endswith((".json", ".jsonl", ".csv")):
        kind = "csv" if options.dataset.endswith(".csv") else "json"
        rows = datasets.load_dataset(kind, data_files=options.dataset, split="train")
    else:
        rows = datasets.load_dataset(options.dataset, split="train")
    rows = rows.select_columns([options.text, options.label]).rename_columns(
        {options.text: "text", options.label: "label"}
    )
    if not isinstance(rows.features["label"], datasets.ClassLabel):
        rows = rows.class_encode_column("label")
    rows = rows.shuffle(seed=0).select(range(min(len(rows), options.limit)))
    parts = [len(rows) * share // 10 for share in (0, 4, 6, 10)]
    return [rows.select(range(start, stop)) for start, stop in itertools.pairwise(parts)]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="an encoder, hub id or folder (default: the demo's)")
    parser.add_argument("--dataset", help="hub id, or a .jsonl or .csv file; its training split is split in three")
    parser.add_argument("--text", default="text", help="the text column")
    parser.add_argument("--label", default="label", help="the label column")
    parser.add_argument("--limit", type=int, default=2000, help="rows to use of --dataset")
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--learning_rate", type=float, help="default: 1e-3 for the demo's encoder, else 5e-5")
    parser.add_argument("--seeds", type=int, default=5, help="trainings on each side of the comparison")
    parser.add_argument("--show", type=int, default=10, help="suspicious rows to list")
    parser.add_argument("--smoke", action="store_true", help="some seconds: does it run?")
    options = parser.parse_args(argv)
    if bool(options.model) != bool(options.dataset):
        parser.error("--model and --dataset go together")
    options.learning_rate = options.learning_rate or (5e-5 if options.model else 1e-3)
    if not options.model:
        torch.set_num_threads(1)  # so small a model is slower on more
    options.model = options.model or f"{sentences.__file__.removesuffix('sentences.py')}encoder"
    if options.smoke:
        options.seeds, options.epochs = 2, 1
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    return options


if __name__ == "__main__":
    main()
