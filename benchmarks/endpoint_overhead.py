"""500 evaluations against a server on this machine that answers after 50 ms, and fails 10 % of the requests.

    python benchmarks/endpoint_overhead.py

A failure is 429 (with ``Retry-After: 1``), 500, or a stall that only the client's timeout ends, by a schedule that is fixed for
each (request, attempt). The simulated schedule hands the same requests in order to as many workers, with the same latency,
failures and waits, and nothing else takes time. The server is a process of its own, so that CPU time is the client's.

Twice: the generator alone, and a search of ``PromptTrainer`` with fixed candidates (25 on 20 items, a batch at a time) and its ledger
on disk, whose lines are compared with the server's log, request by request.
"""

import argparse
import asyncio
import hashlib
import heapq
import json
import logging
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from quiet import quiet_and_single_threaded
from results import Results

from hfdataopt.generation import EndpointGenerator
from hfdataopt.generation.endpoint import backoff, request_seed
from hfdataopt.prompting.candidate import Candidate, Query
from hfdataopt.prompting.ledger import FILE
from hfdataopt.prompting.optimizer import PromptOptimizer, Task
from hfdataopt.prompting.trainer import PromptConfig, PromptTrainer

LATENCY, TIMEOUT, RETRY_AFTER = 0.05, 1.0, 1.0  # seconds
FAILING, KINDS = 0.1, (429, 500, "stall")
EVALUATIONS = 500
ITEMS = 20


def fate(request: str, attempt: int) -> Any:
    """What becomes of a request's attempt (from 0): 200, 429, 500 or "stall"."""
    digest = hashlib.sha256(f"{request}/{attempt}".encode()).digest()
    fails = int.from_bytes(digest[:8], "little") < FAILING * 2**64
    return KINDS[digest[8] % len(KINDS)] if fails else 200


