"""Scenes: what a text names is what is drawn and what the user sees; the search's features are other than the user's."""

import random
import sys

import numpy as np
import pytest

pytest.importorskip("PIL")

from PIL import Image

from hfdataopt.errors import MissingDependencyError, OptionError
from hfdataopt.prompting.tasks.text_to_image import (
    COLOURS,
    SHAPES,
    SIZES,
    Scene,
    SimulatedUser,
    Thing,
    descriptions,
    draw_scene,
    image_features,
    parse,
    render,
    see,
    similarity,
)

TARGET = "a large red circle left of a small blue square on green"


def short(text):
    scene = parse(text)
    sizes = {radius: name for name, radius in SIZES.items()}
    return scene.background, [(sizes[thing.radius], thing.colour, thing.shape) for thing in scene.things]


@pytest.mark.parametrize(
    ("text", "background", "things"),
    [
        (TARGET, "green", [("large", "red", "circle"), ("small", "blue", "square")]),
        ("two tiny pink stars", "white", [("tiny", "pink", "star")] * 2),
        ("3 big gray boxes on a brown background", "brown", [("large", "grey", "square")] * 3),
        ("Background: black. A cross!", "black", [("medium", "grey", "cross")]),
        ("on yellow, with a diamond", "yellow", [("medium", "grey", "diamond")]),
        ("a red ball on a blue square", "white", [("medium", "red", "circle"), ("medium", "blue", "square")]),
        ("as it is: nothing of note", "white", []),
        ("", "white", []),
    ],
)
def test_words(text, background, things):
    assert short(text) == (background, things)


def test_places():
    def where(text):
        return [(thing.x, thing.y) for thing in parse(text).things]

    (ax, ay), (bx, by) = where(TARGET)
    assert bx - ax > 0.3
    assert abs(ay - by) < 0.04
    (ax, ay), (bx, by) = where("a circle to the right of a square")
    assert ax - bx > 0.3
    for word in ("above", "over", "on top of"):
        (ax, ay), (bx, by) = where(f"a circle {word} a square")
        assert by - ay > 0.3
        assert abs(ax - bx) < 0.04
    (ax, ay), (bx, by) = where("a tiny circle inside a huge square")
    assert abs(ax - bx) + abs(ay - by) < 0.06
    [(x, y)] = where("a circle at the bottom right")
    assert x > 0.7
    assert y > 0.7
    [(x, y)] = where("in the top left a circle")
    assert max(x, y) < 0.3
    [(x, y)] = where("a circle on the left of the picture")
    assert x < 0.3
    assert abs(y - 0.5) < 0.03
    xs = [x for x, _ in where("three small circles and a square")]
    assert xs == sorted(xs)
    assert all(0.05 < x < 0.95 for x in xs)


def test_deterministic_by_text_and_seed():
    assert render(TARGET, 1).tobytes() == render(TARGET, 1).tobytes()
    assert render(TARGET, 1).tobytes() != render(TARGET, 2).tobytes()
    assert render(TARGET, size=64).size == (64, 64)
    one, other = parse(TARGET, 1), parse(TARGET, 2)
    assert all(abs(a.x - b.x) < 0.04 for a, b in zip(one.things, other.things, strict=True))


def test_what_is_drawn_is_seen():
    draw = random.Random(0)
    right = total = 0
    for _ in range(60):
        background, *colours = draw.sample(list(COLOURS), 3)
        sizes = [draw.choice(list(SIZES.values())) for _ in range(2)]
        things = [Thing(draw.choice(SHAPES), colours[i], sizes[i], 0.25 + 0.5 * i, 0.5) for i in range(2)]
        seen = see(draw_scene(Scene(background, tuple(things))))
        assert seen.background == background
        found = {thing.colour: thing for thing in seen.things}
        assert set(found) == set(colours)
        for thing in things:
            one = found[thing.colour]
            assert abs(one.x - thing.x) < 0.03
            assert abs(one.y - thing.y) < 0.03
            assert abs(one.radius - thing.radius) < 0.025
            right += one.shape == thing.shape
            total += 1
    assert right >= 0.95 * total


def test_the_user_prefers_what_is_nearer_to_the_target():
    user = SimulatedUser(TARGET)

    def score(text, seed=7):
        return user.score(render(text, seed))

    assert score(TARGET) > 0.97
    assert score(f"please draw {TARGET}") > 0.97
    for worse in ("a large red circle right of a small blue square on green", TARGET.replace("red", "pink")):
        assert 0.6 < score(worse) < 0.95
    assert score(TARGET.replace("red", "pink").replace("square", "star")) < score(TARGET.replace("red", "pink"))
    assert score("a large red circle on green") < 0.65
    assert score("nothing") == 0
    assert score(TARGET + " and two black stars") < 0.75
    with pytest.raises(OptionError, match="nothing can be seen"):
        SimulatedUser("a white circle on white")


def test_similarity_is_symmetric_and_1_for_the_same():
    scenes = [see(render(text)) for text in descriptions(TARGET, 8)]
    for one in scenes:
        assert similarity(one, one) == pytest.approx(1)
        for other in scenes:
            assert similarity(one, other) == pytest.approx(similarity(other, one))


def test_features():
    image = render(TARGET)
    features = image_features([image, render(TARGET, 1), render("a huge yellow star on black")])
    assert features.shape == (3, 384)
    assert features.dtype == np.float32
    assert (features[:1] == image_features([image.copy()])).all()
    assert np.allclose(image_features([Image.new("L", (10, 10), 0)])[0, :192], -0.5)
    assert (image_features([Image.new("RGB", (64, 64))])[0, 192:320] == 0).all()  # no edges
    same, other = np.linalg.norm(features[1:] - features[0], axis=1)
    assert same < 0.3 * other
    assert image_features([]).shape == (0, 384)


def test_features_predict_the_user_without_being_the_users():
    """A ridge regression on features of 100 images ranks 100 others as the user does, though not perfectly."""
    pool = descriptions(TARGET, 200, seed=1)
    images = [render(text) for text in pool]
    x = image_features(images).astype(float)
    user = SimulatedUser(TARGET)
    y = np.array([user.score(image) for image in images])
    x = x - x[:100].mean(axis=0)
    guess = x[100:] @ x[:100].T @ np.linalg.solve(x[:100] @ x[:100].T + 0.3 * np.eye(100), y[:100] - y[:100].mean())
    ranks = [np.argsort(np.argsort(values)) for values in (guess, y[100:])]
    assert 0.4 < np.corrcoef(*ranks)[0, 1] < 0.99


def test_descriptions():
    pool = descriptions(TARGET, 200, seed=0)
    assert len(set(pool)) == 200
    assert pool == descriptions(TARGET, 200, seed=0)
    assert pool != descriptions(TARGET, 200, seed=1)
    kept = [text for text in pool if TARGET in text]
    assert len(kept) == 4
    assert TARGET not in pool
    with pytest.raises(OptionError, match="be named"):
        descriptions("something nice", 3)
    with pytest.raises(OptionError, match="ask for fewer"):
        descriptions("the cross", 500)


def test_without_pillow(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'hfdataopt\[images\]'"):
        render(TARGET)
