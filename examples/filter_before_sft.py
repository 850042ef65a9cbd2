"""Which rows of a mixture should a language model be fine-tuned on, when a few rows show the task that matters?

    python examples/filter_before_sft.py                                           # offline: eight topics, a tiny model
    python examples/filter_before_sft.py --filter bm25
    python examples/filter_before_sft.py --filter tsds --encoder sentence-transformers/all-MiniLM-L6-v2
    python examples/filter_before_sft.py --model HuggingFaceTB/SmolLM2-135M --dataset databricks/databricks-dolly-15k \
        --columns instruction response --topic category --target closed_qa

1. fit a filter to the mixture and the target rows, keep the best, and print what was kept and dropped
2. fine-tune with trl's SFTTrainer on the kept rows, and on other choices, for the same number of steps
3. compare the loss on held-out rows of the target

Offline, a tenth of the rows are on the target's topic. With --dataset the target rows are those whose column --topic is
--target, or a file of their own (--target_file); training rows of that topic stay in the mixture.
"""

import argparse
import tempfile
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import tiny_tasks
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from hfdataopt import get_filter, select, top
from hfdataopt.statistics import mean_interval


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(argv)
    pool, target, test = own_data(options) if options.dataset else generated_data(options)
    tokenizer = AutoTokenizer.from_pretrained(options.model)

    # These lines are what you need in a script of your own.
    encoder = {"model": options.encoder} if options.encoder else {}  # for filters that compare vectors
    best = get_filter(options.filter, keep=top(fraction=options.fraction), **encoder)
    kept, summary = select(pool, best, target=target, return_summary=True)
    print(f"\n{summary}")

    choices = {f"{options.fraction:.0%} by {options.filter}": lambda seed: kept}
    choices[f"{options.fraction:.0%} at random"] = lambda seed: pool.shuffle(seed=100 + seed).select(range(len(kept)))
    choices["everything"] = lambda seed: pool
    if "topic" in pool.column_names and options.target:
        print(f"\nRows on {options.target}, which no filter sees the name of:")
        for name, rows in choices.items():
            topics = rows(0)["topic"][:]
            print(f"  {name:<16}{topics.count(options.target):>6} of {len(topics)}")

    def fine_tune(rows: Any, seed: int, steps: int) -> float:
        """The loss on the held-out rows after supervised fine-tuning, in nats per token of the completions."""
        with tempfile.TemporaryDirectory() as folder:
            trainer = SFTTrainer(
                AutoModelForCausalLM.from_pretrained(options.model, dtype="float32"),
                SFTConfig(
                    folder,
                    max_steps=steps,
                    learning_rate=options.learning_rate,
                    per_device_train_batch_size=options.batch_size,
                    per_device_eval_batch_size=options.batch_size,
                    bf16=torch.cuda.is_available(),
                    dataloader_pin_memory=torch.cuda.is_available(),
                    seed=seed,
                    save_strategy="no",
                    logging_strategy="no",
                    report_to="none",
                    disable_tqdm=True,
                ),
                train_dataset=rows.select_columns(["prompt", "completion"]),
                eval_dataset=test.select_columns(["prompt", "completion"]),
                processing_class=tokenizer,
            )
            trainer.remove_callback(transformers.PrinterCallback)
            if steps:
                trainer.train()
            return float(trainer.evaluate()["eval_loss"])

    losses = {"no fine-tuning": [fine_tune(kept, 0, 0)] * options.seeds}
    for name, rows in choices.items():
        losses[name] = [fine_tune(rows(seed), seed, options.steps) for seed in range(options.seeds)]
    compare(losses, len(test), options)


def compare(losses: dict[str, list[float]], rows: int, options: argparse.Namespace) -> None:
    """Mean losses, and paired differences to random rows with 95 % t intervals over the seeds."""
    print(
        f"\nLoss on {rows} held-out target rows, {options.seeds} trainings of {options.steps} steps each (lower is better):"
    )
    (random,) = (name for name in losses if name.endswith("at random"))
    for name, values in losses.items():
        line = f"  {name:<16}{np.mean(values):>8.3f}"
        if name != random:
            mean, low, high = mean_interval([a - b for a, b in zip(values, losses[random], strict=True)])
            verdict = "lower" if high < 0 else "higher" if low > 0 else "no clear difference"
            line += f"   {mean:+.3f} ({low:+.3f} to {high:+.3f}) against random  {verdict}"
        print(line)


