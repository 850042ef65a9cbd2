"""Messages are one printable line, whatever they quote."""

import pickle

import pytest

from hfdataopt.errors import LONGEST, DataError, HfDataOptError, MissingDependencyError, OptionError, first_line


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("a: got 3; pass 4", "a: got 3; pass 4"),
        ("a:\n  [[0.]\n\n   [1.]]\r\n", "a:; [[0.]; [1.]]"),
        ("\x1b[31mred\x00 \u202eright to left", "\\x1b[31mred\\x00 \\u202eright to left"),
        ("a lone \ud800, é and \U0001f600", "a lone \\ud800, é and \U0001f600"),
        ("", ""),
    ],
)
@pytest.mark.parametrize("kind", [HfDataOptError, OptionError, DataError, MissingDependencyError])
def test_a_message_is_one_printable_line(kind, message, line):
    error = kind(message)
    assert str(error) == first_line(error) == line
    assert str(pickle.loads(pickle.dumps(error))) == line


def test_a_long_message_keeps_its_beginning_and_its_end():
    said = str(DataError(f"row 3 has {'x' * 5000}; leave it out"))
    assert len(said) == LONGEST
    assert said.startswith("row 3 has xxx")
    assert said.endswith("xxx; leave it out")
    assert " ... " in said


def test_a_missing_package_is_an_import_error():
    with pytest.raises(ImportError, match="pip install"):
        raise MissingDependencyError("give pip install 'hfdataopt[ui]'")
