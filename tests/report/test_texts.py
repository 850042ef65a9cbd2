"""Text for a page: what does not show gets a sign, what is long is cut."""

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hfdataopt.errors import DataError
from hfdataopt.report.texts import RowTexts, shown, visible


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("plain\tand\nlines", "plain\tand\nlines"),
        ("a\r\nb\rc", "a\nb\u240dc"),
        ("\x00\x1f\x7f", "\u2400\u241f\u2421"),
        ("\x85", "[U+0085]"),
        ("\u202eevil\u2069", "[U+202E]evil[U+2069]"),
        ("a\u200bb\ufeff", "a[U+200B]b[U+FEFF]"),
        ("\U000e0041", "[U+E0041]"),
        ("\ud800x", "[U+D800]x"),
        ("\U0001f468\u200d\U0001f467", "\U0001f468\u200d\U0001f467"),
        ("\u200d\u200d", "[U+200D][U+200D]"),
        ("\u05e9\u05dc\u05d5\u05dd", "\u05e9\u05dc\u05d5\u05dd"),
    ],
)
def test_visible(text, wanted):
    assert visible(text) == wanted
    visible(text).encode("utf-8")


def test_cut():
    assert shown("x" * 601).note == "cut after 600 of 601 characters"
    assert shown("x" * 600).note == ""


def test_messages_labels_and_many_fields():
    features = Features(
        {
            "messages": [{"role": Value("string"), "content": Value("string")}],
            "label": ClassLabel(names=["no", "yes"]),
            "n": Value("int64"),
        }
    )
    turns = [{"role": "user", "content": f"turn {k}"} for k in range(8)]
    rows = RowTexts(Dataset.from_dict({"messages": [turns], "label": [1], "n": [3]}, features=features), None, None)
    found = rows.of(0)
    assert found.label.text == "yes"
    assert [name for name, _ in found.fields] == ["user"] * 6 + [""]
    assert found.fields[-1][1].note == "2 more fields or messages are left out"
    assert rows.of(9).fields == []


def test_rows_without_text_are_shown_as_they_are():
    rows = RowTexts(Dataset.from_dict({"n": [3]}), None, None)
    assert rows.of(0).fields[0][1].text == "{'n': 3}"
    with pytest.raises(DataError, match="no column 'x'"):
        RowTexts(Dataset.from_dict({"n": [3]}), "x", None)
