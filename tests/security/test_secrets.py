"""Keys are sent where they belong, and are found nowhere else: no message, no log, no file, no trace."""

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from hfdataopt import PromptConfig, PromptTrainer
from hfdataopt.errors import GenerationError, OptionError
from hfdataopt.generation.endpoint import EndpointGenerator
from hfdataopt.plugins import Host, get_scorer
from hfdataopt.report.inputs import find
from hfdataopt.report.write import write_inputs

KEY = "sk-planted-0123456789"
HUB = "hf_planted0123456789"


class Echo(BaseHTTPRequestHandler):
    """Answers every request, or refuses it with a message that quotes the key, as some servers do."""

    status = 200

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        seen.append(self.headers["Authorization"])
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "yes"}}
        said: Any = {"id": "1", "choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
        if self.status != 200:
            said = {"error": {"message": f"Incorrect API key provided: {self.headers['Authorization']}"}}
        content = json.dumps(said).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


seen: list[str] = []


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    seen.clear()
    monkeypatch.setattr(Echo, "status", 200)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("HF_TOKEN", HUB)


def assert_clean(*texts: str) -> None:
    for text in texts:
        assert KEY not in text
        assert HUB not in text


def everything_in(folder: Path) -> str:
    return "\n".join(path.read_bytes().decode("latin-1") for path in sorted(folder.rglob("*")) if path.is_file())


def exact(completions: list[Any], **_: Any) -> list[float]:
    return [1.0 for _ in completions]


def test_a_search_and_its_report_hold_no_key(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    config = PromptConfig(
        output_dir=str(tmp_path / "search"), max_calls=6, items=2, leaders=0, base_url=url, start=["Say yes."]
    )
    rows = Dataset.from_dict({"prompt": ["a", "b", "c", "d"], "completion": ["yes"] * 4})
    trainer = PromptTrainer("random", model="m", reward_funcs=[exact], train_dataset=rows, args=config)
    trainer.train()
    assert set(seen) == {f"Bearer {KEY}"}  # the user's Hugging Face token does not go to this server
    write_inputs(tmp_path / "report.html", find([tmp_path / "search"]))
    told = capsys.readouterr()
    assert_clean(everything_in(tmp_path), told.out, told.err, caplog.text, repr(trainer.args), repr(config))


@pytest.mark.parametrize("given", [{}, {"api_key": KEY}])
@pytest.mark.parametrize("status", [401, 400, 500])
def test_a_server_that_quotes_the_key_is_not_quoted(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: int, given: dict[str, Any]
) -> None:
    monkeypatch.setattr(Echo, "status", status)
    generator = EndpointGenerator("m", base_url=url, retries=0, **given)
    with pytest.raises(GenerationError) as caught:
        generator.generate(["a"], 1, keys=["a"])
    assert "***" in str(caught.value) or status == 500
    told = capsys.readouterr()
    shown = [str(caught.value), repr(generator), json.dumps(generator.describe()), told.out, told.err]
    assert_clean(*shown, repr(caught.value.__cause__))


@pytest.mark.parametrize("secret_url", [f"http://me:{KEY}@127.0.0.1/v1", f"http://127.0.0.1/v1?key={KEY}"])
def test_a_url_with_a_key_is_refused_and_not_repeated(secret_url: str) -> None:
    with pytest.raises(OptionError) as caught:
        EndpointGenerator("m", base_url=secret_url)
    assert_clean(str(caught.value))
    with pytest.raises(OptionError) as caught:
        get_scorer("nice-amc", reward_funcs=exact, stronger="m", endpoint=secret_url)
    assert_clean(str(caught.value))
    rows = Dataset.from_dict({"prompt": ["a"] * 4, "completion": ["yes"] * 4})
    config = PromptConfig(max_calls=4, items=1, base_url=secret_url)
    with pytest.raises(OptionError) as caught:
        PromptTrainer("random", model="m", reward_funcs=[exact], train_dataset=rows, args=config)
    assert_clean(str(caught.value))


def test_a_scorers_key_is_in_no_representation_and_no_record() -> None:
    from hfdataopt.attribution.run import _json_options

    scorer = get_scorer("nice-amc", reward_funcs=exact, stronger="m", endpoint="http://127.0.0.1:1/v1", api_key=KEY)
    assert_clean(repr(scorer), json.dumps(_json_options(scorer)))


def test_traces_of_hooks_show_no_key(capsys: pytest.CaptureFixture[str]) -> None:
    host = Host()
    undo = host.trace()
    scorer = get_scorer("nice-amc", reward_funcs=exact, stronger="m", endpoint="http://127.0.0.1:1/v1", api_key=KEY)
    generator = EndpointGenerator("m", base_url="http://127.0.0.1:1/v1", api_key=KEY)
    host.hook.after_trial(trial=(scorer, generator))
    undo()
    told = capsys.readouterr().err
    assert "after_trial" in told
    assert_clean(told)
