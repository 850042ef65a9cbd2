"""Damaged and half-written files: found, and made again or refused; never read as something else."""

import errno
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from hfdataopt import AttributionCallback, Scores, attribute, cli
from hfdataopt.commands.arguments import write_rows
from hfdataopt.errors import DataError, OptionError, StoreError
from hfdataopt.files import JsonLines, is_intact, sealed, with_checksum, without_checksum
from hfdataopt.gradients import GradientStore
from hfdataopt.prompting.apply import ApplyPrompt
from hfdataopt.prompting.candidate import Candidate
from hfdataopt.prompting.ledger import FILE, Ledger
from hfdataopt.prompting.page import _write_private
from hfdataopt.prompting.result import PromptResult
from hfdataopt.prompting.tracking import write_table

from ..tiny import bert, encoded, questions
from ..training import trainer as training
from .harness import damage

DRAWS = 60


def test_every_kind_of_damage_to_a_shard_is_found_and_made_good(tmp_path: Path) -> None:
    values = torch.arange(24.0).reshape(8, 3)
    shard = tmp_path / "shard-00001.safetensors"
    rng = random.Random(0)
    for _ in range(DRAWS):
        store = GradientStore.open_or_create(tmp_path, {"of": "x"}, 8, 4)
        for place in store.missing_shards():
            store.write(place, {"features": values[4 * place : 4 * place + 4], "tokens": torch.ones(4)})
        whole = shard.read_bytes()
        what = damage(rng, shard)
        again = GradientStore.open(tmp_path)
        changed = shard.read_bytes() != whole
        assert again.missing_shards() == [1] * changed, what
        if changed:
            with pytest.raises(StoreError, match="1 of 2 shards are missing"):
                again.read()


def test_a_sealed_file_is_a_safetensors_file() -> None:
    from safetensors.torch import load, save

    content = sealed(save({"a": torch.arange(3), "b": torch.ones(2, 2)}))
    assert load(content)["a"].tolist() == [0, 1, 2]


def test_a_checksum_of_json(tmp_path: Path) -> None:
    document = {"b": [1.5, None, "x"], "a": {"2": 3}}
    kept = json.loads(json.dumps(with_checksum(document)))
    assert without_checksum(dict(kept)) == document
    for other in ({**kept, "b": [1.6, None, "x"]}, document, [kept]):
        with pytest.raises(ValueError, match="checksum"):
            without_checksum(other)


def test_a_damaged_line_is_passed_over(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "lines.jsonl", "test")
    for number in range(3):
        lines.append({"number": number, "text": "é"})
    content = lines.file.read_bytes()
    lines.file.write_bytes(content.replace(b'"number": 1', b'"number": 7'))
    assert [line["number"] for line in lines.read()] == [0, 2]
    lines.replace([{"number": 5}])
    assert list(lines.read()) == [{"number": 5}]


def test_a_ledger_that_does_not_tell_its_search(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, {"seed": 1})
    ledger.answer("k", "model", text="x")
    ledger.close()
    lines = (tmp_path / FILE).read_bytes().splitlines(keepends=True)
    (tmp_path / FILE).write_bytes(b"".join([lines[0].replace(b"1", b"2", 1), *lines[1:]]))
    with pytest.raises(StoreError, match="first line is damaged"):
        Ledger(tmp_path, {"seed": 1})


def test_requests_without_an_answer_stay_uncertain(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, {})
    ledger.unanswered(2)
    ledger.close()
    assert Ledger(tmp_path, {}).uncertain == 2


def test_damaged_scores_are_refused(tmp_path: Path) -> None:
    rng = random.Random(1)
    for number in range(DRAWS):
        scores = Scores(np.arange(6.0), list(range(6)), metadata={"scorer": "loss"})
        scores.save(tmp_path)
        file = tmp_path / ("scores.json" if number % 2 else "scores.safetensors")
        what = damage(rng, file)
        try:
            loaded = Scores.load(tmp_path)
        except StoreError:
            continue
        np.testing.assert_array_equal(loaded.values, scores.values, err_msg=what)
        assert list(loaded.row_ids) == list(scores.row_ids), what
        assert loaded.metadata == scores.metadata, what


