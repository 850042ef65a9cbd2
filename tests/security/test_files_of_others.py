"""A store, a ledger, scores or a report that somebody else made: nothing in it runs, and no file outside it is read or changed."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from hfdataopt import attribute
from hfdataopt.attribution.scores import Scores
from hfdataopt.errors import HfDataOptError, StoreError
from hfdataopt.files import JsonLines, sealed, with_checksum, write_whole
from hfdataopt.gradients import GradientStore
from hfdataopt.prompting.ledger import Ledger
from hfdataopt.report import inputs

from ..tiny import bert, encoded, tokenizer

SETTINGS = {"optimizer": "ape"}
EVIL = b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0dtouch planted\x85R."  # a pickle that runs a command


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file outside the folders that are loaded."""
    file = tmp_path / "elsewhere" / "secret.txt"
    file.parent.mkdir()
    file.write_text("keep me")
    return file


def link(at: Path, to: Path) -> None:
    at.parent.mkdir(parents=True, exist_ok=True)
    try:
        at.symlink_to(to)
    except OSError:
        pytest.skip("no symbolic links here")


# -- nothing is written through a link


def test_a_ledger_that_is_a_link_is_not_added_to(tmp_path: Path, secret: Path) -> None:
    link(tmp_path / "search" / "ledger.jsonl", secret)
    with pytest.raises(StoreError, match="cannot be written"):
        Ledger(tmp_path / "search", SETTINGS)
    assert secret.read_text() == "keep me"


def test_a_lock_that_is_a_link_empties_nothing(tmp_path: Path, secret: Path) -> None:
    link(tmp_path / "search" / ".lock", secret)
    with pytest.raises(StoreError, match="lock"):
        Ledger(tmp_path / "search", SETTINGS)
    assert secret.read_text() == "keep me"


def test_lines_are_not_added_through_a_link(tmp_path: Path, secret: Path) -> None:
    link(tmp_path / "votes.jsonl", secret)
    with pytest.raises(StoreError):
        JsonLines(tmp_path / "votes.jsonl", "test").append({"a": 1})
    assert secret.read_text() == "keep me"


def test_a_whole_file_takes_the_place_of_a_link(tmp_path: Path, secret: Path) -> None:
    link(tmp_path / "out" / "result.json", secret)
    link(tmp_path / "out" / f".result.json.{os.getpid()}.partial", secret)
    write_whole(tmp_path / "out" / "result.json", b"{}")
    assert secret.read_text() == "keep me"
    assert (tmp_path / "out" / "result.json").read_bytes() == b"{}"
    assert not (tmp_path / "out" / "result.json").is_symlink()


def test_a_shard_that_is_a_link_is_replaced(tmp_path: Path, secret: Path) -> None:
    store = GradientStore.open_or_create(tmp_path / "store", {"model": "m"}, 2)
    link(tmp_path / "store" / "shard-00000.safetensors", secret)
    assert store.missing_shards() == [0]
    store.write(0, {"features": np.ones((2, 3), np.float32)})
    assert secret.read_text() == "keep me"
    assert np.asarray(store.read()).shape == (2, 3)


def test_scores_take_the_place_of_links(tmp_path: Path, secret: Path) -> None:
    made = attribute(bert(), encoded(4, 1), encoded(2, 2), "loss", processing_class=tokenizer())
    for name in ("scores.json", "scores.safetensors", "scores.previous.safetensors", "tokenizer.json"):
        link(tmp_path / "scores" / name, secret)
    made.save(tmp_path / "scores")
    assert secret.read_text() == "keep me"
    assert not any(path.is_symlink() for path in (tmp_path / "scores").iterdir())
    assert len(Scores.load(tmp_path / "scores").tokenizer) == len(tokenizer())


# -- names in documents lead nowhere else


@pytest.mark.parametrize("inside", ["", "tokenizer"])
def test_scores_read_no_file_that_a_tokenizer_names(tmp_path: Path, secret: Path, inside: str) -> None:
    made = attribute(bert(), encoded(4, 1), encoded(2, 2), "loss", processing_class=tokenizer())
    made.save(tmp_path / "scores")
    (tmp_path / "scores" / inside).mkdir(exist_ok=True)
    named = {
        "tokenizer_class": "BertTokenizer",
        "vocab": str(secret),
        "vocab_file": str(secret),
        "tokenizer_file": str(secret),
    }
    (tmp_path / "scores" / inside / "tokenizer_config.json").write_text(json.dumps(named))
    Scores.load(tmp_path / "scores").save(tmp_path / "mine")
    (tmp_path / "scores" / "tokenizer.json").unlink()
    assert Scores.load(tmp_path / "scores").tokenizer is None
    assert "keep me" not in "".join(path.read_text(errors="replace") for path in (tmp_path / "mine").rglob("*.json"))
    link(tmp_path / "scores" / "tokenizer.json", secret)
    with pytest.raises(StoreError, match="link"):
        Scores.load(tmp_path / "scores")


@pytest.mark.parametrize("name", ["../elsewhere", "/etc", "step-000000-00000000/../../elsewhere", "..", ""])
def test_a_run_names_folders_of_its_own_only(tmp_path: Path, secret: Path, name: str) -> None:
    pool, queries = encoded(4, 1), encoded(2, 2)
    options: dict[str, Any] = {"processing_class": tokenizer(), "output_dir": tmp_path / "run"}
    made = attribute(bert(), pool, queries, "loss", **options)
    document = json.loads((tmp_path / "run" / "run.json").read_text())
    document["moments"][0]["folder"] = name
    document.pop("checksum", None)  # whoever changes it writes another one
    (tmp_path / "run" / "run.json").write_text(json.dumps(with_checksum(document)))
    (folder,) = (tmp_path / "run").glob("step-*")
    (secret.parent / "result.json").write_bytes((folder / "result.json").read_bytes())
    others = {"values": np.full(4, 7.0)}
    (secret.parent / "result.safetensors").write_bytes(sealed(save(others)))
    try:
        found = attribute(bert(), pool, queries, "loss", **options)
    except HfDataOptError:
        return
    np.testing.assert_array_equal(found.values, made.values)


