"""Make the demo's instruction follower: ``python -m hfdataopt.demo.make_follower OUTPUT``.

A word-level tokenizer and a small Llama, trained from scratch on what the annotator of ``follower_tasks`` answers to
instructions, and on the meta-prompts of ``hfdataopt.prompting`` with the annotator's own phrasings as answers. Rows
share a prefix: one instruction is followed by many queries, one meta-prompt by several answers, each of which sees the
prefix and itself alone (a four-dimensional attention mask).

Takes about eight minutes on one CPU core. The same seed on the same machine gives the same model.
"""

from __future__ import annotations

import argparse
import random
import string
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from hfdataopt.demo import follower_tasks as world
from hfdataopt.demo.follower_tasks import SLOTS, TASKS, Item, Phrasing, annotate, items, parts, query, sample
from hfdataopt.prompting import meta_prompts
from hfdataopt.prompting.meta_prompts import Example, Mistake

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

SEED = 30_000
SPECIAL = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<eos>"}
LENGTH = 256  # tokens of a packed line
LINES = 12  # lines of a batch
STEPS = 1200
SHARES = {"sum": 3.0, "difference": 2.5, "antonym": 2.0, "larger_animal": 1.5}  # of practice: what is hard to learn
IDLE_WORDS = frozenset([".", ",", "the", "of", "you", "are", "a", "an", "to", "it"])
_LETTERS = {"first_letter": 0, "second_letter": 1}
# Messages are joined as the plain text is: a blank line between them, one space before an answer.
CHAT_TEMPLATE = (
    "{%- set ns = namespace(begun=false) -%}{%- for message in messages -%}{%- if message.content -%}"
    "{%- if ns.begun -%}{{ ' ' if message.role == 'assistant' else '\\n\\n' }}{%- endif -%}"
    "{{ message.content }}{%- set ns.begun = true -%}{%- endif -%}{%- endfor -%}"
)
# What a mistake or an instruction shows, and the reason that is given for it.
REASONS = {
    "format": "the answers are too long, since the instruction asks for no format.",
    "core": "the model repeats the input, since the instruction does not say clearly what to do.",
    "opposite": "the model answers the opposite question, since the instruction does not say clearly what to do.",
    "hedge": "the instruction is vague, since it leaves the model a choice.",
    "closing": "the instruction distracts the model at the end.",
    "role": "the instruction does not say what the model is good at.",
}


class Row(NamedTuple):
    """A prefix and what may follow it: pairs of a context and the text to learn."""

    prefix: str
    branches: list[tuple[str, str]]
    weight: float = 1.0
    hints: int = 0  # vectors in front that hint at the (only) branch's text


# --- What the annotator does with an instruction -----------------------------------------------------------------


def vary(phrasing: Phrasing, rng: random.Random, share: float = 0.2) -> Phrasing:
    """The instruction in other words: about ``share`` of its parts, at least one, said otherwise."""
    return _allowed(lambda: _vary(phrasing, rng, share))


def merge(best: list[Phrasing], shares: tuple[float, ...], rng: random.Random, fresh: float) -> Phrasing:
    """Parts of several instructions, each from the i-th with chance ``shares[i]``, or a fresh one with ``fresh``."""

    def draw() -> Phrasing:
        made = best[0]
        for slot, at in zip(SLOTS, range(len(SLOTS)), strict=True):
            if rng.random() < fresh:
                made = made.put(slot, world.sample_part(made.task, slot, rng, 0.5))
            else:
                made = made.put(slot, rng.choices(best, shares)[0].chosen[at])
        return made

    return _allowed(draw)


