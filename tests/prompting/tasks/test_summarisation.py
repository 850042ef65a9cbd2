"""Summaries: layouts, and ROUGE against values worked out by hand and against subsequences counted by brute force."""

import itertools
import json
import random

import pytest

from hfdataopt.errors import DataError, OptionError
from hfdataopt.prompting.tasks import load_summarisation, rouge_1, rouge_2, rouge_l, rouge_reward

ROWS = [
    {"id": "1", "dialogue": "Ann: Hi\r\nBob: Hello", "summary": "They greet."},
    {"id": "2", "dialogue": " ", "summary": "Nothing."},
    {"id": "3", "dialogue": "Ann: Bye", "summary": "Ann leaves. "},
]


def test_layouts(tmp_path, capsys):
    lines = tmp_path / "train.jsonl"
    lines.write_text("\n".join(map(json.dumps, ROWS)) + "\n")
    rows = load_summarisation(lines)
    assert rows["answer"] == ["They greet.", "Ann leaves."]
    assert rows[0]["prompt"] == "Input: Ann: Hi\nBob: Hello\nOutput:"
    assert rows["references"] == [["They greet."], ["Ann leaves."]]
    assert "1 of 3 rows have no dialogue or no summary" in capsys.readouterr().err
    assert load_summarisation(tmp_path, split="train").to_list() == rows.to_list()
    examples = {str(i): {"input": row["dialogue"], "output": row["summary"]} for i, row in enumerate(ROWS)}
    (tmp_path / "samsum.json").write_text(json.dumps({"metadata": {}, "examples": examples}))
    assert load_summarisation(tmp_path / "samsum.json", dialogue="input", summary="output").to_list() == rows.to_list()
    with pytest.raises(DataError, match="has no 'dialogue'; it has input, output"):
        load_summarisation(tmp_path / "samsum.json")
    with pytest.raises(DataError, match=r"holds no test\.jsonl or test\.json"):
        load_summarisation(tmp_path, split="test")
    with pytest.raises(DataError, match="no file or folder here"):
        load_summarisation("no/such-dataset-anywhere")
    lines.write_text(json.dumps(ROWS[1]))
    with pytest.raises(DataError, match="no row"):
        load_summarisation(lines)


def test_rouge_by_hand():
    wanted, found = "the cat sat on the mat", "The cat was on the mat!"
    assert rouge_1(found, wanted) == pytest.approx(10 / 12)  # the x2, cat, on, mat
    assert rouge_2(found, wanted) == pytest.approx(6 / 10)  # the cat, on the, the mat
    assert rouge_l(found, wanted) == pytest.approx(10 / 12)
    assert rouge_l("mat the on", wanted) == pytest.approx(4 / 9)  # the on
    assert rouge_1("the the the the", "the cat") == pytest.approx(2 / 6)  # counts are clipped
    assert rouge_1("gänse", "gans") == 0
    for rouge in (rouge_1, rouge_2, rouge_l):
        assert rouge(wanted, ["other", wanted]) == 1
        assert rouge("", wanted) == rouge(wanted, "") == rouge("", "") == 0
    assert rouge_2("one", "one") == 0  # no pairs


def test_longest_common_subsequence_by_brute_force():
    draw = random.Random(0)
    for _ in range(30):
        one, other = (draw.choices("abc", k=draw.randint(1, 7)) for _ in range(2))
        parts = [set(), set()]
        for found, words in zip(parts, (one, other), strict=True):
            for size in range(1, len(words) + 1):
                found.update(itertools.combinations(words, size))
        longest = max((len(part) for part in parts[0] & parts[1]), default=0)
        assert rouge_l(" ".join(one), " ".join(other)) == pytest.approx(2 * longest / (len(one) + len(other)))


def test_rewards():
    completions = [[{"role": "assistant", "content": "They greet."}], "no"]
    for kind in ("1", "2", "L"):
        reward = rouge_reward(kind)
        assert reward.__name__ == f"rouge_{kind.lower()}"
        assert reward(completions=completions, references=[["They greet."], ["yes"]]) == [1, 0]
    with pytest.raises(OptionError, match="kind='3'"):
        rouge_reward("3")
