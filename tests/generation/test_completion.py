"""Completions as JSON, as tokens behind their prompt, and as rewards get them."""

import json
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from hfdataopt.errors import DataError, OptionError
from hfdataopt.generation import (
    ColumnGenerator,
    Completion,
    as_messages,
    completion_ids,
    prompt_ids,
    unfinished_share,
)

from .. import tiny

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
MESSAGES = [{"role": "user", "content": "the film"}]


def chatty() -> Any:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def ids(words: str) -> list[int]:
    return [tiny.WORDS.index(word) if word in tiny.WORDS else 1 for word in words.split()]


def test_json_round_trip() -> None:
    for completion in (Completion("fine é\n", [3, 5], True), Completion("", None, False), Completion("", [], False)):
        assert Completion.from_json(json.loads(json.dumps(completion.to_json()))) == completion
    counted = Completion("a", None, True, 12, 3)
    assert Completion.from_json(json.loads(json.dumps(counted.to_json()))) == counted
    old = {"text": "a", "token_ids": [4], "finished": False}  # before tokens were counted
    assert Completion.from_json(old) == Completion("a", [4], False)
    bad = {**old, "prompt_tokens": "12"}
    for wrong in ({"text": "x"}, {"text": 3, "token_ids": None, "finished": True}, bad, "x"):
        with pytest.raises(DataError, match="a stored completion"):
            Completion.from_json(wrong)  # type: ignore[arg-type]


def test_unfinished_share() -> None:
    assert unfinished_share([Completion("a"), Completion("b", None, False), Completion("c", None, False)]) == 2 / 3
    assert unfinished_share([]) == 0


def test_text_prompt_keeps_only_leading_special_tokens() -> None:
    assert tiny.tokenizer()("the film")["input_ids"] == ids("[CLS] the film [SEP]")
    assert prompt_ids("the film", tiny.tokenizer(), "nice", 0) == ids("[CLS] the film")
    assert prompt_ids("the film", tiny.tokenizer(special=False), "nice", 0) == ids("the film")


def test_messages_are_rendered_once_with_the_generation_prompt() -> None:
    assert prompt_ids(MESSAGES, chatty(), "nice", 0) == ids("user the film <eos> assistant")
    expected = chatty().apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert prompt_ids(MESSAGES, chatty(), "nice", 0) == [token for token in expected if token not in (2, 3)]


def test_a_last_message_of_the_assistant_is_continued() -> None:
    begun = [*MESSAGES, {"role": "assistant", "content": "it was"}]
    assert prompt_ids(begun, chatty(), "nice", 0) == ids("user the film <eos> assistant it was")


@pytest.mark.parametrize("prompt", [None, "", "  \n", []])
def test_missing_prompts_are_named(prompt: Any) -> None:
    with pytest.raises(DataError, match="nice: row 'q7' has no prompt"):
        prompt_ids(prompt, tiny.tokenizer(), "nice", "q7")


def test_other_bad_prompts() -> None:
    with pytest.raises(DataError, match="row 3 is neither text nor a list of messages"):
        prompt_ids([1, 2], tiny.tokenizer(), "nice", 3)
    with pytest.raises(DataError, match=r"row 3 is a list of messages, but the tokenizer has no chat template"):
        prompt_ids(MESSAGES, tiny.tokenizer(), "nice", 3)
    strict = tiny.tokenizer()
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match="cannot read the messages of row 3: TemplateError: roles must alternate"):
        prompt_ids(MESSAGES, strict, "nice", 3)
    with pytest.raises(OptionError, match="nice: a tokenizer is needed; got processing_class=NoneType"):
        prompt_ids("the film", None, "nice", 3)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("prompt", ["the film", MESSAGES])
def test_text_completions_get_the_end_token_once(prompt: Any, finished: bool) -> None:
    for text in ("was fine", "was fine <eos>"):
        completion = Completion(text, None, finished)
        end = " <eos>" if finished else ""
        assert completion_ids(completion, prompt, chatty()) == ids("was fine" + end)
        assert completion_ids(completion, prompt, chatty(), eos=False) == ids("was fine")


def test_sampled_tokens_are_kept_as_they_are() -> None:
    tokenizer = tiny.tokenizer()
    sampled = Completion("was fine", ids("was fine <eos>"), True)
    assert completion_ids(sampled, "the film", tokenizer) == ids("was fine <eos>")
    assert completion_ids(sampled, "the film", tokenizer, eos=False) == ids("was fine")
    cut = Completion("was fine", ids("was fine"), False)
    assert completion_ids(cut, "the film", tokenizer, eos=False) == ids("was fine")
    assert completion_ids(Completion("", None, True), "the film", tokenizer) == ids("<eos>")
    assert completion_ids(Completion("", None, False), "the film", tokenizer) == []


def merging() -> PreTrainedTokenizerFast:
    """A byte-level BPE that merges ``:`` and ``a`` into one token, and a space with ``b``."""
    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate([*alphabet, "</s>", ":a", "Ġb"])}
    inner = Tokenizer(BPE(vocab=vocabulary, merges=[(":", "a"), ("Ġ", "b")]))
    inner.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = ByteDecoder()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")


def test_the_prompt_keeps_its_tokens_where_a_merge_would_cross_the_border() -> None:
    tokenizer = merging()
    assert tokenizer(":a")["input_ids"] == [tokenizer.convert_tokens_to_ids(":a")]
    for prompt, text in ((":", "a b"), ("x", " b"), ("é", "ü b")):
        start = prompt_ids(prompt, tokenizer, "nice", 0)
        more = completion_ids(Completion(text), prompt, tokenizer)
        assert more[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(start + more[:-1]) == prompt + text
        assert tokenizer.convert_tokens_to_ids("Ġb") in more


def test_as_messages() -> None:
    assert as_messages(Completion("fine"), "the film") == "fine"
    assert as_messages("fine", MESSAGES) == [{"role": "assistant", "content": "fine"}]


# -- completions from a column


def test_column_forms() -> None:
    answer = [{"role": "assistant", "content": "fine"}]
    rows = [{"best": "fine"}, {"best": ["fine", "poor"]}, {"best": answer}, {"best": [answer, answer]}]
    found = ColumnGenerator("best").generate(rows, keys=range(4))
    assert [[c.text for c in row] for row in found] == [["fine"], ["fine", "poor"], ["fine"], ["fine", "fine"]]
    assert all(c.token_ids is None and c.finished for row in found for c in row)
    assert [len(row) for row in ColumnGenerator("best").generate(rows, 1, keys=range(4))] == [1, 1, 1, 1]
    assert not ColumnGenerator("best").on_policy
    assert ColumnGenerator("best").describe() == {"kind": "column", "column": "best"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"worst": "x"}, "row 'r1' has no such column; it has worst"),
        ({"best": None}, "row 'r1' has no completion"),
        ({"best": []}, "row 'r1' has no completion"),
        ({"best": [None]}, "a completion of row 'r1' is neither text nor one message"),
        ({"best": MESSAGES}, "a completion of row 'r1' is neither text nor one message"),
        ({"best": ["one"]}, "row 'r1' has 1 of the 2 completions"),
    ],
)
def test_column_errors(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ColumnGenerator("best").generate([row], 2 if row == {"best": ["one"]} else None, keys=["r1"])
