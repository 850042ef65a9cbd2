"""The server that rivals of the benchmark talk to: what it counts, what it refuses, that a seed gives the same draws."""

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hfdataopt.demo import follower_tasks as world
from hfdataopt.prompting import meta_prompts

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
if not (world.FOLDER / "model.safetensors").exists():
    pytest.skip("the follower's weights are not here", allow_module_level=True)

QUERIES = list(world.rows("spanish", "train")["prompt"][:4])
PROMPTS = [f"{world.best_known('spanish')}\n\n{query}" for query in QUERIES]
MODEL = {"role": "model", "max_new_tokens": 12, "temperature": 0.0}
PROPOSER = {"role": "proposer", "max_new_tokens": 60, "temperature": 1.0}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from follower_server import Follower, serve
    finally:
        sys.path.remove(str(BENCHMARKS))
    server = serve(Follower())
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def post(url: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, json.dumps(body).encode()), timeout=60) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def begin(url: str, budget: int, seed: int = 0) -> None:
    assert post(url, "/begin", {"run": "test", "budget": budget, "seed": seed, "queries": QUERIES})[0] == 200


def test_budget_is_never_exceeded_and_repeats_count(url: str) -> None:
    begin(url, 7)
    status, first = post(url, "/complete", {**MODEL, "prompts": PROMPTS})
    assert status == 200
    assert first["spent"]["calls"] == 4
    wanted = list(world.rows("spanish", "train")["answer"][:4])
    assert [text.strip() for text in first["texts"]] == wanted
    status, refused = post(url, "/complete", {**MODEL, "prompts": PROMPTS})
    assert status == 429
    assert refused["error"] == "budget"
    assert refused["spent"]["calls"] == 4
    status, again = post(url, "/complete", {**MODEL, "prompts": PROMPTS[:3]})
    assert again["spent"]["calls"] == 7
    assert again["texts"] == first["texts"][:3]
    with urllib.request.urlopen(url + "/spent", timeout=60) as reply:
        assert json.load(reply)["calls"] == 7


def test_answers_made_together_are_those_made_alone(url: str) -> None:
    begin(url, 100)
    instruction = "please say the word in spanish. keep it short."
    prompts = [f"{instruction}\n\n{query}" for query in QUERIES]
    together = post(url, "/complete", {**MODEL, "prompts": prompts})[1]["texts"]
    post(url, "/begin", {"run": "alone", "budget": 100})
    other = [prompt.replace("\n\n", "\n\n\n") for prompt in prompts]  # another text, the same tokens
    assert together == [post(url, "/complete", {**MODEL, "prompts": [one]})[1]["texts"][0] for one in other]


def test_draws_are_new_each_time_and_the_same_for_a_seed(url: str) -> None:
    examples = [["dog", "perro"], ["cat", "gato"]]
    ask = {**PROPOSER, "prompts": [{"ask": "induce", "examples": examples}]}
    text = meta_prompts.induce([meta_prompts.Example(*one) for one in examples])[0]["content"]
    found = []
    for seed in (1, 1, 2):
        begin(url, 0, seed)
        found.append([post(url, "/complete", ask)[1]["texts"][0] for _ in range(3)])
    assert found[0] == found[1] != found[2]
    assert len(set(found[0])) > 1
    begin(url, 0, 1)
    reply = post(url, "/complete", {**PROPOSER, "prompts": [text] * 3})[1]
    assert reply["texts"] == found[0]
    assert reply["spent"]["proposer_calls"] == 3
    assert reply["spent"]["calls"] == 0


@pytest.mark.parametrize(
    "body", [{**MODEL, "prompts": ["word " * 2000]}, {**MODEL, "role": "judge", "prompts": []}, {}]
)
def test_a_bad_request_is_refused_and_not_counted(url: str, body: dict[str, Any]) -> None:
    begin(url, 5)
    status, reply = post(url, "/complete", body)
    assert status == 400
    assert reply["error"] == "request"
    assert post(url, "/complete", {**MODEL, "prompts": []})[1]["spent"]["calls"] == 0
