"""What the pages presuppose: small models, data and arguments under the names that the text uses.

A world is a function that puts files into a folder and returns names. Which one a block lives in is told by what it uses
(:func:`world_of`); a block that tells nothing lives in the world of the block before it.
"""

import contextlib
import functools
import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import CLIPConfig, CLIPModel, Trainer, TrainingArguments

from hfdataopt.attribution.rows import pad_batch
from hfdataopt.demo import follower_tasks
from hfdataopt.testing import tiny

from ..sharing.conftest import FolderApi

World = Callable[[Path], dict[str, Any]]
QUIET = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "logging_steps": 1}
CHAT = (
    "{% for m in messages %}{{ '[CLS] ' + m['content'] + ' [SEP] ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[CLS] ' }}{% endif %}"
)
ENCODER, CAUSAL, CHAT_MODEL, CLIP = (
    "sentence-transformers/all-MiniLM-L6-v2",
    "HuggingFaceTB/SmolLM2-135M",
    "Qwen/Qwen2.5-0.5B-Instruct",
    "openai/clip-vit-large-patch14",
)


_KEPT: list[Any] = []  # temporary folders, which go when the process ends


def _folder() -> Path:
    _KEPT.append(tempfile.TemporaryDirectory(prefix="hfdataopt-docs-"))
    return Path(_KEPT[-1].name)


# -- the hub


def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the hub with tiny models under the ids of the pages: what loads them finds them as if it had downloaded them."""
    import huggingface_hub.constants
    import transformers.utils.hub

    for name, source in _models().items():
        place = cache / f"models--{name.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("0" * 40)
        (place / "snapshots").mkdir()
        (place / "snapshots" / ("0" * 40)).symlink_to(source, target_is_directory=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    own = type("HfApi", (FolderApi,), {"root": cache / "own", "calls": []})  # what is uploaded is kept in a folder
    monkeypatch.setattr(huggingface_hub, "HfApi", own)
    if hasattr(transformers.utils.hub, "TRANSFORMERS_CACHE"):
        monkeypatch.setattr(transformers.utils.hub, "TRANSFORMERS_CACHE", str(cache))


@functools.cache
def _models() -> dict[str, Path]:
    """Folders of models by the id that stands for them; made once."""
    root = _folder()
    encoder = tiny.bert().bert
    for name, model, read in (
        ("encoder", encoder, tiny.tokenizer()),
        ("causal", tiny.speaker(), tiny.reader()),
    ):
        model.save_pretrained(root / name)
        read.save_pretrained(root / name)
    clip(root / "clip")
    return {
        ENCODER: root / "encoder",
        CAUSAL: root / "causal",
        CHAT_MODEL: Path(follower_tasks.FOLDER),
        CLIP: root / "clip",
    }


def clip(folder: Path) -> None:
    from transformers import CLIPImageProcessorPil

    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    text = {**small, "vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPConfig(text_config=text, vision_config={**small, "image_size": 32, "patch_size": 8}, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    size = {"shortest_edge": 32}
    CLIPImageProcessorPil(size=size, crop_size={"height": 32, "width": 32}).save_pretrained(folder)


# -- worlds


def classifier(folder: Path) -> dict[str, Any]:
    """A text classifier with a Trainer's arguments, tokenized data, two checkpoints and a folder of scores."""
    from hfdataopt import attribute

    train, validation = tiny.encoded(24, seed=1), tiny.encoded(6, seed=2)
    model = tiny.bert()
    _checkpoints(folder, model, train)
    attribute(model, train, None, "random").save("folder")
    return {
        "model": model,
        "tokenizer": tiny.tokenizer(),
        "collator": pad_batch,
        "train": train,
        "validation": validation,
        "Trainer": Trainer,
        "args": TrainingArguments("run", num_train_epochs=1, save_strategy="no", **QUIET),
    }


def _checkpoints(folder: Path, model: Any, train: Dataset) -> None:
    """``out/checkpoint-500`` and ``out/checkpoint-1000``, of a training of two steps."""
    args = TrainingArguments("steps", max_steps=2, save_strategy="steps", save_steps=1, **QUIET)
    trainer = Trainer(model, args, train_dataset=train, data_collator=pad_batch, processing_class=tiny.tokenizer())
    trainer.train()
    for step, named in ((1, 500), (2, 1000)):
        shutil.copytree(
            folder / "steps" / f"checkpoint-{step}", folder / "out" / f"checkpoint-{named}", dirs_exist_ok=True
        )


