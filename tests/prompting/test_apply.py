"""A prompt put into datasets: plain, conversational, batched, in processes, on streams, kept and read again."""

import json

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hfdataopt.errors import DataError, StoreError
from hfdataopt.prompting.apply import ApplyPrompt
from hfdataopt.prompting.candidate import Candidate, Exemplar

USER = {"role": "user", "content": "hi"}
SYSTEM = {"role": "system", "content": "Own rules."}
PUT = ApplyPrompt("Be brief.", (Exemplar("two", "2"),))
TURNS = [{"role": "user", "content": "two"}, {"role": "assistant", "content": "2"}]
HEAD = {"role": "system", "content": "Be brief."}


# -- one prompt


def test_the_instruction_is_the_system_message_and_exemplars_are_turns():
    assert PUT.render([USER]) == [HEAD, *TURNS, USER]


def test_it_stands_in_front_of_a_system_message_that_is_there():
    both = {"role": "system", "content": "Be brief.\n\nOwn rules."}
    assert PUT.render([SYSTEM, USER]) == [both, *TURNS, USER]
    developer = PUT.render([{"role": "developer", "content": "Own rules.", "name": "me"}, USER])
    assert developer[0] == {"role": "developer", "content": "Be brief.\n\nOwn rules.", "name": "me"}
    assert PUT.render([{"role": "system", "content": ""}, USER])[0] == HEAD
    parts = [{"type": "text", "text": "Own rules."}]
    assert PUT.render([{"role": "system", "content": parts}, USER])[0]["content"] == [
        {"type": "text", "text": "Be brief.\n\n"},
        *parts,
    ]


def test_without_an_instruction_nothing_is_added():
    assert ApplyPrompt().render([SYSTEM, USER]) == [SYSTEM, USER]
    assert ApplyPrompt().render("hi") == "hi"
    assert ApplyPrompt("", PUT.exemplars).render([SYSTEM, USER]) == [SYSTEM, *TURNS, USER]


def test_text_has_a_blank_line_between_and_a_space_before_an_answer():
    assert PUT.render("hi") == "Be brief.\n\ntwo 2\n\nhi"
    assert (
        ApplyPrompt("", (Exemplar("Q: two\nA:\n", "2\n"), Exemplar("", "3"))).render("hi") == "Q: two\nA:\n2\n\n3\n\nhi"
    )


def test_the_row_itself_is_left_as_it_is():
    row = {"prompt": [dict(SYSTEM), dict(USER)], "other": 1}
    assert set(PUT(row)) == {"prompt"}
    assert row == {"prompt": [SYSTEM, USER], "other": 1}


# -- datasets

PLAIN = Dataset.from_dict({"prompt": [f"q{i}" for i in range(7)], "level": list(range(7))})
CHAT = Dataset.from_dict(
    {"prompt": [[{"role": "user", "content": f"q{i}"}] for i in range(7)], "level": list(range(7))}
)


@pytest.mark.parametrize("data", [PLAIN, CHAT], ids=["plain", "conversational"])
def test_rows_batches_processes_and_streams_give_the_same(data):
    expected = [PUT.render(prompt) for prompt in data["prompt"]]
    for found in (
        data.map(PUT),
        data.map(PUT, batched=True, batch_size=3),
        data.map(PUT, num_proc=2),
        Dataset.from_list(list(data.to_iterable_dataset().map(PUT))),
        Dataset.from_list(list(data.to_iterable_dataset().map(PUT, batched=True, batch_size=2))),
    ):
        assert found["prompt"][:] == expected
        assert found["level"][:] == list(range(7))


def test_preference_and_language_modelling_rows():
    good, bad = {"role": "assistant", "content": "yo"}, {"role": "assistant", "content": "no"}
    explicit = {"prompt": [USER], "chosen": [good], "rejected": [bad]}
    assert {**explicit, **PUT(explicit)} == {"prompt": [HEAD, *TURNS, USER], "chosen": [good], "rejected": [bad]}
    assert PUT({"chosen": [USER, good], "rejected": [USER, bad]}) == {
        "chosen": [HEAD, *TURNS, USER, good],
        "rejected": [HEAD, *TURNS, USER, bad],
    }
    assert PUT({"messages": [USER, good]}) == {"messages": [HEAD, *TURNS, USER, good]}
    assert PUT({"messages": [[USER, good], [USER, bad]]})["messages"][1][-1] == bad


def test_the_fingerprint_changes_with_the_instruction_only():
    def fingerprint(put):
        return PLAIN.map(put)._fingerprint

    first = fingerprint(ApplyPrompt("a"))
    assert fingerprint(ApplyPrompt("a")) == first
    others = {fingerprint(x) for x in (ApplyPrompt("b"), ApplyPrompt("a", PUT.exemplars), ApplyPrompt("a", version=2))}
    assert len(others) == 3
    assert first not in others


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"text": "hi"}, "no column 'prompt'.*it has: text"),
        ({"chosen": "yes", "rejected": "no"}, "without a column 'prompt'"),
        ({"messages": "hi"}, "without a column 'prompt', 'messages' must hold messages"),
        ({"prompt": [1, 2]}, "must be text or a list of messages"),
        ({"prompt": None}, "must be text or a list of messages"),
    ],
)
def test_rows_without_a_prompt_are_refused(row, match):
    with pytest.raises(DataError, match=match):
        PUT(row)


# -- kept

texts = st.text(max_size=20)
puts = st.builds(ApplyPrompt, texts, st.lists(st.builds(Exemplar, texts, texts), max_size=3).map(tuple))


@given(put=puts)
@settings(max_examples=50, deadline=None)
def test_what_is_saved_is_read_again(tmp_path_factory, put):
    folder = tmp_path_factory.mktemp("prompt")
    path = put.save(folder / "new")
    assert ApplyPrompt.load(path) == ApplyPrompt.load(folder / "new") == put
    candidate = Candidate(put.instruction, put.exemplars, latent=(0.5,), parents=("a",), origin="b")
    read = Candidate.from_json(json.loads(json.dumps(candidate.to_json())))
    assert (read, read.latent, read.parents, read.origin) == (candidate, (0.5,), ("a",), "b")
    assert ApplyPrompt.of(read) == put


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"instruction": "a", "exemplars": [["x"]], "version": 1}'])
def test_anything_else_is_no_saved_prompt(tmp_path, content):
    if content is not None:
        (tmp_path / "prompt.json").write_text(content)
    with pytest.raises(StoreError, match="is no saved prompt"):
        ApplyPrompt.load(tmp_path)
