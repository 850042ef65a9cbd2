"""Which names are looked up on the hub."""

import pytest

from hfdataopt.hub import why_not_on_hub


@pytest.mark.parametrize("name", ["gpt2", "org/model", "org/model-3.1_b", "bert-base-uncased"])
def test_ids_are(name):
    assert why_not_on_hub(name) is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "is an empty name"),
        ("./absent", "does not exist"),
        ("/no/where", "does not exist: there is no folder '/no'"),
        ("a/b/c", "does not exist: there is no folder 'a/b'"),
        ("~/surely-not-here", "does not exist"),
        ("runs/chekpoint-5", "does not exist (did you mean 'runs/checkpoint-5'?)"),
        ("runs/other", "does not exist"),
        ("two words", "does not exist"),
    ],
)
def test_paths_are_not(tmp_path, monkeypatch, name, says):
    (tmp_path / "runs" / "checkpoint-5").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert why_not_on_hub(name) == says
    assert why_not_on_hub("runs/checkpoint-5") is None
