"""Environments for packages that would disturb the host's, the Python that runs this: beside it, not inside it.

Such an environment sees the host's packages by a ``.pth`` file: torch is not installed again, and pip stops where something asks
for another version of the pinned ones. Nothing is written into the host.
"""

import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

FIXED = ("torch", "numpy", "transformers", "datasets", "accelerate")


def make(folder: Path, packages: Sequence[str], alone: Sequence[str] = ()) -> Path:
    """An environment with these packages beside the host's; its Python. One that is there is taken.

    Args:
        folder: of the environment.
        packages: for pip, which installs what they require too.
        alone: installed without what they require, which is something that must not be installed here.
    """
    python = folder / "bin" / "python"
    done = folder / "made.txt"
    wanted = repr((tuple(packages), tuple(alone)))
    if done.exists() and done.read_text() == wanted:
        return python
    venv.create(folder, with_pip=True, clear=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "host.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    constraints = folder / "host.txt"
    # A build's own label, such as +cpu, is no version that an index has.
    constraints.write_text("".join(f"{name}=={version(name).partition('+')[0]}\n" for name in FIXED))
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if packages:
        subprocess.run([*pip, "-c", str(constraints), *packages], check=True)
    if alone:
        subprocess.run([*pip, "--no-deps", *alone], check=True)
    if own := [name for name in FIXED if (site / name).exists()]:
        sys.exit(f"{folder}: pip installed {', '.join(own)} again")
    done.write_text(wanted)
    return python


def versions(python: Path | str, packages: Sequence[str]) -> dict[str, str]:
    """Versions of packages in an environment."""
    code = f"from importlib.metadata import version\nfor name in {tuple(packages)!r}: print(version(name))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    return dict(zip(packages, done.stdout.split(), strict=True))