def reasons(phrasing: Phrasing, mistakes: list[Mistake]) -> list[str]:
    """The names of the reasons that an instruction and its mistakes give."""
    found = []
    if any(m.answer.startswith("the answer is") for m in mistakes):
        found.append("format")
    if any(m.answer == m.input for m in mistakes):
        found.append("core")
    if phrasing.task == "larger_animal" and any(m.answer != m.expected and "," not in m.answer for m in mistakes):
        found.append("opposite")
    if phrasing.part("hedge").worth < 0 or phrasing.part("manner").worth < 0:
        found.append("hedge")
    if phrasing.part("closing").worth < 0:
        found.append("closing")
    if phrasing.part("role").worth < 0:
        found.append("role")
    return found


def repair(phrasing: Phrasing, reason: str, rng: random.Random) -> Phrasing:
    """The instruction with better parts where ``reason`` (a key of ``REASONS``) finds fault."""

    def draw() -> Phrasing:
        made = phrasing
        wanted = {"core": ("verb", "object"), "opposite": ("verb", "object"), "hedge": ("hedge", "manner")}
        for slot in wanted.get(reason, (reason,)):
            options = parts(made.task)[slot]
            now = made.part(slot).worth
            better = [i for i, part in enumerate(options) if part.worth > now]
            if better:
                made = made.put(slot, rng.choice(better))
        return made

    return _allowed(draw)


def _vary(phrasing: Phrasing, rng: random.Random, share: float) -> Phrasing:
    changed = [slot for slot in SLOTS if rng.random() < share] or [rng.choice(SLOTS)]
    for slot in changed:
        phrasing = phrasing.put(slot, world.sample_part(phrasing.task, slot, rng, 0.5))
    return phrasing


def _allowed(draw: Callable[[], Phrasing]) -> Phrasing:
    """The first draw that is not kept out of training, or the last of many."""
    for _ in range(50):
        phrasing = draw()
        if not phrasing.held_out:
            break
    return phrasing


def practice(task: str, rng: random.Random) -> Phrasing:
    """An instruction of any quality: as the annotator writes, parts at random, or near the best."""
    kind = rng.random()
    if kind < 0.65:
        return sample(task, rng, flat=rng.choice((0.0, 0.5, 1.0)))
    best = world.best_phrasing(task)
    return _allowed(lambda: merge([best], (1.0,), rng, rng.choice((0.0, 0.15, 0.3, 0.5))))


# --- Rows ---------------------------------------------------------------------------------------------------------


def execution(rng: random.Random) -> Row:
    """An instruction (or none, or an idle one, or one for other inputs), demonstrations, and many queries."""
    task = rng.choices(TASKS, [SHARES.get(task, 1.0) for task in TASKS])[0]
    known = _letters(task) if task in _LETTERS and rng.random() < 0.5 else items(task)
    phrasing = practice(task, rng)
    text, clarity, formatted, exemplars = phrasing.text, phrasing.clarity, bool(phrasing.part("format").text), 0
    kind = rng.random()
    if kind < 0.4:
        exemplars = rng.randint(1, 4)
    if kind > 0.75:
        clarity, formatted = 0.0, True
        exemplars = rng.choice((0, 0, 1, 2, 3, 4))
        if kind > 0.92:
            foreign = [t for t in TASKS if not {i.input for i in (*items(t), *_letters(t))} & {known[0].input}]
            other = rng.choice(foreign)
            text, exemplars = practice(other, rng).text, 0
        elif kind > 0.85:
            said = [phrasing.part(slot).text for slot in ("role", "format", "closing") if rng.random() < 0.6]
            text = " ".join(f"{part}." for part in said if part)
        else:
            text = ""
    shown = rng.sample(known, exemplars)
    clarity += world.EXEMPLAR_WORTH * exemplars
    if kind > 0.75 and not exemplars:
        clarity = 0.0
    near = [item for item in known if abs(item.difficulty - clarity) < 0.15] or list(known)
    asked = [rng.choice(near if rng.random() < 0.4 else known) for _ in range(14)]
    prefix = text + "".join(f"\n\nInput: {item.input}\nOutput: {item.answer}" for item in shown)
    return Row(prefix, [(query(item.input), annotate(item, clarity, formatted=formatted)) for item in asked], 2.0)


