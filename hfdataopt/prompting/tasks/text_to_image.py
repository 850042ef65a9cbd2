"""Text to image without a model: a renderer of scenes of shapes, features of images, and a user who looks at them.

The search sees images through :func:`image_features` (colours and edges on a grid), the simulated user through
:class:`SimulatedUser`, who finds the shapes in the pixels and compares them with those of an image in mind. They share
nothing, so a search cannot win by copying the user's own measure. Needs Pillow.
"""

import hashlib
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hfdataopt.errors import OptionError
from hfdataopt.prompting.tasks.files import pillow
from hfdataopt.prompting.tasks.image_encoder import ImageEncoder as ImageEncoder

WHO = "text_to_image"

COLOURS = {
    "red": (214, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 215, 50),
    "green": (45, 150, 70),
    "cyan": (70, 200, 220),
    "blue": (40, 80, 200),
    "purple": (120, 50, 160),
    "pink": (245, 150, 190),
    "brown": (120, 75, 40),
    "black": (20, 20, 20),
    "grey": (130, 130, 130),
    "white": (255, 255, 255),
}
SIZES = {"tiny": 0.06, "small": 0.09, "medium": 0.13, "large": 0.18, "huge": 0.24}  # radius / width of the image
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross")
COUNTS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
RELATIONS = {
    "left": (0.42, 0.0),
    "right": (-0.42, 0.0),
    "above": (0.0, 0.42),
    "below": (0.0, -0.42),
    "inside": (0.0, 0.0),
}
PLACES = {"left": ("x", 0.2), "right": ("x", 0.8), "top": ("y", 0.2), "bottom": ("y", 0.8)}
SAME = {
    "gray": "grey",
    "violet": "purple",
    "little": "small",
    "big": "large",
    "disc": "circle",
    "ball": "circle",
    "dot": "circle",
    "box": "square",
    "plus": "cross",
    "over": "above",
    "under": "below",
    "beneath": "below",
    "beside": "right",
    "upper": "top",
    "lower": "bottom",
    "an": "one",
    "a": "one",
}
_ALIKE = (
    tuple(COLOURS),
    tuple(SIZES),
    SHAPES,
    tuple(COUNTS)[1:],
    ("left", "right"),
    ("above", "below"),
    ("top", "bottom"),
)
_FRAMES = ("{}", "a picture of {}", "an image that shows {}", "please draw {}", "{}, in flat colours")
_JITTER = 0.015


@dataclass(frozen=True)
class Thing:
    """A shape; ``x, y`` of its centre and ``radius`` in units of the image's width, ``y`` downwards."""

    shape: str
    colour: str
    radius: float
    x: float
    y: float


@dataclass(frozen=True)
class Scene:
    """What an image shows."""

    background: str
    things: tuple[Thing, ...]


@dataclass
class _Mention:
    shape: str
    colour: str
    size: str
    count: int
    place: dict[str, float]
    relation: str | None = None  # to the next one


class _Reader:
    """Reads a description word by word; a word it does not know changes nothing."""

    def __init__(self) -> None:
        self.background = "white"
        self.mentions: list[_Mention] = []
        self.relation: str | None = None
        self.background_next = False
        self._clear()

    def _clear(self) -> None:
        self.colour: str | None = None
        self.size: str | None = None
        self.count: int | None = None
        self.place: dict[str, float] = {}
        self.behind = False  # whether the colour follows "on", and is the background unless a shape follows

    def read(self, text: str) -> None:
        words = re.findall(r"[a-z]+|\d+|,", text.lower())
        before = ""
        for place, given in enumerate(words):
            after = words[place + 1] if place + 1 < len(words) else ""
            word = _known(given)
            if word == "background":
                self.background_next = self.colour is None
                self._to_background()
            elif word in COLOURS:
                if self.background_next:
                    self.background, self.background_next = word, False
                else:
                    if self.behind:
                        self._to_background()
                    self.colour, self.behind = word, before in ("on", "against")
            elif word in SIZES:
                self.size = word
            elif word in COUNTS or (given.isdigit() and 1 <= int(given) <= 6):
                self.count = COUNTS.get(word) or int(given)
            elif given == "top" and before == "on" and after == "of":
                self.relation = "above"
            elif word in RELATIONS and (word not in PLACES or after == "of" or given == "beside"):
                self.relation = word
            elif word in PLACES:
                self._put(dict([PLACES[word]]))
            elif word in ("centre", "center", "middle"):
                self._put({"x": 0.5, "y": 0.5})
            elif word in SHAPES:
                self._shape(word)
            elif word in (",", "and", "with") and self.behind:
                self._to_background()
            before = before if given in ("a", "an", "the") else given
        if self.behind:
            self._to_background()
        if self.relation in PLACES and self.mentions:  # "on the left of the picture"
            self._clear()
            self._put(dict([PLACES[self.relation]]))

    def _to_background(self) -> None:
        self.background = self.colour or self.background
        self.relation = None
        self._clear()

    def _put(self, place: dict[str, float]) -> None:
        waiting = self.colour or self.size or self.count
        target = self.place if waiting or not self.mentions else self.mentions[-1].place
        for axis, value in place.items():
            target.setdefault(axis, value)

    def _shape(self, shape: str) -> None:
        if self.mentions:
            self.mentions[-1].relation = self.relation
        found = _Mention(shape, self.colour or "grey", self.size or "medium", self.count or 1, self.place)
        self.mentions.append(found)
        self.relation = None
        self._clear()