def test_a_damaged_result_is_made_again(tmp_path: Path) -> None:
    pool = encoded(6)
    scores = attribute(bert().eval(), pool, None, "loss", output_dir=tmp_path)
    (file,) = tmp_path.glob("step-*/result.safetensors")
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    again = attribute(bert().eval(), pool, None, "loss", output_dir=tmp_path)
    np.testing.assert_array_equal(again.values, scores.values)
    assert is_intact(file)


def test_a_moment_that_cannot_be_made_again_is_an_error(tmp_path: Path) -> None:
    """Its weights are gone: to leave it out, or to weigh it otherwise, would be another score."""

    def run(checkpoint: str | None) -> None:
        callback = AttributionCallback("tracin", queries=questions(3, 9), when="epoch", floats_per_row=64)
        training(tmp_path, callback).train(resume_from_checkpoint=checkpoint)

    run(None)
    folder = tmp_path / "attribution" / "tracin"
    (result,) = folder.glob("step-000003-*/result.json")
    rates = folder / "learning_rates.jsonl"
    record = (folder / "run.json").read_bytes()
    one_rate = rates.read_bytes().replace(b'"step": 2', b'"step": 8')
    for file, damaged in ((result, b"{}"), (rates, one_rate), (rates, b"")):
        content = file.read_bytes()
        file.write_bytes(damaged)
        with pytest.raises(StoreError, match="damaged or gone"):
            run(str(tmp_path / "checkpoint-6"))
        file.write_bytes(content)
        (folder / "run.json").write_bytes(record)


def test_a_search_that_cannot_write_says_where(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the place of a folder")
    folder = tmp_path / "file"
    result = PromptResult(Candidate("be kind"), "finished", "it ended")
    for write in (
        lambda: result.save(folder),
        lambda: write_table(folder, 1, [{"instruction": "be kind"}]),
        lambda: ApplyPrompt("be kind").save(folder),
        lambda: _write_private(folder / "address.json", "{}"),
    ):
        with pytest.raises(StoreError, match="cannot be written"):
            write()


def test_a_full_disk_of_another_package_is_one_line(monkeypatch: Any, capsys: Any) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "/cache/tmp.arrow")

    monkeypatch.setattr(cli, "_run", full)
    assert cli.main(["score"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("hfdataopt score: ")
    assert "the disk is full" in said
    assert len(said.splitlines()) == 1


class Failing:
    """Rows whose writing fails after a part of them."""

    def to_json(self, path: Path) -> None:
        path.write_text('{"text": "a"}\n{"te')
        raise OSError("no space left")

    def save_to_disk(self, path: Path) -> None:
        path.mkdir()
        (path / "state.json").write_text("{")
        raise OSError("no space left")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows"])
def test_an_output_is_whole_or_as_before(tmp_path: Path, name: str) -> None:
    rows, more = (Dataset.from_dict({"text": list(texts)}) for texts in ("ab", "abc"))
    failing: Any = Failing()
    with pytest.raises(DataError, match="no space"):
        write_rows(failing, str(tmp_path / name))
    assert not list(tmp_path.iterdir())
    write_rows(rows, str(tmp_path / name))
    with pytest.raises(DataError, match="no space"):
        write_rows(failing, str(tmp_path / name))
    assert read(tmp_path / name) == rows.to_list()
    write_rows(more, str(tmp_path / name))
    assert read(tmp_path / name) == more.to_list()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_of_other_files_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "thesis.tex").write_text("x")
    with pytest.raises(OptionError, match="other files"):
        write_rows(Dataset.from_dict({"text": ["a"]}), str(tmp_path / "rows"))


def read(path: Path) -> Any:
    if path.is_dir():
        return Dataset.load_from_disk(str(path)).to_list()
    return [json.loads(line) for line in path.read_text().splitlines()]
