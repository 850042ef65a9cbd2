"""Label errors beside cleanlab: classes of SST-2 and TREC, and swapped preference pairs of hh.

    python benchmarks/label_peers.py --seeds 10

Classes: the protocol of ``label_noise.py`` (1,000 rows, 10 % flipped), the same rows, flips and fresh model by seed, checked by the
AUC that ``docs/label_noise_*.json`` has for cross-validated confidence. Every method reads the frozen MiniLM before training. cleanlab
ranks by class probabilities of scikit-learn's logistic regression on the same unit vectors, stratified 5-fold, and ``CleanLearning``
does all by itself. A seed that is in ``docs/label_noise_peers.json`` is not run again.
"""

import argparse
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

import numpy as np
import torch
from label_noise import Problem, auc, by_seed, problem
from quiet import quiet_and_single_threaded
from results import Results

from hfdataopt import Scorer, attribute, get_scorer
from hfdataopt.attribution.scorer import Result
from hfdataopt.attribution.view import View
from hfdataopt.statistics import mean_interval

DOCS = Path(__file__).resolve().parents[1] / "docs"
RUNS = DOCS / "label_noise_peers.json"
DEVELOPMENT, REPORTED = "dolly", ("sst2", "trec")
METHODS = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")
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


def out_of_fold(features: np.ndarray, labels: np.ndarray, penalty: float = 1.0, **options: Any) -> np.ndarray:
    """Class probabilities ``[rows, classes]`` by scikit-learn, stratified 5-fold, as cleanlab's guides make them."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    model = LogisticRegression(C=penalty, max_iter=1000, **options)
    return cross_val_predict(model, features, labels, cv=5, method="predict_proba")


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--part", nargs="+", choices=(*REPORTED, DEVELOPMENT), default=list(REPORTED))
    options = parser.parse_args()
    quiet_and_single_threaded()
    runs: dict[str, dict[str, Any]] = json.loads(RUNS.read_text()) if RUNS.is_file() else {}
    work: dict[str, Callable[[int], dict[str, Any]]] = {
        name: lambda seed, name=name: classes(name, options.data, seed) for name in (DEVELOPMENT, *REPORTED)
    }
    for part in options.part:
        for seed in range(options.seeds):
            if str(seed) in runs.setdefault(part, {}):
                continue
            started = time.process_time()
            runs[part][str(seed)] = work[part](seed)
            print(f"{part}, seed {seed}: {time.process_time() - started:.0f} CPU s", flush=True)
            RUNS.write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    main()
