"""What a selection did: counts, a histogram of scores, the rows at its edge with their text, and how far methods agree."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hfdataopt.attribution.scores import row_text
from hfdataopt.selection.rules import Rule

BINS = 10


@dataclass(frozen=True)
class ShownRow:
    """One row for a person."""

    row_id: Any
    score: float
    text: str


@dataclass(frozen=True)
class SelectionSummary:
    """A selection in numbers and examples.

    Attributes:
        by, meaning, rule: the method, what its high scores say, and the keep rule.
        rows, kept, unscored: numbers of rows.
        edges: ``[11]`` limits of ten bins of what the rule ranked by.
        histogram: ``[10]`` pairs (rows, kept rows) per bin.
        best, last_kept, first_dropped, worst: rows with their text, up to ``show`` each.
        kept_ids: row ids of the kept rows, in the order of the dataset.
    """

    by: str
    meaning: str
    rule: str
    rows: int
    kept: int
    unscored: int
    edges: list[float]
    histogram: list[tuple[int, int]]
    best: list[ShownRow]
    last_kept: list[ShownRow]
    first_dropped: list[ShownRow]
    worst: list[ShownRow]
    kept_ids: list[Any]

    def as_dict(self) -> dict[str, Any]:
        """A JSON document."""
        return asdict(self)

    def overlap(self, other: "SelectionSummary") -> float:
        """The share of rows that both keep, of the smaller selection; :func:`overlap` compares several."""
        return float(overlap({"this": self, "other": other}).share[0, 1])

    def __str__(self) -> str:
        lines = [
            f"{self.by}: kept {self.kept} of {self.rows} rows by {self.rule}; {self.meaning}"
            + (f"; {self.unscored} rows have no score" if self.unscored else "")
        ]
        most = max((count for count, _ in self.histogram), default=0) or 1
        for low, high, (count, kept) in zip(self.edges[:-1], self.edges[1:], self.histogram, strict=True):
            bar = round(40 * kept / most) * "#" + round(40 * (count - kept) / most) * "-"
            lines.append(f"  {low:>10.4g} to {high:<10.4g} {bar} {kept}/{count}")
        lines.append("  (# kept, - dropped)")
        for title, rows in (
            ("highest", self.best),
            ("last kept", self.last_kept),
            ("first dropped", self.first_dropped),
            ("lowest", self.worst),
        ):
            if rows:
                lines.append(f"  {title}")
                lines += [f"    {row.score:+.4g}  row {row.row_id}  {row.text}" for row in rows]
        return "\n".join(lines)


def summarize(
    dataset: Any,
    values: np.ndarray,
    kept: np.ndarray,
    ids: Sequence[Any],
    *,
    by: str,
    meaning: str,
    rule: Rule,
    read: Sequence[str] | None = None,
    show: int = 3,
) -> SelectionSummary:
    """The summary of a selection.

    Args:
        values: ``[rows]``, what the rule ranked by; NaN where a row has no score.
        kept: positions of the kept rows.
        ids: ``[rows]``.
        read: the columns that the method read; of rows that are shown only these.
        show: how many rows to show at each edge.
    """
    scored = np.flatnonzero(~np.isnan(values))
    is_kept = np.zeros(len(values), dtype=bool)
    is_kept[kept] = True
    finite = values[np.isfinite(values)]
    edges = np.histogram_bin_edges(finite, BINS) if len(finite) else np.zeros(BINS + 1)
    bins = [np.histogram(np.clip(values[rows], edges[0], edges[-1]), edges)[0] for rows in (scored, kept)]
    order = scored[np.argsort(-values[scored], kind="stable")]
    inside, outside = order[is_kept[order]], order[~is_kept[order]]

    def shown(positions: np.ndarray) -> list[ShownRow]:
        return [ShownRow(ids[i], float(values[i]), row_text(dataset[int(i)], read=read)) for i in positions]

    few = min(show, max(1, len(inside) // 2)), min(show, max(1, len(outside) // 2))
    return SelectionSummary(
        by,
        meaning,
        str(rule),
        len(values),
        len(kept),
        len(values) - len(scored),
        [float(edge) for edge in edges],
        [(int(count), int(some)) for count, some in zip(*bins, strict=True)],
        shown(inside[: few[0]]),
        shown(inside[few[0] :][-few[0] :]),
        shown(outside[: few[1]]),
        shown(outside[few[1] :][-few[1] :]),
        [ids[i] for i in kept],
    )


@dataclass(frozen=True)
class Overlap:
    """How far selections agree.

    Attributes:
        names: of the selections.
        shared: ``[selections, selections]``, the number of rows that both keep.
        share: ``[selections, selections]``, the same over the size of the smaller one.
    """

    names: list[str]
    shared: np.ndarray
    share: np.ndarray

    def as_dict(self) -> dict[str, Any]:
        """A JSON document."""
        return {"names": self.names, "shared": self.shared.tolist(), "share": self.share.tolist()}

    def __str__(self) -> str:
        width = max(8, *map(len, self.names))
        lines = ["  ".join(f"{name:>{width}}" for name in ["", *self.names])]
        for name, row in zip(self.names, self.share, strict=True):
            lines.append("  ".join([f"{name:<{width}}", *(f"{f'{100 * share:.0f} %':>{width}}" for share in row)]))
        return "\n".join(lines)


def overlap(selections: Mapping[str, SelectionSummary | Sequence[Any]]) -> Overlap:
    """Rows that selections have in common, by row id.

    Args:
        selections: name -> summary, or the row ids it keeps.
    """
    kept = [set(one.kept_ids if isinstance(one, SelectionSummary) else one) for one in selections.values()]
    shared = np.array([[len(a & b) for b in kept] for a in kept])
    smaller = np.array([[max(1, min(len(a), len(b))) for b in kept] for a in kept])
    return Overlap(list(selections), shared, shared / smaller)
