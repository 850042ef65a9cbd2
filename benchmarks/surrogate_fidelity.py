"""Does kernel regression stand in for fine-tuning? MiniLM on SST-2: utilities of both on the same small subsets.

Subsets come in pairs: S, and S with 1 or 8 more rows. All layers of MiniLM and a fresh head are fine-tuned on each, with
several seeds (order and dropout); kernel regression solves once per subset. The table has the rank correlation of the
utilities over subsets, and the share of marginal contributions with the same sign, beside what one half of the training
seeds says of the other.

    python benchmarks/surrogate_fidelity.py --pairs 24 --seeds 2 --work surrogate-work --output docs/surrogate_fidelity.json
    python benchmarks/surrogate_fidelity.py --table docs/surrogate_fidelity.json

What is in ``--work`` is not trained again.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from quiet import quiet_and_single_threaded
from sign_consistency import classifier, data_of, kernel_of

from hfdataopt.evaluation import draw_pairs, kernel_utilities, surrogate_fidelity
from hfdataopt.retraining import Recipe, read_rows
from hfdataopt.trainings import Trainings

ROWS, QUERIES = 200, 100
SIZES = (8, 16, 32)
RECIPE = Recipe(epochs=6, learning_rate=2e-4, batch_size=8)
KERNELS, UTILITIES, ADDED = ("entk", "hidden"), ("log-likelihood", "margin", "accuracy"), (1, 8)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Results by added rows, kernel and utility; the margin of fine-tuning is clipped as that of the regression."""
    pool, queries = data_of(arguments.data, 0, ROWS, QUERIES)
    model, tokenizer = classifier(0)
    rows, asked = read_rows(pool, model, tokenizer), read_rows(queries, model, tokenizer, side="queries")
    tasks = {kernel: kernel_of(model, tokenizer, pool, queries, kernel) for kernel in KERNELS}
    found: dict[str, Any] = {}
    for added in ADDED:
        subsets = draw_pairs(rows.ids, arguments.pairs, SIZES, added)
        jobs = [(np.flatnonzero(subset), seed) for seed in range(arguments.seeds) for subset in subsets]
        trainings = Trainings(
            model,
            rows,
            asked,
            training=RECIPE,
            metric="margin",
            folder=arguments.work / "margin",
            who=f"{added} more rows",
        )
        margins = trainings.of_all(jobs).reshape(arguments.seeds, len(subsets), -1)
        # With two classes the margin is the logit difference, from which the other utilities follow.
        real = {
            "log-likelihood": -np.logaddexp(0, -margins).mean(2),
            "margin": np.clip(margins, -1, 1).mean(2),
            "accuracy": (margins > 0).mean(2),
        }
        for kernel, task in tasks.items():
            for utility in UTILITIES:
                predicted = kernel_utilities(
                    task.kernel, task.cross, task.labels, task.query_labels, subsets, utility=utility
                )
                result = surrogate_fidelity(predicted, real[utility])
                found[f"{added} / {kernel} / {utility}"] = {
                    **result.as_dict(),
                    "fine_tuned_mean": float(real[utility].mean()),
                    "kernel_mean": float(predicted.mean()),
                }
    return {"pairs": arguments.pairs, "seeds": arguments.seeds, "results": found}


def table(document: dict[str, Any]) -> str:
    lines = [
        f"{ROWS} rows, {QUERIES} queries, {document['pairs']} pairs of each kind, sizes {', '.join(map(str, SIZES))}, "
        f"{document['seeds']} seeds",
        "",
        "| added | kernel | utility | rank correlation | between seeds | same sign | between seeds | mean utility, fine-tuned / kernel |",
        "|---|---|---|---|---|---|---|---|",
    ]

    def interval(entry: dict[str, float]) -> str:
        return f"{entry['value']:.3f} ({entry['low']:.3f} to {entry['high']:.3f})"

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    for name, one in document["results"].items():
        lines.append(
            f"| {' | '.join(name.split(' / '))} | {interval(one['rank_correlation'])} | {number(one['ceiling_correlation'])} "
            f"| {interval(one['sign_agreement'])} | {number(one['ceiling_signs'])} "
            f"| {one['fine_tuned_mean']:.3f} / {one['kernel_mean']:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("build/surrogate"), help="where trainings are kept")
    parser.add_argument("--output", type=Path, default=Path("docs/surrogate_fidelity.json"))
    parser.add_argument("--table", type=Path, help="print the table of such a file and exit")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(arguments.table.read_text())))
        return
    quiet_and_single_threaded()
    document = run(arguments)
    arguments.output.write_text(json.dumps(document, indent=1))
    print(table(document))


if __name__ == "__main__":
    main()
