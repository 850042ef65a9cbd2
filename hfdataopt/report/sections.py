"""What each section on data shows, as plain values: scores, rows, labels, selections, tests by training, agreement."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hfdataopt.attribution.scores import Scores
from hfdataopt.evaluation.label_noise import label_noise_auc
from hfdataopt.report.charts import Series, histogram, kept_and_dropped, lines, number
from hfdataopt.report.inputs import Inputs
from hfdataopt.report.texts import RowTexts, Shown, shown, visible
from hfdataopt.statistics import rank_correlation

SUSPECT_SHARE = 0.05  # of the rows of each method
QUERIES = 3  # shown beside a row
QUERY_LONGEST = 200
CONTROL = 7  # the place, and so the color, of random rows
KINDS = {"add-highest": "Trained on the highest rows only", "remove-highest": "Trained without the highest rows"}


@dataclass
class Subject:
    """What the sections read.

    Attributes:
        rows, queries: texts of the training rows and of the queries.
        known: row ids of known label errors, or None. source: where the dataset was read, in words.
    """

    inputs: Inputs
    rows: RowTexts
    queries: RowTexts
    known: set[Any] | None = None
    show: int = 10
    source: str = ""

    @property
    def ordered(self) -> dict[str, Scores]:
        """All scores, :attr:`judging` first and baselines last."""
        return {**self.judging, **self.inputs.scores}

    @property
    def judging(self) -> dict[str, Scores]:
        """Scores that say something of rows, the most telling first: per query, then helpfulness, then suspicion."""
        said = {n: s for n, s in self.inputs.scores.items() if s.metadata.get("meaning") != "chance"}
        return dict(sorted(said.items(), key=lambda entry: (is_suspicion(entry[1]), entry[1].matrix is None)))


def is_suspicion(scores: Scores) -> bool:
    return scores.metadata.get("meaning") == "suspicion"


def is_signed(scores: Scores) -> bool:
    """Whether a score below 0 says that a row harms."""
    return scores.metadata.get("meaning") == "helpfulness"


# -- data and model


def data(subject: Subject) -> dict[str, Any] | None:
    """Facts of the dataset, and what each method was given."""
    inputs, facts = subject.inputs, []
    if subject.rows.dataset is not None:
        columns = ", ".join(visible(name) for name in subject.rows.dataset.column_names)
        facts.append(("Dataset", visible(subject.source) or "given in Python"))
        facts.append(("Rows and columns", f"{len(subject.rows.dataset):,} rows; {columns}"))
    for search in inputs.searches:
        facts += [(f"{search.name}: {name}", value) for name, value in _search_facts(search)]
    methods = [_method(name, one) for name, one in subject.ordered.items()]
    return {"facts": facts, "methods": methods} if facts or methods else None


def _method(name: str, scores: Scores) -> dict[str, Any]:
    told = scores.metadata
    moments = told.get("moments") or []
    steps = [moment.get("step") for moment in moments if moment.get("step") is not None]
    queries = told.get("query_ids")
    scored = int((~np.isnan(scores.values)).sum())
    return {
        "name": visible(name),
        "scorer": visible(scores.scorer),
        "meaning": visible(scores.meaning),
        "model": visible(str(told.get("model") or "–")),
        "rows": len(scores),
        "scored": scored,
        "queries": len(queries) if queries else None,
        "moments": "–"
        if not steps
        else f"step {steps[0]}" + (f" to {steps[-1]} ({len(steps)} times)" if len(steps) > 1 else ""),
        "precision": visible(str(moments[-1].get("precision") or "–")) if moments else "–",
        "ids": "position in the dataset" if scores.by_position else "column row_id",
        "options": [(visible(str(key)), visible(str(value))) for key, value in (told.get("options") or {}).items()],
    }


def _search_facts(search: Any) -> list[tuple[str, str]]:
    settings = search.settings or {}
    facts = []
    for role in ("model", "proposer", "judge", "encoder", "white_box"):
        if settings.get(role):
            facts.append((role.replace("_", "-"), shown(describe_model(settings[role]), 160).text))
    if settings.get("optimizer"):
        facts.insert(0, ("optimizer", shown(settings["optimizer"][-1], 300).text))
    if settings.get("items"):
        facts.append(("items on which every candidate is scored", str(settings["items"])))
    return facts


def describe_model(given: Any) -> str:
    """A generator's description in a few words."""
    if isinstance(given, list) and given and isinstance(given[0], dict):
        about, weights = given[0], given[1] if len(given) > 1 else ""
        named = about.get("model") or weights or about.get("kind", "")
        told = [f"{key} {about[key]}" for key in ("temperature", "max_new_tokens") if about.get(key) is not None]
        return ", ".join([str(named), *told])
    return str(given)


