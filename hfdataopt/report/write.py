"""``write_report``: one HTML file without script, and beside it PNGs and a section for a card where these are asked for."""

import base64
import hashlib
import os
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hfdataopt.errors import DataError, OptionError, StoreError
from hfdataopt.files import write_whole
from hfdataopt.report import findings, search_sections, sections
from hfdataopt.report.charts import number, signed, swatch
from hfdataopt.report.inputs import Inputs, gather
from hfdataopt.report.sections import Subject
from hfdataopt.report.texts import RowTexts, visible
from hfdataopt.versions import installed

HERE = Path(__file__).parent
TITLES_OF_PAGES = {
    (True, False): "Which training rows make the model better",
    (False, True): "A better prompt for the model",
    (True, True): "Which rows, and which prompts, make the model better",
}
# In the order of the page; sections without data are left out, and named in the last one.
TITLES = {
    "summary": "In short",
    "data": "Data and model",
    "scores": "Distribution of the scores",
    "rows": "Rows that help and harm most",
    "labels": "Suspected label errors",
    "selection": "What was selected",
    "retraining": "Tested by training again",
    "agreement": "Do the methods agree?",
    "search": "Prompt search",
    "cost": "What it cost",
    "versions": "Versions and seeds",
    "limits": "Limits, and how to read this",
    "absent": "What is not in this report",
}


def write_report(
    path: str | os.PathLike[str],
    *,
    scores: Any = None,
    dataset: Any = None,
    queries: Any = None,
    summaries: Any = None,
    evaluation: Any = None,
    prompt_result: Any = None,
    text: str | None = None,
    label: str | None = None,
    flipped: str | Sequence[bool] | None = None,
    title: str | None = None,
    question: str | None = None,
    show: int = 10,
    figures: str | os.PathLike[str] | None = None,
    card: str | os.PathLike[str] | None = None,
) -> Path:
    """Write a report as one HTML file: no script, nothing loaded from anywhere, all text escaped.

    Args:
        path: of the file, ``.html``; one that is there is replaced.
        scores: ``Scores``, a folder of them, a list of these, or a mapping from names to them.
        dataset, queries: the rows that were scored and the queries, for their text; they are checked to be those.
        summaries: ``SelectionSummary``, a file of ``hfdataopt select --summary``, a list of these, or a mapping from names.
        evaluation: what ``hfdataopt evaluate`` wrote (its folder, file or document), or a mapping with ``curves``,
            ``label_noise`` and ``linear_datamodeling_score`` like it, of objects of :mod:`hfdataopt.evaluation`.
        prompt_result: ``PromptResult``, or the folder of a search (which also has its ledger), a list of these, or a mapping.
        text, label: columns of ``dataset`` and ``queries``; None: ``text``, else every column of texts or messages, and ``label``.
        flipped: known label errors: a column of ``dataset``, or ``[rows]`` bool in its order.
        question: what was asked, in your words; None says it from the inputs.
        show: rows at each end of a ranking.
        figures: a folder for the charts as PNG; needs matplotlib.
        card: a markdown file for a section of a model or dataset card.

    Returns:
        the path of the report.

    Raises:
        DataError: nothing to report, or scores that belong to another dataset. StoreError: a file cannot be written.
    """
    inputs = gather(scores, summaries, evaluation, prompt_result)
    return write_inputs(
        path,
        inputs,
        dataset=dataset,
        queries=queries,
        text=text,
        label=label,
        flipped=flipped,
        title=title,
        question=question,
        show=show,
        figures=figures,
        card=card,
    )


def write_inputs(
    path: str | os.PathLike[str],
    inputs: Inputs,
    *,
    dataset: Any = None,
    queries: Any = None,
    text: str | None = None,
    label: str | None = None,
    flipped: str | Sequence[bool] | None = None,
    title: str | None = None,
    question: str | None = None,
    show: int = 10,
    figures: str | os.PathLike[str] | None = None,
    card: str | os.PathLike[str] | None = None,
    source: str = "",
) -> Path:
    """:func:`write_report` of what was gathered; ``source`` says where the dataset is."""
    where = Path(path)
    if where.suffix != ".html":
        raise OptionError(f"report: the file {str(where)!r} must end in .html")
    if show < 1:
        raise OptionError(f"report: show={show} must be at least 1")
    if not inputs:
        raise DataError("report: nothing was given to report on: scores, summaries, an evaluation or a prompt search")
    subject = _subject(inputs, dataset, queries, text, label, flipped, show, source)
    parts = parts_of(subject)
    rows = bool(inputs.scores or inputs.summaries or inputs.evaluation)
    page = render(subject, parts, title or TITLES_OF_PAGES[rows, bool(inputs.searches)], question)
    _write(where, page)
    if card is not None:
        from hfdataopt.report.card import card_section

        _write(Path(card), card_section(subject, parts, question))
    if figures is not None:
        from hfdataopt.report.figures import write_figures

        write_figures(Path(figures), inputs)
    return where


