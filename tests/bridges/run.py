"""The bridges against the real packages, each in an environment that does not disturb the host's.

    python tests/bridges/run.py FOLDER                     # makes what is missing, runs all
    python tests/bridges/run.py FOLDER --only programs

An environment sees the packages of the Python that runs this script, the host, by a ``.pth`` file: torch is not installed again, and
pip stops where something asks for another version of the pinned ones. Nothing is written into the host.
"""

import argparse
import os
import re
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
FIXED = ("torch", "numpy", "transformers", "datasets", "accelerate")


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


def make(folder: Path, environment: Environment) -> Path:
    """An environment with these packages beside the host's; its Python."""
    python = folder / "bin" / "python"
    done = folder / "made.txt"
    wanted = repr(environment[:2])
    if done.exists() and done.read_text() == wanted:
        return python
    venv.create(folder, with_pip=True, clear=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "host.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    constraints = folder / "host.txt"
    # A build's own label, such as +cpu, is no version that an index has.
    constraints.write_text("".join(f"{name}=={version(name).partition('+')[0]}\n" for name in FIXED))
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if environment.packages:
        subprocess.run([*pip, "-c", str(constraints), *environment.packages], check=True)
    if environment.alone:
        subprocess.run([*pip, "--no-deps", *environment.alone], check=True)
    if own := [name for name in FIXED if (site / name).exists()]:
        sys.exit(f"{folder}: pip installed {', '.join(own)} again")
    done.write_text(wanted)
    return python


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
    code = f"from importlib.metadata import version; print(*(f'{{n}} {{version(n)}}' for n in {environment.shown!r}), sep=', ')"
    versions = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    (counts,) = re.findall(r"^\d+ (?:passed|failed|skipped|error).*$", done.stdout, re.MULTILINE)[-1:] or ["no result"]
    print(f"{versions}: {counts}", flush=True)
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
        python = sys.executable if name == "host" else make(arguments.folder.resolve() / name, environment)
        print(f"{name}: ", end="", flush=True)
        passed.append(run(python, environment))
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