def sft(folder: Path) -> dict[str, Any]:
    """A language model, prompts with completions, and SFTTrainer's arguments."""
    from trl import SFTConfig, SFTTrainer

    rows = tiny.prompts(40, ids=False)
    make = functools.partial(SFTConfig, num_train_epochs=1, save_strategy="no", max_length=32, **QUIET)
    return {
        "model": speaker(),
        "tokenizer": polite(),
        "train": rows,
        "validation": tiny.prompts(4, seed=3, ids=False),
        "prompts": tiny.prompts(3, seed=2, ids=False),
        "args": make("sft"),
        "SFTTrainer": functools.partial(SFTTrainer, processing_class=polite()),
        "ends_politely": lambda completions, **_: [float(len(text) % 2) for text in completions],
    }


def speaker() -> Any:
    """The tiny Llama with room for the pages' numbers of new tokens; its positions are rotary, so that more cost nothing."""
    model = tiny.speaker()
    model.config.max_position_embeddings = 512
    return model


def polite() -> Any:
    """The tiny tokenizer with words that end in "please.", for the reward of the README."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = [f"{word}-please." if word in tiny.BAD else word for word in tiny.WORDS]
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = WhitespaceSplit()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=512, **names)


def filters(folder: Path) -> dict[str, Any]:
    """Rows of text and a few rows of the target."""
    rows = tiny.rows(1200, seed=1)
    return {
        "train": rows,
        "dataset": rows,
        "target": tiny.rows(6, seed=2, topic=1),
        "validation": tiny.rows(6, seed=2, topic=1),
        "model": speaker(),
        "tokenizer": tiny.reader(),
        "pairs": rows.select_columns(["prompt", "chosen", "rejected", "chosen_number", "rejected_number"]),
        "reward": lambda completions, **_: [float(len(text)) for text in completions],
    }


def grpo(folder: Path) -> dict[str, Any]:
    """Prompts, two rewards, and GRPOTrainer with the arguments of a short training."""
    from trl import GRPOConfig, GRPOTrainer

    read = tiny.reader()
    read.chat_template = CHAT
    args = GRPOConfig(
        "grpo",
        max_steps=2,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=4,
        save_strategy="no",
        bf16=False,
        gradient_checkpointing=False,
        **QUIET,
    )
    return {
        "model": tiny.llama(),
        "args": args,
        "prompts": Dataset.from_dict({"prompt": [f"the {word}" for word in tiny.PLAIN]}),
        "correct": lambda completions, **_: [float("film" in text) for text in completions],
        "style": lambda completions, **_: [float(len(text) % 3) for text in completions],
        "GRPOTrainer": functools.partial(GRPOTrainer, processing_class=read),
    }


def search(folder: Path) -> dict[str, Any]:
    """The demo's follower, a task of one word in and one out, and the files of the papers' tasks."""
    from hfdataopt.generation import LocalGenerator

    model, tokenizer = follower_tasks.load_follower()
    rows = follower_tasks.rows("antonym", "train")
    for split in ("induce", "execute"):
        _write(
            folder / f"data/instruction_induction/{split}/antonyms.json", {"metadata": {}, "examples": _numbered(rows)}
        )
    dialogues = [{"dialogue": f"A: {row['input']}?\nB: {row['answer']}", "summary": row["answer"]} for row in rows]
    _lines(folder / "samsum/train.jsonl", dialogues)
    both = [{"input": row["dialogue"], "output": row["summary"]} for row in dialogues]
    _write(folder / "induce/samsum.json", {"metadata": {}, "examples": dict(enumerate(both, start=1))})
    _lines(
        folder / "reasoning/svamp/train.jsonl",
        [{"input": f"What is {i} + 1?", "output": str(i + 1)} for i in range(30)],
    )
    generator = LocalGenerator(model, tokenizer, max_new_tokens=8, temperature=0.0)
    return {
        "model": generator,
        "tokenizer": tokenizer,
        "processing_class": tokenizer,
        "generator": generator,
        "train": rows,
        "validation": follower_tasks.rows("antonym", "test"),
        "dataset": rows.map(lambda row: {"completions": [row["answer"], "no"]}),
    }


def local(folder: Path) -> dict[str, Any]:
    """As :func:`search`, with the follower itself as the model, whose tokenizer is handed over beside it."""
    return {**search(folder), "model": follower_tasks.load_follower()[0]}


def reported(folder: Path) -> dict[str, Any]:
    """Scores by two methods and a search, in memory and in folders, with the rows that were scored."""
    from hfdataopt import PromptConfig, PromptTrainer, Scores

    shell(folder)
    shutil.copytree(folder / "scores", folder / "out" / "loss")
    model, tokenizer = follower_tasks.load_follower()
    PromptTrainer(
        "random",
        model=model,
        processing_class=tokenizer,
        reward_funcs=follower_tasks.exact_match,
        train_dataset=follower_tasks.rows("antonym", "train"),
        args=PromptConfig(output_dir="search", max_calls=24, items=4, max_new_tokens=8, logging_steps=0),
    ).train()
    train, queries = (Dataset.from_json(str(folder / f"{name}.jsonl")) for name in ("train", "clean"))
    return {"scores": Scores.load("scores"), "train": train, "validation": queries}


def shared(folder: Path) -> dict[str, Any]:
    """Scores, the dataset they are of, a store of gradients, and a hub that is a folder."""
    import datasets
    import huggingface_hub

    from hfdataopt import Scores, attribute
    from hfdataopt.gradients import GradientStore

    dataset = tiny.encoded(6)
    store = GradientStore.open_or_create(
        "run/step-000120-1f0c2a9b/features", {"basis": "eigen"}, list(range(6)), rows_per_shard=6
    )
    store.write(0, {"features": torch.ones(6, 3)})
    root = Path(huggingface_hub.HfApi.root)  # type: ignore[attr-defined]
    return {
        "scores": attribute(tiny.bert(), dataset, None, "random"),
        "dataset": dataset,
        "Scores": Scores,
        "GradientStore": GradientStore,
        "load_dataset": lambda name: datasets.load_dataset(str(root / name / "main"), cache_dir=str(folder / "cache")),
    }


def shell(folder: Path) -> dict[str, Any]:
    """Files that command lines name: a classifier's checkpoints, labelled rows and their scores, a target, rewards, prompts."""
    shutil.copytree(_files(), folder, dirs_exist_ok=True)
    return {}


