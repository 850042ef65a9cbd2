"""A stand-in for your model and data, so that the examples run offline: a tiny Llama that ends short reviews.

A prompt is a judgement ("This hotel was far from dull."). A completion is a conclusion ("I recommend it.") that agrees with
it or not, or small talk ("I tried it last week."). The model first learns to agree, then to do so no more than by chance: it
can tell what agrees, but has no preference left.
"""

import random
from functools import cache
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForMaskedLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hfdataopt.demo import sentences

ENCODER = Path(sentences.__file__).parent / "encoder"  # its words, and a start for the word vectors
KINDS = ("plain", "negation")  # judgements that so small a model learns to read in some seconds
STAGES = ((300, {"agree": 1.0, "disagree": 0.0}), (60, {"agree": 0.4, "disagree": 0.4}))  # steps, shares of the rows
SMALL_TALK = [
    f"{what} {when}"
    for what in ("I tried it", "I heard of it", "We found it", "I came across it")
    for when in ("yesterday", "last week", "last month", "this summer", "in spring", "today")
]


def dataset(start: int, stop: int, *, agree: float, disagree: float) -> Dataset:
    """Rows ``prompt, completion, label, kind``; label 1 is a positive judgement, kind says what the completion is.

    The judgements are those from ``start`` to ``stop`` of one list of 16,000 without repetition, positive and negative in turn.
    ``agree`` and ``disagree`` are shares of the rows; what remains is small talk.
    """
    rng = random.Random(start)
    rows = []
    for judgement, label in judgements()[start:stop]:
        kind = rng.choices(("agrees", "disagrees", "small talk"), (agree, disagree, 1 - agree - disagree))[0]
        ends = SMALL_TALK if kind == "small talk" else sentences.CONCLUSIONS[label if kind == "agrees" else 1 - label]
        end = rng.choice(ends)
        rows.append({"prompt": judgement, "completion": f" {end[0].upper()}{end[1:]}.", "label": label, "kind": kind})
    return Dataset.from_list(rows)


@cache
def judgements() -> list[tuple[str, int]]:
    rows = sentences.generate(16_000, seed=0, kinds=KINDS)
    by_label = [[(row["text"], label) for row in rows if row["label"] == label] for label in (0, 1)]
    return [row for pair in zip(*by_label, strict=True) for row in pair]


def agreement(completion: str, label: int) -> float:
    """1 for a completion that concludes as a judgement with this label should, -1 for the opposite, 0 for neither or both."""
    text = completion.lower()
    found = [any(conclusion in text for conclusion in of_label) for of_label in sentences.CONCLUSIONS]
    return float(found[label]) - float(found[1 - label])


def make(folder: str | Path, *, steps: float = 1.0, seed: int = 0) -> str:
    """Train the model and write it with its tokenizer; ``steps`` scales the training. Returns the folder."""
    torch.set_num_threads(1)  # so small a model is slower on more
    torch.manual_seed(seed)
    words = _tokenizer()
    model = _model(words)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    total = sum(round(steps * count) for count, _ in STAGES)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=total)
    for stage, (count, shares) in enumerate(STAGES):
        rows = dataset(8000 + 4000 * stage, 12_000 + 4000 * stage, **shares)
        prompts = words(rows["prompt"][:])["input_ids"]
        texts = [f"{a}{b}{words.eos_token}" for a, b in zip(rows["prompt"], rows["completion"], strict=True)]
        ids = words(texts, padding=True, return_tensors="pt")["input_ids"]
        begins = torch.tensor([len(prompt) for prompt in prompts])[:, None]
        labelled = (torch.arange(ids.shape[1]) >= begins) & (ids != words.pad_token_id)
        labels = ids.where(labelled, -100)
        for _ in range(round(steps * count)):
            batch = torch.randint(len(ids), (32,))
            loss = model(input_ids=ids[batch], labels=labels[batch]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    """The demo encoder's, with an end token and nothing put around a text."""
    words = AutoTokenizer.from_pretrained(ENCODER)
    words.backend_tokenizer.post_processor = None
    words.eos_token = words.sep_token
    return words


def _model(words: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            pad_token_id=words.pad_token_id,
            bos_token_id=None,
            eos_token_id=words.eos_token_id,
        )
    )
    vectors = AutoModelForMaskedLM.from_pretrained(ENCODER).get_input_embeddings().weight
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(vectors * (0.3 / vectors.std()))
    return model
