"""Text of rows for a page: cut where it is long, with signs for the characters that would not show or would turn the line round."""

import unicodedata
from dataclasses import dataclass
from typing import Any

from hfdataopt.attribution.rows import ROW_ID, row_ids
from hfdataopt.attribution.scores import Scores
from hfdataopt.errors import DataError

LONGEST = 600  # characters of one field
FIELDS = 6  # shown of one row
JOINERS = "\u200c\u200d"  # emoji and several scripts are written with them
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


@dataclass(frozen=True)
class Text:
    """A text to show; ``note`` says what is left out."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Shown:
    """A row to show: its id, its fields (name, text) and the name of its label."""

    row_id: Any
    fields: list[tuple[str, Text]]
    label: Text | None = None


def visible(text: str) -> str:
    """The text with a sign for every control, direction, unpaired or invisible character; line ends and tabs stay.

    Joiners stay where they stand between two characters that show.
    """
    text = text.replace("\r\n", "\n")
    return "".join(_sign(sign, text, place) for place, sign in enumerate(text))


def _sign(sign: str, text: str, place: int) -> str:
    if sign in "\n\t" or unicodedata.category(sign) not in HIDDEN:
        return sign
    if sign in JOINERS and 0 < place < len(text) - 1 and text[place - 1] > " " and text[place + 1] > " ":
        return sign
    code = ord(sign)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"[U+{code:04X}]"


def shown(value: Any, longest: int = LONGEST) -> Text:
    """A value as text for a page, cut after ``longest`` characters with a note."""
    text = value if isinstance(value, str) else str(value)
    note = f"cut after {longest:,} of {len(text):,} characters" if len(text) > longest else ""
    return Text(visible(text[:longest]), note)


class RowTexts:
    """Texts of rows by their ids: from a dataset, else from the token ids that are kept with scores.

    Args:
        dataset: a ``datasets.Dataset`` or None.
        text, label: names of its columns; None: ``text``, else every column of texts or messages, and ``label``.
        tokens: per scores, token ids by row id and what decodes them.

    Raises:
        DataError: a column that is not there.
    """

    def __init__(self, dataset: Any, text: str | None, label: str | None, what: str = "the dataset"):
        self.dataset = dataset
        columns = list(getattr(dataset, "column_names", None) or [])
        for name in (text, label):
            if dataset is not None and name is not None and name not in columns:
                raise DataError(f"report: {what} has no column {name!r}; it has: {', '.join(columns)}")
        self.text = text or ("text" if "text" in columns else None)
        self.label = label or next((name for name in ("label", "labels") if name in columns), None)
        self._where = (
            {} if dataset is None else {row: place for place, row in enumerate(row_ids(dataset, f"report: {what}"))}
        )
        self._tokens: dict[Any, list[int]] = {}
        self._decode: Any = None

    def fall_back(self, ids: Any, tokens: list[list[int]] | None, scores: Scores) -> None:
        """Where the dataset has no text for a row, decode these."""
        if tokens is not None and not self._tokens and len(tokens) == len(ids):
            self._tokens, self._decode = dict(zip(ids, tokens, strict=True)), scores._decode

    @property
    def labelled(self) -> bool:
        """Whether there are class labels: names or numbers, one for each row."""
        return self.label is not None and not isinstance(self.dataset[0][self.label], list | dict)

    def of(self, row_id: Any, longest: int = LONGEST) -> Shown:
        """The row to show; without fields where nothing is known of it."""
        if row_id in self._where:
            row = self.dataset[self._where[row_id]]
            fields = self._fields(row, longest)
            label = shown(self._name(row[self.label]), 80) if self.labelled and row[self.label] is not None else None
            if fields:
                return Shown(row_id, fields, label)
            if row_id in self._tokens:
                return Shown(row_id, [("text", self._decoded(row_id, longest))], label)
            return Shown(row_id, [("row", shown(row, longest))], label)
        if row_id in self._tokens:
            return Shown(row_id, [("text", self._decoded(row_id, longest))])
        return Shown(row_id, [])

    def _decoded(self, row_id: Any, longest: int) -> Text:
        return shown(self._decode(self._tokens[row_id]), longest)

    def _name(self, label: Any) -> str:
        feature = getattr(self.dataset, "features", {}).get(self.label)
        names = getattr(feature, "names", None)
        return names[label] if names and isinstance(label, int) and 0 <= label < len(names) else str(label)

    def _fields(self, row: dict[str, Any], longest: int) -> list[tuple[str, Text]]:
        names = [self.text] if self.text else [name for name in row if name not in (ROW_ID, self.label)]
        found: list[tuple[str, Text]] = []
        for name in names:
            value = row[name]
            if isinstance(value, str):
                found.append((visible(name), shown(value, longest)))
            elif isinstance(value, list) and value and isinstance(value[0], dict) and "content" in value[0]:
                for message in value:
                    found.append((visible(str(message.get("role", name))), shown(message["content"], longest)))
        if len(found) > FIELDS:
            found = [*found[:FIELDS], ("", Text("", f"{len(found) - FIELDS} more fields or messages are left out"))]
        return found
