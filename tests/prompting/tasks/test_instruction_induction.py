"""Instruction induction: layouts, metrics with values worked out by hand, and the published files where they are."""

import json
from pathlib import Path

import pytest

from hfdataopt.errors import DataError, OptionError
from hfdataopt.prompting.tasks import TASKS, instruction_induction_score, load_instruction_induction, reward_for
from hfdataopt.prompting.tasks.instruction_induction import metric_of, multiple_choice, normalise
from hfdataopt.rewards import RewardFunctions

DATA = Path(__file__).parents[4] / "shared" / "data" / "instruction_induction"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the data folder ../shared/data is not here")

SPECIAL = {
    "cause_and_effect": {"cause": "It rained.", "effect": "The picnic was cancelled."},
    "common_concept": {
        "concept": "involve courts.",
        "items": ["lawyers", "basketball", "walled yards"],
        "all_common_concepts": ["have courts.", "involve courts."],
    },
    "rhymes": {"input": "day", "output": "gay", "other_rhymes": ["pay", "day", "gay", "they"]},
    "taxonomy_animal": {"input": "cow, bike, dog", "output": "dog, cow", "words": ["cow", "bike", "dog"]},
    "orthography_starts_with": {"input": "Mary thinks that she is smart. [t]", "output": "thinks that"},
    "sentence_similarity": {"input": "Sentence 1: A man. Sentence 2: A dog.", "output": "1 - probably not"},
    "auto_debugging": {"input": "```\nx = [1]\nprint(x[4])\n```", "output": "IndexError: list index out of range"},
    "diff": {"input": "9 1", "output": "8", "x": 9, "y": 1},
}


def write(folder: Path, task: str, *examples: dict, split: str = "induce") -> None:
    (folder / split).mkdir(parents=True, exist_ok=True)
    document = {"metadata": {"num_examples": len(examples)}}
    document["examples"] = {str(place): example for place, example in enumerate(examples, start=1)}
    (folder / split / f"{task}.json").write_text(json.dumps(document))


def layout(task: str) -> dict:
    if task in SPECIAL:
        return SPECIAL[task]
    if task.startswith("translation"):
        return {"input": "year", "output": "Jahr", "possible_translations": ["Jahrgang", "Jahr"]}
    return {"input": "place", "output": "a gold of two words"}


@pytest.mark.parametrize("task", TASKS)
def test_every_documented_task_loads_and_its_gold_scores_1(tmp_path, task):
    for split in ("induce", "execute"):
        write(tmp_path, task, layout(task), split=split)
    induce, execute = load_instruction_induction(tmp_path, task)
    for rows in (induce, execute):
        assert rows.column_names == ["prompt", "input", "answer", "references", "task"]
        row = rows[0]
        assert row["prompt"] == f"Input: {row['input']}\nOutput:"
        assert row["answer"] == row["references"][0]
        assert row["task"] == task
        for reference in row["references"]:
            assert metric_of(task)(reference, row["references"]) == 1
    assert len(TASKS) == 33


def test_references_per_task(tmp_path):
    for task in ("rhymes", "translation_en-de", "common_concept"):
        write(tmp_path, task, layout(task))
    rhymes, none = load_instruction_induction(tmp_path, "rhymes")
    assert none is None
    assert rhymes[0]["references"] == ["gay", "pay", "they"]
    assert load_instruction_induction(tmp_path, "translation_en-de")[0][0]["references"] == ["Jahr", "Jahrgang"]
    concept = load_instruction_induction(tmp_path, "common_concept")[0][0]
    assert concept["input"] == "lawyers, basketball, walled yards"
    assert concept["references"] == ["involve courts.", "have courts."]


def test_an_echo_does_not_rhyme(tmp_path):
    write(
        tmp_path,
        "rhymes",
        layout("rhymes"),
        {"input": "happy", "output": "unhappy", "other_rhymes": ["happy", "unhappy"]},
    )
    rows = load_instruction_induction(tmp_path, "rhymes")[0]
    score = reward_for("rhymes")
    assert score(completions=rows["input"], references=rows["references"]) == [0, 0]
    assert score(completions=[f" {word.upper()}." for word in rows["input"]], references=rows["references"]) == [0, 0]
    assert score(completions=rows["answer"], references=rows["references"]) == [1, 1]
    write(tmp_path, "rhymes", {"input": "orange", "output": "orange", "other_rhymes": ["orange"]})
    with pytest.raises(DataError, match=r"example '1'.*no reference besides its input"):
        load_instruction_induction(tmp_path, "rhymes")