def _known(word: str) -> str:
    """The word in the renderer's own vocabulary, where it is there; plural as singular."""
    if word in SHAPES or word in SAME:
        return SAME.get(word, word)
    singular = (SAME.get(one, one) for one in (word.removesuffix("s"), word.removesuffix("es")))
    return next((one for one in singular if one in SHAPES), word)


def parse(text: str, seed: int = 0) -> Scene:
    """The scene that a description names: shapes with colour, size, number, place and side of the next, and a background.

    A shape is grey, of medium size and in the middle where nothing is said; words that are not known change nothing.
    Centres are moved by up to 1.5 % of the width, a function of text and seed.
    """
    reader = _Reader()
    reader.read(text)
    number = int.from_bytes(hashlib.sha256(f"{seed}/{text}".encode()).digest()[:8], "little")
    draw = random.Random(number)
    things = []
    for mention, (x, y) in zip(reader.mentions, _arranged(reader.mentions), strict=True):
        gap = min(2.3 * SIZES[mention.size], 0.7 / max(mention.count - 1, 1))
        x = min(max(x, 0.12 + gap * (mention.count - 1) / 2), 0.88 - gap * (mention.count - 1) / 2)
        for place in range(mention.count):
            aside = x + gap * (place - (mention.count - 1) / 2) + draw.uniform(-_JITTER, _JITTER)
            things.append(
                Thing(mention.shape, mention.colour, SIZES[mention.size], aside, y + draw.uniform(-_JITTER, _JITTER))
            )
    return Scene(reader.background, tuple(things))


def _arranged(mentions: list[_Mention]) -> list[tuple[float, float]]:
    """Centres: what is related stands together, groups side by side."""
    groups: list[list[int]] = []
    for place in range(len(mentions)):
        if place and mentions[place - 1].relation:
            groups[-1].append(place)
        else:
            groups.append([place])
    centres = np.zeros((len(mentions), 2))
    for number, group in enumerate(groups):
        for place in group[1:]:
            centres[place] = centres[place - 1] + RELATIONS[mentions[place - 1].relation or "inside"]
        middle = (centres[group].min(axis=0) + centres[group].max(axis=0)) / 2
        centres[group] += np.array([(number + 0.5) / len(groups), 0.5]) - middle
        for axis, name in enumerate("xy"):
            fixed = next((place for place in group if name in mentions[place].place), None)
            if fixed is not None:
                centres[group, axis] += mentions[fixed].place[name] - centres[fixed, axis]
    return [(float(x), float(y)) for x, y in centres.clip(0.12, 0.88)]


def render(text: str, seed: int = 0, size: int = 96) -> Any:
    """A PIL image ``size x size`` of :func:`parse`'s scene, always the same for the same text and seed."""
    return draw_scene(parse(text, seed), size)


def draw_scene(scene: Scene, size: int = 96) -> Any:
    """A PIL image of a scene; larger things stand behind smaller ones."""
    pil = pillow(WHO)
    image = pil.Image.new("RGB", (size, size), COLOURS[scene.background])
    canvas = pil.ImageDraw.Draw(image)
    for thing in sorted(scene.things, key=lambda thing: -thing.radius):
        x, y, r = thing.x * size, thing.y * size, thing.radius * size
        colour = COLOURS[thing.colour]
        if thing.shape == "circle":
            canvas.ellipse([x - r, y - r, x + r, y + r], fill=colour)
        elif thing.shape == "cross":
            for wide, high in ((r, r / 3), (r / 3, r)):
                canvas.rectangle([x - wide, y - high, x + wide, y + high], fill=colour)
        else:
            canvas.polygon([(x + r * across, y + r * down) for across, down in _OUTLINES[thing.shape]], fill=colour)
    return image


