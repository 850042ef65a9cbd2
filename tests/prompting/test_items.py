"""Rows as items: what is scored, what is shown, what stays fresh; bad rows are named."""

from collections import Counter

import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from hfdataopt.errors import DataError
from hfdataopt.prompting.config import PromptConfig
from hfdataopt.prompting.items import columns_of, content_of, read_items, split_items

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "yo"}


def read(rows, **options):
    return read_items(rows, PromptConfig(**options), "train_dataset")


def item(row, **options):
    (found,) = read([row], **options)
    return found


# -- reading


def test_prompts_answers_and_columns_of_trls_formats():
    one = item({"prompt": "2 + 2", "completion": " 4 ", "level": 3})
    assert (one.id, one.prompt, one.input, one.output) == (0, "2 + 2", "2 + 2", "4")
    assert one.columns == {"completion": " 4 ", "level": 3}
    chat = item({"prompt": [{"role": "system", "content": "s"}, USER], "completion": [ANSWER]})
    assert (chat.input, chat.output) == ("hi", "yo")
    explicit = item({"prompt": "p", "chosen": "good", "rejected": "bad"})
    assert (explicit.prompt, explicit.output) == ("p", "good")
    other = {"role": "assistant", "content": "no"}
    implicit = item({"chosen": [USER, ANSWER], "rejected": [USER, other]})
    assert (implicit.prompt, implicit.output) == ([USER], "yo")
    lines = item({"messages": [USER, ANSWER]})
    assert (lines.prompt, lines.output) == ([USER], "yo")
    unpaired = item({"prompt": "p", "completion": "c", "label": True})
    assert unpaired.columns["label"] is True


def test_what_proposers_see_can_be_named():
    row = {"prompt": "long text", "question": "short", "wanted": ["w", "v"], "answer": "a"}
    one = item(row, input_column="question", answer_column="wanted")
    assert (one.input, one.output) == ("short", "w")
    assert item({"prompt": "p", "input": " i "}).input == "i"
    assert item({"prompt": "p", "answer": 4}).output == "4"
    assert item({"prompt": "p"}).output is None


def test_ids_are_the_rows_own_or_positions():
    assert [one.id for one in read([{"prompt": "a"}, {"prompt": "b"}])] == [0, 1]
    rows = [{"prompt": "a", "row_id": "x"}, {"prompt": "b", "row_id": "y"}]
    assert [one.id for one in read(rows)] == ["x", "y"]
    assert [one.id for one in read_items(rows, PromptConfig(), "eval_dataset")] == ["eval/x", "eval/y"]
    with pytest.raises(DataError, match="2 rows have 1 different row_id"):
        read([rows[0], rows[0]])


def test_datasets_lists_and_streams_are_read_alike():
    rows = [{"prompt": f"p{i}", "answer": str(i)} for i in range(5)]
    data = Dataset.from_list(rows)
    assert read(rows) == read(data) == read(data.to_iterable_dataset())


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (None, "must be a dataset or a list of rows; got None"),
        ("file.jsonl", "got 'file.jsonl'"),
        (3, "must be a dataset or a list of rows; got 3"),
        ([], "has no rows"),
        (Dataset.from_dict({"prompt": []}), "has no rows"),
        (DatasetDict({"train": Dataset.from_dict({"prompt": ["a"]})}), "a DatasetDict; hand over one split"),
        ([{"text": "a"}], "row 0 has no prompt.*its columns are text"),
        ([{"prompt": "a"}, {"prompt": None}], "row 1 has no prompt"),
        ([{"prompt": " ", "row_id": "x"}], "row 'x' has no prompt"),
        ([{"prompt": []}], "row 0 has no prompt"),
        ([{"prompt": 3}], "row 0 has no prompt"),
        (["text"], "row 0 is no row with columns; got 'text'"),
    ],
)
def test_bad_rows_are_named(rows, match):
    with pytest.raises(DataError, match=match) as caught:
        read(rows)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("PromptTrainer: train_dataset")


@pytest.mark.parametrize("option", ["input_column", "answer_column"])
def test_columns_that_are_not_there_are_named(option):
    with pytest.raises(DataError, match="row 0 has no column 'other'; it has: prompt"):
        read([{"prompt": "a"}], **{option: "other"})


# -- parts


@given(
    rows=st.integers(1, 60),
    items=st.integers(1, 30),
    shown=st.integers(0, 20),
    wanted=st.booleans(),
    other=st.integers(0, 12),
    seed=st.integers(0, 3),
)
@settings(max_examples=200, deadline=None)
def test_scored_shown_and_fresh_items_never_overlap(rows, items, shown, wanted, other, seed):
    config = PromptConfig(items=items, examples=shown, seed=seed)
    train = read_items([{"prompt": f"p{i}", "answer": "a"} for i in range(rows)], config, "train_dataset")
    fresh = read_items([{"prompt": f"e{i}"} for i in range(other)], config, "eval_dataset") if other else None
    if rows < items + wanted or (wanted and not shown):
        with pytest.raises(DataError):
            split_items(train, fresh, config, wanted)
        return
    found = split_items(train, fresh, config, wanted)
    everyone = [one.id for part in (found.items, found.examples, found.fresh) for one in part]
    assert max(Counter(everyone).values()) == 1
    assert len(found.items) == items
    assert len(found.examples) <= shown
    assert not wanted or found.examples
    if fresh is None:
        assert len(everyone) == rows
    else:
        assert sorted(one.id for one in found.fresh) == sorted(one.id for one in fresh)
    assert split_items(train, fresh, config, wanted) == found


def test_the_parts_depend_on_the_seed_and_not_on_what_the_budget_or_the_optimizer_is():
    train = read([{"prompt": f"p{i}", "answer": "a"} for i in range(40)])
    first = split_items(train, None, PromptConfig(items=10), False)
    assert split_items(train, None, PromptConfig(items=10, max_calls=7), True) == first
    assert split_items(train, None, PromptConfig(items=10, seed=1), False).items != first.items
    assert split_items(train, None, PromptConfig(items=12), False).items[:10] == first.items


def test_too_few_rows_say_what_would_do():
    train = read([{"prompt": f"p{i}", "answer": "a"} for i in range(5)])
    with pytest.raises(DataError, match=r"has 5 row.*items=6 are scored; lower items to at most 5"):
        split_items(train, None, PromptConfig(items=6), False)
    with pytest.raises(DataError, match="needs others as examples; lower items to at most 4"):
        split_items(train, None, PromptConfig(items=5), True)
    bare = read([{"prompt": f"p{i}"} for i in range(9)])
    with pytest.raises(DataError, match=r"no row has one .*set answer_column"):
        split_items(bare, None, PromptConfig(items=5), True)
    with pytest.raises(DataError, match="examples=0"):
        split_items(train, None, PromptConfig(items=3, examples=0), True)


def test_columns_as_lists_with_none_where_a_row_lacks_one():
    found = columns_of(read([{"prompt": "a", "x": 1}, {"prompt": "b", "y": 2}]))
    assert found == {"x": [1, None], "y": [None, 2]}


def test_the_content_of_items_is_the_same_in_every_process_and_changes_with_each_value():
    class Image:
        pass

    def content(value):
        return content_of(read([{"prompt": "a", "level": 1, "x": value}]))

    assert content(Image()) == content(Image())
    assert len({content(1), content(2), content([1]), content(Image())}) == 4
