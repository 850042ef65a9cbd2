"""The demo's small follower behind HTTP, for prompt optimizers that run in environments of their own.

    POST /begin     {"run": NAME, "budget": CALLS, "seed": N, "queries": [TEXT...]}
    POST /complete  {"role": "model"|"proposer", "prompts": [TEXT or {"ask": META_PROMPT, ...}...],
                     "max_new_tokens": N, "temperature": T, "seed": N}
                    -> {"texts": [...], "prompt_tokens": [...], "completion_tokens": [...], "spent": {...}}
    GET  /spent     -> {"run", "budget", "calls", "proposer_calls", "tokens", "seconds"}

A request that would take a run over its budget of model calls, even by one, is refused whole: status 429 and
``{"error": "budget"}``. Answers to greedy requests are remembered; each still counts. A proposer may be asked by the name
and arguments of one of :mod:`hfdataopt.prompting.meta_prompts`, the only questions that the follower was trained on.
"""

import argparse
import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from quiet import quiet_and_single_threaded

from hfdataopt.demo import follower_tasks as world
from hfdataopt.errors import HfDataOptError
from hfdataopt.generation import LocalGenerator
from hfdataopt.prompting import meta_prompts

MOST_PROMPTS = 2000  # of a request
MOST_TOKENS = 64  # of an answer
# Name -> how JSON becomes the meta-prompt's arguments.
ASKS: dict[str, Any] = {
    "induce": lambda a: meta_prompts.induce(_examples(a["examples"])),
    "rephrase": lambda a: meta_prompts.rephrase(a["instruction"]),
    "improve": lambda a: meta_prompts.improve([tuple(pair) for pair in a["history"]], _examples(a["examples"])),
    "criticise": lambda a: meta_prompts.criticise(a["instruction"], _mistakes(a["mistakes"])),
    "rewrite": lambda a: meta_prompts.rewrite(a["instruction"], a["reason"], _mistakes(a["mistakes"])),
    "combine": lambda a: meta_prompts.combine(a["first"], a["second"]),
}


class BudgetError(Exception):
    """The run may not make so many calls."""


