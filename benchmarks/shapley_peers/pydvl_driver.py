"""pyDVL on one file of features, in its own environment: ``python pydvl_driver.py DATA.npz OUT.json --permutations 20``.

The model is kernel ridge regression onto one-hot labels, the same game as ours, handed to pyDVL as a model with ``fit``, ``predict``
and ``score``; one solve per prefix. ``--models game logistic`` adds what its users usually take, scikit-learn's logistic regression.
"""

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

warnings.simplefilter("ignore")

from pydvl.valuation import (  # noqa: E402
    BaggingModel,
    BanzhafValuation,
    DataOOBValuation,
    Dataset,
    KNNShapleyValuation,
    LOOValuation,
    MaxUpdates,
    MinUpdates,
    ModelUtility,
    MSRSampler,
    PermutationSampler,
    RelativeTruncation,
    ShapleyValuation,
    SupervisedScorer,
    TMCShapleyValuation,
)
from sklearn.ensemble import BaggingClassifier  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.neighbors import KNeighborsClassifier  # noqa: E402


class KernelRidge:
    """Linear-kernel ridge regression onto one-hot labels in the dual, as small as it can be written."""

    def __init__(self, ridge: float, classes: int) -> None:
        self.ridge, self.classes = ridge, classes

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {"ridge": self.ridge, "classes": self.classes}

    def fit(self, x: np.ndarray, y: np.ndarray) -> "KernelRidge":
        kernel = x @ x.T
        kernel.flat[:: len(x) + 1] += self.ridge
        self.weights = x.T @ np.linalg.solve(kernel, np.eye(self.classes)[y])
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        return (x @ self.weights).argmax(1)

    def score(self, x: np.ndarray, y: np.ndarray) -> float:
        return float((self.predict(x) == y).mean())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--permutations", type=int, default=20)
    parser.add_argument("--only", nargs="+")
    arguments = parser.parse_args()
    data = np.load(arguments.data)
    classes, ridge = int(data["labels"].max()) + 1, float(data["ridge"])
    pool, queries = Dataset(data["pool"], data["labels"]), Dataset(data["queries"], data["query_labels"])
    n, count = len(pool), arguments.permutations

    def utility(model: Any) -> ModelUtility:
        scorer = SupervisedScorer(model, queries, default=1 / classes, range=(0.0, 1.0))
        return ModelUtility(model, scorer, catch_errors=False, show_warnings=False)

    def logistic() -> Any:
        # Prefixes of one class cannot be fitted: pyDVL then takes the default score.
        model = LogisticRegression(max_iter=200)
        scorer = SupervisedScorer(model, queries, default=1 / classes, range=(0.0, 1.0))
        return ModelUtility(model, scorer, catch_errors=True, show_warnings=False)

    game = KernelRidge(ridge, classes)
    methods = {
        "Shapley": lambda: ShapleyValuation(utility(game), PermutationSampler(seed=0), MinUpdates(count)),
        "TMC-Shapley, 5 %": lambda: TMCShapleyValuation(
            utility(game), RelativeTruncation(rtol=0.05), MinUpdates(count), seed=0
        ),
        "Banzhaf, MSR": lambda: BanzhafValuation(utility(game), MSRSampler(seed=0), MaxUpdates(count * n)),
        "leave-one-out": lambda: LOOValuation(utility(game)),
        "Shapley, logistic regression": lambda: ShapleyValuation(logistic(), PermutationSampler(seed=0), MinUpdates(count)),
        "KNN-Shapley, k = 5": lambda: KNNShapleyValuation(KNeighborsClassifier(5), queries, progress=False),
        "Data-OOB, 200 logistic regressions": lambda: DataOOBValuation(
            BaggingClassifier(LogisticRegression(max_iter=200), n_estimators=200, random_state=0).fit(pool.data().x, pool.data().y)
        ),
    }  # fmt: skip
    assert BaggingModel is not None
    found = {}
    for name in arguments.only or methods:
        started = time.process_time()
        valuation = methods[name]()
        valuation.fit(pool)
        seconds = time.process_time() - started
        result = valuation.values() if callable(getattr(valuation, "values", None)) else valuation.result
        values = np.zeros(n)
        values[result.indices] = result.values
        found[name] = {"seconds": seconds, "values": values.tolist()}
    arguments.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