@lru_cache
def _letters(task: str) -> tuple[Item, ...]:
    """The letters of adjectives, which keep the two of a pair of opposites apart."""
    at = _LETTERS.get(task)
    return () if at is None else tuple(i._replace(answer=i.input[at]) for i in items("antonym"))


def examples_of(task: str, n: int, rng: random.Random) -> list[Example]:
    """Demonstrations of a task."""
    return [Example(item.input, item.answer) for item in rng.sample(items(task), n)]


def induction(rng: random.Random, hints: bool) -> Row:
    """Examples, and instructions as the annotator happens to write them."""
    task = rng.choice(TASKS)
    prefix = _text(meta_prompts.induce(examples_of(task, rng.randint(1, 6), rng)))
    if hints and rng.random() < 0.5:
        return Row(prefix, [("", sample(task, rng, flat=0.3).text)], hints=rng.randint(1, 5))
    return Row(prefix, [("", sample(task, rng).text) for _ in range(5)])


def improvement(rng: random.Random) -> Row:
    """A history in any order, and instructions made of the parts of those that scored high.

    In most rows the scores have nothing to do with the texts, so that they must be read.
    """
    task = rng.choice(TASKS)
    n = rng.choice((2, 2, 2, 3, 3, 4, 5))
    if rng.random() < 0.75:
        history = [sample(task, rng, flat=rng.choice((0.0, 0.5, 1.0))) for _ in range(n)]
        scores = [rng.random() ** rng.choice((0.5, 1, 2)) for _ in history]
        if rng.random() < 0.75:  # short ones, to see many histories
            history = [_short(phrasing, rng) for phrasing in history]
    else:
        history = [practice(task, rng) for _ in range(n)]
        scores = [min(1.0, max(0.0, phrasing.clarity + rng.gauss(0, 0.08))) for phrasing in history]
    if rng.random() < 0.5:  # few validation items: coarse scores
        grain = rng.choice((5, 10, 20))
        scores = [round(grain * score) / grain for score in scores]
    order = sorted(range(len(history)), key=lambda i: (-scores[i], rng.random()))
    best = [history[i] for i in order[:2]]
    examples = examples_of(task, rng.randint(1, 3), rng) if rng.random() < 0.4 else []
    prefix = _text(meta_prompts.improve([(p.text, s) for p, s in zip(history, scores, strict=True)], examples))
    return Row(prefix, [("", merge(best, (0.85, 0.15), rng, 0.1).text) for _ in range(2)])


def _short(phrasing: Phrasing, rng: random.Random) -> Phrasing:
    """The instruction with one part at most beside verb and object."""
    kept = rng.choice(SLOTS)
    for slot in SLOTS:
        if slot not in ("verb", "object", kept):
            phrasing = phrasing.put(slot, 0)
    return phrasing


def rephrasing(rng: random.Random) -> Row:
    """An instruction, and the same in other words."""
    phrasing = practice(rng.choice(TASKS), rng)
    return Row(_text(meta_prompts.rephrase(phrasing.text)), [("", vary(phrasing, rng).text) for _ in range(4)])


def revision(rng: random.Random) -> Row:
    """An instruction and the answers it led to, and the same in other words."""
    phrasing = practice(rng.choice(TASKS), rng)
    asked = rng.sample(items(phrasing.task), rng.randint(1, 4))
    answers = [(item.input, _answer(phrasing, item)) for item in asked]
    return Row(_text(meta_prompts.revise(phrasing.text, answers)), [("", vary(phrasing, rng).text) for _ in range(3)])


