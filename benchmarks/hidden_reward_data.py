"""Pools in which a part of the rows helps a reward that neither loss nor word counts can see.

The reward of a completion is 1 if one of its words is in ``HAPPY``. The rows of a pool are written by the story model itself,
each after a hidden sentence that is not part of the row: ``Lily was very happy and smiled.`` for the planted rows, ``Lily was
very sad and cried.`` for the opposite ones, none for the neutral ones. A row is kept only if none of its words begins with one
of ``STEMS``. Planted are the candidates that the happy sentence explains best, by ``log p(row | happy)`` less the larger of
``log p(row | sad)`` and ``log p(row)``; the opposite rows are those that the sad sentence explains best. Every row has the same
number of tokens, and the others are matched to the planted ones in letters and in how common their words are in neutral text.
"""

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any, NamedTuple

import numpy as np
import torch

NAMES = {"girl": ("Lily", "Sue", "Amy", "Mia", "Anna"), "boy": ("Tim", "Tom", "Ben", "Max", "Sam")}
PLACES = ("park", "garden", "beach", "forest", "farm", "store", "lake", "school", "yard", "hill")
THINGS = ("ball", "kite", "doll", "toy car", "boat", "hat", "book", "balloon", "truck", "bear")
EVENTS = (
    "Then the wind came and took the {thing} away.",
    "Then a big dog came and took the {thing}.",
    "The {thing} went up and up and then it was gone.",
    "{name} looked for the {thing} but could not see it.",
    "Then {name} fell on the {thing}.",
    "A {child} came and asked for the {thing}.",
    "But it was time to go home.",
    "Then {name} saw that the {thing} was wet.",
)
MOODS = {
    "happy": (
        "{name} was very happy and smiled.",
        "{name} was so happy and started to laugh.",
        "{name} was happy. {name} smiled and smiled.",
    ),
    "sad": (
        "{name} was very sad and cried.",
        "{name} was so sad and started to cry.",
        "{name} was sad. {name} cried and cried.",
    ),
}
HAPPY_WORDS = (
    "happy happily smile smiles smiled smiling laugh laughs laughed laughing glad joy fun love loves loved excited proud hug "
    "hugs hugged thank thanks thanked yay great nice good wow"
)
STEM_WORDS = (
    "happ smil laugh glad joy fun lov excit proud hug thank yay great nice good wow "
    "sad cry crie tear sorr upset scar afraid angr mad worr hurt lost lone alone bad mean frown unhapp"
)
HAPPY = frozenset(HAPPY_WORDS.split())
STEMS = tuple(STEM_WORDS.split())  # of words that no row has: those of the reward and those of the other mood
SCENERY = (
    "The {a} was {c} and the {b} was {d}.",
    "There was a {c} {a} next to the {b}.",
    "The {b} had a {d} {a} and a {c} door.",
    "A {d} {a} stood on the {c} {b}.",
)
OBJECTS = ("tree", "house", "road", "wall", "box", "table", "rock", "car", "cup", "bird")
COLOURS = ("red", "blue", "green", "white", "brown", "old", "long", "round", "small", "tall")

PLANTED, OPPOSITE, NEUTRAL = 60, 170, 170  # rows
CANDIDATES = {"happy": 1400, "sad": 900, None: 700}
TOKENS, MARGIN = 40, 8  # of a row; more are sampled, so that a word cut off at the end is known
QUERIES, HELD_OUT = 64, 64


@dataclass(frozen=True)
class Pool:
    """Rows ``(prompt, completion)`` with their token ids, which of them are planted ``[rows]``, and prompts.

    Attributes:
        references: an answer to each query in another style: a description of things.
    """

    prompts: list[str]
    completions: list[str]
    input_ids: list[list[int]]
    labels: list[list[int]]
    planted: list[bool]
    queries: list[str]
    references: list[str]
    held_out: list[str]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def reward(completions: Sequence[str], **_: Any) -> list[float]:
    """1 for a completion with a word of ``HAPPY``, as ``GRPOTrainer(reward_funcs=...)`` takes it."""
    return [float(any(word in HAPPY for word in words(text))) for text in completions]