@functools.cache
def _files() -> Path:
    """The files of :func:`shell`, made once."""
    from hfdataopt import attribute

    folder = _folder()
    model, read = tiny.bert(), tiny.tokenizer()
    with contextlib.chdir(folder):
        _checkpoints(folder, model, tiny.encoded(12, seed=1))
        for name, seed in (("train", 1), ("clean", 2), ("validation", 2), ("rows", 3)):
            data = tiny.texts(40, seed)
            both = [{"text": row["text"], "sentence": row["text"]} for row in data]
            labels = [{"label": row["label"], "class": row["label"]} for row in data]
            _lines(folder / f"{name}.jsonl", [text | label for text, label in zip(both, labels, strict=True)])
        for name in ("task", "target"):
            _lines(folder / f"{name}.jsonl", [{"text": row["text"]} for row in tiny.texts(6, 4)])
        train, queries = (Dataset.from_json(str(folder / f"{name}.jsonl")) for name in ("train", "clean"))
        attribute(model, train, queries, "rds", processing_class=read).save("scores")
        _lines(folder / "prompts.jsonl", [dict(row) for row in follower_tasks.rows("antonym", "train")])
        (folder / "my_rewards.py").write_text(
            "from hfdataopt.rewards import exact_match, reward_from_metric\n\n"
            'right = reward_from_metric(exact_match, reference_column="answer")\n'
        )
    return folder


def bandits(folder: Path) -> dict[str, Any]:
    """Features and scores, and which rows of a pool may be asked."""
    draw = torch.Generator().manual_seed(0)
    return {
        "x": torch.randn(12, 6, generator=draw),
        "y": torch.rand(12, generator=draw),
        "pool": torch.randn(30, 6, generator=draw),
        "not_asked_yet": torch.ones(30, dtype=torch.bool),
    }


def alone(folder: Path) -> dict[str, Any]:
    """Nothing but what the block makes itself."""
    return {}


def _numbered(rows: Any) -> dict[str, Any]:
    return {str(i): {"input": row["input"], "output": row["answer"]} for i, row in enumerate(rows, start=1)}


def _write(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


WORLDS: dict[str, World] = {
    world.__name__: world
    for world in (classifier, sft, filters, grpo, search, local, reported, shared, shell, bandits, alone)
}
# The first of these that a block matches.
USES: list[tuple[str, World]] = [
    (r"@hookimpl|class \w+\(|^def test_", alone),
    (r"write_report", reported),
    (r"from_hub\(", shared),
    (r"PromptSampler\(", grpo),
    (r"PromptTrainer[^#]*processing_class=tokenizer", local),
    (r"PromptTrainer|WebJudge|serve_judge|prompting\.tasks|PromptConfig", search),
    (r"SFTTrainer\(|\"nice|\"less\"", sft),
    (r"get_filter|target=|curriculum\(", filters),
    (r"hfdataopt\.bandits", bandits),
    (r"Trainer\(|attribute\(|AttributionCallback", classifier),
]


def world_of(code: str) -> World | None:
    """The world that a block lives in; None where it does not tell."""
    return next((world for pattern, world in USES if re.search(pattern, code, re.MULTILINE)), None)
