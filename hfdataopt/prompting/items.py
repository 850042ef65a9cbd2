"""Rows of a TRL dataset as items of a search: what is scored, what is shown to proposers, what stays fresh for the end."""

import hashlib
import itertools
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hfdataopt.errors import DataError
from hfdataopt.prompting.config import PromptConfig
from hfdataopt.prompting.optimizer import Item
from hfdataopt.rewards.texts import is_messages, text_of

ANSWER_COLUMNS = ("completion", "answer", "solution", "output", "target", "chosen")
MOST_ROWS = 10_000


@dataclass(frozen=True)
class Split:
    """Which items are scored, which are shown, and which are kept for the end."""

    items: tuple[Item, ...]
    examples: tuple[Item, ...]
    fresh: tuple[Item, ...]


def read_items(dataset: Any, config: PromptConfig, what: str, *, blank: bool = False) -> list[Item]:
    """Rows of a prompt-only, prompt-completion, preference or conversational dataset (or of a list of rows).

    Of a stream the first 10,000 rows are taken, of a larger dataset 10,000 by the seed. Ids are those of the column ``row_id``,
    else positions; behind ``eval/`` in ``eval_dataset``, whose rows are others. With ``blank`` a prompt may be empty.

    Raises:
        DataError: no rows, a row without a prompt, or ids that occur twice; it is named.
    """
    if dataset is None or isinstance(dataset, str | Mapping):
        got = "a DatasetDict; hand over one split" if isinstance(dataset, Mapping) else repr(dataset)
        raise DataError(f"PromptTrainer: {what} must be a dataset or a list of rows; got {got}")
    try:
        positions, rows = _read(dataset, config.seed)
    except TypeError:
        raise DataError(f"PromptTrainer: {what} must be a dataset or a list of rows; got {dataset!r:.80}") from None
    if not rows:
        raise DataError(f"PromptTrainer: {what} has no rows")
    found = [_item(row, position, config, what, blank) for position, row in zip(positions, rows, strict=True)]
    ids = {item.id for item in found}
    if len(ids) != len(found):
        raise DataError(
            f"PromptTrainer: {what}: {len(found)} rows have {len(ids)} different row_id; they must be unique"
        )
    return found


def _read(dataset: Any, seed: int) -> tuple[Sequence[int], list[Any]]:
    """Positions and rows; of a large dataset a sample, of a stream its first rows."""
    if hasattr(dataset, "select") and len(dataset) > MOST_ROWS:
        positions = sorted(random.Random(f"{seed}/rows").sample(range(len(dataset)), MOST_ROWS))
        return positions, list(dataset.select(positions))
    rows = list(dataset) if isinstance(dataset, Sequence) else list(itertools.islice(dataset, MOST_ROWS))
    return range(len(rows)), rows


