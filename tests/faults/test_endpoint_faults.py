"""A server that cuts answers, stalls, limits, fails, talks nonsense or hangs up, and then comes back."""

import contextlib
import itertools
import json
import random
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hfdataopt.errors import GenerationError
from hfdataopt.generation import EndpointGenerator, endpoint

from ..generation.test_endpoint import Reply, Server, failing, said
from ..prompting.searches import Listed, candidates, comparable, digit_of, trainer
from .activities import ledger

STALL = 1.5  # seconds that a request may take
LOST = ("cut", "stall", "hang up")  # no whole answer comes, though the server did the work
REFUSED = ("limit", "fail")
ENOUGH = 3  # faults of one prompt, at most


class Unsteady(Server):
    """Answers with the digit of the prompt, after random faults; counts what happened."""

    def __init__(self, seed: int, share: float, kinds: tuple[str, ...]):
        super().__init__()
        self.happened: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        rng, seen, lock, down = random.Random(seed), Counter[str](), threading.Lock(), threading.Event()
        self.down = down

        def behave(number: int, body: dict[str, Any]) -> Reply:
            prompt = said(body)
            with lock:
                fault = rng.choice(kinds) if rng.random() < share and seen[prompt] < ENOUGH else "answer"
                fault = "fail" if down.is_set() else fault
                seen[prompt] += fault != "answer"
                self.happened[fault] += 1
                self.answered[prompt] += fault == "answer"
            choice = {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": str(digit_of(prompt))},
            }
            whole = json.dumps({"choices": [choice]}).encode()
            closing = {"Content-Type": "application/json", "Content-Length": str(len(whole)), "Connection": "close"}
            if fault == "cut":
                return 200, closing, whole[: rng.randrange(len(whole))]
            if fault == "stall":
                self.released.wait(2 * STALL)
            if fault == "hang up":
                raise ConnectionResetError
            if fault == "garbage":
                return 200, {"Content-Type": "text/html"}, b"<html>busy</html>"
            if fault in REFUSED:
                return failing(429, Retry_After="0") if fault == "limit" else failing(503)
            return 200, {"Content-Type": "application/json"}, whole

        self.behave = behave


def search(folder: Path, server: Server, retries: int = ENOUGH) -> Any:
    model = EndpointGenerator(
        "m", base_url=server.url, api_key="none", concurrency=4, temperature=0.0, timeout=STALL, retries=retries
    )
    return trainer(Listed(candidates(6)), model, output_dir=str(folder), max_calls=40, parallel=2, leaders=0), model


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    server = Unsteady(0, 0.0, ())
    result = search(tmp_path_factory.mktemp("whole"), server)[0].train()
    server.close()
    return result


@pytest.mark.parametrize("seed", range(2))
def test_a_search_with_an_unsteady_endpoint_ends_as_with_a_steady_one(tmp_path: Path, seed: int, whole: Any) -> None:
    server = Unsteady(seed, 0.4, (*LOST, *REFUSED))
    one, model = search(tmp_path, server)
    result = one.train()
    server.close()
    assert comparable(result) == comparable(whole)
    assert model.attempts == server.happened.total()  # every request is counted
    lost = sum(server.happened[kind] for kind in LOST)
    assert lost >= 2
    lost += server.answered.total() - result.spent["calls"]  # on a busy machine an answer may come too late
    assert result.spent["uncertain"] == model.unanswered == lost  # the server worked on them, and may charge for them
    assert result.spent["calls"] == whole.spent["calls"]
    assert comparable(search(tmp_path, server)[0].train()) == comparable(
        whole
    )  # of the ledger alone: the server is gone
    assert search(tmp_path, server)[0].train().spent["uncertain"] == lost


def test_garbage_and_an_outage_end_the_search_and_the_next_run_goes_on(tmp_path: Path, whole: Any) -> None:
    server = Unsteady(3, 0.2, ("garbage", "cut"))
    for tries in itertools.count():
        one, _ = search(tmp_path, server, retries=0)
        if tries == 2:
            server.down.set()
        else:
            server.down.clear()
        with contextlib.suppress(GenerationError):
            result = one.train()
            break
    server.close()
    assert tries >= 3
    assert comparable(result) == comparable(whole)
    assert set(server.answered.values()) <= {0, 1}  # what had arrived was never asked again
    requests = Counter(line["key"] for line in ledger(tmp_path) if line["kind"] == "request")
    assert result.spent["uncertain"] == sum(count - 1 for count in requests.values())
    assert result.spent["uncertain"] >= server.happened["garbage"] + server.happened["cut"]