def _star() -> list[tuple[float, float]]:
    angles = -np.pi / 2 + np.pi / 5 * np.arange(10)
    radii = np.where(np.arange(10) % 2 == 0, 1.05, 0.42)
    return [(float(r * np.cos(a)), float(r * np.sin(a))) for r, a in zip(radii, angles, strict=True)]


_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
    "triangle": [(0, -1), (1, 1), (-1, 1)],
    "diamond": [(0, -1), (1, 0), (0, 1), (-1, 0)],
    "star": _star(),
}


def image_features(images: Sequence[Any]) -> np.ndarray:
    """Features ``[images, 384]`` float32 of PIL images for a surrogate: mean colours on an 8 x 8 grid, directions of edges
    on a 4 x 4 grid (8 bins, Dalal and Triggs 2005), a histogram of 64 colours."""
    return np.array([_features(image) for image in images], dtype=np.float32).reshape(-1, 384)


def _features(image: Any) -> np.ndarray:
    pil = pillow(WHO)
    pixels = np.asarray(image.convert("RGB").resize((64, 64), pil.Image.Resampling.BILINEAR), dtype=np.float64) / 255
    colours = pixels.reshape(8, 8, 8, 8, 3).mean(axis=(1, 3))
    down, across = np.gradient(pixels.mean(axis=2))
    bins = ((np.arctan2(down, across) + np.pi) / (2 * np.pi) * 8).astype(int) % 8
    strength = np.hypot(down, across)
    edges = np.stack([(strength * (bins == k)).reshape(4, 16, 4, 16).sum(axis=(1, 3)) for k in range(8)], axis=-1)
    level = (pixels * 3.999).astype(int) @ np.array([16, 4, 1])
    histogram = np.bincount(level.ravel(), minlength=64) / level.size
    parts = [colours.ravel() - 0.5, edges.ravel() / 8, np.sqrt(histogram)]
    return np.concatenate(parts)


class SimulatedUser:
    """A person with an image in mind: how well another shows the same, in [0, 1], read from its pixels.

    Args:
        target: a description; its rendering is what the person has in mind.
        seed: of that rendering.
    """

    def __init__(self, target: str, seed: int = 0) -> None:
        self.target = target
        self.scene = see(render(target, seed))
        if not self.scene.things:
            raise OptionError(
                f"SimulatedUser: nothing can be seen in the image of {target!r}; name a shape and its colour"
            )

    def score(self, image: Any) -> float:
        """1 for what the person has in mind (but for a few pixels), 0 for nothing of it."""
        return similarity(self.scene, see(image))


def see(image: Any) -> Scene:
    """The scene in the pixels of an image: patches of one named colour, each the shape that covers it best.

    Shapes that hide parts of each other are taken for what is left of them.
    """
    pil = pillow(WHO)
    side = 96
    pixels = np.asarray(image.convert("RGB").resize((side, side), pil.Image.Resampling.NEAREST), dtype=np.float64)
    names = list(COLOURS)
    distance = ((pixels[:, :, None] - np.array([COLOURS[name] for name in names])) ** 2).sum(axis=-1)
    nearest = distance.argmin(axis=-1)
    border = np.concatenate([nearest[0], nearest[-1], nearest[:, 0], nearest[:, -1]])
    background = int(Counter(border.tolist()).most_common(1)[0][0])
    things = []
    for patch in _patches(nearest, background):
        rows, columns = patch[:, 0], patch[:, 1]
        top, left = rows.min(), columns.min()
        high, wide = int(rows.max() - top) + 1, int(columns.max() - left) + 1
        mask = np.zeros((high, wide), dtype=bool)
        mask[rows - top, columns - left] = True
        colour = names[nearest[rows[0], columns[0]]]
        x, y = float(left + wide / 2) / side, float(top + high / 2) / side
        things.append(Thing(_shape_of(mask), colour, max(high, wide) / 2 / side, x, y))
    return Scene(names[background], tuple(things))


