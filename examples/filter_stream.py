"""Keep the rows of a stream that are like a few target rows, when the stream is larger than memory.

    python examples/filter_stream.py                                  # offline: generated shards of compressed JSON lines
    python examples/filter_stream.py --rows 1000000                   # ten times the rows in the same memory
    python examples/filter_stream.py --dataset HuggingFaceFW/fineweb-edu --text text --target_file mine.jsonl --output kept.jsonl

1. fit a filter to the stream's first rows and the target: what it scores by, and the score from which a row is kept
2. `stream.filter(f.keep, batched=True, input_columns=f.columns)`, on any number of DataLoader workers
3. write the rows as they come; say how many went in and out, and what memory that took

`hfdataopt select --streaming` does the same in one process without a script.
"""

import argparse
import collections
import gzip
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import tiny_tasks
from torch.utils.data import DataLoader

from hfdataopt import get_filter, quantile


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(argv)
    with tempfile.TemporaryDirectory() as folder:
        if options.dataset:
            stream = datasets.load_dataset(options.dataset, options.config, split="train", streaming=True)
            target = datasets.load_dataset("json", data_files=options.target_file, split="train")
        else:
            stream, target = generated_data(options, Path(folder))
        filter_and_write(stream, target, options)


def filter_and_write(stream: Any, target: Any, options: argparse.Namespace) -> None:
    before = peak_memory()

    # These lines are what you need in a script of your own.
    best = get_filter(options.filter, keep=quantile(1 - options.fraction), text=options.text, fit_rows=options.fit_rows)
    best = best.fit(stream, target=target)
    keep = Counted(best.keep)  # only to know how many rows went in; best.keep does without
    kept = stream.filter(keep, batched=True, input_columns=best.columns)
    loader = DataLoader(kept, batch_size=1000, num_workers=options.workers, collate_fn=list)

    start = time.perf_counter()
    rows_out, topics = 0, collections.Counter[str]()
    with open(options.output, "w", encoding="utf-8") as file:
        for rows in loader:
            file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
            rows_out += len(rows)
            topics.update(row["topic"] for row in rows if "topic" in row)
    seconds = time.perf_counter() - start
    rows_in = keep.rows.value
    print(f"\n{rows_out:,} of {rows_in:,} rows kept ({rows_out / rows_in:.1%}), written to {options.output}")
    if not options.dataset:
        print(
            f"on {options.target}: {options.share:.1%} of all rows, {topics[options.target] / rows_out:.1%} of those kept"
        )
    by = f"{options.workers} workers" if options.workers else "this process"
    print(f"filtered and written in {seconds:.1f} s by {by}: {rows_in / seconds:,.0f} rows/s")
    print(f"peak memory in MB: {before[0]:.0f} before fit, {peak_memory()[0]:.0f} at the end", end="")
    print(f", {peak_memory()[1]:.0f} of the largest worker, which shares the imports" if options.workers else "")


class Counted:
    """A keep function that counts its rows, over all workers."""

    def __init__(self, keep: Callable[..., list[bool]]):
        self.keep = keep
        self.rows = multiprocessing.Value("q", 0)

    def __call__(self, *columns: Sequence[Any]) -> list[bool]:
        with self.rows.get_lock():
            self.rows.value += len(columns[0])
        return self.keep(*columns)


def peak_memory() -> tuple[float, float]:
    """The most memory that this process and the largest of its workers that have ended had so far, in MB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return tuple(resource.getrusage(one).ru_maxrss / unit for one in who)  # type: ignore[return-value]


def generated_data(options: argparse.Namespace, folder: Path) -> tuple[Any, Any]:
    """A stream of shards on disk, and some rows on the topic that matters, which few rows of the stream are on."""
    size = 0
    for shard in range(options.shards):
        count = options.rows // options.shards + (shard < options.rows % options.shards)
        with gzip.open(folder / f"{shard:03}.jsonl.gz", "wt", compresslevel=1, encoding="utf-8") as file:
            for row in tiny_tasks.rows(count, seed=1000 + shard, topic=options.target, share=options.share):
                size += file.write(json.dumps(row) + "\n")
    print(f"{options.rows:,} rows in {options.shards} shards, {size / 2**20:.0f} MB of text")
    files = [str(path) for path in sorted(folder.iterdir())]
    stream = datasets.load_dataset("json", data_files=files, split="train", streaming=True)
    return stream, tiny_tasks.dataset(10, seed=1, topic=options.target)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--filter", default="dsir", choices=("dsir", "bm25"), help="a text filter that compares with a target"
    )
    parser.add_argument("--fraction", type=float, default=0.05, help="share of the rows to keep, about")
    parser.add_argument("--fit_rows", type=int, default=20_000, help="rows of the stream that the filter is fitted on")
    parser.add_argument("--workers", type=int, default=2, help="of the DataLoader")
    parser.add_argument("--dataset", help="hub id of a data set to stream")
    parser.add_argument("--config", help="its configuration, if it has several")
    parser.add_argument("--target_file", help="rows like those that are wanted: a file of JSON lines")
    parser.add_argument(
        "--text", nargs="+", help="columns to read (default: TRL's, such as prompt and completion, or text)"
    )
    parser.add_argument("--output", help="a file of JSON lines (default, offline: one in a temporary folder)")
    parser.add_argument(
        "--target", default="cooking", choices=tiny_tasks.TOPICS, help="offline: the topic that matters"
    )
    parser.add_argument("--share", type=float, default=0.05, help="offline: share of the rows that are on it")
    parser.add_argument("--rows", type=int, default=100_000, help="offline: how many to generate")
    parser.add_argument("--shards", type=int, default=8, help="offline: in how many files")
    parser.add_argument("--smoke", action="store_true", help="some seconds: does it run?")
    options = parser.parse_args(argv)
    if options.dataset and not (options.target_file and options.output):
        parser.error("--dataset needs --target_file and --output")
    if not options.dataset and options.target_file:
        parser.error("--target_file goes with --dataset")
    options.output = options.output or f"{tempfile.mkdtemp()}/kept.jsonl"
    datasets.disable_progress_bars()
    if options.smoke:
        options.rows, options.fit_rows = 2000, 500
    return options


if __name__ == "__main__":
    main()
