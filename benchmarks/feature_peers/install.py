"""An environment for each peer: ``python benchmarks/feature_peers/install.py FOLDER``. What is there is not made again.

Packages that ask for torchvision, torchaudio or bitsandbytes are installed without what they ask for: from a package index these
come as builds for another torch, and ``import transformers`` then fails. No code that is used here imports them.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from environments import make, versions


class Peer(NamedTuple):
    """What pip installs with its dependencies, and without; what is reported."""

    packages: tuple[str, ...]
    alone: tuple[str, ...]
    shown: tuple[str, ...]


PEERS = {
    "bergson": Peer(
        ("graphviz", "jaxtyping", "ml_dtypes", "natsort", "petname", "simple-parsing", "optree"),
        ("bergson==2.5.1", "torchopt"),
        ("bergson",),
    ),
    "captum": Peer(("captum==0.9.0",), (), ("captum",)),
    "dattri": Peer((), ("dattri==0.3.0", "dattri-llm==0.1.0"), ("dattri", "dattri-llm")),
    "kronfluence": Peer(("einops", "opt-einsum"), ("kronfluence==1.0.1", "einconv"), ("kronfluence",)),
    "trak": Peer((), ("traker==0.3.2",), ("traker",)),
}


def install(folder: Path, name: str) -> Path:
    """The Python of a peer's environment."""
    return make(folder.resolve() / name, PEERS[name].packages, PEERS[name].alone)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    arguments = parser.parse_args()
    for name in arguments.peers:
        python = install(arguments.folder, name)
        print(", ".join(" ".join(one) for one in versions(python, PEERS[name].shown).items()), flush=True)


if __name__ == "__main__":
    main()
