"""An environment for each peer: ``python benchmarks/prompt_peers/install.py FOLDER``.

The versions are fixed; what pip chose for the rest is written to ``FOLDER/NAME.txt``. None of them may install torch: the
model is behind HTTP.
"""

import argparse
import subprocess
import sys
import venv
from pathlib import Path

PEERS = {"gepa": "gepa==0.1.4", "promptolution": "promptolution==2.3.0", "dspy": "dspy[optuna]==3.4.1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    constraints = arguments.folder / "no-torch.txt"
    constraints.write_text("torch<0\n")  # no such version: pip stops where something asks for torch
    for name in arguments.peers:
        folder = arguments.folder / name
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", "-c", str(constraints), PEERS[name]], check=True)
        frozen = subprocess.run([*pip, "freeze"], check=True, capture_output=True, text=True).stdout
        if any(line.startswith("torch==") for line in frozen.splitlines()):
            sys.exit(f"{name} installed torch")
        (arguments.folder / f"{name}.txt").write_text(frozen)
        print(f"{name}: {PEERS[name]}, {len(frozen.splitlines())} packages", flush=True)


if __name__ == "__main__":
    main()
