"""``python -m tests.processes.figures``: how far the scores of two processes are from those of one, scorer by scorer."""

import tempfile
from pathlib import Path

from . import jobs, pair
from .test_scorers import ALL, IN_TRAINING, difference


def main() -> None:
    """Print a table."""
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / part for part in ("attribute", "callback")]
        for folder in folders:
            folder.mkdir()
        pair.run(jobs.score, folders[0], ALL, True, seconds=3600)
        pair.run(jobs.train, folders[1], IN_TRAINING, seconds=3600)
        jobs.small_pieces()
        print("| scorer | options | by `attribute` | in a `Trainer` |\n|---|---|---|---|")
        for way in ALL:
            scorer, options = jobs.WAYS[way]
            expected = jobs.by_attribute(way, None)
            shown = ", ".join(
                f"{key}={value}" for key, value in options.items() if key in ("basis", "solver", "kernel")
            )
            found = [f"{difference(folders[0], way, expected):.0e}"]
            found.append(f"{difference(folders[1], way, expected):.0e}" if way in IN_TRAINING else "-")
            print(f"| `{scorer}` | {shown} | {' | '.join(found)} |", flush=True)


if __name__ == "__main__":
    main()