def split_items(
    train: Sequence[Item], fresh: Sequence[Item] | None, config: PromptConfig, examples: bool, rows: bool = False
) -> Split:
    """Draw the common items and, without an evaluation dataset, the fresh ones, by the seed.

    Args:
        examples: whether the optimizer needs some with answers.
        rows: whether it needs some, with answers or without.
    """
    shuffled = list(train)
    random.Random(f"{config.seed}/items").shuffle(shuffled)
    more = 1 if examples or rows else 0
    if len(shuffled) < config.items + more:
        raise DataError(
            f"PromptTrainer: train_dataset has {len(shuffled)} row(s), but items={config.items} are scored"
            + (" and the optimizer needs others as examples" if more else "")
            + f"; lower items to at most {max(len(shuffled) - more, 1)} (to {max(len(shuffled) // 3, 1)}, say, which leaves fresh rows "
            "to score the leaders on), or give more rows"
        )
    items, rest = shuffled[: config.items], shuffled[config.items :]
    shown = min(config.examples, len(rest) if fresh is not None else (len(rest) + 1) // 2)
    if fresh is None:
        fresh = rest[shown:]
    else:
        fresh = list(fresh)
        random.Random(f"{config.seed}/fresh").shuffle(fresh)
    if rows and not shown:
        raise DataError(
            "PromptTrainer: the optimizer has the model answer rows that are not scored, but examples=0; raise it"
        )
    if examples and not any(item.output is not None for item in rest[:shown]):
        raise DataError(
            "PromptTrainer: the optimizer shows examples with their answers to a proposer, but "
            + ("examples=0" if not config.examples else f"no row has one (columns {', '.join(ANSWER_COLUMNS)})")
            + "; set answer_column, or with your prompt as start= optimizer_options={'demonstrations': 0}, where it has that option"
        )
    return Split(tuple(items), tuple(rest[:shown]), tuple(fresh))


def _item(row: Any, position: int, config: PromptConfig, what: str, blank: bool) -> Item:
    if not isinstance(row, Mapping):
        raise DataError(f"PromptTrainer: {what}: row {position} is no row with columns; got {row!r:.80}")
    prompt, output = _parts(row, position, what, blank)
    where = f"PromptTrainer: {what}: row {row.get('row_id', position)!r}"
    if config.answer_column is not None:
        if config.answer_column not in row:
            raise DataError(f"{where} has no column {config.answer_column!r}; it has: {', '.join(row)}")
        output = row[config.answer_column]
    if config.input_column is not None and config.input_column not in row:
        raise DataError(f"{where} has no column {config.input_column!r}; it has: {', '.join(row)}")
    given, id_ = row.get(config.input_column or "input"), row.get("row_id", position)
    shown = text_of(prompt) if given is None or not isinstance(given, str) else given
    return Item(
        id=f"eval/{id_}" if what == "eval_dataset" else id_,
        prompt=prompt,
        input=shown.strip(),
        output=None if output is None else _text(output).strip(),
        columns={name: value for name, value in row.items() if name != "prompt"},
    )


def _parts(row: Mapping[str, Any], position: int, what: str, blank: bool) -> tuple[Any, Any]:
    """The prompt, and the wanted answer where there is one."""
    answer = next((row[name] for name in ANSWER_COLUMNS if row.get(name) is not None), None)
    prompt = row.get("prompt")
    if prompt is None and is_messages(row.get("messages")):
        messages = row["messages"]
        last = len(messages) - 1 if messages[-1]["role"] == "assistant" else len(messages)
        prompt, answer = messages[:last], messages[last]["content"] if last < len(messages) else answer
    elif prompt is None and is_messages(row.get("chosen")) and is_messages(row.get("rejected")):
        chosen, rejected = row["chosen"], row["rejected"]
        same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))
        prompt, answer = chosen[:same], chosen[same:]
    if not (isinstance(prompt, str) and (blank or prompt.strip())) and not is_messages(prompt):
        raise DataError(
            f"PromptTrainer: {what}: row {row.get('row_id', position)!r} has no prompt (text or messages; got {prompt!r:.80}); its "
            f"columns are {', '.join(row)}; rename yours to 'prompt'"
        )
    return prompt, answer


def _text(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], str):
        return value[0]
    return text_of(value) if isinstance(value, str) or is_messages(value) else str(value)


def columns_of(items: Iterable[Item]) -> dict[str, list[Any]]:
    """The items' columns as lists, as reward functions get them; a column that one of them lacks is None there."""
    items = list(items)
    names = dict.fromkeys(name for item in items for name in item.columns)
    return {name: [item.columns.get(name) for item in items] for name in names}


def content_of(items: Iterable[Item]) -> str:
    """A hash of what the items hold, in any order; values that are not JSON, such as images, count by their type."""
    ordered = sorted(items, key=lambda one: str(one.id))
    content = [[one.id, one.prompt, one.output, dict(one.columns)] for one in ordered]
    document = json.dumps(content, sort_keys=True, default=lambda value: type(value).__name__)
    return hashlib.sha256(document.encode()).hexdigest()[:24]