# -- scores


def distributions(subject: Subject) -> list[dict[str, Any]] | None:
    """A histogram and quantiles for each method."""
    found = []
    for name, one in subject.ordered.items():
        values = one.values[np.isfinite(one.values)]
        entry: dict[str, Any] = {
            "name": visible(name),
            "meaning": visible(one.meaning),
            "unscored": len(one) - len(values),
        }
        if len(values):
            finite = np.isfinite(one.values)
            marked = None
            if subject.known is not None:
                marked = np.array([row in subject.known for row, has in zip(one.row_ids, finite, strict=True) if has])
            entry["chart"] = histogram(values, "score", signed=is_signed(one), marked=marked, name=visible(name))
            entry["signed"], entry["marked"] = is_signed(one), marked is not None
            entry["negative"] = int((values < 0).sum())
            entry["quantiles"] = [
                (word, float(np.quantile(values, share)))
                for word, share in (("lowest", 0), ("5 %", 0.05), ("median", 0.5), ("95 %", 0.95), ("highest", 1))
            ]
            errors = one.standard_errors
            entry["error"] = None if errors is None else float(np.nanmedian(errors[finite]))
        found.append(entry)
    return found or None


# -- rows


@dataclass(frozen=True)
class Ranked:
    """A row at one end of a ranking, with the queries that it is nearest to by its scores."""

    place: int
    row: Shown
    score: float
    error: float | None
    known: bool
    queries: list[tuple[Shown, float]] = field(default_factory=list)


def ends(subject: Subject) -> list[dict[str, Any]] | None:
    """The highest and lowest rows of each method, with text."""
    found = []
    for name, one in subject.judging.items():
        count = min(subject.show, int((~np.isnan(one.values)).sum()))
        if not count:
            continue
        where = {row: place for place, row in enumerate(one.row_ids)}
        sides = {
            side: [_ranked(subject, one, place, row, where[row], side == "best") for place, row in enumerate(ids, 1)]
            for side, ids in (("worst", one.bottom(k=count)), ("best", one.top(k=count)))
        }
        suspicion = is_suspicion(one)
        entry = {
            "name": visible(name),
            "meaning": visible(one.meaning),
            "per_query": one.matrix is not None,
            "best_title": "Highest: least suspicious" if suspicion else "Highest: these help most",
            "worst_title": "Lowest: most suspicious" if suspicion else "Lowest: these harm most, or help least",
            **sides,
        }
        found.append(entry)
    return found or None


def _ranked(subject: Subject, scores: Scores, place: int, row: Any, at: int, best: bool) -> Ranked:
    errors = scores.standard_errors
    nearest: list[tuple[Shown, float]] = []
    if scores.matrix is not None:
        line = scores.matrix[at]
        order = np.argsort(-line if best else line, kind="stable")
        ids = scores.metadata.get("query_ids") or range(len(line))
        for query in order[:QUERIES]:
            if not np.isnan(line[query]):
                nearest.append((_query(subject, scores, ids[int(query)], int(query)), float(line[query])))
    return Ranked(
        place,
        subject.rows.of(row),
        float(scores.values[at]),
        None if errors is None else float(errors[at]),
        subject.known is not None and row in subject.known,
        nearest,
    )


def _query(subject: Subject, scores: Scores, row: Any, place: int) -> Shown:
    found = subject.queries.of(row, QUERY_LONGEST)
    if not found.fields and scores.query_tokens is not None:
        return Shown(row, [("text", shown(scores._decode(scores.query_tokens[place]), QUERY_LONGEST))])
    return found


# -- labels


