"""Completions of the queries and their rewards: made once, written down as they arrive, found again after a restart.

Files hold one JSON line per completion, or per query for rewards; every process appends to one of its own, and all are read.
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import TrainerState

from hfdataopt.errors import DataError
from hfdataopt.files import JsonLines
from hfdataopt.generation import Completion, Generator
from hfdataopt.generation.prompts import as_messages

if TYPE_CHECKING:
    from hfdataopt.attribution.reader import Reader
    from hfdataopt.rewards import RewardFunctions

QUERIES_AT_ONCE = 16
NOT_COLUMNS = ("prompt", "completion", "completion_ids")  # a reward function gets these under its own names


def query_prompts(view: "Reader") -> list[Any]:
    """The prompt of every query, a string or messages.

    Raises:
        DataError: there is no column ``prompt`` or ``messages``, or a row without a prompt; the row is named.
    """
    rows = view.rows("queries")
    prompts = rows.column("prompt")
    if prompts is None:
        messages = rows.column("messages")
        if messages is None:
            columns = ", ".join(getattr(rows.source, "column_names", None) or []) or "no columns"
            raise DataError(
                f"{view.name}: queries= needs a column 'prompt' (text or messages) to complete; it has {columns}"
            )
        prompts = [[x for x in row[:-1]] if row and row[-1]["role"] == "assistant" else row for row in messages]
    for row, prompt in zip(rows.ids, prompts, strict=True):
        if not prompt or not isinstance(prompt, str | list) or (isinstance(prompt, str) and not prompt.strip()):
            raise DataError(f"{view.name}: query {row!r} has no prompt (got {prompt!r}); leave it out or give it one")
    return prompts


def query_columns(view: "Reader") -> dict[str, list[Any]]:
    """Every other column of the queries, as reward functions get them."""
    rows = view.rows("queries")
    names = getattr(rows.source, "column_names", None) or list(rows.source[0])
    return {name: rows.column(name) or [] for name in names if name not in NOT_COLUMNS}


def sample_completions(
    view: "Reader", generator: Generator, n: int, *, seed: int, live: bool
) -> list[list[Completion]]:
    """``n`` completions of every query ``[queries][n]``; those on disk are not made again, and each is kept as it arrives.

    Args:
        live: whether they come from the model as it is at this moment; others serve all moments of a run.
    """
    prompts, ids = query_prompts(view), view.rows("queries").ids
    if live:
        seed += (
            view.moment.step << 32
        )  # draws of their own at each moment, whose noise the sum over moments then averages
    described = {**generator.describe(), "n": n, "seed": seed, "queries": view.rows("queries").contents}
    if live:
        described["weights"] = view.weights
    lines = _Lines(view, _folder(view, live), "completions", described)

    def read() -> dict[tuple[int, int], Completion]:
        kept = {}
        for line in lines.read():
            position, number = line.get("query"), line.get("number")
            if type(position) is int and type(number) is int and 0 <= number < n:
                with contextlib.suppress(KeyError, TypeError, ValueError):  # a line of somebody else's
                    kept[position, number] = Completion.from_json(line["completion"])
        return kept

    found = read()
    # The main process looks, for all: another might already see what is being appended.
    missing = [position for position in range(len(prompts)) if any((position, k) not in found for k in range(n))]
    mine = view.processes.broadcast(missing)[view.processes.index :: view.processes.count]
    bar = view.progress("completions", len(mine) * n, unit="completion")

    def work() -> None:
        for start in range(0, len(mine), QUERIES_AT_ONCE):
            chunk = mine[start : start + QUERIES_AT_ONCE]

            def done(index: int, number: int, completion: Completion, chunk: list[int] = chunk) -> None:
                bar.update()
                lines.append({"query": chunk[index], "number": number, "completion": completion.to_json()})

            made = generator.generate(
                [prompts[position] for position in chunk],
                n,
                keys=[ids[position] for position in chunk],
                seed=seed,
                have={
                    (index, k): found[position, k]
                    for index, position in enumerate(chunk)
                    for k in range(n)
                    if (position, k) in found
                },
                on_done=done,
            )
            found.update({(p, k): made[i][k] for i, p in enumerate(chunk) for k in range(n)})

    view.processes.together(work)
    bar.close()
    if view.processes.count > 1:
        found = read()
    return [[found[position, number] for number in range(n)] for position in range(len(prompts))]


def reward_completions(
    view: "Reader",
    functions: "RewardFunctions",
    completions: list[list[Completion]],
    tokens: list[list[list[int]]],
    *,
    described: dict[str, Any],
    live: bool,
) -> list[np.ndarray]:
    """Weighted total reward of each completion of each query, NaN where no function gave one; kept query by query.

    Args:
        tokens: the token ids of each completion.
        described: what else changes a reward.
        live: as in :func:`sample_completions`.
    """
    prompts, columns = query_prompts(view), query_columns(view)
    ids = view.rows("queries").ids
    content = [[completion.to_json() for completion in row] for row in completions]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    described = {**described, "functions": functions.names, "completions": digest}
    lines = _Lines(view, _folder(view, live), "rewards", described)

    def read() -> dict[int, list[list[float | None]]]:
        width = len(functions.names) + 1
        return {
            line["query"]: line["rewards"]
            for line in lines.read()
            if type(line.get("query")) is int
            and 0 <= line["query"] < len(prompts)
            and _is_table(line.get("rewards"), len(completions[line["query"]]), width)
        }

    found = read()
    missing = view.processes.broadcast([p for p in range(len(prompts)) if p not in found])
    mine = missing[view.processes.index :: view.processes.count]
    bar = view.progress("rewards", len(mine))

    metrics: dict[str, list[float]] = {}
    state = TrainerState(global_step=view.moment.step, epoch=view.moment.epoch or 0.0)

    def work() -> None:
        for start in range(0, len(mine), QUERIES_AT_ONCE):
            chunk = mine[start : start + QUERIES_AT_ONCE]
            flat = [(position, k) for position in chunk for k in range(len(completions[position]))]
            rewards = functions(
                [prompts[position] for position, _ in flat],
                [as_messages(completions[position][k], prompts[position]) for position, k in flat],
                [tokens[position][k] for position, k in flat],
                {name: [values[position] for position, _ in flat] for name, values in columns.items()},
                row_ids=[ids[position] for position, _ in flat],
                trainer_state=state,
            )
            for metric, value in rewards.metrics.items():
                metrics.setdefault(metric, []).append(value)
            table = np.column_stack([rewards.per_function, rewards.total])
            numbers = [[None if np.isnan(x) else float(x) for x in row] for row in table]
            start_of = 0
            for position in chunk:
                end = start_of + len(completions[position])
                found[position], start_of = numbers[start_of:end], end
                lines.append({"query": position, "rewards": found[position]})
            bar.update(len(chunk))

    view.processes.together(work)
    bar.close()
    logged: dict[str, list[float]] = {}
    for share in view.processes.gather(metrics):
        for name, values in share.items():
            logged.setdefault(name, []).extend(values)
    if logged:
        view.facts["reward_metrics"] = {name: float(np.mean(values)) for name, values in logged.items()}
    if view.processes.count > 1:
        found = read()
    return [
        np.array([np.nan if row[-1] is None else row[-1] for row in found[position]])
        for position in range(len(prompts))
    ]


def _is_table(rows: Any, length: int, width: int) -> bool:
    """Whether these are so many rows of so many numbers, None where there is none."""
    return (
        isinstance(rows, list)
        and len(rows) == length
        and all(isinstance(row, list) and len(row) == width for row in rows)
        and all(x is None or (type(x) in (int, float) and math.isfinite(x)) for row in rows for x in row)
    )


def _folder(view: "Reader", live: bool) -> Path | None:
    return view.folder if live or view.run_folder is None else view.run_folder


class _Lines:
    """JSON lines of all processes under one description; in memory where there is no folder."""

    def __init__(self, view: "Reader", folder: Path | None, what: str, described: dict[str, Any]):
        self.who, self.folder = view.name, folder
        key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:8]
        self.name = f"{what}-{key}"
        self.file = None if folder is None else folder / f"{self.name}.{view.processes.index}.jsonl"
        self._own = None if self.file is None else JsonLines(self.file, self.who)
        self._memory: list[dict[str, Any]] = view.shared.setdefault(self.name, [])

    def read(self) -> Iterator[dict[str, Any]]:
        if self.folder is None:
            yield from self._memory
            return
        for file in sorted(self.folder.glob(f"{self.name}.*.jsonl")):
            yield from JsonLines(file, self.who).read()

    def append(self, document: dict[str, Any]) -> None:
        if self._own is None:
            self._memory.append(document)
        else:
            self._own.append(document)
