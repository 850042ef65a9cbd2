"""Completions from a server on this machine that works, refuses, stalls, limits, or answers nonsense."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from hfdataopt.errors import DataError, GenerationError, HfDataOptError, OptionError
from hfdataopt.generation import Completion, EndpointGenerator, Refused, endpoint

SECRET = "sk-very-secret-key"
PROMPTS = ["one", "two", [{"role": "system", "content": "be short"}, {"role": "user", "content": "three"}]]
KEYS = ["a", "b", "c"]
Reply = tuple[int, dict[str, str], bytes]


class Server:
    """Answers every POST by ``behave(number of the request, body)``; keeps what it got."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.behave: Callable[[int, dict[str, Any]], Reply] = lambda number, body: good(body)
        self.most = self.under_way = 0
        self.released = threading.Event()
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(server.requests)
                    server.requests.append(
                        {"path": self.path, "body": body, "key": self.headers["Authorization"], "at": time.monotonic()}
                    )
                    server.under_way += 1
                    server.most = max(server.most, server.under_way)
                try:
                    status, headers, content = server.behave(number, body)
                    with lock:
                        server.under_way -= 1
                    self.send_response(status)
                    for name, value in {"Content-Length": str(len(content)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:
                    self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.released.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(5)


def said(body: dict[str, Any]) -> str:
    return body["prompt"] if "prompt" in body else body["messages"][-1]["content"]


def good(body: dict[str, Any], reason: str = "stop") -> Reply:
    text = f"{said(body)}:{body.get('seed')}"
    choice: dict[str, Any] = {"index": 0, "finish_reason": reason}
    choice |= {"text": text} if "prompt" in body else {"message": {"role": "assistant", "content": text}}
    return 200, {"Content-Type": "application/json"}, json.dumps({"id": "1", "choices": [choice]}).encode()


def failing(status: int, message: str = "no", **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, {"Content-Type": "application/json", **named}, json.dumps({"error": {"message": message}}).encode()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.02)
    for name in ("HF_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    made = Server()
    yield made
    made.close()


def make(server: Server, **options: Any) -> EndpointGenerator:
    return EndpointGenerator(
        "some/model", **{"base_url": server.url, "api_key": SECRET, "timeout": 20.0, "retries": 2, **options}
    )


def failure(generator: EndpointGenerator, prompts: Any = PROMPTS, n: int = 2, **options: Any) -> str:
    with pytest.raises(GenerationError) as caught:
        generator.generate(prompts, n, keys=KEYS[: len(prompts)], **options)
    assert SECRET not in str(caught.value)
    assert isinstance(caught.value, HfDataOptError)
    return str(caught.value)


# -- when all is well


def test_one_request_per_sample_with_a_seed_of_its_own(server: Server) -> None:
    arrived: dict[tuple[int, int], Completion] = {}
    generator = make(server, temperature=0.7, top_p=0.9, stop=["\n"], max_new_tokens=17, extra={"min_p": 0.1})
    found = generator.generate(PROMPTS, 2, keys=KEYS, on_done=lambda i, k, c: arrived.update({(i, k): c}))
    assert arrived == {(i, k): c for i, row in enumerate(found) for k, c in enumerate(row)}
    assert all(c.finished and c.token_ids is None for row in found for c in row)
    assert [[c.text.split(":")[0] for c in row] for row in found] == [["one"] * 2, ["two"] * 2, ["three"] * 2]
    assert len({c.text.split(":")[1] for row in found for c in row}) == 6
    assert len(server.requests) == 6
    for request in server.requests:
        body = dict(request["body"])
        assert request["path"] == "/v1/chat/completions"
        assert request["key"] == f"Bearer {SECRET}"
        assert body.pop("messages") in (
            [{"role": "user", "content": "one"}],
            [{"role": "user", "content": "two"}],
            PROMPTS[2],
        )
        assert isinstance(body.pop("seed"), int)
        assert body.pop("stream", False) is False
        expected = {"temperature": 0.7, "top_p": 0.9, "stop": ["\n"], "max_tokens": 17, "min_p": 0.1}
        assert body == {"model": "some/model", **expected}
    assert generator.generate(PROMPTS[::-1], 2, keys=KEYS[::-1])[::-1] == found
    assert generator.generate(PROMPTS, 2, keys=KEYS, seed=1) != found


def test_text_is_continued_with_chat_off(server: Server) -> None:
    found = make(server, chat=False).generate(["one"], 2, keys=["a"])
    assert [c.text.split(":")[0] for c in found[0]] == ["one", "one"]
    assert {request["path"] for request in server.requests} == {"/v1/completions"}
    assert {request["key"] for request in server.requests} == {f"Bearer {SECRET}"}
    with pytest.raises(DataError, match="chat=False takes text prompts; row 'c' is a list of messages"):
        make(server, chat=False).generate(PROMPTS, 1, keys=KEYS)


def test_the_reason_to_finish(server: Server) -> None:
    reasons = {"one": "length", "two": "stop", "three": "content_filter"}
    server.behave = lambda number, body: good(body, reasons[said(body)])
    found = make(server).generate(PROMPTS, 1, keys=KEYS)
    assert [row[0].finished for row in found] == [False, True, False]


def test_no_text_is_an_empty_completion(server: Server) -> None:
    choice = {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": None}}
    server.behave = lambda number, body: (200, {}, json.dumps({"choices": [choice]}).encode())
    assert make(server).generate(["one"], 1, keys=["a"]) == [[Completion("", None, False)]]


def test_extra_fields_leave_out_and_replace(server: Server) -> None:
    make(server, extra={"seed": None, "max_tokens": None, "max_completion_tokens": 5}).generate(["one"], 1, keys=["a"])
    body = server.requests[0]["body"]
    assert body["max_completion_tokens"] == 5
    assert not {"seed", "max_tokens", "stop"} & set(body)


def test_no_more_requests_at_a_time_than_asked_for(server: Server) -> None:
    """Three requests wait for each other; a fourth would be seen."""
    barrier = threading.Barrier(3)

    def together(number: int, body: dict[str, Any]) -> Reply:
        barrier.wait(timeout=10)
        return good(body)

    server.behave = together
    make(server, concurrency=3).generate(PROMPTS, 4, keys=KEYS)
    assert server.most == 3


def test_inside_a_running_event_loop(server: Server) -> None:
    async def notebook() -> Any:
        return make(server).generate(PROMPTS, 1, keys=KEYS)

    assert asyncio.run(notebook()) == make(server).generate(PROMPTS, 1, keys=KEYS)
    server.behave = lambda number, body: failing(400)

    async def in_vain() -> str:
        return failure(make(server))

    assert "0 of 6" in asyncio.run(in_vain())


def test_the_inference_api_of_hugging_face(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its router, played by the server here."""
    from huggingface_hub import constants
    from huggingface_hub.inference import _providers

    monkeypatch.setenv("HF_TOKEN", "hf_login")
    generator = EndpointGenerator("some/model", retries=3)
    assert "offline mode is enabled" in failure(generator, ["one"], 1)
    assert "tried" not in failure(generator, ["one"], 1)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(_providers.CONVERSATIONAL_AUTO_ROUTER, "base_url", server.url.removesuffix("/v1"))
    assert generator.generate(["one"], 1, keys=["a"])[0][0].text.startswith("one:")
    (request,) = server.requests
    assert (request["path"], request["key"]) == ("/v1/chat/completions", "Bearer hf_login")
    assert request["body"]["model"] == "some/model"


# -- keys


def test_the_key_is_never_shown_and_goes_nowhere_else(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = make(server)
    for shown in (repr(generator), str(generator), json.dumps(generator.describe())):
        assert SECRET not in shown
    server.behave = lambda number, body: failing(401, f"Incorrect API key provided: {SECRET}")
    message = failure(generator, ["one"], 1)
    assert "***" in message
    assert "status 401" in message

    server.behave = lambda number, body: good(body)
    monkeypatch.setenv("HF_TOKEN", "hf_login")
    server.requests.clear()
    for chat in (True, False):
        make(server, api_key=None, chat=chat).generate(["one"], 1, keys=["a"])
    assert {request["key"] for request in server.requests} == {"Bearer none"}
    monkeypatch.setenv("OPENAI_API_KEY", "sk-from-environment")
    make(server, api_key=None).generate(["one"], 1, keys=["a"])
    assert server.requests[-1]["key"] == "Bearer sk-from-environment"


# -- when it is not


def test_errors_that_pass_are_tried_again(server: Server) -> None:
    seen: dict[str, int] = {}
    lock = threading.Lock()

    def behave(number: int, body: dict[str, Any]) -> Reply:
        with lock:
            seen[said(body)] = tries = seen.get(said(body), 0) + 1
        return good(body) if tries == 3 else failing(500 if tries == 1 else 503)

    server.behave = behave
    found = make(server).generate(PROMPTS, 1, keys=KEYS)
    assert [row[0].text.split(":")[0] for row in found] == ["one", "two", "three"]
    assert len(server.requests) == 9


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_rate_limit_is_waited_for(server: Server, form: str) -> None:
    def behave(number: int, body: dict[str, Any]) -> Reply:
        later = "1" if form == "seconds" else formatdate(time.time() + 2, usegmt=True)
        return failing(429, "slow down", Retry_After=later) if number == 0 else good(body)

    server.behave = behave
    assert make(server).generate(["one"], 1, keys=["a"])[0][0].finished
    first, second = (request["at"] for request in server.requests)
    assert second - first >= 0.95


def test_a_limit_that_lasts_too_long_is_final(server: Server) -> None:
    server.behave = lambda number, body: failing(429, "quota used up", Retry_After="86400")
    assert "asks to come back after 86400 s" in failure(make(server), ["one"], 1)
    assert len(server.requests) == 1


def test_a_server_that_stalls(server: Server) -> None:
    def behave(number: int, body: dict[str, Any]) -> Reply:
        if said(body) == "two":
            server.released.wait(10)
        return good(body)

    server.behave = behave
    arrived: list[tuple[int, int]] = []
    message = failure(make(server, timeout=0.5, retries=1), on_done=lambda i, k, _: arrived.append((i, k)))
    assert sorted(arrived) == [(0, 0), (0, 1), (2, 0), (2, 1)]
    assert "4 of 6 completions arrived; 2 requests failed, the last one for row 'b': no answer within 0.5 s" in message
    assert "(tried 2 times)" in message
    assert "run again to go on" in message


def test_a_server_that_drips(server: Server) -> None:
    """Bytes that keep coming do not lengthen the time a request may take."""

    def behave(number: int, body: dict[str, Any]) -> Reply:
        return 200, {"Content-Length": "100000", "Connection": "close"}, b" "

    server.behave = behave
    assert "0 of 1 completions arrived" in failure(make(server, timeout=0.5, retries=0), ["one"], 1)


def test_a_server_that_refuses_connections() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    generator = EndpointGenerator("m", base_url=url, api_key=SECRET, retries=0, concurrency=2)
    message = failure(generator, PROMPTS, 20)
    assert "0 of 60 completions arrived" in message
    assert "ConnectError" in message
    assert int(message.split(" requests failed")[0].rsplit(" ", 1)[1]) <= 4  # a dead server is not asked 60 times


@pytest.mark.parametrize(
    "garbage",
    [b"<html>nginx</html>", b"", b"\xff\xfe", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": 3}]}', b"3"],
)
@pytest.mark.parametrize("chat", [True, False])
def test_garbage(server: Server, garbage: bytes, chat: bool) -> None:
    server.behave = lambda number, body: (200, {}, garbage) if said(body) == "two" else good(body)
    arrived: list[int] = []
    message = failure(make(server, chat=chat), PROMPTS[:2], 1, on_done=lambda index, *_: arrived.append(index))
    assert arrived == [0]
    assert "1 of 2 completions arrived; 1 requests failed, the last one for row 'b': " in message
    assert len(server.requests) == 2


def test_one_bad_prompt_does_not_stop_the_others(server: Server) -> None:
    server.behave = lambda number, body: failing(400, "too long") if said(body) == "two" else good(body)
    arrived: dict[tuple[int, int], Completion] = {}

    def keep(index: int, sample: int, completion: Completion) -> None:
        arrived[index, sample] = completion

    message = failure(make(server), on_done=keep)
    assert "4 of 6 completions arrived" in message
    assert "status 400" in message
    assert "too long" in message
    server.requests.clear()
    server.behave = lambda number, body: good(body)
    found = make(server).generate(PROMPTS, 2, keys=KEYS, have=arrived)
    assert len(server.requests) == 2
    assert {(i, k): c for i, row in enumerate(found) for k, c in enumerate(row)}.items() >= arrived.items()


# -- what every request would get, said at once


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_wrong_key_or_model_costs_one_request(server: Server, status: int) -> None:
    server.behave = lambda number, body: failing(status, "not you")
    message = failure(make(server, concurrency=8), PROMPTS, 20)
    assert f"0 of 60 completions arrived; 1 requests failed, that for row 'a': status {status}" in message
    assert len(server.requests) == 1


def test_a_refused_key_says_where_keys_come_from(server: Server) -> None:
    server.behave = lambda number, body: failing(401)
    assert "(a key was sent; it is taken from api_key= or OPENAI_API_KEY)" in failure(make(server), ["one"], 1)
    message = failure(make(server, api_key=None), ["one"], 1)
    assert "(no key was sent; it is taken from api_key= or OPENAI_API_KEY)" in message
    assert "What arrived" not in message


def test_a_quota_that_is_spent_is_not_waited_for(server: Server) -> None:
    reply = json.dumps({"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}).encode()
    server.behave = lambda number, body: (429, {"Content-Type": "application/json"}, reply)
    failure(make(server, concurrency=1), ["one"], 1)
    assert len(server.requests) == 1


def test_a_long_wait_is_said_once(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.behave = lambda number, body: failing(429, "slow down")
    failure(make(server, concurrency=2), PROMPTS, 1)
    assert capsys.readouterr().err.count("still waiting after 2 tries: status 429") == 1


def test_a_key_that_runs_out_stops_the_rest(server: Server) -> None:
    """What is under way is kept; nothing more is sent, and nobody waits to try again."""

    def behave(number: int, body: dict[str, Any]) -> Reply:
        if number < 4:
            return good(body)
        return failing(403, "quota") if number == 4 else failing(503, "busy", Retry_After="100")

    server.behave = behave
    arrived: list[tuple[int, int]] = []
    began = time.monotonic()
    message = failure(make(server, concurrency=3), PROMPTS, 20, on_done=lambda i, k, _: arrived.append((i, k)))
    assert time.monotonic() - began < 10
    assert len(arrived) == 4
    assert "4 of 60 completions arrived" in message
    assert "status 403" in message
    assert len(server.requests) <= 7


def test_the_first_request_does_not_hold_the_others_for_long(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_ALONE", 0.2)

    def slow(number: int, body: dict[str, Any]) -> Reply:
        server.released.wait(1.5)
        return good(body)

    server.behave = slow
    began = time.monotonic()
    make(server, concurrency=6).generate(PROMPTS, 2, keys=KEYS)
    assert 1.6 < time.monotonic() - began < 2.9  # 0.2 s, and then all at once
    began = time.monotonic()
    generator = make(server, concurrency=6)
    generator._answered = True
    generator.generate(PROMPTS, 2, keys=KEYS)
    assert time.monotonic() - began < 2.6


# -- budgets and accounts


def test_admission_is_asked_once_for_each_request(server: Server) -> None:
    seen: dict[str, int] = {}
    lock = threading.Lock()

    def behave(number: int, body: dict[str, Any]) -> Reply:
        with lock:
            seen[f"{said(body)}{body['seed']}"] = tries = seen.get(f"{said(body)}{body['seed']}", 0) + 1
        return failing(500) if tries == 1 else good(body)

    server.behave = behave
    asked: list[tuple[int, int]] = []
    generator = make(server)
    generator.generate(PROMPTS, 2, keys=KEYS, admit=lambda i, k: asked.append((i, k)) is None)
    assert sorted(asked) == [(i, k) for i in range(3) for k in range(2)]
    assert generator.attempts == len(server.requests) == 12


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_refusal_leaves_out_what_is_refused(server: Server, concurrency: int) -> None:
    budget, arrived = iter(range(4)), dict[tuple[int, int], Completion]()
    generator = make(server, concurrency=concurrency)
    with pytest.raises(Refused, match="4 completions were made; 5 were left") as caught:
        generator.generate(
            PROMPTS,
            3,
            keys=KEYS,
            admit=lambda i, k: next(budget, None) is not None,
            on_done=lambda i, k, c: arrived.update({(i, k): c}),
        )
    assert not isinstance(caught.value, GenerationError)
    assert len(arrived) == len(server.requests) == 4
    found = generator.generate(PROMPTS, 3, keys=KEYS, have=arrived)
    assert found == make(server).generate(PROMPTS, 3, keys=KEYS)


@pytest.mark.parametrize("after", [0, 1])
def test_a_request_is_tried_again_only_while_that_is_allowed(server: Server, after: int) -> None:
    """The caller says no to the first wait, or to the try behind it."""
    waits: list[float] = []

    def allowed(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) <= after

    server.behave = lambda number, body: failing(429, Retry_After="0.1") if said(body) == "two" else good(body)
    arrived: list[int] = []
    with pytest.raises(Refused, match="2 completions were made; 1 were left"):
        make(server).generate(
            PROMPTS, 1, keys=KEYS, on_done=lambda i, k, c: arrived.append(i), admit=lambda i, k: True, allowed=allowed
        )
    assert sorted(arrived) == [0, 2]
    assert waits == [0.1, 0.0][: after + 1]
    assert len(server.requests) == 3


def test_tokens_are_counted_by_the_server_and_bounded_before(server: Server) -> None:
    def behave(number: int, body: dict[str, Any]) -> Reply:
        status, headers, content = good(body)
        usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
        return status, headers, json.dumps({**json.loads(content), "usage": usage}).encode()

    server.behave = behave
    for chat in (True, False):
        found = make(server, chat=chat).generate(["one"], 1, keys=["a"])[0][0]
        assert (found.prompt_tokens, found.completion_tokens) == (11, 7)
    generator = make(server, max_new_tokens=9)
    assert generator.max_new_tokens == 9
    own = endpoint.OWN_SYSTEM_PROMPT  # such as Qwen2.5's, of 20 tokens, where the messages have none
    bounds = [3 + 16 + own, 3 + 16 + own, 8 + 16 + 5 + 16]
    assert [generator.count_tokens(prompt) for prompt in PROMPTS] == bounds
    assert generator.count_tokens([{"role": "system", "content": "é"}]) == 2 + 16
    assert make(server, chat=False).count_tokens("é") == 2 + 16


def test_waits_double_and_follow_from_the_request() -> None:
    waits = [endpoint.backoff(endpoint.request_seed(0, "a", 0), attempt) for attempt in range(12)]
    for attempt, wait in enumerate(waits):
        whole = min(0.5 * 2**attempt, 30.0)
        assert whole / 2 <= wait <= whole
    assert waits[0] == endpoint.backoff(endpoint.request_seed(0, "a", 0), 0)
    others = {endpoint.backoff(endpoint.request_seed(0, key, 0), 0) for key in range(100)}
    assert len(others) == 100


def test_an_error_of_the_caller_stops_everything(server: Server) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        make(server, concurrency=1).generate(PROMPTS, 2, keys=KEYS, on_done=refuse)
    assert len(server.requests) == 1


def test_bad_options() -> None:
    for options in (
        {"base_url": "localhost:8000"},
        {"base_url": "http://user:password@localhost/v1"},
        {"base_url": "http://localhost/v1?key=1"},
        {"chat": False},
        {"concurrency": 0},
        {"timeout": 0.0},
        {"retries": -1},
        {"top_p": 2.0},
        {"max_new_tokens": 0},
    ):
        with pytest.raises(OptionError, match=next(iter(options))) as caught:
            EndpointGenerator("m", **options)
        assert "password@" not in str(caught.value)
    generator = EndpointGenerator("m", base_url="http://localhost/v1", temperature=0.0)
    assert not generator.on_policy
    with pytest.raises(OptionError, match="n must be 1"):
        generator.generate(["one"], 2, keys=["a"])
    with pytest.raises(DataError, match="row 'a' has no prompt"):
        generator.generate([None], 1, keys=["a"])
