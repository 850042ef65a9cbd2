"""Completions that a dataset already has, such as answers of a stronger model or references."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hfdataopt.errors import DataError
from hfdataopt.generation.completion import Completion
from hfdataopt.generation.generator import RowId
from hfdataopt.options import check_options


@dataclass
class ColumnGenerator:
    """Takes completions from a column: text, a list of texts, or the messages of one answer (or a list of these)."""

    column: str
    on_policy = False

    def __post_init__(self) -> None:
        check_options(self)

    def describe(self) -> dict[str, Any]:
        """A JSON object of everything that changes the output, apart from the rows."""
        return {"kind": "column", "column": self.column}

    def generate(
        self, rows: Sequence[Mapping[str, Any]], n: int | None = None, *, keys: Sequence[RowId]
    ) -> list[list[Completion]]:
        """The first ``n`` completions of each row, all for None; they are finished and have no token ids.

        Raises:
            DataError: no such column, or a row with no completion, fewer than ``n``, or of another form; it is named.
        """
        found = [self._of(row, key) for row, key in zip(rows, keys, strict=True)]
        for completions, key in zip(found, keys, strict=True):
            if n is not None and len(completions) < n:
                raise DataError(
                    f"column {self.column!r}: row {key!r} has {len(completions)} of the {n} completions asked for; "
                    "ask for fewer, or leave the row out"
                )
        return [completions[:n] for completions in found]

    def _of(self, row: Mapping[str, Any], key: RowId) -> list[Completion]:
        if self.column not in row:
            raise DataError(f"column {self.column!r}: row {key!r} has no such column; it has {', '.join(row)}")
        value = row[self.column]
        answers = [value] if isinstance(value, str) or _is_messages(value) else value
        if not isinstance(answers, Sequence) or not answers:
            raise DataError(f"column {self.column!r}: row {key!r} has no completion (got {value!r})")
        return [Completion(self._text(answer, key)) for answer in answers]

    def _text(self, answer: Any, key: RowId) -> str:
        if _is_messages(answer) and len(answer) == 1 and answer[0]["role"] == "assistant":
            answer = answer[0].get("content")
        if not isinstance(answer, str):
            raise DataError(
                f"column {self.column!r}: a completion of row {key!r} is neither text nor one message of the assistant; "
                f"got {str(answer)[:80]}"
            )
        return answer


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(x, dict) and "role" in x for x in value)