class Follower:
    """The model, what it has answered greedily, and what the present run has spent.

    Args:
        folder: of the weights.
    """

    def __init__(self, folder: str | Path = world.FOLDER) -> None:
        self.model, self.tokenizer = world.load_follower(folder)
        self.known: dict[tuple[str, int], tuple[str, int, int]] = {}
        self.lock = threading.Lock()
        self.begin("", 0)

    def begin(self, run: str, budget: int, seed: int = 0, queries: Sequence[str] = ()) -> None:
        """A new run. ``queries`` are the inputs that it will ask about: a new instruction is answered for all at once."""
        self.run, self.budget, self.seed, self.queries = run, budget, seed, tuple(queries)
        self.calls = self.proposer_calls = self.tokens = 0
        self.seconds = 0.0  # of CPU
        self.draws: Counter[str] = Counter()

    def spent(self) -> dict[str, Any]:
        """What the present run has used."""
        names = ("run", "budget", "calls", "proposer_calls", "tokens", "seconds")
        return {name: getattr(self, name) for name in names}

    def complete(
        self, role: str, prompts: Sequence[str], max_new_tokens: int, temperature: float
    ) -> list[tuple[str, int, int]]:
        """Text, prompt tokens and completion tokens of each prompt, counted.

        Raises:
            BudgetError: not all of them are within the budget; none was run.
        """
        if role == "model" and self.calls + len(prompts) > self.budget:
            raise BudgetError(f"{len(prompts)} calls are asked for, {self.budget - self.calls} are left")
        started = time.thread_time()
        drawn = temperature > 0
        made = self._sample(prompts, max_new_tokens, temperature) if drawn else self.answers(prompts, max_new_tokens)
        self.seconds += time.thread_time() - started
        if role == "model":
            self.calls += len(prompts)
        else:
            self.proposer_calls += len(prompts)
        self.tokens += sum(into + out for _, into, out in made)
        return made

    def answers(self, prompts: Sequence[str], max_new_tokens: int = 12) -> list[tuple[str, int, int]]:
        """Greedy answers, not counted."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if (prompt, max_new_tokens) not in self.known]
        for prompt in list(missing):
            query = next((query for query in self.queries if prompt.endswith(query)), None)
            if query is not None:
                missing += [prompt.removesuffix(query) + other for other in self.queries]
        missing = [prompt for prompt in dict.fromkeys(missing) if (prompt, max_new_tokens) not in self.known]
        if missing:
            local = self._local(max_new_tokens, 0.0)
            for prompt, (one,) in zip(missing, local.generate(missing, 1, keys=range(len(missing))), strict=True):
                self.known[prompt, max_new_tokens] = _counted(one)
        return [self.known[prompt, max_new_tokens] for prompt in prompts]

    def _sample(self, prompts: Sequence[str], max_new_tokens: int, temperature: float) -> list[tuple[str, int, int]]:
        keys = []
        for prompt in prompts:  # the same question again is another draw
            keys.append(f"{self.draws[prompt]} {prompt}")
            self.draws[prompt] += 1
        local = self._local(max_new_tokens, temperature)
        return [_counted(one) for (one,) in local.generate(prompts, 1, keys=keys, seed=self.seed)]

    def _local(self, max_new_tokens: int, temperature: float) -> LocalGenerator:
        return LocalGenerator(
            self.model,
            self.tokenizer,
            batch_size=64,
            max_new_tokens=min(max_new_tokens, MOST_TOKENS),
            temperature=temperature,
        )


class _Handler(BaseHTTPRequestHandler):
    follower: Follower
    protocol_version = "HTTP/1.1"
    timeout = 600

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/spent":
            self._reply(200, self.follower.spent())
        else:
            self._reply(404, {"error": "path"})

    def do_POST(self) -> None:
        try:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with self.follower.lock:
                if self.path == "/begin":
                    self.follower.begin(body["run"], body["budget"], body.get("seed", 0), body.get("queries", ()))
                    self._reply(200, self.follower.spent())
                elif self.path == "/complete":
                    self._reply(200, self._complete(body))
                else:
                    self._reply(404, {"error": "path"})
        except BudgetError as error:
            self._reply(429, {"error": "budget", "message": str(error), "spent": self.follower.spent()})
        except (KeyError, TypeError, ValueError, HfDataOptError) as error:
            self._reply(400, {"error": "request", "message": f"{type(error).__name__}: {error}"})

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["role"] not in ("model", "proposer") or len(body["prompts"]) > MOST_PROMPTS:
            raise ValueError(f"role {body['role']!r}, {len(body['prompts'])} prompts")
        prompts = [
            one if isinstance(one, str) else meta_prompts.text_of_messages(ASKS[one["ask"]](one))
            for one in body["prompts"]
        ]
        made = self.follower.complete(body["role"], prompts, body["max_new_tokens"], body["temperature"])
        texts, into, out = ([one[k] for one in made] for k in range(3))
        spent = self.follower.spent()
        return {"texts": texts, "prompt_tokens": into, "completion_tokens": out, "spent": spent}

    def _reply(self, status: int, document: dict[str, Any]) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def serve(follower: Follower, port: int = 0) -> ThreadingHTTPServer:
    """A server on 127.0.0.1 in a thread of its own; ``shutdown()`` ends it."""
    server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"follower": follower}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def _counted(completion: Any) -> tuple[str, int, int]:
    return completion.text, completion.prompt_tokens, completion.completion_tokens


def _examples(pairs: Sequence[Sequence[str]]) -> list[meta_prompts.Example]:
    return [meta_prompts.Example(*pair) for pair in pairs]


def _mistakes(triples: Sequence[Sequence[str]]) -> list[meta_prompts.Mistake]:
    return [meta_prompts.Mistake(*triple) for triple in triples]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=world.FOLDER)
    arguments = parser.parse_args()
    quiet_and_single_threaded()
    server = serve(Follower(arguments.folder), arguments.port)
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