def test_the_order_of_cause_and_effect_is_of_seed_and_example(tmp_path):
    pairs = [{"cause": f"cause {i}.", "effect": f"effect {i}."} for i in range(40)]
    write(tmp_path, "cause_and_effect", *pairs)

    def inputs(seed):
        return list(load_instruction_induction(tmp_path, "cause_and_effect", seed=seed)[0]["input"])

    first = inputs(0)
    assert first == inputs(0)
    assert first != inputs(1)
    assert 8 < sum(text.startswith("Sentence 1: cause") for text in first) < 32
    write(tmp_path, "cause_and_effect", *pairs[:5])
    assert inputs(0) == first[:5]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (" The Cat, and the dog. They sleep.\nMore.", "the cat the dog"),
        ("2.5", "2.5"),
        ("The value is 2.5. So it is", "the value is 2.5"),
        ("-5", "-5"),
        ("- 5", "5"),
        ("twenty-three", "twenty three"),
        ("3 - probably", "3 probably"),
        ("1,234", "1234"),
        ("10-4", "10 4"),
        ("Sentence 1: It rained.", "it rained"),
        ("", ""),
    ],
)
def test_normalise(text, wanted):
    assert normalise(text) == wanted


def score(task, completion, *references):
    return instruction_induction_score([completion], references=[list(references)], task=[task])[0]


def test_metrics():
    assert score("sum", "25", "2.5") == 0  # without the point they would agree
    assert score("sum", "2.5 is the answer", "2.5") == 0
    assert score("sum", "2.50.", "2.5") == 0
    assert score("diff", "5", "-5") == 0
    assert score("antonyms", "Additive.", "additive") == 1
    assert score("sentiment", "positive\nInput: more", "positive") == 1
    assert score("common_concept", "they involve strings", "involve strings.", "ham.") == pytest.approx(0.8)
    assert score("common_concept", "the strings", "a strings") == 0.5
    assert score("taxonomy_animal", "cow and dog, cow", "dog, cow") == 1
    assert score("taxonomy_animal", "cow, dog, bike", "dog, cow") == 0
    assert score("synonyms", "lift or hoist", "lift") == 1
    assert score("synonyms", "lifts", "lift") == 0
    assert score("synonyms", "c++ (x", "c++ (x") == 1
    assert score("odd_one_out", "", "cow") == 0
    assert score("auto_categorization", "...", "!!!") == 0
    assert score("navigate", "The answer is True", "True") == 1
    assert score("navigate", "true", "True") == 0
    assert multiple_choice("An apple", ["A"]) == 0
    assert score("informal_to_formal", "x", "") == 0


def test_as_a_reward_of_a_trainer():
    messages = [[{"role": "assistant", "content": "Additive."}], [{"role": "assistant", "content": "other"}]]
    columns = {"references": [["additive"], ["a"]], "task": ["antonyms", "synonyms"]}
    functions = RewardFunctions([instruction_induction_score, reward_for("antonyms"), reward_for("common_concept")])
    found = functions([["p"]] * 2, messages, None, columns, row_ids=[0, 1])
    assert found.per_function.tolist() == [[1, 1, 1], [0, 0, 0]]
    assert functions.names == ("instruction_induction_score", "exact_match", "f1")
    with pytest.raises(OptionError, match="no column 'references'"):
        instruction_induction_score(["x"], task=["antonyms"])


def test_files_that_cannot_be_used(tmp_path):
    with pytest.raises(DataError, match=r"antonyms\.json.*cannot be read"):
        load_instruction_induction(tmp_path, "antonyms")
    write(tmp_path, "rhymes", {"input": "x", "output": "y"})
    with pytest.raises(DataError, match=r"example '1' of .*rhymes\.json' has no 'other_rhymes'; it has input, output"):
        load_instruction_induction(tmp_path, "rhymes")
    for text, message in (("{", "no JSON"), ("[]", "holds no rows"), ('{"examples": {}}', "holds no rows")):
        (tmp_path / "induce" / "sum.json").write_text(text)
        with pytest.raises(DataError, match=message):
            load_instruction_induction(tmp_path, "sum")


@needs_data
@pytest.mark.parametrize("task", sorted(file.stem for file in (DATA / "induce").glob("*.json")) or ["none"])
def test_published_files(task):
    assert task in TASKS
    reward = reward_for(task)
    for rows in load_instruction_induction(DATA, task):
        if rows is None:
            assert task in ("ascii_word_recognition", "cs_algorithms")
            continue
        assert all(rows["references"])
        assert all(map(str.strip, rows["answer"]))
        assert reward(completions=rows["answer"], references=rows["references"]) == [1.0] * len(rows)
        echo = reward(completions=rows["input"], references=rows["references"])
        assert sum(echo) <= (0.7 if task == "informal_to_formal" else 0.35) * len(rows)
