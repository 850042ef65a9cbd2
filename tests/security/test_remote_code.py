"""Code that lies beside a model, a dataset or a metric is not run, and nobody is asked whether it may be."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from hfdataopt import get_generator, reward_from_metric
from hfdataopt.attribution.scores import Scores
from hfdataopt.cli import main
from hfdataopt.commands import arguments
from hfdataopt.errors import HfDataOptError, OptionError
from hfdataopt.prompting.tasks.image_encoder import ImageEncoder
from hfdataopt.rewards.reward_model import RewardModel
from hfdataopt.selection.local_models import open_model

from ..tiny import llama, tokenizer

ROOT = Path(__file__).parents[2]
RAN = "hostile code ran"
# Loads without `trust_remote_code`, and why.
PLAIN = {
    "hfdataopt/attribution/attribute.py": "the class of a model that is there already reads another checkpoint of it",
    "hfdataopt/demo/follower_tasks.py": "the folder is the package's own",
}


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks at the terminal where nothing was said; a ``y`` that lies ready there is no consent."""

    def asked(*_: Any) -> str:
        raise AssertionError("asked at the terminal")

    monkeypatch.setattr("builtins.input", asked)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder of a model whose config, weights and tokenizer name classes in a module that lies beside them."""
    folder = tmp_path / "model"
    llama().save_pretrained(folder)
    tokenizer(special=False).save_pretrained(folder)
    named = {
        name: f"hostile.{name}"
        for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
    }
    plant(folder / "config.json", model_type="hostile", auto_map={**named, "AutoImageProcessor": "hostile.Processor"})
    plant(
        folder / "tokenizer_config.json",
        tokenizer_class="Hostile",
        auto_map={"AutoTokenizer": ["hostile.Tokenizer", "hostile.Tokenizer"]},
    )
    plant(folder / "preprocessor_config.json", auto_map={"AutoImageProcessor": "hostile.Processor"})
    write_hostile(folder / "hostile.py", tmp_path)
    return folder


def plant(file: Path, **values: Any) -> None:
    found = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**found, **values}))


def write_hostile(file: Path, tmp_path: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nraise SystemExit({RAN!r})\n")


def reward(folder: Path) -> None:
    RewardModel(str(folder), None, None, 1, "test")(["a"], ["b"], ["r"])


def sentences(folder: Path) -> None:
    pytest.importorskip("sentence_transformers")
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "hostile.Module"}]))
    open_model(str(folder), "sentence-transformer", who="test")


def command(folder: Path) -> None:
    rows = folder / "rows.jsonl"
    rows.write_text('{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n')
    given = ["--model", str(folder), "--pool", str(rows), "--queries", str(rows), "--output_dir", str(folder / "out")]
    if main(["score", "--scorer", "loss", "--task", "classification", *given]) != 0:
        raise OptionError("the command failed")


WAYS = {
    "generator": lambda folder: get_generator("transformers", model=str(folder)),
    "language model of a filter": lambda folder: open_model(str(folder), "causal-lm", who="test"),
    "encoder of a filter": lambda folder: open_model(str(folder), "encoder", who="test"),
    "sentence-transformers": sentences,
    "reward model": reward,
    "image encoder": lambda folder: ImageEncoder(str(folder)),
    "command": command,
}


@pytest.mark.parametrize("way", WAYS)
def test_code_beside_a_model_is_not_run(model: Path, tmp_path: Path, way: str) -> None:
    with pytest.raises((HfDataOptError, SystemExit)) as caught:
        WAYS[way](model)
    assert RAN not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_code_beside_scores_is_not_run(model: Path, tmp_path: Path) -> None:
    Scores([1.0], ["a"], metadata={"scorer": "loss"}, tokenizer=tokenizer()).save(model)  # type: ignore[arg-type]
    assert Scores.load(model).tokenizer is not None  # its vocabulary and rules, and no class that a configuration names
    assert not (tmp_path / "ran").exists()


def test_code_beside_a_pipeline_is_not_run(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from hfdataopt.generation.images import DiffusersImages

    folder = tmp_path / "pipeline"
    write_hostile(folder / "pipeline.py", tmp_path)
    write_hostile(folder / "hostile.py", tmp_path)
    for class_name in ("StableDiffusionPipeline", ["hostile", "Pipeline"], ["pipeline", "Pipeline"]):
        plant(folder / "model_index.json", _class_name=class_name, unet=["hostile", "Hostile"])
        with pytest.raises(HfDataOptError):
            DiffusersImages(str(folder)).draw(["a"], keys=["a"])
        assert not (tmp_path / "ran").exists()


def test_code_beside_a_dataset_is_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_hostile(folder / "data.py", tmp_path)
    for rows in ("", '{"text": "a"}\n'):
        (folder / "train.jsonl").write_text(rows)
        try:
            found = arguments.load_rows(str(folder), "train")
        except HfDataOptError:
            continue
        assert found["text"][:] == ["a"]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("consent", [{}, {"trust_remote_code": False}, {"trust_remote_code": "no"}])
def test_a_metric_by_name_is_a_script_that_must_be_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, consent: dict[str, Any]
) -> None:
    write_hostile(tmp_path / "rouge" / "rouge.py", tmp_path)
    monkeypatch.chdir(tmp_path)  # evaluate would take a script from here before one of the hub
    for metric in ("rouge", "./rouge", "somebody/rouge"):
        with pytest.raises(OptionError, match="trust_remote_code=True"):
            reward_from_metric(metric, reference_column="answer", **consent)
    assert not (tmp_path / "ran").exists()


def test_every_model_is_loaded_with_a_word_on_its_code() -> None:
    silent = set()
    for path in sorted(p for root in ("hfdataopt", "plugins") for p in (ROOT / root).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if name in ("from_pretrained", "SentenceTransformer") and not says(node):
                    silent.add(path.relative_to(ROOT).as_posix())
    assert silent == set(PLAIN)


def says(call: ast.Call) -> bool:
    return "trust_remote_code" in {word.arg for word in call.keywords}


def test_the_flag_is_off_by_default() -> None:
    for command in ("score", "evaluate"):
        source = (ROOT / "hfdataopt" / "commands" / f"{command}.py").read_text()
        assert '"--trust_remote_code", action="store_true"' in source