def generated_data(options: argparse.Namespace) -> list[Any]:
    """A mixture of eight topics of which a tenth of the rows are on the target's, some target rows, and held-out ones."""
    mixture = tiny_tasks.dataset(options.pool, seed=0, topic=options.target, share=0.1)
    shown = tiny_tasks.dataset(options.target_rows, seed=1, topic=options.target)
    return [mixture, shown, tiny_tasks.dataset(options.test, seed=2, topic=options.target)]


def own_data(options: argparse.Namespace) -> list[Any]:
    """The same from a data set: its rows as ``prompt, completion``, without those that serve as the target or are held out."""
    rows = load(options.dataset, options).shuffle(seed=0)
    source = load(options.target_file, options) if options.target_file else rows
    if not options.target_file:
        topics = source["topic"][:]
        wanted = [place for place, topic in enumerate(topics) if topic == options.target]
        if not wanted:
            raise SystemExit(
                f"no row of --dataset has the --target {options.target!r}; there are: {sorted(set(topics))}"
            )
    else:
        wanted = list(range(len(source)))
    count = min(options.test, (len(wanted) - options.target_rows) // 2)
    if count < 1:
        raise SystemExit(
            f"only {len(wanted)} target rows: too few for {options.target_rows} to show and some to hold out"
        )
    shown, held_out = wanted[: options.target_rows], wanted[options.target_rows : options.target_rows + count]
    taken = set() if options.target_file else {*shown, *held_out}
    left = [place for place in range(len(rows)) if place not in taken][: options.pool]
    return [rows.select(left), source.select(shown), source.select(held_out)]


def load(name: str, options: argparse.Namespace) -> Any:
    """The training split of a hub data set, or a file of JSON lines, with the columns ``prompt``, ``completion`` and ``topic``."""
    if name.endswith((".json", ".jsonl")):
        found = datasets.load_dataset("json", data_files=name, split="train")
    else:
        found = datasets.load_dataset(name, split="train")
    prompt, completion = options.columns
    names = {prompt: "prompt", completion: "completion"}
    if options.topic in found.column_names:
        names[options.topic] = "topic"
    return found.select_columns(list(names)).rename_columns({old: new for old, new in names.items() if old != new})


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--filter", default="dsir", help="a filter that compares with a target; `hfdataopt plugins` lists them"
    )
    parser.add_argument("--encoder", help="for filters that take one (rds, tsds): hub id or folder; `self` is --model")
    parser.add_argument("--fraction", type=float, default=0.05, help="share of the mixture to keep")
    parser.add_argument("--model", help="a causal LM, hub id or folder (default: a tiny one, made here)")
    parser.add_argument("--dataset", help="hub id, or a file of JSON lines")
    parser.add_argument("--columns", nargs=2, default=["prompt", "completion"], help="of --dataset")
    parser.add_argument("--topic", default="topic", help="column of --dataset that says what a row is about")
    parser.add_argument("--target", help="which of the topics matters (default, offline: cooking)")
    parser.add_argument("--target_file", help="file of JSON lines with target rows, in place of --target")
    parser.add_argument("--pool", type=int, default=2000, help="rows to choose from")
    parser.add_argument("--target_rows", type=int, default=10, help="target rows that the filter sees")
    parser.add_argument("--test", type=int, default=200, help="target rows to compare on")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each choice")
    parser.add_argument("--steps", type=int, default=40, help="of each of these trainings")
    parser.add_argument("--learning_rate", type=float, help="default: 1e-3 for the tiny model, else 2e-5")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--smoke", action="store_true", help="some seconds: does it run?")
    options = parser.parse_args(argv)
    if bool(options.model) != bool(options.dataset):
        parser.error("--model and --dataset go together")
    if options.dataset and bool(options.target) == bool(options.target_file):
        parser.error("with --dataset give --target, a value of the column --topic, or --target_file")
    if not options.dataset:
        options.target = options.target or "cooking"
        if options.target not in tiny_tasks.TOPICS or options.target_file:
            parser.error(f"offline, --target is one of: {', '.join(tiny_tasks.TOPICS)}")
    options.learning_rate = options.learning_rate or (2e-5 if options.model else 1e-3)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    if options.smoke:
        options.pool, options.test, options.seeds, options.steps = min(options.pool, 200), 20, 2, 2
    if not options.model:
        print("Making a tiny language model ...", flush=True)
        options.model = tiny_tasks.make(tempfile.mkdtemp(), steps=5 if options.smoke else 60)
    if options.encoder == "self":
        options.encoder = options.model
    return options


if __name__ == "__main__":
    main()
