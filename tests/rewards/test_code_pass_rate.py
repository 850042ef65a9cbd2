"""The share of tests that pass, however prompt, completion and tests are written."""

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from hfdataopt.errors import DataError, OptionError
from hfdataopt.rewards.code_pass_rate import CodePassRate, code_pass_rate

if sys.platform != "linux":
    pytest.skip("the sandbox needs Linux", allow_module_level=True)

HUMANEVAL = Path(__file__).parents[3] / "shared" / "data" / "instruct" / "humaneval" / "test.jsonl"


@pytest.fixture(scope="module")
def reward() -> CodePassRate:
    return make()


def make(**options: Any) -> CodePassRate:
    try:
        return code_pass_rate(allow_code_execution=True, **options)
    except OptionError as error:
        pytest.skip(f"no namespaces here: {error}")


STUB = 'import math\n\n\ndef half(x: int) -> float:\n    """Half of x."""\n'
CHECK = "def check(candidate):\n    assert candidate(4) == 2\n    assert candidate(1) == 0.5\n"
WHOLE = "def half(x):\n    return x / 2\n"
ASK = "Write half(x)."


def chat(text: str, role: str = "assistant") -> list[dict[str, Any]]:
    return [{"role": role, "content": text}]


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        (STUB, "    return x / 2\n"),
        (STUB, "    return math.ldexp(x, -1)"),
        (STUB, WHOLE),
        (STUB, f"Sure:\n```python\n{WHOLE}```\nIt divides."),
        (STUB, f"```\nprint(half(3))\n```\nneeds\n```py\n{WHOLE}```"),
        (STUB, f"```python\n{WHOLE}"),
        (STUB, "```python\n    return x / 2\n```"),
        ("def half(x):\n", "    return x / 2"),
        ("def half(x):\n", WHOLE),
        ("def half(x):\n    return (x", " / 2)"),
        ("import math\n\nSCALE = 2\n", "def half(x):\n    return x / SCALE\n"),
        (f"{ASK}\n```python\n{STUB}", "    return x / 2\n```\nThat is all: `x / 2`."),
        (f"Like\n```python\na = 1\n```\n{ASK}\n```python\n{STUB}", "    return x / 2\n```"),
        (f"Complete:\n```python\n{STUB}```", f"```python\n{WHOLE}```"),
        (ASK, WHOLE),
        (ASK, "half = lambda x: x / 2"),
        (ASK, f"\n\n{WHOLE}"),
        (chat(ASK, "user"), chat(f"Here:\n```python\n{WHOLE}```")),
        (chat(f"Complete this.\n```python\n{STUB}```", "user"), chat("```python\n    return math.ldexp(x, -1)\n```")),
        (chat(STUB, "user"), chat("```python\ndef half(x):\n    return math.ldexp(x, -1)\n```")),
        (chat(ASK, "user"), [{"role": "assistant", "content": [{"type": "text", "text": WHOLE}]}]),
    ],
)
def test_however_it_is_written(reward: CodePassRate, prompt: Any, completion: Any) -> None:
    rows = {"test": [CHECK], "entry_point": ["half"]}
    assert reward(prompts=[prompt], completions=[completion], **rows) == [1.0]
    wrong = json.loads(json.dumps(completion).replace("x / 2", "x / 3").replace("/ 2)", "/ 3)").replace("-1)", "-3)"))
    if "SCALE" not in completion:
        assert reward(prompts=[prompt], completions=[wrong], **rows) == [0.0]


def test_the_share_of_a_list(reward: CodePassRate) -> None:
    tests = ["assert half(4) == 2", "assert half(1) == 0.5", "assert half('a') == 'a'", "while True:\n    half(0)"]
    brief = make(timeout=0.5)
    assert brief(prompts=[ASK], completions=[WHOLE], test=[tests]) == [0.5]
    assert reward(prompts=[ASK], completions=["def half(x): return x"], test=[tests[:3]]) == [1 / 3]
    assert reward(prompts=[ASK], completions=[WHOLE], test=["\n".join(tests[:3])]) == [0.0]


def test_tests_do_not_touch_each_other(reward: CodePassRate) -> None:
    code = "seen = []\ndef f(x):\n    seen.append(x)\n    return len(seen)"
    assert reward(prompts=[ASK], completions=[code], test=[["assert f(0) == 1"] * 3]) == [1.0]


@pytest.mark.parametrize("completion", ["", " \n", "```python\n```", [], chat("")])
def test_an_empty_completion_gets_nothing(reward: CodePassRate, completion: Any) -> None:
    assert reward(prompts=[STUB], completions=[completion], test=["assert True"]) == [0.0]


@pytest.mark.parametrize(
    "completion",
    [
        "I do not know.",
        "    return (x",
        "\0",
        "\ud800",
        "import numpy_missing\n" + WHOLE,
        "import sys\nsys.exit(0)",
        "(" * 10**5,
    ],
)
def test_what_does_not_run_gets_nothing(reward: CodePassRate, completion: str) -> None:
    assert reward(prompts=[STUB], completions=[completion], test=[CHECK], entry_point=["half"]) == [0.0]