def combination(rng: random.Random) -> Row:
    """Two instructions, and one made of their parts; of two parts the better one is taken more often."""
    task = rng.choice(TASKS)
    pair = [practice(task, rng), practice(task, rng)]

    def mix() -> Phrasing:
        made = pair[0]
        for slot in SLOTS:
            first, second = sorted(pair, key=lambda phrasing: -phrasing.part(slot).worth)
            made = made.put(slot, (first if rng.random() < 0.7 else second).chosen[SLOTS.index(slot)])
        return made

    prefix = _text(meta_prompts.combine(pair[0].text, pair[1].text))
    return Row(prefix, [("", _allowed(mix).text) for _ in range(4)])


def criticism(rng: random.Random) -> Row:
    """An instruction and its mistakes: the reasons, or, given one, better instructions."""
    while True:
        phrasing = practice(rng.choice(TASKS), rng)
        asked = rng.sample(items(phrasing.task), 12)
        answers = [Mistake(item.input, _answer(phrasing, item), item.answer) for item in asked]
        mistakes = [mistake for mistake in answers if mistake.answer != mistake.expected][: rng.randint(1, 4)]
        if mistakes and (found := reasons(phrasing, mistakes)):
            break
    if rng.random() < 0.5:
        prefix = _text(meta_prompts.criticise(phrasing.text, mistakes))
        return Row(prefix, [("", REASONS[name]) for name in found])
    name = rng.choice(found)
    shown = mistakes if rng.random() < 0.5 else []
    prefix = _text(meta_prompts.rewrite(phrasing.text, REASONS[name], shown))
    return Row(prefix, [("", repair(phrasing, name, rng).text) for _ in range(3)])


def draw_row(rng: random.Random, hints: bool) -> Row:
    """One row of training."""
    kind = rng.random()
    if kind < 0.5:
        return execution(rng)
    if kind < 0.64:
        return induction(rng, hints)
    if kind < 0.82:
        return improvement(rng)
    if kind < 0.89:
        return rephrasing(rng)
    if kind < 0.91:
        return revision(rng)
    return combination(rng) if kind < 0.95 else criticism(rng)


def _answer(phrasing: Phrasing, item: Item) -> str:
    return annotate(item, phrasing.clarity, formatted=bool(phrasing.part("format").text))


def _text(messages: meta_prompts.Messages) -> str:
    return str(messages[0]["content"])


# --- Tokenizer and model ------------------------------------------------------------------------------------------


def vocabulary() -> Iterator[str]:
    """Every text whose words the tokenizer knows."""
    example, word = [Example("dog", "dogs")], "dog"
    for messages in (
        meta_prompts.induce(example),
        meta_prompts.rephrase(word),
        meta_prompts.improve([(word, 1.0)], example),
        meta_prompts.criticise(word, [Mistake(word, word, word)]),
        meta_prompts.rewrite(word, word, [Mistake(word, word, word)]),
        meta_prompts.revise(word, [(word, word)], word),
        meta_prompts.combine(word, word),
        meta_prompts.compare(word, word, word, word),
    ):
        yield _text(messages)
    yield from REASONS.values()
    yield from map(str, range(101))
    yield from string.ascii_lowercase
    yield from ".,:;?!-()\"'"
    yield "the answer is"
    for task in TASKS:
        yield from (part.text for options in parts(task).values() for part in options)
        for item in items(task):
            yield f"{item.input} {item.answer}"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A lower-casing word-level tokenizer that splits punctuation off and joins it again."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    normalizer = normalizers.Lowercase()
    splitter = pre_tokenizers.BertPreTokenizer()
    words = sorted(
        {word for text in vocabulary() for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    )
    known = {word: i for i, word in enumerate([*SPECIAL.values(), *words])}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token=SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    joined = decoders.Replace(Regex(r"^ (?=[.,:;?!)]$)"), "")
    tokenizer.decoder = decoders.Sequence([decoders.WordPiece(prefix="##", cleanup=False), joined])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=1024,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
        **SPECIAL,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, *, layers: int = 4, hidden: int = 128) -> LlamaForCausalLM:
    """The untrained model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=3 * hidden,
            max_position_embeddings=1024,
            initializer_range=0.05,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def start_numbers(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Start the numbers' embeddings with waves of several periods, so that their order need not be found."""
    weight = model.model.embed_tokens.weight
    ids = torch.tensor(tokenizer.convert_tokens_to_ids([str(n) for n in range(101)]))
    numbers = torch.arange(101.0)
    waves = [numbers / 29 - 1.72]
    for period in (200, 100, 50, 25, 10, 5, 2.5, 2):
        waves += [torch.sin(2 * torch.pi * numbers / period), torch.cos(2 * torch.pi * numbers / period)]
    directions = torch.randn(len(waves), weight.shape[1]) / len(waves) ** 0.5
    with torch.no_grad():
        weight[ids] = 0.5 * weight[ids] + weight.std() * torch.stack(waves, 1) @ directions


