"""NICE-AMC: completions of a stronger model, from a column, a model in memory or a server on this machine."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hfdataopt import Checkpoint, attribute, get_scorer
from hfdataopt.errors import DataError, GenerationError, OptionError
from hfdataopt.generation import endpoint

from ..policy import EOS, Recorder, good_words, policy_gradients, prompts, reader, speaker, weights_of
from ..tiny import loss_gradients, questions

PLAIN: dict[str, Any] = {"precondition": "none", "normalize": False, "basis": "exact", "batch_size": 4}
SECRET = "sk-very-secret-key"


@pytest.fixture(scope="module")
def pool() -> Any:
    return questions(7, seed=1)


@pytest.fixture(scope="module")
def queries() -> Any:
    return prompts(5, seed=3)


@pytest.fixture
def model() -> Any:
    return speaker().double()


def one(completions: Any, **_: Any) -> list[float]:
    return [1.0] * len(completions)


def run(model: Any, pool: Any, queries: Any, reward: Any, **options: Any) -> Any:
    given = {**PLAIN, **options}
    return attribute(model, pool, queries, "nice-amc", processing_class=reader(), reward_funcs=reward, **given)


def close(found: Any, expected: Any, rtol: float = 1e-4) -> None:
    expected = np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=0.1 * rtol * np.abs(expected).max())


def one_by_one(model: Any, pool: Any, queries: Any, asked: Any, weights: Any) -> torch.Tensor:
    return loss_gradients(model, pool) @ policy_gradients(model, queries, asked, weights).T


# -- a column


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_the_reference_with_reward_1_is_the_label_gradient(
    model: Any, pool: Any, queries: Any, batch_size: int
) -> None:
    labels = attribute(model, pool, queries, "tracin", basis="exact", processing_class=reader(), batch_size=batch_size)
    scores = run(model, pool, queries, one, column="completion", batch_size=batch_size)
    close(scores.matrix, labels.matrix, 1e-6)
    close(scores.values, labels.values, 1e-6)


def test_the_reference_of_a_conversation_is_the_label_gradient(model: Any, pool: Any, queries: Any) -> None:
    read = reader()
    read.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}the {{ m['content'] }} <eos>{% else %}{{ m['content'] }} "
        "{% endif %}{% endfor %}{% if add_generation_prompt %}the{% endif %}"
    )

    def speak(row: dict[str, Any]) -> dict[str, Any]:
        return {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["completion"].strip()}],
        }

    spoken = queries.map(speak, load_from_cache_file=False)
    labels = attribute(model, pool, spoken, "tracin", basis="exact", processing_class=read)
    scores = attribute(
        model, pool, spoken, "nice-amc", processing_class=read, reward_funcs=one, column="completion", **PLAIN
    )
    close(scores.matrix, labels.matrix, 1e-6)


def several(row: dict[str, Any]) -> dict[str, Any]:
    return {"answers": [" fine", " awful plot", " the great film", " very"][: 2 + len(row["row_id"]) % 3]}


@pytest.mark.parametrize("baseline", ["none", "leave-one-out"])
@pytest.mark.parametrize("eos", [True, False])
def test_several_completions_equal_autograd(
    model: Any, pool: Any, queries: Any, baseline: str, eos: bool, capsys: Any
) -> None:
    given = queries.map(several, load_from_cache_file=False)
    scores = run(model, pool, given, good_words, column="answers", baseline=baseline, eos=eos)
    read = reader()
    asked = {row["row_id"]: [read(text)["input_ids"] + [EOS] * eos for text in row["answers"]] for row in given}
    weights = {row: weights_of(good_words(ids), baseline) for row, ids in asked.items()}
    close(scores.matrix, one_by_one(model, pool, queries, asked, weights))
    said = capsys.readouterr().err
    assert ("changes what is estimated" in said) == (baseline == "leave-one-out")
    assert "off-policy" not in said


def test_leave_one_out_of_one_completion_names_the_query(model: Any, pool: Any, queries: Any) -> None:
    given = queries.map(
        lambda row: {"answers": [" fine"] if row["row_id"] == "q3" else [" fine", " awful"]}, load_from_cache_file=False
    )
    with pytest.raises(
        DataError, match=r"nice-amc: query 'q3' has 1 completion, and baseline='leave-one-out' compares"
    ):
        run(model, pool, given, good_words, column="answers", baseline="leave-one-out")
    assert np.isfinite(run(model, pool, given, good_words, column="answers").values).all()


def test_columns_that_hold_no_completions(model: Any, pool: Any, queries: Any) -> None:
    with pytest.raises(DataError, match=r"column 'answers': row 'q0' has no such column; it has"):
        run(model, pool, queries, good_words, column="answers")
    for wrong in (None, []):
        given = queries.map(lambda row, wrong=wrong: {"answers": wrong if row["row_id"] == "q2" else [" fine"]})
        with pytest.raises(DataError, match=r"column 'answers': row 'q2' has no completion"):
            run(model, pool, given, good_words, column="answers")


# -- a model in memory


def test_completions_of_a_stronger_model_equal_autograd(model: Any, pool: Any, queries: Any, tmp_path: Path) -> None:
    reward, stronger = Recorder(), speaker(2)
    options: dict[str, Any] = {"samples": 5, "max_new_tokens": 5}
    before = {name: value.clone() for name, value in stronger.state_dict().items()}
    scores = run(model, pool, queries, reward, stronger=stronger, **options)
    # the ids are those of the text as the model under study reads it
    read = reader()
    texts: dict[str, list[str]] = {}
    for call in reward.calls:
        for row, text in zip(call["row_id"], call["completions"], strict=True):
            texts.setdefault(row, []).append(text)
    for row, found in texts.items():
        words = [read(text)["input_ids"] for text in found]
        assert [[t for t in ids if t != EOS] for ids in reward.asked[row]] == words
    weights = {row: weights_of(good_words(ids), "none") for row, ids in reward.asked.items()}
    close(scores.matrix, one_by_one(model, pool, queries, reward.asked, weights))
    assert all(torch.equal(value, before[name]) for name, value in stronger.state_dict().items())
    stronger.save_pretrained(tmp_path / "stronger")
    reader().save_pretrained(tmp_path / "stronger")
    named = run(model, pool, queries, good_words, stronger=str(tmp_path / "stronger"), **options)
    close(named.matrix, scores.matrix)


def test_completions_and_rewards_serve_all_checkpoints(pool: Any, queries: Any, tmp_path: Path) -> None:
    for seed in (0, 1):
        speaker(seed).save_pretrained(tmp_path / str(seed))
    checkpoints = [Checkpoint(str(tmp_path / str(seed)), learning_rate=rate) for seed, rate in ((0, 0.5), (1, 0.25))]
    options: dict[str, Any] = {"stronger": speaker(2), "samples": 4, "max_new_tokens": 5}
    alone = [run(speaker(seed), pool, queries, good_words, **options).values for seed in (0, 1)]
    for folder in (tmp_path / "kept", None):
        reward = Recorder()
        both = run(speaker(), pool, queries, reward, checkpoints=checkpoints, output_dir=folder, **options)
        assert reward.completions == 20
        close(both.values, 0.5 * alone[0] + 0.25 * alone[1])


def test_a_stronger_model_that_is_not_there(model: Any, pool: Any, queries: Any) -> None:
    with pytest.raises(DataError, match=r"nice-amc: stronger='no/such-model' cannot be loaded"):
        run(model, pool, queries, good_words, stronger="no/such-model")


# -- a server


class Server:
    """Answers with one of three texts by the seed of the request; fails after ``most`` answers."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.most = 10**6
        self.status = 401
        server, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.bodies.append(body)
                    server.keys.add(self.headers["Authorization"])
                    number = len(server.bodies)
                text = ["fine plot", "awful", "the great great film"][body["seed"] % 3]
                answer: Any = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
                if number > server.most:
                    answer = {"error": {"message": "no more"}}
                content = json.dumps(answer).encode()
                self.send_response(200 if number <= server.most else server.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join(5)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)
    made = Server()
    yield made
    made.close()


