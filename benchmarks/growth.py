"""Time and memory as rows, queries and the model grow, against what the algebra predicts.

    python benchmarks/growth.py [--part shapley knn store filters queries model] [--largest 1000000]

Each point is a process of its own: CPU seconds of one thread without imports, and the peak memory less that of the same process before
the work. Features, distances and scores are drawn at random; rows of text are made of drawn words. *Exponent* is the slope between the last
two points in logarithms: 1 is linear. What the algebra predicts stands in each caption.
"""

import argparse
import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from results import Results

PRELUDE = """
import json, os, resource, sys, tempfile, time
os.environ.update(OMP_NUM_THREADS="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1", HF_HUB_OFFLINE="1", HFDATAOPT_QUIET="1")
import numpy as np, torch
torch.set_num_threads(1)
n, t = int(sys.argv[1]), int(sys.argv[2])
rng = np.random.default_rng(0)
def measured(work, per=1):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    work()
    seconds = (time.process_time() - start) / per
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([seconds, (peak - before) / 1024]))
"""

SHAPLEY = """
from hfdataopt.shapley import shapley_values
x = torch.from_numpy(rng.standard_normal((n + t, 100)))
labels = (x[:, 0] > 0).long()
kernel, cross = x[:n] @ x[:n].T / 100, x[:n] @ x[n:].T / 100
permutations = max(2, min(100, int(4e9 / n**3)))
def work():
    shapley_values(kernel, cross, labels[:n], labels[n:], ridge=1.0, permutations=permutations, out_of_bag=False, workers=1)
shapley_values(kernel[:50, :50], cross[:50], labels[:50], labels[n:], ridge=1.0, permutations=2, workers=1)
measured(work, permutations)
"""

KNN = """
from hfdataopt.shapley import knn_shapley
distances, labels, asked = rng.random((n, t)), rng.integers(0, 2, n), rng.integers(0, 2, t)
knn_shapley(distances[:100], labels[:100], asked)
measured(lambda: knn_shapley(distances, labels, asked))
"""

STORE = """
from hfdataopt.gradients import GradientStore
queries = rng.standard_normal((256, t)).astype(np.float32)
shard = rng.standard_normal((1024, 256)).astype(np.float32)
def work():
    with tempfile.TemporaryDirectory() as folder:
        store = GradientStore.open_or_create(folder, {"of": "growth"}, n)
        for number in range(store.shards):
            store.write(number, {"features": shard[: len(store.rows_of(number))]})
        features = GradientStore.open(folder).read()
        products = np.concatenate([features[start : start + 4096] @ queries for start in range(0, n, 4096)])
        assert products.shape == (n, t)
measured(work)
"""

FILTER = """
from datasets import Dataset, IterableDataset
from hfdataopt import get_filter
words = ["".join(rng.choice(list("etaoinshrdlu"), size)) for size in rng.integers(2, 10, 3000)]
texts = [" ".join(words[place] for place in rng.integers(0, len(words), 30)) for _ in range(1000)]
def rows():
    for place in range(n):
        yield {"text": texts[place % 1000] + f" {place}"}
pool = IterableDataset.from_generator(rows)
get_filter(NAME, **OPTIONS)  # loads the plugins
def work():
    f = get_filter(NAME, **OPTIONS).fit(pool, Dataset.from_dict({"text": texts[:t]}))
    assert sum(1 for _ in pool.map(f, batched=True, batch_size=1000)) == n
measured(work)
"""

MODEL = """
from gradient_features import as_batches, features, make_text, plain
from hfdataopt.gradients import fit_basis
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(vocab_size=1000, hidden_size=n, intermediate_size=n * 8 // 3, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=4, max_position_embeddings=512, use_cache=False))
batches = as_batches(make_text(64, 1), "p")
basis = fit_basis(model, batches, floats_per_row=8192, rows=64)
plain(model, batches); features(model, batches, basis)
floor = min(timed(lambda: plain(model, batches)) for _ in range(3))
ours = min(timed(lambda: features(model, batches, basis)) for _ in range(3))
size = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
print(json.dumps([size, floor, ours]))
"""