# --- Packing and training -----------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """Packed lines: ids, positions and targets [B, L], the mask [B, 1, L, L], and weights of the targets [B, L]."""

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    hints: list[tuple[int, int, list[int]]]  # line, place, words to blend


class _Line:
    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.samples: list[int] = []
        self.branches: list[int] = []
        self.targets: list[int] = []
        self.weights: list[float] = []

    def add(self, ids: list[int], start: int, sample: int, branch: int) -> None:
        self.ids += ids
        self.positions += range(start, start + len(ids))
        self.samples += [sample] * len(ids)
        self.branches += [branch] * len(ids)
        self.targets += [-100] * len(ids)
        self.weights += [0.0] * len(ids)


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Token ids of many texts, without end tokens."""
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]


def pack(
    tokenizer: PreTrainedTokenizerFast, rows: Iterator[Row], *, lines: int = LINES, length: int = LENGTH
) -> Iterator[Batch]:
    """Batches of packed rows, without end."""
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    known = tokenizer.get_vocab()
    idle = {known[word] for word in IDLE_WORDS}
    waiting: list[Row] = []
    while True:
        packed: list[_Line] = []
        hints: list[tuple[int, int, list[int]]] = []
        full = False
        while not full:
            if not waiting:
                waiting = [next(rows) for _ in range(64)]
            row = waiting.pop()
            texts = encode(tokenizer, [row.prefix, *(part for branch in row.branches for part in branch)])
            size = row.hints + sum(map(len, texts)) + len(row.branches)
            if size > length:
                continue
            line = next((line for line in packed if len(line.ids) + size <= length), None)
            if line is None:
                if len(packed) == lines:
                    waiting.append(row)
                    full = True
                    break
                packed.append(line := _Line())
            number = line.samples[-1] + 1 if line.samples else 0
            telling = [i for i in texts[2] if i not in idle]
            hints += [(packed.index(line), len(line.ids) + k, telling) for k in range(row.hints)]
            prefix = [pad] * row.hints + texts[0]
            shared = [] if row.branches[0][0] else [prefix.pop()]  # the last token of the prefix predicts the answer
            line.add(prefix, 0, number, 0)
            for i in range(len(row.branches)):
                context, answer = shared + texts[1 + 2 * i], [*texts[2 + 2 * i], eos]
                first = len(line.ids) + len(context) - 1
                line.add(context + answer[:-1], len(prefix), number, i + 1)
                line.targets[first : first + len(answer)] = answer
                line.weights[first : first + len(answer)] = [row.weight] * len(answer)
        yield _tensors(packed, hints, pad)


def _tensors(packed: list[_Line], hints: list[tuple[int, int, list[int]]], pad: int) -> Batch:
    longest = max(len(line.ids) for line in packed)

    def table(name: str, fill: Any) -> torch.Tensor:
        return torch.tensor([getattr(line, name) + [fill] * (longest - len(line.ids)) for line in packed])

    samples, branches = table("samples", -1), table("branches", 0)
    mask = (samples[:, :, None] == samples[:, None, :]) & (
        (branches[:, None, :] == 0) | (branches[:, :, None] == branches[:, None, :])
    )
    mask &= torch.ones(longest, longest, dtype=torch.bool).tril()
    return Batch(
        table("ids", pad), table("positions", 0), mask[:, None], table("targets", -100), table("weights", 0.0), hints
    )


def blend(words: torch.Tensor, hint: list[int], generator: torch.Generator) -> torch.Tensor:
    """A noisy blend of two of the target's word embeddings [V, H] -> [H], as long as an embedding is."""
    picked = torch.tensor(hint)[torch.randint(len(hint), (2,), generator=generator)]
    noise = 0.4 * words.std() * torch.randn(words.shape[1], generator=generator)
    return words[picked].sum(0) / 2**0.5 + noise