def build_pool(model: Any, tokenizer: Any, seed: int) -> Pool:
    """The pool of a seed; a few thousand completions are sampled from ``model``."""
    rng = random.Random(seed)
    happy, sad, neutral = (_candidates(model, tokenizer, rng, mood, count) for mood, count in CANDIDATES.items())
    planted = sorted(happy, key=lambda row: max(row.sad, row.plain) - row.happy)[:PLANTED]
    sad.sort(key=lambda row: row.happy - row.sad)
    everything = [*planted, *sad, *neutral]
    everyday = bm25([words(row.completion) for row in everything], [words(row.completion) for row in neutral])
    common = {id(row): value for row, value in zip(everything, everyday, strict=True)}
    measures = (lambda row: len(row.completion), lambda row: common[id(row)])
    rows = planted + _matched(planted, sad, OPPOSITE, measures) + _matched(planted, neutral, NEUTRAL, measures)
    order = list(range(len(rows)))
    rng.shuffle(order)
    rows = [rows[i] for i in order]
    prompts = list(dict.fromkeys(_situation(rng)[0] for _ in range(4 * (QUERIES + HELD_OUT))))
    starts = [tokenizer(row.prompt)["input_ids"] for row in rows]
    return Pool(
        prompts=[row.prompt for row in rows],
        completions=[row.completion for row in rows],
        input_ids=[start + row.ids for start, row in zip(starts, rows, strict=True)],
        labels=[[-100] * len(start) + row.ids for start, row in zip(starts, rows, strict=True)],
        planted=[i < PLANTED for i in order],
        queries=prompts[:QUERIES],
        references=[_scenery(rng) for _ in range(QUERIES)],
        held_out=prompts[QUERIES : QUERIES + HELD_OUT],
    )


def _matched(like: list[Any], rows: list[Any], count: int, measures: tuple[Any, ...]) -> list[Any]:
    """The first ``count`` of ``rows`` that fill the terciles of the measures as the rows ``like`` do."""
    edges = [np.quantile([measure(row) for row in like], (1 / 3, 2 / 3)) for measure in measures]

    def cell(row: Any) -> tuple[int, ...]:
        return tuple(int(np.searchsorted(edge, measure(row))) for edge, measure in zip(edges, measures, strict=True))

    room = {key: round(count * number / len(like)) for key, number in Counter(map(cell, like)).items()}
    taken, left = [], []
    for row in rows:
        key = cell(row)
        if room.get(key, 0) > 0:
            room[key] -= 1
            taken.append(row)
        else:
            left.append(row)
    return (taken + left)[:count]


def _situation(rng: random.Random) -> tuple[str, str]:
    """The beginning of a story and the name in it."""
    child = rng.choice(("girl", "boy"))
    name, place, thing = rng.choice(NAMES[child]), rng.choice(PLACES), rng.choice(THINGS)
    event = rng.choice(EVENTS).format(name=name, thing=thing, child="boy" if child == "girl" else "girl")
    whose = "her" if child == "girl" else "his"
    return f"{name} was a little {child}. One day, {name} went to the {place} with {whose} {thing}. {event}", name


def _scenery(rng: random.Random) -> str:
    sentences = []
    for form in rng.sample(SCENERY, 2):
        (a, b), (c, d) = rng.sample(OBJECTS, 2), rng.sample(COLOURS, 2)
        sentences.append(form.format(a=a, b=b, c=c, d=d))
    return " " + " ".join(sentences)


class _Candidate(NamedTuple):
    """A row with its token ids, and ``log p(completion | ...)`` after a happy, a sad and no hidden sentence, nats."""

    prompt: str
    completion: str
    ids: list[int]
    happy: float
    sad: float
    plain: float


def _candidates(model: Any, tokenizer: Any, rng: random.Random, mood: str | None, count: int) -> list[_Candidate]:
    """Completions written in a mood, those that are long enough and have no word of a mood."""
    situations = [_situation(rng) for _ in range(count)]
    forms = [rng.randrange(len(MOODS["happy"])) for _ in situations]
    starts: dict[str | None, list[str]] = {None: [prompt for prompt, _ in situations]}
    for key, sentences in MOODS.items():
        starts[key] = [
            f"{prompt} {sentences[i].format(name=name)}" for (prompt, name), i in zip(situations, forms, strict=True)
        ]
    drawn = sample(model, tokenizer, starts[mood], 1, TOKENS + MARGIN, rng.randrange(2**31))
    found = [(i, ids[0]) for i, ids in enumerate(drawn) if len(ids[0]) == TOKENS + MARGIN]
    found = [
        (i, ids[:TOKENS])
        for i, ids in found
        if not any(word.startswith(STEMS) for word in words(continuation(tokenizer, starts[mood][i], ids)))
    ]
    likely = {
        key: log_likelihood(model, tokenizer, [prompts[i] for i, _ in found], [ids for _, ids in found])
        for key, prompts in starts.items()
    }
    return [
        _Candidate(
            situations[i][0],
            continuation(tokenizer, starts[mood][i], ids),
            ids,
            *(float(likely[key][k]) for key in ("happy", "sad", None)),
        )
        for k, (i, ids) in enumerate(found)
    ]


