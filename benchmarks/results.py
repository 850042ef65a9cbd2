"""Figures of a benchmark as ``benchmarks/results/NAME.json``, and ``benchmarks/README.md`` rendered from them.

    python benchmarks/results.py            # writes the tables into README.md, between their marks
    python benchmarks/results.py --check    # exits 1 where README.md differs from the files

A benchmark makes one ``Results``, adds tables and saves after each, so that a killed run keeps what it measured. The text around
the tables is written by hand in README.md; a table stands between ``<!-- results: NAME -->`` and ``<!-- end -->``.
"""

import argparse
import json
import os
import platform
import re
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).resolve().parent / "results"
README = Path(__file__).resolve().parent / "README.md"
SECTION = re.compile(r"(<!-- results: ([a-z0-9_]+) -->\n).*?(<!-- end -->)", re.DOTALL)
PACKAGES = ("hfdataopt", "torch", "transformers", "datasets", "trl", "numpy")


class Results:
    """The tables of one benchmark, in ``results/``, or in the folder that the environment variable RESULTS names.

    Args:
        name: of the file.
        command: what was run, as a user would type it.
        packages: names of further packages whose versions matter; a peer in an environment of its own is given with
            ``versions`` instead.
        versions: of packages that this environment does not have.
    """

    def __init__(
        self, name: str, command: str, *, packages: Sequence[str] = (), versions: dict[str, str] | None = None
    ) -> None:
        self.path = Path(os.environ.get("RESULTS") or FOLDER) / f"{name}.json"
        self.document: dict[str, Any] = {
            "command": command,
            "machine": machine(),
            "versions": {name: _version(name) for name in (*PACKAGES, *packages)} | (versions or {}),
            "tables": [],
        }

    def table(self, caption: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *notes: str) -> None:
        """Add a table and save. A cell is a text, a number, None (not measured) or ``[value, low, high]``, an interval."""
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(f"{caption}: {len(columns)} columns and a row of {len(row)}: {row}")
        self.document["tables"].append(
            {"caption": caption, "columns": list(columns), "rows": [list(row) for row in rows], "notes": list(notes)}
        )
        self.path.parent.mkdir(exist_ok=True)
        whole = self.path.with_suffix(".new")
        whole.write_text(json.dumps(self.document, indent=1, allow_nan=False) + "\n")
        whole.replace(self.path)
        print(render_table(self.document["tables"][-1]), flush=True)


def machine() -> dict[str, Any]:
    """Processor, cores, load and GPU; no name of a host."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name(0)
    return found


def _processor() -> str:
    try:
        return next(
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cell(value: Any) -> str:
    """A cell's text: three significant digits, an interval as ``0.71 (0.62 to 0.78)``."""
    if value is None:
        return "–"
    if isinstance(value, (list, tuple)):
        middle, low, high = map(cell, value)
        return f"{middle} ({low} to {high})"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


def render_table(table: dict[str, Any]) -> str:
    lines = [
        f"{table['caption']}",
        "",
        "| " + " | ".join(table["columns"]) + " |",
        "|---" * len(table["columns"]) + "|",
    ]
    lines += ["| " + " | ".join(cell(value) for value in row) + " |" for row in table["rows"]]
    return "\n".join([*lines, "", *(f"{note}\n" for note in table["notes"])])


def render(name: str) -> str:
    """The Markdown of a file of results."""
    document = json.loads((FOLDER / f"{name}.json").read_text())
    where = document["machine"]
    facts = [
        f"{where['processor']}, {where['cores']} cores, {where['threads']} thread(s)",
        f"load {where['load average']}",
    ]
    facts += [where["gpu"]] if "gpu" in where else []
    facts.append(", ".join(f"{package} {number}" for package, number in document["versions"].items() if number))
    return "\n".join(
        [
            f"    {document['command']}",
            "",
            *(render_table(table) for table in document["tables"]),
            f"{'; '.join(facts)}.",
            "",
        ]
    )


def rendered(text: str) -> str:
    """README's text with every table as its file has it."""
    return SECTION.sub(lambda found: f"{found[1]}\n{render(found[2])}\n{found[3]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    text = README.read_text()
    whole = rendered(text)
    if arguments.check and whole != text:
        sys.exit("benchmarks/README.md differs from benchmarks/results: run python benchmarks/results.py")
    README.write_text(whole)


if __name__ == "__main__":
    main()
