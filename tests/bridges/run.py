"""The bridges against the real packages, each in an environment that does not disturb the host's.

    python tests/bridges/run.py FOLDER                     # makes what is missing, runs all
    python tests/bridges/run.py FOLDER --only programs

How the environments are made: ``benchmarks/environments.py``.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))

from environments import make, versions  # noqa: E402


class Environment(NamedTuple):
    """What pip installs with its dependencies, and without; the tests; what is reported."""

    packages: tuple[str, ...]
    alone: tuple[str, ...]
    tests: tuple[str, ...]
    shown: tuple[str, ...]


ENVIRONMENTS = {
    "host": Environment((), (), ("../filters/test_label_errors.py", "test_nearest_rows.py"), ("cleanlab", "faiss-cpu")),
    "programs": Environment(
        ("gepa==0.1.4", "dspy[optuna]==3.4.1"),
        (),
        ("test_driven_optimizers.py", "test_dspy_program.py"),
        ("gepa", "dspy", "optuna"),
    ),
    "attribution": Environment(
        ("einops", "opt-einsum", "jaxtyping", "ml_dtypes", "natsort", "petname", "simple-parsing", "optree"),
        ("kronfluence==1.0.1", "einconv", "bergson==2.5.1", "torchopt"),
        ("test_attribution_packages.py",),
        ("kronfluence", "bergson"),
    ),
    "trackers": Environment(
        ("wandb==0.31.0", "tensorboard==2.21.0", "trackio==0.43.0", "mlflow-skinny==3.17.2"),
        (),
        ("test_trackers.py",),
        ("wandb", "tensorboard", "trackio", "mlflow-skinny"),
    ),
    "argilla": Environment(("argilla==2.8.0",), (), ("test_records.py",), ("argilla",)),
}


def run(python: Path | str, environment: Environment) -> bool:
    """Whether all tests passed and none was skipped; says which versions they ran with."""
    tests = [str((HERE / test).resolve()) for test in environment.tests]
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(
        command,
        cwd=HERE.parents[1],
        env={**os.environ, "WANDB_MODE": "offline"},
        check=False,
        capture_output=True,
        text=True,
    )
    found = ", ".join(f"{name} {number}" for name, number in versions(python, environment.shown).items())
    (counts,) = re.findall(r"^\d+ (?:passed|failed|skipped|error).*$", done.stdout, re.MULTILINE)[-1:] or ["no result"]
    print(f"{found}: {counts}", flush=True)
    if done.returncode or "skipped" in counts:
        print(done.stdout[-6000:] + done.stderr[-2000:], flush=True)
    return done.returncode == 0 and "skipped" not in counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="of the environments")
    parser.add_argument("--only", nargs="+", choices=ENVIRONMENTS, default=list(ENVIRONMENTS))
    arguments = parser.parse_args()
    passed = []
    for name in arguments.only:
        environment = ENVIRONMENTS[name]
        folder = arguments.folder.resolve() / name
        python = sys.executable if name == "host" else make(folder, environment.packages, environment.alone)
        print(f"{name}: ", end="", flush=True)
        passed.append(run(python, environment))
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
