"""Tiny random models, a word tokenizer and planted data: offline, and built in milliseconds. Needs torch."""

import functools
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from hfdataopt.attribution.rows import pad_batch

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<eos>"]
GOOD = ["fine", "great", "superb", "lovely"]
BAD = ["awful", "poor", "dire", "bleak"]
PLAIN = ["the", "film", "was", "plot", "and", "actor", "scene", "it", "very"]
ANSWERS = ["yes", "no", "maybe"]
WORDS = [*SPECIAL, *GOOD, *BAD, *PLAIN, *ANSWERS]
VOCABULARY = len(WORDS)
EOS = WORDS.index("<eos>")
GOOD_IDS, BAD_IDS = ({WORDS.index(word) for word in words} for words in (GOOD, BAD))


def tokenizer(special: bool = True, longest: int = 32) -> PreTrainedTokenizerFast:
    """Words to ids; with ``special`` a row is ``[CLS] ... [SEP]``."""
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = WhitespaceSplit()
    if special:
        inner.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        eos_token="<eos>",
        model_max_length=longest,
    )


def word_ids(text: str) -> list[int]:
    """What the tokenizer without special tokens makes of words."""
    return [WORDS.index(word) if word in WORDS else SPECIAL.index("[UNK]") for word in text.split()]


def _bert(**changes: Any) -> BertConfig:
    return BertConfig(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "max_position_embeddings": 40,
            **changes,
        }
    )


def _spread(model: Any, seed: int = 0) -> Any:
    """Larger weights than the usual initialisation, so that no gradient is nearly zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def bert(labels: int = 2, seed: int = 0, **changes: Any) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    return _spread(BertForSequenceClassification(_bert(num_labels=labels, **changes)), seed)


def masked_lm(seed: int = 0) -> BertForMaskedLM:
    torch.manual_seed(seed)
    return _spread(BertForMaskedLM(_bert()), seed)


def gpt2(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=40, bos_token_id=2, eos_token_id=5
    )
    return _spread(GPT2LMHeadModel(config), seed)


def llama(seed: int = 0, positions: int = 64) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=5,
    )
    return _spread(LlamaForCausalLM(config), seed)


def texts(rows: int, seed: int = 0, flipped: tuple[int, ...] = ()) -> Dataset:
    """``text`` and ``label`` (1 where good words outnumber bad ones); the labels of ``flipped`` rows are wrong."""
    generator = torch.Generator().manual_seed(seed)

    def pick(words: list[str]) -> str:
        return words[int(torch.randint(len(words), (1,), generator=generator))]

    data: dict[str, list[Any]] = {"text": [], "label": []}
    for row in range(rows):
        label = row % 2
        length = 3 + int(torch.randint(8, (1,), generator=generator))
        words = [pick(PLAIN) for _ in range(length)] + [pick(GOOD if label else BAD) for _ in range(2)]
        order = torch.randperm(len(words), generator=generator).tolist()
        data["text"].append(" ".join(words[i] for i in order))
        data["label"].append(1 - label if row in flipped else label)
    return Dataset.from_dict(data)


def encoded(rows: int, seed: int = 0, flipped: tuple[int, ...] = (), ids: bool = False) -> Dataset:
    """:func:`texts`, tokenized and without the text; with ``ids`` a string column ``row_id``."""
    read = tokenizer()
    data = texts(rows, seed, flipped).map(lambda row: dict(read(row["text"])), remove_columns=["text"])
    data = data.remove_columns([name for name in data.column_names if name == "token_type_ids"])
    return data.add_column("row_id", [f"r{i}" for i in range(rows)]) if ids else data


def plain_texts(rows: int, seed: int = 0) -> Dataset:
    """Token ids with labels equal to them, for language models."""
    data = encoded(rows, seed).remove_columns(["label"])
    return data.map(lambda row: {"labels": row["input_ids"]})


def questions(rows: int, seed: int = 0, answers: int = 2) -> Dataset:
    """Prompt and one-word answer, tokenized; only the answer and the end are labelled (causal LMs)."""
    read = tokenizer(special=False)
    data = texts(rows, seed)

    def encode(row: dict[str, Any], place: int) -> dict[str, Any]:
        prompt = read(row["text"])["input_ids"]
        answer = [WORDS.index(ANSWERS[row["label"] if answers == 2 else place % answers]), 5]
        return {
            "input_ids": [2, *prompt, *answer],
            "attention_mask": [1] * (len(prompt) + 3),
            "labels": [-100] * (len(prompt) + 1) + answer,
        }

    return data.map(encode, with_indices=True, remove_columns=["text", "label"])


def cloze(rows: int, seed: int = 0) -> Dataset:
    """Text, then a [MASK] whose label is the answer word (masked LMs)."""
    read = tokenizer(special=False)

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        ids = [2, *read(row["text"])["input_ids"], 4, 3]
        labels = [-100] * len(ids)
        labels[-2] = WORDS.index(ANSWERS[row["label"]])
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}

    return texts(rows, seed).map(encode, remove_columns=["text", "label"])


# -- models that generate, prompts and a reward


def speaker(seed: int = 0, positions: int = 64) -> Any:
    """A tiny Llama whose next tokens differ in probability, and which ends now and then."""
    model = llama(seed, positions)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(3)
        model.get_output_embeddings().weight[EOS].mul_(2)
    return model.eval()


def reader(longest: int = 32) -> Any:
    """The words' tokenizer, without special tokens around a text."""
    return tokenizer(special=False, longest=longest)


