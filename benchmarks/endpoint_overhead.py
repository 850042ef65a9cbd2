"""500 evaluations against a server on this machine that answers after 50 ms, and fails 10 % of the requests.

    python benchmarks/endpoint_overhead.py

A failure is 429 (with ``Retry-After: 1``), 500, or a stall that only the client's timeout ends, by a schedule that is fixed for
each (request, attempt). The simulated schedule hands the same requests in order to as many workers, with the same latency,
failures and waits, and nothing else takes time. The server is a process of its own, so that CPU time is the client's.
"""

import argparse
import asyncio
import hashlib
import heapq
import json
import logging
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from typing import Any

from hfdataopt.generation import EndpointGenerator
from hfdataopt.generation.endpoint import backoff, request_seed

LATENCY, TIMEOUT, RETRY_AFTER = 0.05, 1.0, 1.0  # seconds
FAILING, KINDS = 0.1, (429, 500, "stall")
EVALUATIONS = 500


def fate(request: str, attempt: int) -> Any:
    """What becomes of a request's attempt (from 0): 200, 429, 500 or "stall"."""
    digest = hashlib.sha256(f"{request}/{attempt}".encode()).digest()
    fails = int.from_bytes(digest[:8], "little") < FAILING * 2**64
    return KINDS[digest[8] % len(KINDS)] if fails else 200


class Server:
    """Speaks enough of HTTP/1.1 and of OpenAI's API; logs what it was asked."""

    def __init__(self) -> None:
        self.attempts: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next((x for x in head.lower().split(b"\r\n") if x.startswith(b"content-length:")), b":0")
                body = await reader.readexactly(int(length.split(b":")[1]))
                if head.startswith(b"GET"):
                    status, answer = 200, dict(self.answers)
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
        self.answers[str(found)] += 1
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


def simulated(prompts: list[str], keys: list[int], concurrency: int, retries: int) -> tuple[float, Counter[str]]:
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


def measure(concurrency: int, repeat: int) -> None:
    process = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        generator = EndpointGenerator(
            "any", base_url=f"{url}/v1", api_key="none", concurrency=concurrency, timeout=TIMEOUT, temperature=0.0
        )
        keys = list(range(EVALUATIONS))
        prompts = [f"item {repeat}/{key}" for key in keys]
        expected, answers = simulated(prompts, keys, concurrency, generator.retries)
        began, cpu = time.perf_counter(), time.process_time()
        found = generator.generate(prompts, 1, keys=keys)
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        with urllib.request.urlopen(url) as response:
            logged = Counter(json.loads(response.read()))
    finally:
        process.terminate()
        process.wait()
    right = [row[0].text for row in found] == [f"said {prompt}" for prompt in prompts]
    agree = logged == answers and logged.total() == generator.attempts and right
    print(
        f"concurrency {concurrency:>2}: {wall:6.2f} s, simulated {expected:6.2f} s, ratio {wall / expected:.3f}; own CPU "
        f"{cpu / EVALUATIONS * 1000:.2f} ms per evaluation, {cpu / generator.attempts * 1000:.2f} ms per request; "
        f"{generator.attempts} requests ({logged['429']} x 429, {logged['500']} x 500, {logged['stall']} stalls), "
        f"server's log, simulation and generator {'agree' if agree else 'DISAGREE'}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", action="store_true", help="be the server")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve())
        return
    logging.disable(logging.WARNING)
    import huggingface_hub

    huggingface_hub.AsyncInferenceClient  # noqa: B018 - imported late, and not by the clock
    for concurrency in arguments.concurrency:
        for repeat in range(arguments.repeats):
            measure(concurrency, repeat)


if __name__ == "__main__":
    main()
