"""The tests in an environment of the oldest or of the newest versions that pyproject.toml allows.

    python tests/install/bounds.py oldest FOLDER [TESTS ...]     # make test-oldest
    python tests/install/bounds.py newest FOLDER [TESTS ...]     # make test-newest

``oldest`` holds each requirement of the package and of its extras at its lower bound, ``newest`` leaves them open. torch, which comes
first and alone, and the tools of the tests are those of constraints.txt both times. The environment is made anew in FOLDER/oldest or
FOLDER/newest; beside it stand the constraints and what pip chose. ``TORCH_INDEX`` names a package index for torch.
"""

import argparse
import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def bounds() -> dict[str, str]:
    """Requirement of the package or of an extra of the test environment -> its lower bound."""
    extras = PROJECT["optional-dependencies"]
    (own,) = [line for line in extras["test"] if line.startswith("hfdataopt[")]
    lines = [*PROJECT["dependencies"], *(line for name in re.findall(r"[\w-]+", own)[1:] for line in extras[name])]
    found: dict[str, str] = {}
    for line in lines:
        name, _, version = re.sub(r"\[.*\]", "", line).partition(">=")
        if not version:
            raise SystemExit(f"bounds: {line!r} has no lower bound")
        if name in found and found[name] != version:
            raise SystemExit(f"bounds: {name} has two lower bounds, {found[name]} and {version}")
        found[name] = version
    return found


def pins() -> dict[str, str]:
    """What constraints.txt fixes."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def constraints(kind: str) -> list[str]:
    """Lines of a constraints file: all held, or only torch and the tools."""
    tools = [re.split(r"[\[><=]", line)[0] for line in PROJECT["optional-dependencies"]["test"]]
    fixed = {name: version for name, version in pins().items() if name in ("torch", *tools)}
    held = {**bounds(), **fixed} if kind == "oldest" else fixed
    return [f"{name}=={version}" for name, version in held.items()]


def make(kind: str, folder: Path) -> Path:
    """The Python of a new environment."""
    environment, file = folder / kind, folder / f"{kind}.constraints.txt"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(constraints(kind)) + "\n")
    venv.create(environment, with_pip=True, clear=True)
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "-c", str(file)]
    index = os.environ.get("TORCH_INDEX", "")
    subprocess.run([*pip, *(["--index-url", index] if index else []), "torch"], check=True)
    subprocess.run([*pip, "-e", f"{ROOT}[test]"], check=True)
    frozen = subprocess.run([str(python), "-m", "pip", "freeze"], check=True, capture_output=True, text=True).stdout
    (folder / f"{kind}.txt").write_text(frozen)
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("kind", choices=("oldest", "newest"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("tests", nargs="*", help="files or folders; default: all that are not slow")
    arguments = parser.parse_args()
    python = make(arguments.kind, arguments.folder.resolve())
    chosen = (arguments.folder / f"{arguments.kind}.txt").read_text()
    listed = [line for name in bounds() for line in re.findall(rf"(?im)^{re.escape(name)}==.*$", chosen)]
    print(f"{arguments.kind}: {', '.join(listed)}", flush=True)
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments.tests]
    sys.exit(subprocess.run(command, cwd=ROOT, check=False).returncode)


if __name__ == "__main__":
    main()