def labels(subject: Subject) -> dict[str, Any] | None:
    """Rows that methods place lowest, most of them first, and how well that finds known label errors."""
    measured = _label_noise(subject)
    suspects = _suspects(subject) if subject.rows.dataset is not None and subject.rows.labelled else None
    if not measured and suspects is None:
        return None
    return {"measured": measured, "suspects": suspects, "share": SUSPECT_SHARE}


def _label_noise(subject: Subject) -> list[dict[str, Any]]:
    found = {name: dict(one) for name, one in subject.inputs.evaluation.get("label_noise", {}).items()}
    if subject.known is not None and not found:
        for name, one in subject.inputs.scores.items():
            marks = np.array([row in subject.known for row in one.row_ids])
            scored = ~np.isnan(one.values)
            if marks[scored].any() and not marks[scored].all():
                found[name] = label_noise_auc(one, marks).as_dict()
                lowest = set(one.bottom(k=min(int(marks.sum()), int(scored.sum()))))
                found[name]["hits"] = len(lowest & subject.known)
    ordered = sorted(found.items(), key=lambda entry: -_or_nan(entry[1]["auc"]["value"]))
    return [{"name": visible(name), **one} for name, one in ordered]


def _suspects(subject: Subject) -> dict[str, Any] | None:
    methods = subject.judging
    if not methods:
        return None
    ids, shares = rank_shares(methods)
    if not len(ids):
        return None
    lowest = shares <= max(SUSPECT_SHARE, 1 / len(ids)) + 1e-9  # at least one row; NaN: no
    flagged = lowest.sum(0)
    mean = np.nanmean(np.where(np.isnan(shares), 1.0, shares), axis=0)
    by = np.lexsort((mean, -flagged))
    most = len(methods) // 2 + 1
    count = int((flagged >= most).sum())
    rows = [
        {
            "place": place,
            "row": subject.rows.of(ids[at]),
            "flagged": int(flagged[at]),
            "shares": [(visible(name), float(shares[k, at])) for k, name in enumerate(methods)],
            "known": subject.known is not None and ids[at] in subject.known,
        }
        for place, at in enumerate(by[: min(subject.show, int((flagged > 0).sum()))], 1)
    ]
    found = None
    if subject.known is not None:
        found = sum(ids[at] in subject.known for at in np.flatnonzero(flagged >= most))
    return {"rows": rows, "count": count, "most": most, "methods": list(methods), "known": found, "of": len(ids)}


def rank_shares(methods: Mapping[str, Scores]) -> tuple[list[Any], np.ndarray]:
    """Row ids that any method scored, and ``[methods, rows]`` each row's rank from the lowest over the rows that the method
    scored, so that the highest has 1; NaN without a score."""
    ids: list[Any] = list(dict.fromkeys(row for one in methods.values() for row in one.row_ids))
    where = {row: place for place, row in enumerate(ids)}
    shares = np.full((len(methods), len(ids)), np.nan)
    for line, one in zip(shares, methods.values(), strict=True):
        scored = np.flatnonzero(~np.isnan(one.values))
        order = scored[np.argsort(one.values[scored], kind="stable")]
        line[[where[one.row_ids[at]] for at in order]] = np.arange(1, len(order) + 1) / max(len(order), 1)
    return ids, shares


# -- agreement


def agreement(subject: Subject) -> dict[str, Any] | None:
    """Spearman's rank correlation of every two methods, over the rows that both score."""
    scores = subject.ordered
    if len(scores) < 2:
        return None
    names = list(scores)
    ids = list(dict.fromkeys(row for one in scores.values() for row in one.row_ids))
    where = {row: place for place, row in enumerate(ids)}
    values = np.full((len(names), len(ids)), np.nan)
    for line, one in zip(values, scores.values(), strict=True):
        line[[where[row] for row in one.row_ids]] = one.values
    table, common = [], []
    for left in values:
        cells = []
        for right in values:
            both = ~np.isnan(left) & ~np.isnan(right)
            common.append(int(both.sum()))
            cells.append(rank_correlation(left[both], right[both]) if both.sum() > 1 else float("nan"))
        table.append(cells)
    if not any(common):
        return None
    judging = [k for k, name in enumerate(names) if scores[name].metadata.get("meaning") != "chance"]
    pairs = [table[i][j] for i in judging for j in judging if i < j and table[i][j] == table[i][j]]
    return {
        "names": [visible(name) for name in names],
        "table": table,
        "rows": (min(common), max(common)),
        "pairs": pairs,
    }


