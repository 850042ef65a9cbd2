"""The charts of a report as PNG, with matplotlib."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hfdataopt.errors import MissingDependencyError
from hfdataopt.prompting.result import plot_search
from hfdataopt.report.inputs import Inputs
from hfdataopt.report.sections import KINDS


def write_figures(folder: Path, inputs: Inputs) -> list[Path]:
    """Write ``scores-NAME.png``, ``curves.png`` and ``search-NAME.png``, as far as there is something to draw."""
    written = []
    for name, scores in inputs.scores.items():
        written.append(folder / f"scores-{_name(name)}.png")
        scores.plot(written[-1])
    if inputs.evaluation.get("curves"):
        written.append(folder / "curves.png")
        plot_curves(inputs.evaluation["curves"], written[-1])
    for search in inputs.searches:
        if search.result is not None and search.result["history"]:
            written.append(folder / f"search-{_name(search.name)}.png")
            plot_search(search.result, written[-1])
    return written


def plot_curves(curves: Mapping[str, Any], path: Path) -> Any:
    """Both curves of every ranking with intervals over seeds, saved to ``path``; ``curves`` as ``RemovalCurves.as_dict()``."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("the curves need matplotlib: pip install 'hfdataopt[plot]'") from error
    figure = Figure(figsize=(9.5, 4.0), layout="constrained")
    names = list(dict.fromkeys(point["scores"] for point in curves["points"]))
    for axes, (kind, title) in zip(figure.subplots(1, 2, sharey=True), KINDS.items(), strict=True):
        for name in names:
            points = [p for p in curves["points"] if p["kind"] == kind and p["scores"] == name]
            values = [p["utility"]["value"] for p in points]
            limits = [
                [p["utility"][side] if p["utility"][side] is not None else p["utility"]["value"] for p in points]
                for side in ("low", "high")
            ]
            errors = [
                [v - x for v, x in zip(values, limits[0], strict=True)],
                [x - v for v, x in zip(values, limits[1], strict=True)],
            ]
            style: dict[str, Any] = {"color": "0.5", "linestyle": "--"} if name == "random" else {}
            axes.errorbar(
                [100 * p["fraction"] for p in points],
                values,
                yerr=errors,
                marker="o",
                ms=4,
                lw=1.2,
                capsize=2,
                label=name,
                **style,
            )
        axes.set(xlabel="% of the rows", title=title)
    figure.axes[0].set_ylabel(curves["metric"])
    figure.axes[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return figure


def _name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-") or "unnamed"