def prompts(rows: int, seed: int = 0, *, ids: bool = True) -> Dataset:
    """``prompt``, a reference ``completion``, a column ``answer`` for rewards, and ids that are no positions."""
    data = texts(rows, seed)
    columns: dict[str, Any] = {
        "prompt": data["text"][:],
        "completion": [" " + GOOD[row % len(GOOD)] + " plot" for row in range(rows)],
        "answer": [ANSWERS[row % len(ANSWERS)] for row in range(rows)],
    }
    if ids:
        columns["row_id"] = [f"q{row}" for row in range(rows)]
    return Dataset.from_dict(columns)


def good_words(completion_ids: Any, **_: Any) -> list[float]:
    """Good words less bad ones, with a zero that is not in the middle."""
    return [float(0.5 + sum((t in GOOD_IDS) - (t in BAD_IDS) for t in ids)) for ids in completion_ids]


@functools.cache
def trained(seed: int = 0) -> BertForSequenceClassification:
    """A classifier that has learnt :func:`texts`; shared, so take a copy."""
    model = bert(seed=seed).eval()
    batch = pad_batch(list(encoded(64, seed=11)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(25):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model


def rows(count: int = 30, seed: int = 0, flipped: tuple[int, ...] = (), topic: int | None = None) -> Dataset:
    """What filters read, one column for each kind of them. Every other row is about good things, which ``label`` says.

    Columns: ``text``; ``prompt``, ``completion``, ``chosen``, ``rejected``; ``label`` (wrong in ``flipped`` rows); ``number``,
    ``chosen_number``, ``rejected_number``; ``vector``, ``rejected_vector`` (4 floats, the first by topic); ``rewards`` (4 successes
    or failures); ``completions`` (3 texts) with ``completion_rewards``; ``row_id``. ``topic``: only rows of that label.
    """
    data = texts(2 * count if topic is not None else count, seed, flipped)
    if topic is not None:
        data = data.filter(lambda row: row["label"] == topic)
    draws = torch.Generator().manual_seed(seed + 1)
    columns: dict[str, list[Any]] = {name: [] for name in ROWS}
    for place, (text, label) in enumerate(zip(data["text"], data["label"], strict=True)):
        words, about = text.split(), label if place not in flipped else 1 - label
        vector = torch.randn(8, generator=draws)
        vector[0] = vector[0] * 0.2 + (2.0 if about else -2.0)
        halves = " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])
        answers = [f" {word} {halves[1]}" for word in (*(GOOD if about else BAD)[:2], PLAIN[place % len(PLAIN)])]
        for name, value in {
            "row_id": f"row {place}",
            "text": text,
            "prompt": halves[0],
            "completion": " " + halves[1],
            "chosen": " " + halves[1],
            "rejected": f" {words[place % len(words)]} {ANSWERS[place % 3]}",
            "label": label,
            "number": float(vector[1]),
            "chosen_number": float(vector[2]) + 1,
            "rejected_number": float(vector[3]),
            "vector": vector[:4].tolist(),
            "rejected_vector": vector[4:].tolist(),
            "rewards": (torch.rand(4, generator=draws) < (place + 1) / (count + 2)).double().tolist(),
            "completions": answers,
            "completion_rewards": torch.rand(3, generator=draws).tolist(),
        }.items():
            columns[name].append(value)
    return Dataset.from_dict(columns)


ROWS = (
    *(
        "row_id",
        "text",
        "prompt",
        "completion",
        "chosen",
        "rejected",
        "label",
        "number",
        "chosen_number",
        "rejected_number",
    ),
    *("vector", "rejected_vector", "rewards", "completions", "completion_rewards"),
)