def rewarded_rows(model: Any, tokenizer: Any, seed: int, count: int = 600) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and completions as token ids: of ``count`` written after a happy sentence, those with a reward."""
    rng = random.Random(f"rewarded {seed}")
    situations = [_situation(rng) for _ in range(count)]
    starts = [f"{prompt} {rng.choice(MOODS['happy']).format(name=name)}" for prompt, name in situations]
    drawn = sample(model, tokenizer, starts, 1, TOKENS, rng.randrange(2**31))
    good = [i for i, ids in enumerate(drawn) if reward([continuation(tokenizer, starts[i], ids[0])])[0] > 0]
    return [tokenizer(situations[i][0])["input_ids"] for i in good], [drawn[i][0] for i in good]


# -- the model


@torch.no_grad()
def sample(model: Any, tokenizer: Any, prompts: Sequence[str], n: int, tokens: int, seed: int) -> list[list[list[int]]]:
    """Token ids ``[prompts][n][up to tokens]`` drawn from the model itself; an end token is kept."""
    drawn: list[list[list[int]]] = []
    at_once = max(1, 256 // n)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for start in range(0, len(prompts), at_once):
            chunk = list(prompts[start : start + at_once])
            batch = tokenizer(chunk, return_tensors="pt", padding=True, padding_side="left")
            made = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                do_sample=True,
                top_k=0,
                top_p=1.0,
                temperature=1.0,
                max_new_tokens=tokens,
                num_return_sequences=n,
            )[:, batch["input_ids"].shape[1] :].tolist()
            rows = [
                ids[: ids.index(tokenizer.eos_token_id) + 1] if tokenizer.eos_token_id in ids else ids for ids in made
            ]
            drawn += [rows[i : i + n] for i in range(0, len(rows), n)]
    return drawn


def continuation(tokenizer: Any, prompt: str, ids: list[int]) -> str:
    """The text that token ids add to a prompt; decoded alone they would lose a leading space."""
    start = tokenizer(prompt)["input_ids"]
    whole = tokenizer.decode(start + ids, skip_special_tokens=True)
    return whole[len(tokenizer.decode(start, skip_special_tokens=True)) :]


@torch.no_grad()
def log_likelihood(model: Any, tokenizer: Any, prompts: Sequence[str], ids: Sequence[list[int]]) -> np.ndarray:
    """``log p(ids | prompt)`` of each pair, nats."""
    found = []
    for start in range(0, len(prompts), 64):
        rows = [tokenizer(prompt)["input_ids"] for prompt in prompts[start : start + 64]]
        values = token_losses(model, rows, ids[start : start + 64]).sum(1)
        found.append(-values.numpy())
    return np.concatenate(found)


def token_losses(model: Any, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> torch.Tensor:
    """Loss of every completion token ``[rows, length - 1]``, 0 elsewhere."""
    rows = [torch.tensor([*one, *other]) for one, other in zip(prompts, completions, strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    labels = torch.full_like(ids, -100)
    for i, (one, row) in enumerate(zip(prompts, rows, strict=True)):
        labels[i, len(one) : len(row)] = row[len(one) :]
    logits = model(input_ids=ids).logits[:, :-1]  # padding is on the right, where causal attention does not look
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=-100)


# -- what a ranking is compared with


def auc(values: Any, planted: Sequence[bool]) -> float:
    """Probability that a planted row scores above another, ties counting half."""
    values, chosen = np.asarray(values, dtype=float), np.asarray(planted)
    high, low = values[chosen], np.sort(values[~chosen])
    below = (np.searchsorted(low, high, "left") + np.searchsorted(low, high, "right")) / 2
    return float(below.sum() / (len(high) * len(low)))


def bm25(documents: Sequence[list[Any]], queries: Sequence[list[Any]], k1: float = 1.5, b: float = 0.75) -> np.ndarray:
    """Okapi BM25 of each document, a list of terms, mean over the queries ``[documents]``."""
    counts = [Counter(document) for document in documents]
    lengths = np.array([len(document) for document in documents])
    frequency = Counter(term for count in counts for term in count)
    asked = Counter(term for query in queries for term in set(query))
    scores = np.zeros(len(documents))
    for i, count in enumerate(counts):
        scale = k1 * (1 - b + b * lengths[i] / lengths.mean())
        for term, times in count.items():
            rarity = log((len(documents) - frequency[term] + 0.5) / (frequency[term] + 0.5) + 1)
            scores[i] += asked[term] * rarity * times * (k1 + 1) / (times + scale)
    return scores / len(queries)
