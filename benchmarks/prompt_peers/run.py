"""Peers on the demo's small follower, at the budgets and on the rows of ``prompt_search.py``.

    python benchmarks/prompt_peers/install.py ENVIRONMENTS
    python benchmarks/prompt_peers/run.py --environments ENVIRONMENTS --out peers.jsonl       # goes on where it was stopped
    python benchmarks/prompt_search.py --report runs.jsonl peers.jsonl

Each search is a process in the peer's own environment that talks to ``follower_server.py`` in this one. The accuracy of
the prompts is measured on the test inputs, outside the budget.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from follower_server import Follower, serve  # noqa: E402
from prompt_search import CALLS, ITEMS  # noqa: E402
from quiet import quiet_and_single_threaded  # noqa: E402

from hfdataopt import PromptConfig  # noqa: E402
from hfdataopt.demo import follower_tasks as world  # noqa: E402
from hfdataopt.prompting.items import read_items, split_items  # noqa: E402

# name in the table -> environment, driver, method
METHODS = {
    "gepa": ("gepa", "gepa_driver.py", "gepa"),
    "promptolution CAPO": ("promptolution", "promptolution_driver.py", "capo"),
    "promptolution OPRO": ("promptolution", "promptolution_driver.py", "opro"),
    "promptolution APE": ("promptolution", "promptolution_driver.py", "ape"),
    "dspy MIPROv2": ("dspy", "dspy_driver.py", "mipro"),
    "dspy MIPROv2, demos": ("dspy", "dspy_driver.py", "mipro-demos"),
}
TIMEOUT = 600


class Peers:
    """The follower, its server, and the accuracies that are known."""

    def __init__(self, environments: Path, folder: Path = world.FOLDER) -> None:
        self.environments = environments
        self.follower = Follower(folder)
        self.server = serve(self.follower)
        self.accuracies: dict[tuple[str, str], float] = {}

    def accuracy(self, task: str, prompt: str) -> float:
        """On the inputs that no search sees."""
        if (task, prompt) not in self.accuracies:
            rows = world.rows(task, "test")
            asked = [f"{prompt}\n\n{query}" if prompt else query for query in rows["prompt"]]
            with self.follower.lock:
                made = self.follower.answers(asked)
            rewards = world.exact_match([text for text, _, _ in made], list(rows["answer"]))
            self.accuracies[task, prompt] = sum(rewards) / len(rewards)
        return self.accuracies[task, prompt]

    def run(self, method: str, tasks: Sequence[str], seed: int, budget: int, options: dict[str, Any]) -> Iterator[Any]:
        """A search per task, in one process of the peer, as lines of the results."""
        environment, driver, name = METHODS[method]
        with tempfile.TemporaryDirectory() as scratch:
            files = [Path(scratch, f"{task}.json") for task in tasks]
            outs = [Path(scratch, f"{task}.out.json") for task in tasks]
            for task, file in zip(tasks, files, strict=True):
                file.write_text(json.dumps({"task": task, **rows_of(task, seed, budget)}))
            command = [
                str((self.environments / environment / "bin" / "python").absolute()),
                str(HERE / driver),
                *("--server", f"http://127.0.0.1:{self.server.server_address[1]}"),
                *("--budget", str(budget), "--seed", str(seed), "--method", name, "--options", json.dumps(options)),
                *("--task-file", *map(str, files), "--out", *map(str, outs)),
            ]
            done = subprocess.run(
                command, cwd=scratch, capture_output=True, text=True, timeout=TIMEOUT * len(tasks), check=False
            )
            for task, out in zip(tasks, outs, strict=True):
                if not out.exists():
                    raise RuntimeError(f"{method} {task} {seed} {budget}: {(done.stderr or done.stdout)[-3000:]}")
                yield self.line(method, task, seed, budget, json.loads(out.read_text()))

    def line(self, method: str, task: str, seed: int, budget: int, found: dict[str, Any]) -> dict[str, Any]:
        """A result of a driver with its accuracies."""
        if found["calls"] > budget:
            raise RuntimeError(f"{method} made {found['calls']} of {budget} calls")
        return {
            "method": method,
            "task": task,
            "seed": seed,
            "budget": budget,
            "kind": "calls",
            "accuracy": self.accuracy(task, found["prompt"]),
            "calls": found["calls"],
            "votes": 0,
            "proposer_calls": found["proposer_calls"],
            "tokens": found["tokens"],
            "seconds": round(found["seconds"], 2),
            "curve": [[calls, self.accuracy(task, prompt), tokens] for calls, tokens, prompt in found["curve"]],
            "prompt": found["prompt"],
            "exemplars": found["prompt"].count("Input:"),
            "failures": found["failures"],
        }


def rows_of(task: str, seed: int, budget: int) -> dict[str, list[dict[str, Any]]]:
    """The items and examples of our own searches."""
    config = PromptConfig(seed=seed, items=ITEMS.get(budget, 10))
    split = split_items(read_items(world.rows(task, "train"), config, "train"), None, config, True)
    parts = {"items": split.items, "examples": split.examples}
    return {name: [{"input": one.input, "answer": one.output} for one in part] for name, part in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--environments", type=Path, required=True, help="folder that install.py made")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; searches that are in it are not run again")
    parser.add_argument("--tasks", nargs="+", default=["reported"], help="reported, development, or names")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--budgets", nargs="+", type=int, default=list(CALLS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=world.FOLDER, help="weights of the follower")
    parser.add_argument("--options", type=json.loads, default={}, help="JSON, in the place of a driver's settings")
    arguments = parser.parse_args()
    quiet_and_single_threaded()
    tasks = {"reported": world.REPORTED_TASKS, "development": world.DEVELOPMENT_TASKS}.get(
        arguments.tasks[0], arguments.tasks
    )
    keys = ("method", "task", "seed", "budget")
    done = set()
    if arguments.out.exists():
        done = {tuple(json.loads(line)[key] for key in keys) for line in arguments.out.read_text().splitlines() if line}
    peers = Peers(arguments.environments, arguments.folder)
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for method in arguments.methods:
            for budget in arguments.budgets:
                started = time.perf_counter()
                left = [task for task in tasks if (method, task, seed, budget) not in done]
                for line in peers.run(method, left, seed, budget, arguments.options) if left else ():
                    with arguments.out.open("a") as stream:
                        stream.write(json.dumps(line) + "\n")
                spent = time.perf_counter() - started
                print(f"seed {seed} {method} {budget} calls: {spent:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