def test_order_and_batches_do_not_matter() -> None:
    reward = make(workers=3)
    delays = [0.4, 0.0, 0.2, 0.0, 0.1, 0.0]
    completions = [f"import time\ntime.sleep({delay})\ndef f(): return {row}" for row, delay in enumerate(delays)]
    tests = [[f"assert f() == {row}", f"assert f() < {row}", "assert f() % 2"][: 1 + row % 3] for row in range(6)]
    together = reward(prompts=[ASK] * 6, completions=completions, test=tests)
    assert together == [1.0, 0.5, 1 / 3, 1.0, 0.5, 2 / 3]
    alone = [reward(prompts=[ASK], completions=[c], test=[t])[0] for c, t in zip(completions, tests, strict=True)]
    assert alone == together
    assert reward(prompts=[ASK] * 6, completions=completions[::-1], test=tests[::-1]) == together[::-1]


def test_columns_have_names() -> None:
    reward = make(tests_column="test_list", entry_point_column="function", prompt_column="stub", name="passes")
    rows = {"test_list": [CHECK], "function": ["half"], "stub": [STUB], "test": ["assert False"], "trainer_state": None}
    assert reward(prompts=[chat(ASK, "user")], completions=[chat("```\n    return x / 2\n```")], **rows) == [1.0]
    assert reward(prompts=[ASK], completions=["    return math.ldexp(x, -1)"], **rows) == [1.0]
    for column in ("test_list", "stub"):
        with pytest.raises(OptionError, match=f"passes: the dataset has no column '{column}'"):
            reward(prompts=[ASK], completions=[WHOLE], **{k: v for k, v in rows.items() if k != column})


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ("assert half(2) ==", "a test of row 1 of the batch does not compile"),
        (["assert half(2)", "return 1"], "a test of row 1 of the batch does not compile"),
        ("assert '\0'", "a test of row 1 of the batch does not compile"),
        (CHECK, "row 1 of the batch defines check.*'entry_point'"),
        ([], "row 1 of the batch has \\[\\]"),
        (None, "row 1 of the batch has None"),
        ([1], "row 1 of the batch has \\[1\\]"),
    ],
)
def test_broken_tests_are_named(reward: CodePassRate, tests: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        reward(prompts=[ASK] * 2, completions=["", ""], test=["assert True", tests])


def test_it_is_off_unless_allowed() -> None:
    for options in ({}, {"allow_code_execution": False}, {"allow_code_execution": 1}, {"allow_network": True}):
        with pytest.raises(OptionError, match="allow_code_execution=True if you accept that"):
            code_pass_rate(**options)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="timeout"):
        code_pass_rate(allow_code_execution=True, timeout=-1.0)


def test_trl_can_name_it_and_it_pickles(reward: CodePassRate) -> None:
    again = pickle.loads(pickle.dumps(reward))
    assert again.__name__ == "code_pass_rate"
    assert again(prompts=[ASK], completions=[WHOLE], test=["assert half(2) == 1"]) == [1.0]


def test_grpo_takes_it(tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    model = HUMANEVAL.parents[3] / "models" / "stories260K"
    if not model.is_dir():
        pytest.skip("the small Llama of shared/models is not here")
    data = Dataset.from_list([{"prompt": "def f():\n    return 1\n#", "test": ["assert True", "assert f() == 2"]}] * 2)
    options = GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        num_generations=2,
        max_completion_length=4,
        max_steps=1,
        use_cpu=True,
        report_to=[],
        logging_steps=1,
    )
    trainer = GRPOTrainer(str(model), reward_funcs=make(), args=options, train_dataset=data)
    trainer.train()
    assert 0 <= trainer.state.log_history[0]["rewards/code_pass_rate/mean"] <= 0.5


def test_canonical_solutions_pass_and_others_do_not(reward: CodePassRate) -> None:
    if not HUMANEVAL.is_file():
        pytest.skip(f"{HUMANEVAL.name} of HumanEval is not in shared/data")
    rows = [json.loads(line) for line in HUMANEVAL.read_text().splitlines()]
    column = {key: [row[key] for row in rows] for key in rows[0]}
    solutions = column.pop("canonical_solution")
    prompts = column.pop("prompt")
    assert reward(prompts=prompts, completions=solutions, **column) == [1.0] * 164
    some = {key: values[::8] for key, values in column.items()}
    asked = [chat(f"Complete this function.\n```python\n{prompt}```", "user") for prompt in prompts[::8]]
    answers = [chat(f"Sure.\n```python\n{p}{s}```\nDone.") for p, s in zip(prompts[::8], solutions[::8], strict=True)]
    assert reward(prompts=asked, completions=answers, **some) == [1.0] * 21
    assert reward(prompts=prompts[::8], completions=["    pass\n"] * 21, **some) == [0.0] * 21
