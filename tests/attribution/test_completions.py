"""Completions and rewards on disk: each is made once, and what an earlier process left is found."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from hfdataopt.attribution.completions import (
    _Lines,
    query_columns,
    query_prompts,
    reward_completions,
    sample_completions,
)
from hfdataopt.attribution.moment import Moment
from hfdataopt.attribution.rows import Rows, pad_batch
from hfdataopt.attribution.run import ScoringRun
from hfdataopt.errors import DataError, StoreError
from hfdataopt.generation import Completion, LocalGenerator
from hfdataopt.plugins import get_scorer
from hfdataopt.rewards import RewardFunctions

from ..policy import Recorder, good_words, prompts, reader, speaker
from ..tiny import questions


class Counting:
    """A generator whose completions tell their query and number; it may stop halfway."""

    on_policy = True

    def __init__(self, stop_after: int = 10**6, **described: Any):
        self.made: list[tuple[Any, int]] = []
        self.stop_after, self.described = stop_after, described

    def describe(self) -> dict[str, Any]:
        return {"kind": "counting", **self.described}

    def generate(
        self, prompts: Any, n: int, *, keys: Any, seed: int = 0, have: Any = None, on_done: Any = None
    ) -> list[list[Completion]]:
        table: list[list[Completion]] = []
        for index, key in enumerate(keys):
            table.append([])
            for number in range(n):
                completion = (have or {}).get((index, number))
                if completion is None:
                    if len(self.made) == self.stop_after:
                        raise ConnectionError("no more")
                    completion = Completion(f"{key} {number}", [number + 6], number % 2 == 0)
                    self.made.append((key, number))
                    on_done(index, number, completion)
                table[-1].append(completion)
        return table


def view(queries: Any, folder: Path | None, model: Any = None, step: int = 0, shared: Any = None) -> Any:
    scorer = get_scorer("nice", reward_funcs=good_words)
    rows = Rows(queries, pad_batch, side="queries", prompts=True)
    run = ScoringRun(scorer, Rows(questions(3), pad_batch, side="pool"), rows, folder=folder, batch_size=4)
    if shared is not None:
        run.shared = shared
    moment = None if folder is None else folder / f"step-{step}"
    return run.view(speaker() if model is None else model, Moment(step, epoch=0.5), folder=moment)


def texts(table: list[list[Completion]]) -> list[list[str]]:
    return [[completion.text for completion in row] for row in table]


@pytest.fixture
def queries() -> Any:
    return prompts(3, 3)


# -- completions


@pytest.mark.parametrize("live", [True, False])
def test_each_completion_is_made_once(tmp_path: Path, queries: Any, live: bool) -> None:
    first = Counting(stop_after=4)
    with pytest.raises(ConnectionError):
        sample_completions(view(queries, tmp_path), first, 3, seed=0, live=live)
    second, third = Counting(), Counting()
    table = sample_completions(view(queries, tmp_path), second, 3, seed=0, live=live)
    assert texts(table) == [[f"q{i} {k}" for k in range(3)] for i in range(3)]
    assert [completion.finished for completion in table[0]] == [True, False, True]
    assert sorted(first.made + second.made) == [(f"q{i}", k) for i in range(3) for k in range(3)]
    assert sample_completions(view(queries, tmp_path), third, 3, seed=0, live=live) == table
    assert third.made == []


def test_what_changes_a_completion_makes_another(tmp_path: Path, queries: Any) -> None:
    def count(given: Any = queries, n: int = 2, seed: int = 0, model: Any = None, **described: Any) -> int:
        generator = Counting(**described)
        sample_completions(view(given, tmp_path, model), generator, n, seed=seed, live=True)
        return len(generator.made)

    assert count() == 6
    assert count() == 0
    assert count(seed=1) == 6
    assert count(n=3) == 9
    assert count(temperature=0.5) == 6
    assert count(model=speaker(1)) == 6
    assert count(given=queries.select([0, 1])) == 4
    assert count() == 0


def test_those_of_another_model_serve_all_moments(tmp_path: Path, queries: Any) -> None:
    for live, expected in ((False, [6, 0]), (True, [6, 6])):
        made = []
        for step in (0, 1):
            generator = Counting(live=live)
            sample_completions(view(queries, tmp_path, speaker(step), step), generator, 2, seed=0, live=live)
            made.append(len(generator.made))
        assert made == expected


def test_each_moment_draws_anew(queries: Any) -> None:
    """Also where the weights have hardly moved: the noise of the moments is not the same."""
    generator = LocalGenerator(speaker(), reader(), max_new_tokens=6)
    first, second, again = (
        texts(sample_completions(view(queries, None, step=step), generator, 4, seed=0, live=True)) for step in (0, 3, 3)
    )
    assert first != second
    assert second == again


def test_without_a_folder_they_are_kept_in_memory(queries: Any) -> None:
    shared: dict[str, Any] = {}
    made = []
    for step in (0, 1):
        generator = Counting()
        sample_completions(view(queries, None, speaker(step), step, shared), generator, 2, seed=0, live=False)
        made.append(len(generator.made))
    assert made == [6, 0]


# -- rewards


def reward(seen: Any, function: Any, table: Any, live: bool = True, **described: Any) -> list[np.ndarray]:
    tokens = [[completion.token_ids or [] for completion in row] for row in table]
    return reward_completions(seen, RewardFunctions(function), table, tokens, described=described, live=live)


def opinions(completion_ids: Any, **_: Any) -> list[float | None]:
    return [None if ids == [7] else float(ids[0]) for ids in completion_ids]


def test_rewards_are_asked_for_once(tmp_path: Path, queries: Any) -> None:
    table = sample_completions(view(queries, tmp_path), Counting(), 3, seed=0, live=True)
    first, second = Recorder(opinions), Recorder(opinions)
    found = reward(view(queries, tmp_path), first, table)
    np.testing.assert_array_equal(np.stack(found), [[6, np.nan, 8]] * 3)
    assert first.completions == 9
    np.testing.assert_array_equal(np.stack(reward(view(queries, tmp_path), second, table)), np.stack(found))
    assert second.calls == []
    assert reward(view(queries, tmp_path), second, table, weights=[2.0])[0][0] == 6
    assert second.completions == 9
    other = [[Completion("another", [9])] for _ in table]
    assert [len(row) for row in reward(view(queries, tmp_path), second, other)] == [1, 1, 1]


def test_rewards_get_prompts_columns_and_state(tmp_path: Path, queries: Any) -> None:
    asked = Recorder(opinions)
    table = [[Completion(f"{i} {k}", [6]) for k in range(i + 1)] for i in range(3)]
    found = reward(view(queries, tmp_path, step=7), asked, table)
    assert [len(row) for row in found] == [1, 2, 3]
    (call,) = asked.calls
    rows = [0, 1, 1, 2, 2, 2]
    assert call["row_id"] == [f"q{i}" for i in rows]
    assert call["prompts"] == [queries[i]["prompt"] for i in rows]
    assert call["answer"] == [queries[i]["answer"] for i in rows]
    assert call["completions"] == [completion.text for row in table for completion in row]
    assert (call["trainer_state"].global_step, call["trainer_state"].epoch) == (7, 0.5)
    assert "completion" not in call


def test_rewards_before_an_error_are_kept(tmp_path: Path, monkeypatch: Any) -> None:
    from hfdataopt.attribution import completions

    monkeypatch.setattr(completions, "QUERIES_AT_ONCE", 1)
    queries = prompts(4, 3)
    table = [[Completion("a", [6])] * 2 for _ in range(4)]

    def failing(row_id: Any, **keywords: Any) -> list[float | None]:
        if "q2" in row_id:
            raise ValueError("no")
        return opinions(**keywords)

    first, second = Recorder(failing), Recorder(opinions)
    with pytest.raises(DataError, match="raised ValueError: no"):
        reward(view(queries, tmp_path), first, table)
    reward(view(queries, tmp_path), second, table)
    assert sorted(row for call in second.calls for row in call["row_id"]) == ["q2", "q2", "q3", "q3"]


# -- the queries


def test_prompts_of_conversations() -> None:
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    given = Dataset.from_dict({"messages": [said, said[:1]]})
    assert query_prompts(view(given, None)) == [said[:1], said[:1]]
    assert set(query_columns(view(given, None))) == {"messages"}


@pytest.mark.parametrize("bad", [None, "", " \n", []])
def test_a_prompt_that_is_missing_is_named(bad: Any) -> None:
    rows = [{"prompt": "the film"}, {"prompt": bad}]
    with pytest.raises(DataError, match=r"nice: query 1 has no prompt \(got"):
        query_prompts(view(rows, None))


def test_columns_without_a_table() -> None:
    rows = [{"prompt": "a", "answer": i, "completion": "x"} for i in range(3)]
    assert query_columns(view(rows, None)) == {"answer": [0, 1, 2]}


# -- the files


def test_lines_of_a_killed_process(tmp_path: Path, queries: Any) -> None:
    lines = _Lines(view(queries, tmp_path), tmp_path, "things", {"a": 1})
    lines.append({"x": 1})
    assert lines.file is not None
    with lines.file.open("ab") as stream:
        stream.write(b'{"x": 2, "y')  # killed here
    again = _Lines(view(queries, tmp_path), tmp_path, "things", {"a": 1})
    assert list(again.read()) == [{"x": 1}]
    again.append({"x": 3})
    again.append({"x": 4})
    assert list(again.read()) == [{"x": 1}, {"x": 3}, {"x": 4}]
    # those of another process are read, those of another description are not
    (tmp_path / f"{lines.name}.1.jsonl").write_text(json.dumps({"x": 5}) + "\n")
    assert {"x": 5} in list(again.read())
    assert list(_Lines(view(queries, tmp_path), tmp_path, "things", {"a": 2}).read()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path, queries: Any) -> None:
    (tmp_path / "file").write_text("")
    lines = _Lines(view(queries, None), tmp_path / "file" / "inside", "things", {})
    with pytest.raises(StoreError, match=r"nice: .*things-.*\.jsonl' cannot be written"):
        lines.append({"x": 1})