class Server:
    """Speaks enough of HTTP/1.1 and of OpenAI's API; logs what it was asked."""

    def __init__(self) -> None:
        self.attempts: Counter[str] = Counter()
        self.log: list[list[str]] = []  # request and answer

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next((x for x in head.lower().split(b"\r\n") if x.startswith(b"content-length:")), b":0")
                body = await reader.readexactly(int(length.split(b":")[1]))
                if head.startswith(b"GET"):
                    status, answer = 200, self.log
                else:
                    status, answer = await self.answer(json.loads(body), reader)
                content = json.dumps(answer).encode()
                again = f"Retry-After: {RETRY_AFTER:g}\r\n" if status == 429 else ""
                writer.write(
                    f"HTTP/1.1 {status} x\r\nContent-Type: application/json\r\n{again}"
                    f"Content-Length: {len(content)}\r\n\r\n".encode()
                    + content
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(self, body: dict[str, Any], reader: asyncio.StreamReader) -> tuple[int, Any]:
        text = body["messages"][-1]["content"]
        found = fate(text, self.attempts[text])
        self.attempts[text] += 1
        self.log.append([text, str(found)])
        if found == "stall":
            await reader.read()  # until the client hangs up
            raise ConnectionResetError
        await asyncio.sleep(LATENCY)
        if found != 200:
            return found, {"error": {"message": "on purpose"}}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": f"said {text}"}}
        return 200, {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}


async def serve() -> None:
    server = await asyncio.start_server(Server().connection, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def simulated(prompts: list[str], keys: Sequence[Any], concurrency: int, retries: int) -> tuple[float, Counter[str]]:
    """Seconds until the last answer, and the answers, where nothing but latency, failures and waits takes time."""
    free = [0.0] * concurrency
    answers: Counter[str] = Counter()
    for prompt, key in zip(prompts, keys, strict=True):
        now = heapq.heappop(free)
        for attempt in range(retries + 1):
            found = fate(prompt, attempt)
            answers[str(found)] += 1
            now += TIMEOUT if found == "stall" else LATENCY
            if found == 200:
                break
            if attempt < retries:
                asked = RETRY_AFTER if found == 429 else 0.0
                now += max(asked, backoff(request_seed(0, key, 0), attempt))
        heapq.heappush(free, now)
    return max(free), answers


@contextmanager
def server(**options: Any) -> Iterator[tuple[EndpointGenerator, Any]]:
    """A server in a process of its own: a generator that asks it, and a function that gets its log."""
    process = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"

        def log() -> list[tuple[str, str]]:
            with urllib.request.urlopen(url) as response:
                return [(request, answer) for request, answer in json.loads(response.read())]

        more: dict[str, Any] = {"api_key": "none", "timeout": TIMEOUT, "temperature": 0.0, **options}
        yield EndpointGenerator("any", base_url=f"{url}/v1", **more), log
    finally:
        process.terminate()
        process.wait()


def measure(concurrency: int, repeat: int) -> list[Any]:
    """The generator alone: a line of the table."""
    with server(concurrency=concurrency) as (generator, log):
        keys = list(range(EVALUATIONS))
        prompts = [f"item {repeat}/{key}" for key in keys]
        expected, answers = simulated(prompts, keys, concurrency, generator.retries)
        began, cpu = time.perf_counter(), time.process_time()
        found = generator.generate(prompts, 1, keys=keys)
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        logged = Counter(answer for _, answer in log())
    right = [row[0].text for row in found] == [f"said {prompt}" for prompt in prompts]
    agree = logged == answers and logged.total() == generator.attempts and right
    return line("generator", concurrency, wall, expected, cpu, logged, agree)


@dataclass
class Fixed(PromptOptimizer):
    """Asks for a list of candidates."""

    name: ClassVar[str] = "fixed"
    texts: list[str] = field(default_factory=list)

    def start(self, task: Task) -> None:
        super().start(task)
        self.left = [Query(Candidate(text)) for text in self.texts]

    def ask(self, n: int, pending: Any = (), services: Any = None) -> list[Query]:
        asked, self.left = self.left[:n], self.left[n:]
        return asked


def measure_search(concurrency: int, repeat: int) -> list[Any]:
    """The same number of evaluations as a search, all candidates of which are asked for at once: a line of the table."""
    rows = [{"prompt": f"item {repeat}/{number}"} for number in range(ITEMS)]
    texts = [f"instruction {number}" for number in range(EVALUATIONS // ITEMS)]
    with server(concurrency=concurrency) as (generator, log), tempfile.TemporaryDirectory() as folder:
        args = PromptConfig(
            output_dir=folder,
            items=ITEMS,
            leaders=0,
            examples=0,
            logging_steps=0,
            parallel=len(texts),
            max_calls=EVALUATIONS,
        )
        trainer = PromptTrainer(
            Fixed(texts),
            model=generator,
            args=args,
            train_dataset=rows,
            reward_funcs=lambda completions, **_: [len(one) for one in completions],
        )
        began, cpu = time.perf_counter(), time.process_time()
        result = trainer.train()
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        logged = log()
        lines = [json.loads(line) for line in (Path(folder) / FILE).read_text().splitlines()]
    requests = {line["key"]: line["content"] for line in lines if line["kind"] == "request"}
    answers = {
        line["key"]: line["completion"]["text"] for line in lines if line["kind"] == "answer" and "completion" in line
    }
    expected, kinds = simulated(list(requests.values()), list(requests), concurrency, generator.retries)
    by_request: dict[str, list[str]] = {}
    for request, answer in logged:
        by_request.setdefault(request, []).append(answer)
    agree = (
        # every request of the server's log is a line of the ledger, and the other way round
        sorted(by_request) == sorted(requests.values())
        # the answer to each is the last the server gave, and the failures before it are those of the schedule
        and answers == {key: f"said {request}" for key, request in requests.items()}
        and all(
            got == [str(fate(request, n)) for n in range(len(got))] and got[-1] == "200"
            for request, got in by_request.items()
        )
        and Counter(answer for _, answer in logged) == kinds
        and len(requests) == result.spent["calls"] == EVALUATIONS
        and len(logged) == generator.attempts
    )
    return line("search", concurrency, wall, expected, cpu, kinds, agree)


def line(
    what: str, concurrency: int, wall: float, expected: float, cpu: float, kinds: Counter[str], agree: bool
) -> list[Any]:
    return [
        what, concurrency, wall, expected, wall / expected, cpu / EVALUATIONS * 1000, cpu / kinds.total() * 1000,
        kinds.total(), kinds["429"], kinds["500"], kinds["stall"], "yes" if agree else "NO",
    ]  # fmt: skip


COLUMNS = [
    "", "concurrency", "seconds", "simulated", "ratio", "CPU ms per evaluation", "CPU ms per request", "requests", "429", "500", "stalls",
    "agrees",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", action="store_true", help="be the server")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve())
        return
    quiet_and_single_threaded()
    results = Results("endpoint_overhead", f"python benchmarks/endpoint_overhead.py --repeats {arguments.repeats}")
    logging.disable(logging.WARNING)
    import huggingface_hub

    huggingface_hub.AsyncInferenceClient  # noqa: B018 - imported late, and not by the clock
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:  # loads plugins and the tables' library, once in a process
        args = PromptConfig(output_dir=folder, items=1, leaders=0, examples=0, logging_steps=0)
        rewards = {
            "reward_funcs": lambda completions, **_: [0.0] * len(completions),
            "train_dataset": [{"prompt": "x"}],
        }
        PromptTrainer(Fixed(["y"]), model=lambda prompts: prompts, args=args, **rewards).train()
    first = time.process_time() - began
    lines = []
    for concurrency in arguments.concurrency:
        for repeat in range(arguments.repeats):
            lines += [measure(concurrency, repeat), measure_search(concurrency, repeat)]
            print(*lines[-2:], sep="\n", flush=True)
    results.table(
        f"{EVALUATIONS} evaluations, one or more requests each",
        COLUMNS,
        sorted(lines, key=lambda line: line[:2]),
        f"*Agrees*: requests and failures are those of the simulation, in the server's log and in the generator's count; those of a "
        f"search are lines of its ledger too. A first search in a process, of one evaluation by a function: {first:.2f} s of CPU.",
    )


if __name__ == "__main__":
    main()
