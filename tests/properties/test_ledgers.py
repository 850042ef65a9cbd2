"""Ledgers of searches and of completions: lines cut, repeated, in another order, changed or of somebody else."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from hfdataopt import attribute
from hfdataopt.files import JsonLines
from hfdataopt.prompting.apply import ApplyPrompt
from hfdataopt.prompting.ledger import Ledger
from hfdataopt.testing.tiny import good_words, prompts, reader, speaker
from hfdataopt.testing.tiny import questions as labelled

from ..prompting.searches import Listed, Model, candidates, comparable, trainer
from .inputs import anything, awkward_texts, messages, nested, objects, scalars, words
from .kinds import folder, kind, outcome, refused

line_of_nobody = st.one_of(
    nested.map(lambda x: json.dumps(x).encode()),
    st.binary(max_size=20),
    st.dictionaries(
        st.sampled_from(["kind", "key", "settings", "seconds", "requests", "query", "number"]), nested, max_size=3
    ).map(lambda x: json.dumps(x).encode()),
    st.fixed_dictionaries(
        {"kind": st.sampled_from(["search", "request", "answer", "unanswered", "seconds", "event"])},
        optional={name: scalars for name in ("key", "settings", "seconds", "requests", "role")},
    ).map(lambda x: json.dumps(x).encode()),
    st.just(b"[" * 5000),
)
HOW = ["cut", "repeat", "order", "drop", "foreign", "binary", "change", "nothing"]


def damaged(file: Path, how: str, seed: int, foreign: bytes) -> None:
    """The same file with something wrong in it."""
    draw, lines = random.Random(seed), file.read_bytes().splitlines(keepends=True)
    place = draw.randrange(len(lines))
    if how == "cut":
        lines = [b"".join(lines)[: draw.randrange(sum(map(len, lines)) + 1)]]
    elif how == "repeat":
        lines.insert(draw.randrange(len(lines)), lines[place])
    elif how == "order":
        draw.shuffle(lines)
    elif how == "drop":
        del lines[place]
    elif how == "foreign":
        lines.insert(place, foreign.replace(b"\n", b" ") + b"\n")
    elif how == "binary":
        broken = bytearray(lines[place])
        broken[draw.randrange(len(broken))] ^= 1 << draw.randrange(8)
        lines[place] = bytes(broken)
    elif how == "change":  # by hand, without its checksum
        document = json.loads(lines[place])
        document.pop("crc32", None)
        document.pop(draw.choice(sorted(document)))
        lines[place] = json.dumps(document).encode() + b"\n"
    file.write_bytes(b"".join(lines))


@kind(40, content=st.lists(line_of_nobody, max_size=5), more=st.dictionaries(awkward_texts, nested, max_size=2))
def test_lines_of_any_kind_are_passed_over_and_added_to(content, more):
    with folder() as where:
        lines = JsonLines(where / "lines.jsonl", "test")
        lines.file.write_bytes(b"\n".join(content))
        before = list(lines.read())
        assert all(isinstance(one, dict) for one in before)
        more.pop("crc32", None)
        try:
            lines.append(more)
        except ValueError:  # NaN is no JSON
            return
        assert list(JsonLines(lines.file, "test").read()) == [*before, more]


@kind(40, content=st.lists(line_of_nobody, max_size=5))
def test_ledgers_of_any_lines(content):
    with folder() as where:
        (where / "ledger.jsonl").write_bytes(b"\n".join(content))
        found = outcome(lambda: Ledger(where, {"items": 5}))
        if not refused(found):
            assert found.seconds >= 0
            assert found.uncertain >= 0
            found.close()


def search(where: Path) -> dict[str, Any]:
    """The result of a small search that is kept in this folder."""
    made = trainer(Listed(candidates(3)), Model(), items=3, output_dir=str(where), leaders=0)
    return comparable(made.train())


@kind(40, how=st.sampled_from(HOW), seed=st.integers(0, 10_000), foreign=line_of_nobody)
def test_searches_go_on_from_a_damaged_ledger(how, seed, foreign):
    """The search ends with the result that it would have had, or says what is wrong with the folder."""
    with folder() as where:
        expected = search(where)
        damaged(where / "ledger.jsonl", how, seed, foreign)
        found = outcome(lambda: search(where))
    if not refused(found):
        for name in ("best", "trials", "leaders"):
            assert found.get(name) == expected.get(name), (how, name)


@kind(24, name=st.sampled_from(["result.json", "prompt.json"]), content=line_of_nobody)
def test_results_that_were_changed(name, content):
    with folder() as where:
        expected = search(where)
        (where / name).write_bytes(content)
        outcome(lambda: ApplyPrompt.load(where))
        found = outcome(lambda: search(where))
    assert refused(found) or found.get("best") == expected.get("best")


def policy(where: Path, rewards: Any = good_words) -> Any:
    """Policy-gradient scores, from completions and rewards that are kept line by line."""
    found = attribute(
        speaker(),
        labelled(4),
        prompts(3),
        "nice",
        processing_class=reader(),
        reward_funcs=rewards,
        samples=3,
        max_new_tokens=4,
        floats_per_row=16,
        basis="random",
        precondition="none",
        output_dir=where,
    )
    return found.values


class _Policy:
    """A finished run, made once; and what is left of it when its results are made again from the lines."""

    files: dict[str, bytes] | None = None
    values: Any = None

    @classmethod
    def copy(cls, where: Path) -> Any:
        if cls.files is None:
            with folder() as first:
                cls.values = policy(first)
                cls.files = {str(f.relative_to(first)): f.read_bytes() for f in first.rglob("*.jsonl")}
        for name, content in cls.files.items():
            (where / name).parent.mkdir(parents=True, exist_ok=True)
            (where / name).write_bytes(content)
        return cls.values


@kind(12, which=st.integers(0, 9), how=st.sampled_from(HOW), seed=st.integers(0, 10_000), foreign=line_of_nobody)
def test_completions_and_rewards_whose_lines_were_damaged(which, how, seed, foreign):
    with folder() as where:
        expected = _Policy.copy(where)
        files = sorted(where.rglob("*.jsonl"))
        assert files
        damaged(files[which % len(files)], how, seed, foreign)
        found = outcome(lambda: policy(where))
    if not refused(found):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


# -- what is put before prompts, and what models give back


@kind(
    30,
    prompt=messages | anything,
    column=st.sampled_from(["prompt", "messages", "chosen", "text"]),
    instruction=awkward_texts,
)
def test_a_prompt_before_anything(prompt, column, instruction):
    apply = ApplyPrompt(instruction)
    row = {column: prompt, **({"rejected": prompt} if column == "chosen" else {})}
    found = outcome(lambda: apply(row))
    if isinstance(prompt, str) and column == "prompt":
        assert found == {"prompt": f"{instruction}\n\n{prompt}" if instruction else prompt}
    elif not refused(found):
        assert set(found) <= set(row)


@kind(30, content=anything | st.fixed_dictionaries({"instruction": nested, "exemplars": nested, "version": nested}))
def test_saved_prompts_of_any_kind(content):
    with folder() as where:
        try:
            text = json.dumps(content)
        except (TypeError, ValueError):
            return
        (where / "prompt.json").write_text(text)
        found = outcome(lambda: ApplyPrompt.load(where))
        if not refused(found):
            outcome(lambda: found({"prompt": "a"}))
            assert isinstance(found.instruction, str)


@kind(
    40,
    returned=anything | st.lists(scalars | objects, min_size=2, max_size=4) | st.lists(words, min_size=3, max_size=3),
)
def test_models_that_return_anything(returned):
    def model(prompts: Any) -> Any:
        return returned

    found = outcome(
        lambda: trainer(
            Listed(candidates(1)),
            model,
            items=3,
            leaders=0,
            reward_funcs=lambda completions, **_: [1.0] * len(completions),
        ).train()
    )
    if not isinstance(returned, list | tuple) or len(returned) != 3 or not all(isinstance(x, str) for x in returned):
        assert refused(found)
    else:
        assert found.best is not None


@kind(
    40,
    rows=st.lists(
        st.dictionaries(
            st.sampled_from(["prompt", "messages", "chosen", "rejected", "answer", "row_id", "text"]),
            words | messages | scalars,
            max_size=3,
        )
        | scalars,
        min_size=1,
        max_size=5,
    ),
)
def test_rows_of_a_search(rows):
    found = outcome(
        lambda: trainer(
            Listed(candidates(1)),
            None,
            rows,
            items=1,
            leaders=0,
            reward_funcs=lambda completions, **_: [1.0] * len(completions),
        ).train()
    )
    if all(isinstance(row, dict) and isinstance(row.get("prompt"), str) and row["prompt"].strip() for row in rows):
        ids = [row.get("row_id", i) for i, row in enumerate(rows)]
        assert not refused(found) or len(set(map(repr, ids))) < len(ids) or any(type(i) not in (int, str) for i in ids)
    elif not refused(found):
        assert all(isinstance(row, dict) for row in rows)


@kind(24, winner=anything)
def test_judges_that_return_anything(winner):
    from ..prompting.searches import Duels

    def judge(prompts: Any, completions: Any, **_: Any) -> Any:
        return winner

    found = outcome(lambda: trainer(Duels(candidates(2), 3), None, items=3, leaders=0, judge=judge).train())
    if not isinstance(winner, list | tuple | np.ndarray | torch.Tensor):
        assert refused(found)
