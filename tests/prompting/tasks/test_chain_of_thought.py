"""Chain of thought: layouts, what number a reply ends in, and the two calls, with a local model and a scripted one."""

import json
from pathlib import Path

import pytest

from hfdataopt.errors import DataError, GenerationError, OptionError, Refused
from hfdataopt.generation import Completion, LocalGenerator
from hfdataopt.generation.generator import Generator, check_refused, open_jobs, table
from hfdataopt.prompting.tasks import ChainOfThought, load_reasoning, reasoning_score
from hfdataopt.prompting.tasks.chain_of_thought import LETTER, NUMBER, last_letter, last_number

from ... import tiny

DATA = Path(__file__).parents[4] / "shared" / "data" / "reasoning" / "svamp"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18", 18),
        ("It is 18.00.", 18),
        ("-5", -5),
        ("= -5", -5),
        ("−5", -5),
        ("-$5", -5),
        ("$-5", -5),
        ("10-4", 4),
        ("1,234", 1234),
        ("-1,234,567.5 dollars", -1234567.5),
        ("1, 2, 3", 3),
        ("from 12,34", 34),
        ("3 apples and 4 pears make 7 pieces.", 7),
        (".5", 0.5),
        ("0.25%", 0.25),
        ("1.5e3", 1500),
        ("5th", 5),
        ("none", None),
        ("", None),
    ],
)
def test_last_number(text, number):
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(C)", "C"),
        ("The answer is D.", "D"),
        ("the answer is (E), 12 apples. A quick check: yes.", "E"),
        ("30, which is option B)", "B"),
        ("A train takes 3 hours, so C", "C"),
        ("A train", None),
        ("Answer: A", "A"),
        ("Because", None),
        ("", None),
    ],
)
def test_last_letter(text, letter):
    assert last_letter(text) == letter


def test_score():
    def score(completion, answer):
        return reasoning_score([completion], answer=[answer])[0]

    assert score("so 18.00", "18") == 1
    assert score([{"role": "assistant", "content": "so -5"}], "5") == 0
    assert score("so 1,234", "1234.0") == 1
    assert score(f"7 and 8.\n{NUMBER} 15.", "15") == 1
    assert score(f"15.\n{NUMBER} not known", "15") == 0  # what follows the sentence counts
    assert score(f"So B.\n{LETTER} C", "C") == 1
    assert score(f"So B.\n{LETTER}: (C)", "C") == 1
    assert score(f"So B.\n{LETTER} not given", "E") == 0
    assert score("no number", "3") == 0
    with pytest.raises(DataError, match="neither a number nor a letter"):
        score("x", "yes")


