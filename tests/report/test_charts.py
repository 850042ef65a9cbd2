"""Charts: well-formed SVG, every row in a bar, round ticks, every limit drawn."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from hfdataopt.report.charts import Series, histogram, kept_and_dropped, lines, number, ticks


def test_every_row_is_in_a_bar_and_known_errors_at_its_foot():
    values = np.random.default_rng(0).standard_cauchy(500)
    marked = np.arange(500) % 7 == 0
    tree = ElementTree.fromstring(histogram(values, "<score>", signed=True, marked=marked, name='a"b'))
    titles = [one.text for one in tree.iter("title")]
    feet = [(int(t.split()[0]), int(t.split()[2])) for t in titles if "known" in t]
    plain = sum(int(t.split()[0]) for t in titles if "known" not in t)
    assert plain + sum(count for known, count in feet if known == count) == 500
    assert sum(known for known, _ in feet) == marked.sum()


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [1e-300, 2e-300], [-1e300, 1e300], [5.0, 5.0 + 1e-13]])
def test_strange_values_make_a_chart(values):
    tree = ElementTree.fromstring(histogram(np.array(values), "score", signed=True))
    numbers = re.findall(r"[-\d.]+|nan|inf", " ".join(one.get("height", "") for one in tree.iter("rect")))
    assert all(0 <= float(one) <= 300 for one in numbers)


def test_whiskers_only_where_there_is_an_interval():
    nan = float("nan")
    series = [Series("a", [1, 2, 3], [1.0, nan, 3.0], 0, [0.5, nan, nan], [1.5, nan, nan]), Series("b", [], [], 1)]
    tree = ElementTree.fromstring(lines(series, "x", "y", "words"))
    kinds = [one.get("class", "") for one in tree.iter()]
    assert sum("whisker" in kind for kind in kinds) == 1
    assert sum(kind.startswith("dot") for kind in kinds) == 2
    titles = [one.text for one in tree.iter("title")]
    assert titles == ["a: 1 at 1", "a: 3 at 3"]


def test_kept_and_dropped_add_up():
    tree = ElementTree.fromstring(kept_and_dropped([0, 1, 2], [(5, 2), (3, 3)], "x"))
    titles = [one.text for one in tree.iter("title")]
    assert titles == ["2 kept from 0 to 1", "3 dropped from 0 to 1", "3 kept from 1 to 2"]


def test_ticks_are_round_and_inside():
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(3, 3) == [3]
    for low, high in ((-0.0043, 0.0029), (17, 90_000), (1e-9, 3e-9)):
        found = ticks(low, high)
        assert 3 <= len(found) <= 8
        assert all(low <= one <= high for one in found)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(0.0, "0"), (-0.12345, "−0.123"), (12345.6, "12,346"), (1e20, "1e+20"), (float("nan"), "–"), (999.9, "1e+03")],
)
def test_number(value, wanted):
    assert number(value) == wanted
