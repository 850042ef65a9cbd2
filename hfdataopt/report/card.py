"""A section in markdown for the card of a model or a dataset. It names rows by their ids and never shows their text."""

import re
from typing import Any

from hfdataopt.report import findings
from hfdataopt.report.charts import number
from hfdataopt.report.sections import Subject
from hfdataopt.report.texts import Text
from hfdataopt.versions import installed


def card_section(subject: Subject, parts: dict[str, Any], question: str | None = None) -> str:
    """The section, from its heading to its end."""
    said = findings.words(subject, parts, question)
    lines = ["## Training data and prompts: what was measured", ""]
    for title, points in (("Asked", said.asked), ("Found", said.found)):
        for one in points:
            lines.append(f"- {title}: {plain(one.text)}")
            if one.quote is not None:
                lines += ["", *_fenced(one.quote), ""]
    lines.append("")
    if parts["data"] and parts["data"]["methods"]:
        lines += _table(
            ["scores", "what a high score says", "rows", "queries", "model"],
            [
                [
                    m["name"],
                    m["meaning"],
                    f"{m['scored']:,}",
                    "–" if m["queries"] is None else f"{m['queries']:,}",
                    m["model"],
                ]
                for m in parts["data"]["methods"]
            ],
        )
    if parts["rows"]:
        first = parts["rows"][0]
        ids = ", ".join(plain(str(one.row.row_id)) for one in first["worst"])
        lines += [f"Lowest rows by {plain(first['name'])}, by id: {ids}", ""]
    if parts["labels"] and parts["labels"]["measured"]:
        lines += _table(
            ["scores", "AUC for known label errors (95 % interval)", "wrong rows"],
            [[m["name"], findings.interval(m["auc"]), str(m["flipped"])] for m in parts["labels"]["measured"]],
        )
    training = parts["retraining"]
    if training and training["curves"]:
        curves = training["curves"]
        lines += _table(
            ["models", "scores", "rows", curves["metric"], "less random rows"],
            [
                [
                    p["kind"],
                    p["scores"],
                    str(p["rows"]),
                    findings.interval(p["utility"]),
                    "–" if p["gain"] is None else findings.interval(p["gain"]),
                ]
                for p in curves["points"]
            ],
        )
    if training and training["modeling"]:
        lines += _table(
            ["scores", "linear datamodeling score (95 % interval)", "subsets"],
            [[m["name"], findings.interval(m["score"]), str(m["subsets"])] for m in training["modeling"]["rows"]],
        )
    for one in parts["cost"] or []:
        spent = one["spent"]
        if spent:
            lines += [
                f"The prompt search took {number(spent.get('calls', 0))} calls of the model, {number(spent.get('proposer_calls', 0))} of the "
                f"proposer and {number(spent.get('tokens', 0))} tokens"
                + (f", at a cost of {number(spent['cost'])}." if spent.get("cost") else "."),
                "",
            ]
    lines += ["### Limits", "", *(f"- {plain(one)}" for one in findings.limits(subject, parts)[:-1]), ""]
    versions = ", ".join(f"{name} {version}" for name, version in installed().items())
    seeds = "; ".join(f"{plain(name)}: {plain(value)}" for name, value in findings.seeds(subject, parts))
    lines.append(f"Versions: {versions}." + (f" Seeds: {seeds}." if seeds else ""))
    return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    """Text that markdown and HTML take as it is, on one line."""
    text = " ".join(text.split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]{}|#~!])", r"\\\1", text)


def _fenced(text: Text) -> list[str]:
    longest = max(map(len, re.findall(r"`+", text.text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}text", text.text, fence, *([f"({text.note})"] if text.note else [])]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [
        f"| {' | '.join(plain(cell) for cell in head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(plain(cell) for cell in row)} |" for row in rows),
        "",
    ]