def _subject(
    inputs: Inputs,
    dataset: Any,
    queries: Any,
    text: str | None,
    label: str | None,
    flipped: str | Sequence[bool] | None,
    show: int,
    source: str,
) -> Subject:
    rows = RowTexts(dataset, text, label)
    asked = RowTexts(
        queries, text if _has(queries, text) else None, label if _has(queries, label) else None, "the queries"
    )
    for name, one in inputs.scores.items():
        if dataset is not None:
            _check(name, one, dataset, rows)
        rows.fall_back(one.row_ids, one.pool_tokens, one)
    return Subject(inputs, rows, asked, _known(dataset, flipped), show, source)


def _has(dataset: Any, column: str | None) -> bool:
    return column is not None and column in (getattr(dataset, "column_names", None) or [])


def _check(name: str, scores: Any, dataset: Any, rows: RowTexts) -> None:
    """That the scores are of this dataset. Labels may be encoded otherwise than when it was scored, so they are not compared."""
    compared = dataset.remove_columns([rows.label]) if rows.label else dataset
    if "label" in compared.column_names:
        compared = compared.remove_columns("label")
    if rows.text and rows.text != "text":
        compared = compared.remove_columns(["text"]) if "text" in compared.column_names else compared
        compared = compared.rename_column(rows.text, "text")
    try:
        scores.align(compared)
    except DataError as error:
        raise DataError(f"report: the scores {name!r} do not fit the dataset: {error}") from error


def _known(dataset: Any, flipped: str | Sequence[bool] | None) -> set[Any] | None:
    """Row ids of known label errors."""
    if flipped is None:
        return None
    from hfdataopt.attribution.rows import as_list, row_ids

    if dataset is None:
        raise OptionError("report: flipped= marks rows of the dataset; give the dataset too")
    if isinstance(flipped, str):
        if flipped not in dataset.column_names:
            raise DataError(f"report: the dataset has no column {flipped!r}; it has: {', '.join(dataset.column_names)}")
        flipped = as_list(dataset[flipped])
    wrong = [value for value in flipped if value not in (0, 1)]
    if wrong or len(flipped) != len(dataset):
        raise DataError(
            f"report: flipped must say true or false (1 or 0) of each of {len(dataset)} rows; got {len(flipped)} values"
            + (f", for example {wrong[0]!r}" if wrong else "")
        )
    return {row for row, mark in zip(row_ids(dataset), flipped, strict=True) if mark}


def parts_of(subject: Subject) -> dict[str, Any]:
    """The content of each section that has data; None for the others."""
    return {
        "data": sections.data(subject),
        "scores": sections.distributions(subject),
        "rows": sections.ends(subject),
        "labels": sections.labels(subject),
        "selection": sections.selections(subject),
        "retraining": sections.retraining(subject),
        "agreement": sections.agreement(subject),
        "search": search_sections.searches(subject.inputs.searches),
        "cost": search_sections.costs(subject.inputs.searches),
    }


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": lambda value: number(float("nan") if value is None else float(value)),
        "signed": lambda value: signed(float("nan") if value is None else float(value)),
        "interval": findings.interval,
        "percent": findings.percent,
        "visible": lambda value: visible(str(value)),
        "plural": findings.plural,
    }
    environment.globals |= {"swatch": swatch}
    return environment.get_template("page.html")


def render(subject: Subject, parts: dict[str, Any], title: str, question: str | None) -> str:
    """The page."""
    style = (HERE / "page.css").read_text(encoding="utf-8")
    absent = findings.absent(subject, parts)
    there = {"summary", "versions", "limits", *(name for name, part in parts.items() if part)}
    if absent:
        there.add("absent")
    return _template().render(
        title=visible(title),
        style=style,
        # A browser hashes the text between the tags, and so do we.
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        titles={name: text for name, text in TITLES.items() if name in there},
        words=findings.words(subject, parts, question),
        limits=findings.limits(subject, parts),
        absent=absent,
        seeds=findings.seeds(subject, parts),
        versions=installed(),
        recorded=recorded_versions(subject),
        written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        known=subject.known is not None,
        **parts,
    )


def recorded_versions(subject: Subject) -> list[tuple[str, dict[str, str]]]:
    """Versions that were noted when the numbers were made, and for what; what notes none has an empty mapping."""
    noted = [(name, one.metadata.get("versions")) for name, one in subject.ordered.items()]
    noted += [(one.name, (one.result or {}).get("versions")) for one in subject.inputs.searches]
    groups: dict[str, tuple[list[str], dict[str, str]]] = {}
    for name, versions in noted:
        versions = versions if isinstance(versions, dict) else {}
        groups.setdefault(str(versions), ([], versions))[0].append(visible(name))
    return [(", ".join(names), versions) for names, versions in groups.values()]


def _write(where: Path, content: str) -> None:
    try:
        where.parent.mkdir(parents=True, exist_ok=True)
        write_whole(where, content.encode("utf-8"))
    except OSError as error:
        raise StoreError(f"report: {str(where)!r} cannot be written: {error.strerror or error}") from error