def served(server: Server, **options: Any) -> dict[str, Any]:
    return {"stronger": "some/model", "endpoint": server.url, "api_key": SECRET, "samples": 3, **options}


def test_completions_from_a_server_equal_autograd(model: Any, pool: Any, queries: Any, server: Server) -> None:
    reward = Recorder()
    scores = run(model, pool, queries, reward, **served(server, max_new_tokens=9, temperature=0.7))
    weights = {row: weights_of(good_words(ids), "none") for row, ids in reward.asked.items()}
    close(scores.matrix, one_by_one(model, pool, queries, reward.asked, weights))
    assert len(server.bodies) == 15
    assert all((body["max_tokens"], body["temperature"]) == (9, 0.7) for body in server.bodies)


@pytest.mark.parametrize("status", [401, 500])
def test_what_arrived_before_an_error_is_kept(
    model: Any, pool: Any, queries: Any, server: Server, tmp_path: Path, status: int, monkeypatch: Any
) -> None:
    whole = run(model, pool, queries, good_words, **served(server))
    monkeypatch.setattr(endpoint, "LONGEST_WAIT", 0.01)
    server.bodies.clear()
    server.most, server.status = 6, status
    with pytest.raises(GenerationError, match="6 of 15 completions arrived") as caught:
        run(model, pool, queries, good_words, output_dir=tmp_path, **served(server))
    assert SECRET not in str(caught.value)
    server.bodies.clear()
    server.most = 10**6
    again = run(model, pool, queries, good_words, output_dir=tmp_path, **served(server))
    assert len(server.bodies) == 9
    np.testing.assert_array_equal(again.matrix, whole.matrix)