def test_layouts(tmp_path):
    def load(*rows):
        (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return load_reasoning(tmp_path)

    rows = load(
        {"input": "How many?", "output": "13.0"},
        {"question": "How much?", "answer": "He has 1000 + 234 = <<1000+234=1234>>1234.\n#### 1,234"},
        {"question": "Which?", "options": ["A)1", "B)2"], "rationale": "because", "correct": "B"},
    )
    assert rows["answer"] == ["13.0", "1,234", "B"]
    assert rows["prompt"][0] == "Q: How many?\nA:"
    assert rows["input"][2] == "Which?\nAnswer Choices: A)1 B)2"
    assert reasoning_score(["13", "1234", "B"], answer=rows["answer"]) == [1, 1, 1]
    with pytest.raises(DataError, match=r"row '1' .* has the answer 'many'"):
        load({"input": "How many?", "output": "many"})
    with pytest.raises(DataError, match="has no 'output'"):
        load({"input": "How many?"})


@pytest.mark.skipif(not DATA.is_dir(), reason="the data folder ../shared/data is not here")
def test_svamp():
    for split, count in (("train", 200), ("test", 300)):
        rows = load_reasoning(DATA, split=split)
        assert len(rows) == count
        assert (
            reasoning_score([f"{NUMBER} {answer}." for answer in rows["answer"]], answer=rows["answer"]) == [1] * count
        )


class Scripted(Generator):
    """A generator in memory that answers with what it was asked, and fails for some keys."""

    max_new_tokens = 50

    def __init__(self, failing=(), batch_size=100):
        self.failing, self.asked, self.calls, self.batch_size = failing, [], 0, batch_size

    def describe(self):
        return {"kind": "scripted"}

    def generate(self, prompts, n, *, keys, seed=0, have=None, on_done=None, admit=None, allowed=None):
        self.calls += 1
        made, refused = {}, 0
        for index, sample in open_jobs("scripted", prompts, n, keys, 1.0, have):
            if admit is not None and not admit(index, sample):
                refused += 1
                continue
            self.asked.append((prompts[index], keys[index], sample))
            if keys[index] in self.failing:
                continue
            last = prompts[index] if isinstance(prompts[index], str) else prompts[index][-1]["content"]
            answer = " 42." if last.endswith(NUMBER) else f" thought {sample} about {last}"
            made[index, sample] = Completion(answer, prompt_tokens=len(last), completion_tokens=len(answer))
            if on_done:
                on_done(index, sample, made[index, sample])
        check_refused("scripted", refused, len(made))
        if len(made) + len(have or {}) < len(prompts) * n:
            raise GenerationError("scripted: some failed")
        return table(prompts, n, have, made)


def test_two_calls():
    inner = Scripted()
    cot, arrived = ChainOfThought(inner), []
    chat = [{"role": "user", "content": "Why?"}]
    found = cot.generate(["Q: 1\nA:", chat], 2, keys=["a", 7], seed=3, on_done=lambda *job: arrived.append(job))
    assert [one.text for one in found[0]] == [f" thought {i} about Q: 1\nA:\n{NUMBER} 42." for i in range(2)]
    assert len(inner.asked) == 2 * 2 * cot.calls_per_completion
    assert inner.asked[4][0] == f"Q: 1\nA: thought 0 about Q: 1\nA:\n{NUMBER}"
    assert inner.asked[7][0] == [
        *chat,
        {"role": "assistant", "content": " thought 1 about Why?"},
        {"role": "user", "content": NUMBER},
    ]
    assert len({key for _, key, _ in inner.asked[4:]}) == 4
    assert sorted(job[:2] for job in arrived) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all(found[i][j] == one for i, j, one in arrived)
    assert reasoning_score([one.text for one in found[0]], answer=["42", "41"]) == [1, 0]


def test_what_is_there_is_not_made_again_and_what_arrived_is_brought_to_its_end():
    inner = Scripted()
    have = {(0, 0): Completion("old")}
    found = ChainOfThought(inner).generate(["Q", "R"], 1, keys=[0, 1], have=have)
    assert found[0][0].text == "old"
    assert len(inner.asked) == 2
    inner, arrived = Scripted(failing=("b",)), []
    with pytest.raises(GenerationError):
        ChainOfThought(inner).generate(["Q", "R"], 1, keys=["a", "b"], on_done=lambda *job: arrived.append(job))
    assert [job[:2] for job in arrived] == [(0, 0)]
    assert len(inner.asked) == 3


def test_groups_refusals_and_tokens():
    inner, arrived, asked = Scripted(batch_size=4), [], []
    cot = ChainOfThought(inner)
    prompts, keys = [f"Q{i}" for i in range(5)], list("abcde")

    def admit(index, sample):
        asked.append((index, sample))
        return index != 1

    with pytest.raises(Refused):
        cot.generate(prompts, 2, keys=keys, on_done=lambda *job: arrived.append(job), admit=admit, have={(4, 0): None})
    assert inner.calls == 6  # two prompts at a time
    assert sorted(asked) == [(i, s) for i in range(5) for s in range(2) if (i, s) != (4, 0)]
    assert sorted(job[:2] for job in arrived) == [(0, 0), (0, 1), (2, 0), (2, 1), (3, 0), (3, 1), (4, 1)]
    alone = ChainOfThought(Scripted()).generate(prompts, 2, keys=keys)
    assert all(alone[i][s] == one for i, s, one in arrived)
    one = arrived[0][2]
    thought = " thought 0 about Q0"
    assert one.prompt_tokens == len("Q0") + len(f"Q0{thought}\n{NUMBER}")
    assert one.completion_tokens == len(thought) + len(" 42.")
    assert one.completion_tokens <= cot.max_new_tokens == 100
    assert one.prompt_tokens <= cot.count_tokens("Q0")


def test_bad_arguments():
    with pytest.raises(OptionError, match="has no generate"):
        ChainOfThought("gpt2")
    with pytest.raises(OptionError, match="must be a sentence"):
        ChainOfThought(Scripted(), " ")
    with pytest.raises(DataError, match="row 'b' has no prompt"):
        ChainOfThought(Scripted()).generate(["Q", ""], 1, keys=["a", "b"])


def test_with_a_local_model():
    model = tiny.llama()
    cot = ChainOfThought(LocalGenerator(model, tiny.tokenizer(special=False), max_new_tokens=3))
    prompts = ["the film was", "it was very"]
    found = cot.generate(prompts, 2, keys=[0, 1], seed=1)
    assert all(NUMBER in one.text and one.token_ids is None for row in found for one in row)
    alone = cot.generate(prompts[1:], 2, keys=[1], seed=1)
    assert alone == found[1:]
    assert cot.generate(prompts, 2, keys=[0, 1], seed=2) != found
    assert cot.describe()["generator"]["kind"] == "local"
    for prompt, row in zip(prompts, found, strict=True):
        assert all(0 < one.completion_tokens <= cot.max_new_tokens == 6 for one in row)
        assert all(0 < one.prompt_tokens <= cot.count_tokens(prompt) for one in row)
    assert cot.model is model