def forward(model: LlamaForCausalLM, batch: Batch, generator: torch.Generator | None = None) -> torch.Tensor:
    """Logits [n, V] at the n places that have a target."""
    embedded = model.model.embed_tokens(batch.ids)
    if batch.hints and generator is not None:
        words = model.model.embed_tokens.weight.detach()
        lines, places, hints = zip(*batch.hints, strict=True)
        embedded = embedded.index_put(
            (torch.tensor(lines), torch.tensor(places)), torch.stack([blend(words, hint, generator) for hint in hints])
        )
    hidden = model.model(
        inputs_embeds=embedded, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
    ).last_hidden_state
    return model.lm_head(hidden[batch.targets != -100])


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int = STEPS,
    learning_rate: float = 4e-3,
    seed: int = SEED,
    hints: bool = True,
    log_every: int = 100,
) -> None:
    """Train in place on rows without end."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    batches = pack(tokenizer, (draw_row(rng, hints) for _ in iter(int, 1)))
    words = [model.model.embed_tokens.weight, *(p for p in model.parameters() if p.ndim == 1)]
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(words, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01),
        torch.optim.Muon(matrices, lr=2.5 * learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
    ]
    warmup = min(60, steps)

    def rate(step: int) -> float:
        return min((step + 1) / warmup, max(0.0, (steps - step) / max(1, steps - warmup)))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, rate) for optimizer in optimizers]
    model.train()
    totals, tokens, start = torch.zeros(2), 0, time.process_time()
    for step in range(1, steps + 1):
        batch = next(batches)
        kept = batch.targets != -100
        losses = torch.nn.functional.cross_entropy(
            forward(model, batch, generator), batch.targets[kept], reduction="none"
        )
        weights = batch.weights[kept]
        loss = (losses * weights).sum() / weights.sum()
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        tokens += batch.ids.numel()
        answers = weights == 2.0
        totals += torch.stack([losses[answers].mean(), losses[~answers].mean()]).detach()
        if step % log_every == 0:
            spent = time.process_time() - start
            answers_loss, texts_loss = (totals / log_every).tolist()
            print(
                f"step {step}/{steps}  loss of answers {answers_loss:.3f}, of instructions {texts_loss:.3f}  "
                f"{tokens / 1e6:.1f}M tokens  {spent:.0f} s of CPU",
                flush=True,
            )
            totals = torch.zeros(2)
    model.eval()


def make_follower(output: str | Path, *, seed: int = SEED, steps: int = STEPS, hints: bool = True) -> None:
    """Write the trained model in half precision, its tokenizer and its generation settings."""
    from transformers import GenerationConfig

    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    model = make_model(tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} words", flush=True)
    start_numbers(model, tokenizer)
    train(model, tokenizer, steps=steps, seed=seed, hints=hints)
    model.generation_config = GenerationConfig(
        max_new_tokens=64, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.half().save_pretrained(output)
    tokenizer.save_pretrained(output)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the demo's small instruction follower.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--no-hints", action="store_true", help="train without vectors that hint at the instruction")
    options = parser.parse_args()
    torch.set_num_threads(1)
    make_follower(options.output, seed=options.seed, steps=options.steps, hints=not options.no_hints)


if __name__ == "__main__":
    main()
