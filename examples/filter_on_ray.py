"""A fitted filter on Ray Data, the way past one machine: the same rows are kept as without Ray.

    pip install 'hfdataopt[ray]'
    python examples/filter_on_ray.py                                        # offline: generated rows, a local Ray of two processes
    python examples/filter_on_ray.py --address auto --input s3://mine/rows --text text --target_file mine.jsonl \
        --output s3://mine/kept

1. fit the filter here, on the first rows and a few target rows; a fitted filter is small and goes to any machine
2. `map_batches` keeps rows and adds their scores, wherever Ray has put them
3. offline, do the same without Ray and compare, row by row

Machines of a cluster need hfdataopt installed, as they need every package that a function of map_batches imports.
"""

import argparse
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import tiny_tasks

from hfdataopt import get_filter, quantile
from hfdataopt.errors import MissingDependencyError

try:
    import ray
    import ray.data
except ImportError as error:
    raise MissingDependencyError("filter_on_ray: needs Ray Data; run: pip install 'hfdataopt[ray]'") from error


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(argv)
    local = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 200 * 2**20}
    ray.init(address=options.address, log_to_driver=False, **(local if options.address == "local" else {}))
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as folder:
            if options.input:
                target = datasets.load_dataset("json", data_files=options.target_file, split="train")
                kept, _ = filter_on_ray(ray.data.read_parquet(options.input), target, options)
                kept.write_json(options.output)
                print(f"written to {options.output}")
            else:
                compare(generated_data(options, Path(folder)), options)
    finally:
        ray.shutdown()


def filter_on_ray(rows: Any, target: Any, options: argparse.Namespace) -> tuple[Any, Any]:
    """The rows of a Ray data set that are kept, with their scores, and the fitted filter."""
    # These lines are what you need in a script of your own.
    execution = ray.data.DataContext.get_current().execution_options
    execution.preserve_order = True  # the first rows are the same in every run
    first = datasets.Dataset.from_list(rows.take(options.fit_rows))
    best = get_filter(options.filter, keep=quantile(1 - options.fraction), text=options.text).fit(first, target=target)
    execution.preserve_order = False

    def keep(batch: dict[str, Any]) -> dict[str, Any]:
        mask = best.keep(*(batch[name] for name in best.columns))
        kept = {name: values[mask] for name, values in batch.items()}
        return {**kept, **best(kept)}

    return rows.map_batches(keep, batch_format="numpy", batch_size=1000), best


def compare(files: list[str], options: argparse.Namespace) -> None:
    """The rows that are kept with Ray, and without."""
    target = tiny_tasks.dataset(10, seed=1, topic=options.target)
    start = time.perf_counter()
    on_ray, best = filter_on_ray(ray.data.read_parquet(files), target, options)
    kept = on_ray.take_all()
    seconds = time.perf_counter() - start
    print(f"\n{len(kept):,} of {options.rows:,} rows kept on Ray in {seconds:.1f} s")
    share = sum(row["topic"] == options.target for row in kept) / max(1, len(kept))
    print(f"on {options.target}: {options.share:.1%} of all rows, {share:.1%} of those kept")

    whole = datasets.load_dataset("parquet", data_files=files, split="train")
    alone = whole.filter(best.keep, batched=True, input_columns=best.columns).map(best, batched=True)
    scores = [{row["row_id"]: row[best.score_column] for row in rows} for rows in (kept, alone)]
    print(f"kept by one of the two only: {len(scores[0].keys() ^ scores[1].keys())} rows", end="; ")
    differ = sum(score != scores[1][row] for row, score in scores[0].items() if row in scores[1])
    print(f"kept by both, with different scores: {differ}")


def generated_data(options: argparse.Namespace, folder: Path) -> list[str]:
    """Files of rows of which few are on the topic that matters."""
    files = [str(folder / f"{part}.parquet") for part in range(4)]
    whole = tiny_tasks.dataset(options.rows, seed=0, topic=options.target, share=options.share)
    whole = whole.add_column("row_id", list(range(len(whole))))
    for part, file in enumerate(files):
        whole.shard(len(files), part, contiguous=True).to_parquet(file)
    return files


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--filter", default="dsir", choices=("dsir", "bm25"), help="a text filter that compares with a target"
    )
    parser.add_argument("--fraction", type=float, default=0.05, help="share of the rows to keep, about")
    parser.add_argument("--fit_rows", type=int, default=5000, help="rows that the filter is fitted on")
    parser.add_argument("--address", default="local", help="of a Ray cluster; `auto` finds the one this machine is in")
    parser.add_argument("--input", help="a parquet file, or a folder of them, where Ray can read it")
    parser.add_argument("--target_file", help="rows like those that are wanted: a file of JSON lines")
    parser.add_argument(
        "--text", nargs="+", help="columns to read (default: TRL's, such as prompt and completion, or text)"
    )
    parser.add_argument("--output", help="folder for JSON lines, where Ray can write it")
    parser.add_argument(
        "--target", default="cooking", choices=tiny_tasks.TOPICS, help="offline: the topic that matters"
    )
    parser.add_argument("--share", type=float, default=0.05, help="offline: share of the rows that are on it")
    parser.add_argument("--rows", type=int, default=20_000, help="offline: how many to generate")
    options = parser.parse_args(argv)
    if not (bool(options.input) == bool(options.target_file) == bool(options.output)):
        parser.error("--input, --target_file and --output go together")
    datasets.disable_progress_bars()
    return options


if __name__ == "__main__":
    main()