def child(script: str, *arguments: int) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script, *map(str, arguments)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def exponents(sizes: list[int], values: list[float]) -> list[float | None]:
    """Slope in logarithms from the point before; None for the first, and where either is too small to tell (0.02)."""
    found: list[float | None] = [None]
    for (a, b), (x, y) in zip(pairwise(sizes), pairwise(values), strict=True):
        found.append(math.log(y / x) / math.log(b / a) if min(x, y) > 0.02 else None)
    return found


def rows_table(results: Results, caption: str, script: str, sizes: list[int], queries: int) -> None:
    points = [child(script, n, queries) for n in sizes]
    seconds, peaks = [point[0] for point in points], [point[1] for point in points]
    rows: list[list[Any]] = [
        [n, spent, exponent, peak, 1024**2 * peak / n]
        for n, spent, exponent, peak in zip(sizes, seconds, exponents(sizes, seconds), peaks, strict=True)
    ]
    results.table(caption, ["rows", "CPU s", "exponent", "MiB more", "bytes per row"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("shapley", "knn", "store", "filters", "queries", "model")
    parser.add_argument("--part", choices=parts, nargs="+", default=list(parts))
    parser.add_argument("--largest", type=int, default=1_000_000)
    options = parser.parse_args()
    torch.set_num_threads(1)  # as the children

    def results(part: str) -> Results:
        """A file for each part, so that one may run alone."""
        return Results(f"growth_{part}", f"python benchmarks/growth.py --part {part}")

    powers = [n for n in (1_000, 10_000, 100_000, 1_000_000) if n <= options.largest]
    if "shapley" in options.part:
        caption = "One permutation of Shapley values, 200 queries: n^3/3 + n^2 t operations, exponent 2 to 3; memory 8 n^2 bytes a copy"
        rows_table(
            results("shapley"), caption, SHAPLEY, [n for n in (250, 500, 1000, 2000, 4000) if n <= options.largest], 200
        )
    if "knn" in options.part:
        rows_table(results("knn"), "KNN-Shapley, 16 queries: t n log n", KNN, powers, 16)
    if "store" in options.part:
        caption = (
            "Feature store, 256 floats a row: write, read back, products with 16 queries; time linear; memory of the products, "
            "and the pages of the mapped file"
        )
        rows_table(results("store"), caption, STORE, powers, 16)
    if "filters" in options.part:
        kept = results("filters")
        for name, fixed in (("dsir", {"hash": "vectorised"}), ("bm25", {})):
            script = f"NAME, OPTIONS = {name!r}, {fixed!r}\n" + FILTER
            caption = f"Filter `{name}` on a stream, 15 rows of target: time linear, memory constant"
            rows_table(kept, caption, script, [n for n in powers if n <= 100_000], 15)
    if "queries" in options.part:
        counts = (1, 16, 256, 1024)
        points = [child(STORE, min(100_000, options.largest), t) for t in counts]
        results("queries").table(
            f"Feature store, {min(100_000, options.largest):,} rows of 256 floats: queries; linear in them once products outweigh reading",
            ["queries", "CPU s", "MiB more"],
            [[t, *point] for t, point in zip(counts, points, strict=True)],
        )
    if "model" in options.part:
        timed = "def timed(f):\n    s = time.process_time(); f(); return time.process_time() - s\n"
        rows = []
        for hidden in (64, 128, 256, 512):
            size, floor, ours = child(timed + MODEL, hidden, 0)
            rows.append([hidden, int(size), floor, ours, ours / floor])
        results("model").table(
            "Features of 8,192 floats, 64 rows of 128 tokens, 4 layers: over the bare forward and backward; projections cost "
            "hidden x k a token where the model costs hidden^2, so the ratio falls",
            ["hidden", "weights of linear layers", "floor, CPU s", "features, CPU s", "x floor"],
            rows,
        )


if __name__ == "__main__":
    main()
