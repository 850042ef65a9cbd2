"""What the drivers share: the follower over HTTP, the command line, the result. Standard library only."""

import argparse
import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ANSWER_TOKENS, INSTRUCTION_TOKENS = 12, 60


class BudgetSpent(Exception):
    """The server refused: the calls that were asked for are more than are left."""


class Client:
    """The follower, within a budget, for one run of a peer.

    A prompt that the run has asked already is answered from here and not counted again, as in our own searches.

    Attributes:
        items: ``[(input, answer)]`` to score on. examples: those to show. rng: of what a translation draws.
    """

    def __init__(self, url: str, rows: dict[str, Any], budget: int, seed: int, options: dict[str, Any]) -> None:
        self.url, self.budget, self.seed, self.options = url, budget, seed, options
        self.items = [(row["input"], row["answer"]) for row in rows["items"]]
        self.examples = [(row["input"], row["answer"]) for row in rows["examples"]]
        self.rng = random.Random(f"{seed} {rows['task']}")
        self.known: dict[str, str] = {}
        self.curve: list[tuple[int, int, str]] = []
        self.failures: list[str] = []
        queries = [query(text) for text, _ in self.items + self.examples]
        self.spent = self._post("/begin", {"run": rows["task"], "budget": budget, "seed": seed, "queries": queries})

    def settings(self, by_budget: dict[int, dict[str, Any]]) -> dict[str, Any]:
        """The driver's settings for the nearest budget, with ``options`` in their place."""
        return {**by_budget[min(by_budget, key=lambda budget: abs(budget - self.budget))], **self.options}

    @property
    def left(self) -> int:
        """Calls of the scored model that are left."""
        return self.budget - int(self.spent["calls"])

    def answers(self, prompts: Sequence[str]) -> list[str]:
        """What the scored model answers, greedily; :class:`BudgetSpent` where not all are within the budget."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.known]
        if new:
            reply = self._complete("model", new, ANSWER_TOKENS, 0.0)
            self.known.update(zip(new, reply, strict=True))
        return [self.known[prompt] for prompt in prompts]

    def ask(self, questions: Sequence[dict[str, Any]]) -> list[str]:
        """A draw of the proposer for each question, such as ``{"ask": "induce", "examples": [...]}``."""
        return [
            text.split("\n\n")[0].strip() for text in self._complete("proposer", questions, INSTRUCTION_TOKENS, 1.0)
        ]

    def induce(self, examples: Sequence[tuple[str, str]] | None = None, n: int = 1, shown: int = 5) -> list[str]:
        """Instructions behind examples, drawn anew for each (by default from those that may be shown)."""
        pool = list(self.examples if examples is None else examples)
        drawn = [self.rng.sample(pool, min(shown, len(pool))) for _ in range(n)]
        return self.ask([{"ask": "induce", "examples": one} for one in drawn])

    def note(self, prompt: str) -> None:
        """The peer's best prompt so far."""
        if not self.curve or self.curve[-1][2] != prompt:
            self.curve.append((int(self.spent["calls"]), int(self.spent["tokens"]), prompt))

    def _complete(self, role: str, prompts: Sequence[Any], tokens: int, temperature: float) -> list[str]:
        body = {"role": role, "prompts": list(prompts), "max_new_tokens": tokens, "temperature": temperature}
        reply = self._post("/complete", {**body, "seed": self.seed})
        self.spent = reply["spent"]
        return list(reply["texts"])

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(self.url + path, json.dumps(body).encode())
        try:
            with urllib.request.urlopen(request, timeout=600) as reply:
                return dict(json.load(reply))
        except urllib.error.HTTPError as error:
            document = json.load(error)
            if document["error"] == "budget":
                raise BudgetSpent(document["message"]) from None
            raise RuntimeError(f"{path}: {document}") from None


def query(text: str) -> str:
    """How an input is asked."""
    return f"Input: {text}\nOutput:"


def shown(examples: Sequence[tuple[str, str]]) -> str:
    """Demonstrations, a blank line between them."""
    return "\n\n".join(f"{query(text)} {answer}" for text, answer in examples)


def render(prompt: str, text: str) -> str:
    """A prompt, with its demonstrations if any, and an input."""
    return f"{prompt}\n\n{query(text)}" if prompt else query(text)


def right(answer: str, wanted: str) -> bool:
    """Whether an answer is the wanted one but for case and outer space."""
    return answer.strip().lower() == wanted.strip().lower()


def main(search: Callable[[Client, str], str], methods: Sequence[str]) -> None:
    """The command line of a driver; ``search(client, method)`` returns the best prompt. Several tasks run one by one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", required=True, help="URL of benchmarks/follower_server.py")
    parser.add_argument("--task-file", type=Path, nargs="+", required=True, help='JSON: {"task", "items", "examples"}')
    parser.add_argument("--budget", type=int, required=True, help="calls of the scored model")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--method", choices=methods, default=methods[0])
    parser.add_argument(
        "--options", type=json.loads, default={}, help="JSON, in the place of the driver's own settings"
    )
    parser.add_argument("--out", type=Path, nargs="+", required=True, help="a JSON file for each task file")
    arguments = parser.parse_args()
    for task_file, out in zip(arguments.task_file, arguments.out, strict=True):
        started = time.process_time()
        rows = json.loads(task_file.read_text())
        client = Client(arguments.server, rows, arguments.budget, arguments.seed, arguments.options)
        random.seed(arguments.seed)
        best = search(client, arguments.method)
        client.note(best)
        result = {
            "prompt": best,
            "curve": client.curve,
            **{name: client.spent[name] for name in ("calls", "proposer_calls", "tokens", "seconds")},
            "failures": client.failures,
        }
        result["seconds"] += time.process_time() - started
        out.write_text(json.dumps(result))