# -- selection


def selections(subject: Subject) -> dict[str, Any] | None:
    """What each selection kept, and how far selections agree."""
    found = []
    for name, one in subject.inputs.summaries.items():
        entry: dict[str, Any] = {
            **{key: one[key] for key in ("rows", "kept", "unscored")},
            **{key: visible(str(one[key])) for key in ("by", "meaning", "rule")},
            "name": visible(name),
            "chart": kept_and_dropped(one["edges"], one["histogram"], visible(name)),
            "edge": [
                (title, [(visible(str(row["row_id"])), row["score"], shown(row["text"])) for row in one[side]])
                for title, side in (
                    ("Highest", "best"),
                    ("Last kept", "last_kept"),
                    ("First dropped", "first_dropped"),
                    ("Lowest", "worst"),
                )
            ],
        }
        found.append(entry)
    if not found:
        return None
    shared = None
    if len(found) > 1:
        from hfdataopt.selection.summary import overlap

        shared = overlap({name: one["kept_ids"] for name, one in subject.inputs.summaries.items()}).share.tolist()
    return {"selections": found, "shared": shared}


# -- training again


def retraining(subject: Subject) -> dict[str, Any] | None:
    """Curves with intervals, their gains over random rows, and linear datamodeling scores."""
    document = subject.inputs.evaluation
    curves, modeling = document.get("curves"), document.get("linear_datamodeling_score")
    if curves is None and modeling is None:
        return None
    return {"curves": None if curves is None else _curves(curves), "modeling": _modeling(modeling)}


def _modeling(document: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not document:
        return None
    rows = [
        {"name": visible(name), "score": one["score"], "subsets": one["subsets"]}
        for name, one in document.items()
        if name != "reliability"
    ]
    rows.sort(key=lambda row: -_or_nan(row["score"]["value"]))
    return {"rows": rows, "reliability": document.get("reliability")}


def _curves(document: Mapping[str, Any]) -> dict[str, Any]:
    names = list(dict.fromkeys(point["scores"] for point in document["points"]))
    places = [CONTROL if name == "random" else place % CONTROL for place, name in enumerate(names)]
    charts = []
    for kind, title in KINDS.items():
        series = []
        for place, name in zip(places, names, strict=True):
            points = [p for p in document["points"] if p["kind"] == kind and p["scores"] == name]
            series.append(
                Series(
                    visible(name),
                    [100 * point["fraction"] for point in points],
                    [_or_nan(point["utility"]["value"]) for point in points],
                    place,
                    low=[_or_nan(point["utility"]["low"]) for point in points],
                    high=[_or_nan(point["utility"]["high"]) for point in points],
                )
            )
        if any(one.x for one in series):
            words = "; ".join(f"{one.name} {number(one.y[0])} to {number(one.y[-1])}" for one in series if one.y)
            charts.append(
                {
                    "title": title,
                    "chart": lines(
                        series, "% of the rows", document["metric"], f"{title}, {document['metric']}: {words}."
                    ),
                }
            )
    points = [
        {**point, "scores": visible(point["scores"]), "kind": visible(point["kind"])} for point in document["points"]
    ]
    judged = []
    for name in names:
        gains = [(p["kind"], p["gain"]) for p in document["points"] if p["scores"] == name and p["gain"] is not None]
        if gains:
            judged.append({"name": visible(name), **_judged(gains)})
    return {
        "names": [visible(name) for name in names],
        "places": places,
        "charts": charts,
        "points": points,
        "judged": judged,
        "metric": visible(document["metric"]),
        "seeds": document["seeds"],
        "none": document.get("none"),
        "everything": document["everything"],
    }


def _judged(gains: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, int]:
    """At how many points an interval says that the ranking is better than random rows, or worse."""
    better = worse = 0
    for kind, gain in gains:
        low, high = _or_nan(gain["low"]), _or_nan(gain["high"])
        above, below = low > 0, high < 0
        better += above if kind == "add-highest" else below
        worse += below if kind == "add-highest" else above
    return {"better": better, "worse": worse, "points": len(gains)}


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else float(value)