def _patches(colours: np.ndarray, background: int) -> list[np.ndarray]:
    """Places ``[pixels, 2]`` of each connected patch of one colour, of at least 12 pixels."""
    left = {(int(row), int(column)) for row, column in np.argwhere(colours != background)}
    found = []
    while left:
        start = min(left)
        left.remove(start)
        patch, waiting = [start], [start]
        while waiting:
            row, column = waiting.pop()
            for other in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
                if other in left and colours[other] == colours[start]:
                    left.remove(other)
                    patch.append(other)
                    waiting.append(other)
        if len(patch) >= 12:
            found.append(np.array(patch))
    return found


def _shape_of(mask: np.ndarray) -> str:
    """The shape whose outline agrees with a mask on the most pixels, after both are stretched to 24 x 24."""
    rows = (np.arange(24) + 0.5) * mask.shape[0] // 24
    columns = (np.arange(24) + 0.5) * mask.shape[1] // 24
    stretched = mask[rows.astype(int)][:, columns.astype(int)]
    return max(SHAPES, key=lambda shape: float((stretched == _template(shape)).mean()))


_TEMPLATES: dict[str, np.ndarray] = {}


def _template(shape: str) -> np.ndarray:
    if shape not in _TEMPLATES:
        drawn = np.asarray(draw_scene(Scene("white", (Thing(shape, "black", 0.4, 0.5, 0.5),)), 240))[:, :, 0] < 128
        rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
        cut = drawn[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        places = [((np.arange(24) + 0.5) * length / 24).astype(int) for length in cut.shape]
        _TEMPLATES[shape] = cut[places[0]][:, places[1]]
    return _TEMPLATES[shape]


def similarity(one: Scene, other: Scene) -> float:
    """How much two scenes agree, in [0, 1]: things matched from the most alike on, and the background (15 %)."""
    pairs = sorted(
        ((_alike(a, b), i, j) for i, a in enumerate(one.things) for j, b in enumerate(other.things)),
        key=lambda pair: (-pair[0], pair[1], pair[2]),
    )
    taken: tuple[set[int], set[int]] = (set(), set())
    total = 0.0
    for value, i, j in pairs:
        if i not in taken[0] and j not in taken[1]:
            taken[0].add(i)
            taken[1].add(j)
            total += value
    most = max(len(one.things), len(other.things))
    return 0.85 * (total / most if most else 1.0) + 0.15 * (one.background == other.background)


def _alike(one: Thing, other: Thing) -> float:
    far = (one.x - other.x) ** 2 + (one.y - other.y) ** 2
    size = 1 - min(abs(np.log(one.radius / other.radius)) / np.log(4), 1)
    place = np.exp(-far / (2 * 0.15**2))
    return float(0.35 * (one.colour == other.colour) + 0.3 * (one.shape == other.shape) + 0.15 * size + 0.2 * place)


def descriptions(target: str, n: int, *, seed: int = 0, change: float = 0.3, kept: float = 0.02) -> list[str]:
    """A pool of ``n`` different texts for a search: a share ``kept`` (at least one) says the same as ``target`` in another
    frame, the others differ in one word of the scene at least, each further one with probability ``change`` (the pool of
    APOHF's text-to-image experiment).

    Raises:
        OptionError: ``target`` names nothing that can be changed, or too little for ``n`` different texts.
    """
    draw = random.Random(seed)
    words = re.findall(r"\w+|\W+", target)
    places = {place: others for place, word in enumerate(words) if (others := _others(word))}
    if n < 1 or not places:
        raise OptionError(
            f"descriptions: n={n} texts from {target!r}; n must be at least 1, and a colour or shape be named"
        )
    same = min(max(round(kept * n), 1), len(_FRAMES) - 1)
    found = dict.fromkeys(frame.format(target) for frame in draw.sample(_FRAMES[1:], same))
    for _ in range(50 * n):
        if len(found) >= n:
            break
        forced = draw.choice(list(places))
        changed = [
            draw.choice(places[place]) if place == forced or (place in places and draw.random() < change) else word
            for place, word in enumerate(words)
        ]
        found[draw.choice(_FRAMES).format("".join(changed))] = None
    if len(found) < n:
        raise OptionError(
            f"descriptions: only {len(found)} different texts came from {target!r}; ask for fewer than n={n}"
        )
    pool = list(found)[:n]
    draw.shuffle(pool)
    return pool


def _others(word: str) -> list[str]:
    """Words that can stand for a word of a scene."""
    plural = "s" if word.lower().endswith("s") and _known(word.lower()) in SHAPES and word.lower() not in SHAPES else ""
    one = _known(word.lower())
    if word.lower() in ("a", "an"):
        return []
    return next(([other + plural for other in alike if other != one] for alike in _ALIKE if one in alike), [])