def test_the_key_is_sent_and_never_written(
    model: Any, pool: Any, queries: Any, server: Server, tmp_path: Path, capsys: Any
) -> None:
    scores = run(model, pool, queries, good_words, output_dir=tmp_path, **served(server))
    assert server.keys == {f"Bearer {SECRET}"}
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"run.json", "scores.json"} <= {file.name for file in files}
    assert not [file for file in files if SECRET.encode() in file.read_bytes()]
    assert SECRET not in json.dumps(scores.metadata)
    assert SECRET not in capsys.readouterr().err
    assert SECRET not in repr(get_scorer("nice-amc", reward_funcs=one, **served(server)))
    # a key that was renewed is no other run
    server.bodies.clear()
    changed = served(server, api_key="another", timeout=9.0)  # nor is one that waits for longer
    again = run(model, pool, queries, good_words, output_dir=tmp_path, **changed)
    assert server.bodies == []
    np.testing.assert_array_equal(again.values, scores.values)


# -- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"nice-amc: give column= .* or stronger= .*; got column=None and stronger=None"),
        ({"column": "completion", "stronger": "x"}, r"nice-amc: give column= "),
        ({"stronger": None, "column": "completion", "endpoint": "http://x/v1"}, r"nice-amc: endpoint="),
        ({"stronger": 7}, r"nice-amc: stronger=7 is neither a causal"),
        ({"stronger": "m", "endpoint": "nowhere"}, r"endpoint must be a URL"),
        ({"column": "completion", "baseline": "leave-one-out", "samples": 1}, r"nice-amc: baseline='leave-one-out'"),
        ({"column": "completion", "temperature": 0.5}, r"nice-amc: temperature has no use with column="),
        ({"stronger": "m", "endpoint": "http://x/v1", "top_k": 5}, r"nice-amc: top_k has no use with endpoint="),
        ({"stronger": "m", "timeout": 5.0}, r"nice-amc: timeout has no use with a local model"),
    ],
)
def test_sources_that_cannot_be(model: Any, pool: Any, queries: Any, options: Any, message: str) -> None:
    with pytest.raises((OptionError, DataError), match=message):
        run(model, pool, queries, good_words, **options)


def test_the_authors_settings_as_far_as_the_source_has_them() -> None:
    served: Any = get_scorer("nice-amc", reward_funcs=one, stronger="m", endpoint="http://x/v1", preset="paper")
    assert (served.samples, served.top_p, served.top_k, served.eos) == (20, 0.95, 0, False)
    column: Any = get_scorer("nice-amc", reward_funcs=one, column="completion", preset="paper")
    assert (column.samples, column.top_p, column.precondition) == (16, 1.0, "less")


def test_declares_its_defaults() -> None:
    scorer: Any = get_scorer("nice-amc", reward_funcs=one, column="completion")
    assert (scorer.meaning, scorer.default_when, scorer.combine) == ("helpfulness", "epoch", "learning-rate-sum")
    assert (scorer.baseline, scorer.live) == ("none", False)