@pytest.mark.parametrize("name", ["../elsewhere/picture.png", "/picture.png", "../../picture.png"])
def test_an_image_of_a_ledger_lies_in_its_folder(tmp_path: Path, secret: Path, name: str) -> None:
    image = pytest.importorskip("PIL.Image")
    from hfdataopt.errors import DataError
    from hfdataopt.generation.images import ImageCompletion

    image.new("RGB", (2, 2)).save(secret.parent / "picture.png")
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        ImageCompletion.from_json({"image": name, "text": ""}, tmp_path / "images")


@pytest.mark.parametrize(
    "content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", b"BM" + bytes(60), EVIL]
)
def test_an_image_of_a_ledger_is_a_png(tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("PIL")
    from hfdataopt.errors import DataError
    from hfdataopt.generation.images import ImageCompletion

    (tmp_path / "picture.png").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        ImageCompletion.from_json({"image": "picture.png", "text": ""}, tmp_path)


# -- contents


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


ARRAY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
HEADERS: dict[str, bytes] = {
    "a pickle": EVIL,
    "nothing": b"",
    "a length beyond the file": safetensors({}, length=2**63),
    "a length of 2**64 - 1": safetensors({}, length=2**64 - 1),
    "no JSON": safetensors(b"{" * 100),
    "deep JSON": safetensors(b"[" * 100_000),
    "a list": safetensors([]),
    "no offsets": safetensors({"features": {"dtype": "F32", "shape": [2, 3]}}),
    "offsets before the data": safetensors({"features": {**ARRAY, "data_offsets": [-24, 0]}}, bytes(24)),
    "offsets beyond the data": safetensors({"features": {**ARRAY, "data_offsets": [0, 2**40]}}, bytes(24)),
    "offsets that are text": safetensors({"features": {**ARRAY, "data_offsets": ["0", "24"]}}, bytes(24)),
    "a shape that is too large": safetensors({"features": {**ARRAY, "shape": [2, 2**40]}}, bytes(24)),
    "a negative shape": safetensors({"features": {**ARRAY, "shape": [-2, -3]}}, bytes(24)),
    "a shape of another number of rows": safetensors({"features": {**ARRAY, "shape": [3, 2]}}, bytes(24)),
    "an unknown dtype": safetensors({"features": {**ARRAY, "dtype": "O"}}, bytes(24)),
    "another entry that lies outside": safetensors(
        {"features": ARRAY, "x": {**ARRAY, "data_offsets": [99, 123]}}, bytes(24)
    ),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_shard_with_a_hostile_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    GradientStore.open_or_create(tmp_path / "store", {"model": "m"}, 2)
    (tmp_path / "store" / "shard-00000.safetensors").write_bytes(HEADERS[kind])
    store = GradientStore.open(tmp_path / "store")
    with pytest.raises(StoreError):
        np.asarray(store.read())
    assert not (tmp_path / "planted").exists()


MANIFEST: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda m: [m],
    "no rows": lambda m: {"format": m["format"]},
    "rows_per_shard=0": lambda m: {**m, "rows_per_shard": 0},
    "rows_per_shard of text": lambda m: {**m, "rows_per_shard": "../x"},
    "rows_per_shard=True": lambda m: {**m, "rows_per_shard": True},
    "of is a path": lambda m: {**m, "of": "../../etc/passwd"},
    "ids of others": lambda m: {**m, "row_ids": "0" * 64},
}


@pytest.mark.parametrize("kind", MANIFEST)
def test_a_store_with_a_hostile_manifest(tmp_path: Path, kind: str) -> None:
    GradientStore.open_or_create(tmp_path, {"model": "m"}, 2)
    file = tmp_path / "manifest.json"
    file.write_text(json.dumps(MANIFEST[kind](json.loads(file.read_text()))))
    with pytest.raises(StoreError):
        GradientStore.open(tmp_path)
    with pytest.raises(StoreError):
        GradientStore.open_or_create(tmp_path, {"model": "m"}, 2)


@pytest.mark.parametrize("name", ["scores.safetensors", "scores.json"])
def test_scores_are_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "scores"
    Scores(np.ones(2), ["a", "b"], metadata={"scorer": "loss"}).save(folder)
    (folder / name).write_bytes(EVIL)
    with pytest.raises(StoreError):
        Scores.load(folder)
    assert not (tmp_path / "planted").exists()


def test_a_checkpoints_optimizer_is_not_unpickled_freely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hfdataopt.errors import DataError
    from hfdataopt.gradients import adam

    monkeypatch.chdir(tmp_path)
    (tmp_path / "optimizer.pt").write_bytes(EVIL)
    with pytest.raises(DataError, match="cannot be read"):
        adam._read(tmp_path, bert(), "test")
    assert not (tmp_path / "planted").exists()


def test_a_report_looks_into_no_link(tmp_path: Path) -> None:
    Scores(np.ones(2), ["a", "b"], metadata={"scorer": "loss"}).save(tmp_path / "elsewhere" / "scores")
    Scores(np.ones(2), ["a", "b"], metadata={"scorer": "loss"}).save(tmp_path / "given" / "mine")
    link(tmp_path / "given" / "linked", tmp_path / "elsewhere")
    assert list(inputs.find([tmp_path / "given"]).folders.values()) == [str(tmp_path / "given" / "mine")]
