"""Make the demo's small encoder: ``python -m hfdataopt.demo.make_encoder OUTPUT``.

A word-level tokenizer over the generator's vocabulary and a small BERT, pretrained by masked LM on unlabelled text that
no demo split shares. Besides single words, short sentences are hidden: what a conclusion ("two thumbs up") says can only
be told from the sentiment of the rest. The text comes in stages, since a model shown everything at once stays for very
long at predicting each word without its sentiment. Word vectors start from co-occurrence for the same reason.

Takes five to ten minutes on one CPU core. The same seed on the same machine gives the same encoder.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hfdataopt.demo.sentences import KINDS, generate

if TYPE_CHECKING:
    from transformers import BertForMaskedLM, PreTrainedTokenizerFast

SEED = 20_000
MAX_LENGTH = 64
SHORT = 6  # words
# Kinds of judgement, texts, steps. The words' polarity first, then what negation does to it, then everything.
STAGES: tuple[tuple[tuple[str, ...], int, int], ...] = (
    (("plain",), 20_000, 750),
    (("plain", "negation"), 40_000, 4500),
    (tuple(KINDS), 80_000, 8000),
)
SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A lower-casing word-level tokenizer that knows the words of ``texts``."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    normalizer = normalizers.Lowercase()
    splitter = pre_tokenizers.BertPreTokenizer()
    words = sorted({word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))})
    vocabulary = {word: i for i, word in enumerate([*SPECIAL.values(), *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=MAX_LENGTH, **SPECIAL)


def make_model(tokenizer: PreTrainedTokenizerFast, *, layers: int = 3, hidden: int = 64) -> BertForMaskedLM:
    """The untrained masked LM."""
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=2 * hidden,
            max_position_embeddings=MAX_LENGTH,
            type_vocab_size=2,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.08,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def start_words(model: BertForMaskedLM, ids: torch.Tensor, *, scale: float = 0.08) -> None:
    """Start the word vectors from which words share texts: leading eigenvectors of their mutual information."""
    weight = model.bert.embeddings.word_embeddings.weight
    present = torch.zeros(len(ids), len(weight), dtype=torch.float32).scatter_(1, ids, 1.0)
    joint = (present.T @ present).double() + 1.0
    share = present.mean(0).double().clamp(min=1 / len(ids))
    information = (joint / len(ids) / share / share[:, None]).log().clamp(-3, 3)
    known = present.sum(0) > 0
    known[: len(SPECIAL)] = False
    information = information[known][:, known]
    information.fill_diagonal_(0)
    values, vectors = torch.linalg.eigh(information)
    top = values.abs().argsort(descending=True)[: weight.shape[1]]
    words = vectors[:, top] * values[top].abs().sqrt()
    with torch.no_grad():
        weight[known] = (words * (scale / words.std())).float()


def corrupt(
    ids: torch.Tensor, tokenizer: PreTrainedTokenizerFast, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hide 10 % of the words, and most of one sentence where that is short; returns the inputs and what was hidden."""
    special = torch.tensor(tokenizer.all_special_ids)
    is_word = ~torch.isin(ids, special)
    is_stop = torch.eq(ids, tokenizer.get_vocab()["."])
    sentence = is_stop.cumsum(1) - is_stop.long()
    pick = (torch.rand(len(ids), generator=generator) * is_stop.sum(1)).long()
    hidden = (sentence == pick[:, None]) & is_word & ~is_stop
    hidden &= hidden.sum(1, keepdim=True) <= SHORT
    hidden &= torch.rand(ids.shape, generator=generator) < 0.6
    chosen = hidden | (is_word & (torch.rand(ids.shape, generator=generator) < 0.1))
    draw = torch.rand(ids.shape, generator=generator)
    words = torch.randint(len(special), len(tokenizer), ids.shape, generator=generator)
    inputs = torch.where(chosen & (draw < 0.8), tokenizer.mask_token_id, ids)
    return torch.where(chosen & (draw > 0.9), words, inputs), chosen


def _batches(lengths: torch.Tensor, batch_size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Row numbers without end, texts of about one length together."""
    while True:
        order = torch.argsort(lengths + 4 * torch.rand(len(lengths), generator=generator))
        rows = order[: len(order) // batch_size * batch_size].view(-1, batch_size)
        yield from rows[torch.randperm(len(rows), generator=generator)]


def pretrain(
    model: BertForMaskedLM,
    tokenizer: PreTrainedTokenizerFast,
    ids: torch.Tensor,
    *,
    steps: int,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    seed: int = SEED,
    log_every: int = 500,
) -> None:
    """Masked LM on the padded token ids of many texts, in place."""
    generator = torch.Generator().manual_seed(seed)
    lengths = (ids != tokenizer.pad_token_id).sum(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, max(0.0, (steps - step) / (steps - warmup)))
    )
    model.train()
    total, start = 0.0, time.perf_counter()
    batches = _batches(lengths, batch_size, generator)
    for step in range(1, steps + 1):
        rows = next(batches)
        batch = ids[rows, : int(lengths[rows].max())]
        inputs, chosen = corrupt(batch, tokenizer, generator)
        hidden = model.bert(inputs, attention_mask=(batch != tokenizer.pad_token_id).long()).last_hidden_state
        loss = torch.nn.functional.cross_entropy(model.cls(hidden[chosen]), batch[chosen])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % log_every == 0:
            print(f"step {step}/{steps}  loss {total / log_every:.3f}  {time.perf_counter() - start:.0f} s", flush=True)
            total = 0.0
    model.eval()


def make_encoder(output: str | Path, *, seed: int = SEED, steps: float = 1.0) -> None:
    """Write the pretrained encoder, its masked LM head and its tokenizer; ``steps`` scales the length of each stage."""
    texts = [
        [row["text"] for row in generate(size, seed=seed + i, labelled=False, kinds=kinds)]
        for i, (kinds, size, _) in enumerate(STAGES)
    ]
    tokenizer = make_tokenizer(texts[-1])
    torch.manual_seed(seed)
    model = make_model(tokenizer)
    for i, (_, _, length) in enumerate(STAGES):
        ids = tokenizer(texts[i], padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
        if i == 0:
            start_words(model, ids)
        pretrain(model, tokenizer, ids, steps=max(1, round(length * steps)), seed=seed + i)
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Pretrain the demo's small encoder.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--steps", type=float, default=1.0, help="scales the length of each stage")
    options = parser.parse_args()
    torch.set_num_threads(1)
    make_encoder(options.output, seed=options.seed, steps=options.steps)


if __name__ == "__main__":
    main()
