"""A prompt that was found here runs in a program of DSPy."""

import sys

import pytest

from hfdataopt.errors import DataError, MissingDependencyError, OptionError
from hfdataopt.prompting.apply import ApplyPrompt
from hfdataopt.prompting.candidate import Candidate, Exemplar
from hfdataopt_plugins.bridges.dspy_program import apply_to_dspy

FOUND = Candidate("Name the capital.", (Exemplar("France", "Paris"), Exemplar("Peru", "Lima")))


@pytest.fixture
def dspy():
    return pytest.importorskip("dspy", reason="the package dspy is not installed: tests/bridges/run.py makes it so")


def test_without_dspy_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dspy", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'hfdataopt\[dspy\]'"):
        apply_to_dspy(FOUND, None)


@pytest.mark.parametrize("prompt", [FOUND, ApplyPrompt.of(FOUND)])
def test_the_model_reads_instruction_and_demonstrations(prompt, dspy):
    program = dspy.Predict("country -> capital")
    changed = apply_to_dspy(prompt, program)
    model = dspy.utils.DummyLM([{"capital": "Oslo"}])
    with dspy.context(lm=model):
        assert changed(country="Norway").capital == "Oslo"
    messages = model.history[-1]["messages"]
    assert "Name the capital." in messages[0]["content"]
    text = "\n".join(message["content"] for message in messages)
    for shown in ("France", "Paris", "Peru", "Lima"):
        assert shown in text
    assert program.demos == []
    assert "Name the capital." not in program.signature.instructions


def test_a_predictor_is_named_where_there_are_several(dspy):
    class Two(dspy.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = dspy.Predict("a -> b"), dspy.Predict("b, c -> d")

    with pytest.raises(OptionError, match="name one predictor of the program: one, other"):
        apply_to_dspy(FOUND, Two())
    with pytest.raises(OptionError, match="no predictor 'none'"):
        apply_to_dspy(FOUND, Two(), "none")
    with pytest.raises(DataError, match="b, c -> d"):
        apply_to_dspy(FOUND, Two(), "other")
    changed = apply_to_dspy(Candidate("Think."), Two(), "other")
    assert changed.other.signature.instructions == "Think."
    assert [dict(demo) for demo in apply_to_dspy(FOUND, Two(), "one").one.demos] == [
        {"a": "France", "b": "Paris"},
        {"a": "Peru", "b": "Lima"},
    ]
