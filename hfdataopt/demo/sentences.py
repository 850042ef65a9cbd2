"""Short English reviews whose sentiment hangs on structure, not on which words occur.

The sentiment of most sentences follows from negation ("anything but dull"), from which clause carries the verdict
("although the trailer was superb, the film was awful"), from whose opinion it is ("my brother hated it, I loved it")
or from who was right. Words of both polarities meet in one sentence, so that a bag of words reads many of them wrong,
while a person reads each at a glance.

Labelled rows are single judgements. Unlabelled text, which :mod:`hfdataopt.demo.make_encoder` pretrains on, joins a
judgement with another of the same sentiment or with a conclusion ("I want my money back."). No labelled text is a part
of unlabelled text: a hash of the judgement decides to which side it belongs.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datasets import DatasetDict

LABEL_NAMES = ("negative", "positive")

STRONG = (
    ("awful", "terrible", "dreadful", "horrible", "appalling", "atrocious", "abysmal", "miserable"),
    ("superb", "brilliant", "wonderful", "outstanding", "excellent", "fantastic", "magnificent", "marvellous"),
)
MILD = (
    ("dull", "weak", "poor", "tedious", "bland", "disappointing", "forgettable", "mediocre"),
    ("pleasant", "charming", "decent", "enjoyable", "clever", "appealing", "memorable", "lovely"),
)
FELT = (("hated", "despised", "disliked", "loathed"), ("loved", "adored", "enjoyed", "admired"))
FEEL = (("hate", "despise", "dislike", "loathe"), ("love", "adore", "enjoy", "admire"))

# What is reviewed -> (its parts, what is seen of it before).
ITEMS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "film": (("plot", "acting", "ending", "music", "dialogue"), ("trailer", "poster", "opening scene")),
    "novel": (("plot", "ending", "style", "dialogue", "translation"), ("cover", "first chapter", "blurb")),
    "show": (("cast", "acting", "music", "script", "humour"), ("trailer", "poster", "first episode")),
    "album": (("singing", "guitar", "sound", "drumming", "booklet"), ("cover", "first single", "opening song")),
    "game": (("story", "sound", "music", "map", "tutorial"), ("trailer", "box", "opening scene")),
    "phone": (("screen", "battery", "sound", "camera", "keyboard"), ("advert", "box", "design")),
    "laptop": (("screen", "battery", "sound", "fan", "keyboard"), ("advert", "box", "design")),
    "hotel": (("breakfast", "room", "service", "pool", "view"), ("lobby", "website", "brochure")),
    "restaurant": (("food", "service", "wine", "dessert", "view"), ("menu", "website", "first course")),
}
PEOPLE = ("my brother", "my sister", "my boss", "my neighbour", "my uncle", "my aunt", "a friend", "my flatmate")
CRITICS = ("the critics", "the reviewers", "my colleagues", "my friends", "the papers", "my parents")
ADVERBS = ("really", "truly", "simply", "just", "quite", "plainly", "clearly", "honestly")
WHEN = ("yesterday", "last week", "last month", "in spring", "this summer", "two days ago", "last winter", "today")
WHERE = (
    "in town",
    "near the station",
    "abroad",
    "on a trip",
    "at a fair",
    "by the sea",
    "at the airport",
    "after work",
)

# `+` is a word of the sentence's own sentiment, `-` one of the opposite; a trailing `s` or `m` leans to strong or mild.
KINDS: dict[str, tuple[float, tuple[str, ...]]] = {
    "plain": (
        0.35,
        (
            "{this} {item} was {adv} {+}",
            "i {adv} {felt+} {this} {item}, and the {part} was {+}",
            "the {part} was {+} and the {part} was {adv} {+}",
            "what {a+} {item}, and the {part} was {adv} {+} too",
            "i found {this} {item} {+}, and {person} {felt+} it too",
            "{this} {item} was {+} from start to end",
        ),
    ),
    "negation": (
        0.2,
        (
            "there was {adv} nothing {-} about {this} {item}",
            "{this} {item} was {adv} anything but {-}",
            "{this} {item} was far from {-}",
            "nobody could call {this} {item} {-}",
            "i do not think {this} {item} was {-} at all",
            "the {part} was never {-}, not even for a minute",
        ),
    ),
    "contrast": (
        0.2,
        (
            "although the {teaser} was {-m}, {this} {item} was {adv} {+s}",
            "{this} {item} was {adv} {+s}, although the {teaser} was {-m}",
            "the {part} was {-m}, but {this} {item} as a whole was {adv} {+s}",
            "{this} {item} was {adv} {+s}, even if the {part} was {-m}",
            "while the {part} was {-m}, {this} {item} was {+s} overall",
            "despite the {-m} {part}, {this} {item} was {+s}",
            "{this} {item} was {+s} despite the {-m} {part}",
        ),
    ),
    "people": (
        0.13,
        (
            "{person} {felt-} {this} {item}, but i {adv} {felt+} it",
            "i {adv} {felt+} {this} {item}, but {person} {felt-} it",
            "{person} called {this} {item} {-}, yet to me it was {adv} {+}",
            "to me {this} {item} was {adv} {+}, though {person} called it {-}",
            "{critics} called {this} {item} {+}, and they were right",
            "{critics} called {this} {item} {-}, and they were wrong",
            "{critics} {feel-} {this} {item}, and i cannot see why",
            "{critics} {feel+} {this} {item}, and i can see why",
        ),
    ),
    "change": (
        0.12,
        (
            "at first {this} {item} seemed {-}, but it turned out {+}",
            "{this} {item} turned out {+}, though at first it seemed {-}",
            "i expected {a-} {item} and got {a+} one",
            "instead of the {-} {item} i expected, i got {a+} one",
            "i got {a+} {item} instead of the {-} one i expected",
            "the old {item} was {-}, but this one is {adv} {+}",
            "this {item} is {+}, unlike the {-} old one",
            "unlike the {-} old one, this {item} is {adv} {+}",
        ),
    ),
}
ASIDES = (
    "i tried it {when}",
    "{person} told me about it {when}",
    "i came across it {where}",
    "we found it {where} {when}",
    "it was a present from {person}",
    "{person} and i tried it {where}",
)
CONCLUSIONS = (
    (
        "two thumbs down",
        "i left angry",
        "a waste of money",
        "a clear no from me",
        "i regret it",
        "i will avoid it",
        "i give it one star",
        "it made me sad",
    ),
    (
        "two thumbs up",
        "i left happy",
        "a bargain for the money",
        "a clear yes from me",
        "i recommend it",
        "i will keep it",
        "i give it five stars",
        "it made me smile",
    ),
)
_SLOT = re.compile(r"\{([^}]+)\}")


def _article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _fill(template: str, rng: random.Random, item: str, label: int) -> str:
    parts, teasers = ITEMS[item]
    left = list(parts)
    rng.shuffle(left)

    def word(sign: str) -> str:
        polarity = label if "+" in sign else 1 - label
        strong = 0.8 if sign.endswith("s") else 0.2 if sign.endswith("m") else 0.5
        return rng.choice((STRONG if rng.random() < strong else MILD)[polarity])

    def slot(match: re.Match[str]) -> str:
        name = match.group(1)
        if name == "part":
            return left.pop()
        if name.startswith(("felt", "feel")):
            return rng.choice((FELT if name.startswith("felt") else FEEL)[label if name.endswith("+") else 1 - label])
        if name in ("+", "-", "+s", "-m"):
            return word(name)
        if name in ("a+", "a-"):
            return _article(word(name))
        if name == "item":
            return item
        options: dict[str, Sequence[str]] = {
            "this": ("this", "the"),
            "teaser": teasers,
            "person": PEOPLE,
            "critics": CRITICS,
            "adv": ADVERBS,
            "when": WHEN,
            "where": WHERE,
        }
        return rng.choice(options[name])

    return _SLOT.sub(slot, template)


def _capitalised(clause: str) -> str:
    text = re.sub(r"\bi\b", "I", clause)
    return f"{text[0].upper()}{text[1:]}."


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _judgement(rng: random.Random, item: str, label: int, kinds: Sequence[str], *, labelled: bool) -> str:
    """One judgement of these kinds from the labelled or the unlabelled half of all judgements."""
    weights = [KINDS[kind][0] for kind in kinds]
    while True:
        templates = KINDS[rng.choices(kinds, weights)[0]][1]
        text = _capitalised(_fill(rng.choice(templates), rng, item, label))
        if (_digest(text)[0] % 2 == 0) is labelled:
            return text


def _aside(rng: random.Random, item: str, label: int) -> str:
    return _capitalised(_fill(rng.choice(ASIDES), rng, item, label))


def _labelled_text(rng: random.Random, label: int, kinds: Sequence[str]) -> str:
    item = rng.choice(list(ITEMS))
    sentences = [_judgement(rng, item, label, kinds, labelled=True)]
    if rng.random() < 0.5:
        sentences.insert(rng.randrange(2), _aside(rng, item, label))
    return " ".join(sentences)


def _unlabelled_text(rng: random.Random, label: int, kinds: Sequence[str]) -> str:
    item = rng.choice(list(ITEMS))
    sentences = [_judgement(rng, item, label, kinds, labelled=False)]
    if rng.random() < 0.15:
        sentences.insert(rng.randrange(2), _aside(rng, item, label))
    sentences.insert(rng.randrange(len(sentences) + 1), _capitalised(rng.choice(CONCLUSIONS[label])))
    if rng.random() < 0.2:
        sentences.append(_judgement(rng, item, label, kinds, labelled=False))
    return " ".join(sentences)


def generate(n: int, *, seed: int, labelled: bool = True, kinds: Sequence[str] = tuple(KINDS)) -> list[dict[str, Any]]:
    """Draw ``n`` different texts of these kinds of judgement, half of each sentiment, in random order.

    Returns rows ``{"text", "label"}``, or ``{"text"}`` with ``labelled=False``.
    """
    rng = random.Random(seed)
    labels = [i % 2 for i in range(n)]
    rng.shuffle(labels)
    seen: set[bytes] = set()
    rows: list[dict[str, Any]] = []
    for label in labels:
        while True:
            text = _labelled_text(rng, label, kinds) if labelled else _unlabelled_text(rng, label, kinds)
            if (key := _digest(text)) not in seen:
                break
        seen.add(key)
        rows.append({"text": text, "label": label} if labelled else {"text": text})
    return rows


def demo_dataset(*, train: int = 700, validation: int = 300, test: int = 1000, seed: int = 0) -> DatasetDict:
    """The demo's clean labelled splits: ``train`` (the pool), ``validation`` (the queries) and ``test``.

    No text occurs twice, in one split or in two. Columns: ``text`` and ``label`` (a ``ClassLabel``).
    """
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=list(LABEL_NAMES))})
    rows = generate(train + validation + test, seed=seed)
    parts = {
        "train": rows[:train],
        "validation": rows[train : train + validation],
        "test": rows[train + validation :],
    }
    return DatasetDict({name: Dataset.from_list(part, features=features) for name, part in parts.items()})


def flip_labels(
    labels: Sequence[int], fraction: float, seed: int, *, classes: int | None = None
) -> tuple[list[int], list[bool]]:
    """Move ``round(fraction * len(labels))`` labels, drawn at random, each to another class drawn at random.

    Returns the new labels and the mask of those moved. ``classes`` defaults to the largest label plus one.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"flip_labels got fraction={fraction}; it must lie between 0 and 1.")
    count = round(fraction * len(labels))
    classes = max(labels, default=-1) + 1 if classes is None else classes
    if count and classes < 2:
        raise ValueError(f"flip_labels got labels of {classes} class; moving a label needs at least 2 classes.")
    rng = np.random.default_rng(seed)
    moved = [int(label) for label in labels]
    mask = [False] * len(moved)
    for i in rng.choice(len(moved), size=count, replace=False).tolist() if count else []:
        moved[i] = (moved[i] + int(rng.integers(1, classes))) % classes
        mask[i] = True
    return moved, mask
