"""The tables of benchmarks/README.md are those of its files of results."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    place = importlib.util.spec_from_file_location("results", ROOT / "benchmarks" / "results.py")
    assert place is not None
    assert place.loader is not None
    module = importlib.util.module_from_spec(place)
    monkeypatch.setitem(sys.modules, "results", module)
    place.loader.exec_module(module)
    return module


def test_readme_has_the_figures_of_the_files(results: ModuleType) -> None:
    text = results.README.read_text()
    assert results.rendered(text) == text
    shown = {found[2] for found in results.SECTION.finditer(text)}
    assert {path.stem for path in results.FOLDER.glob("*.json")} == shown


def test_results_go_elsewhere_when_asked(results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESULTS", str(tmp_path / "mine"))
    before = {path: path.read_bytes() for path in results.FOLDER.iterdir()}
    results.Results("shapley_speed", "python benchmarks/shapley_speed.py").table("Seconds", ["s"], [[1.0]])
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["shapley_speed.json"]
    assert {path: path.read_bytes() for path in results.FOLDER.iterdir()} == before


def test_a_table_is_saved_and_rendered(results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    kept = results.Results("speed", "python benchmarks/speed.py", versions={"peer": "1.2"})
    kept.table(
        "Seconds", ["who", "s", "rank"], [["ours", 0.12345, [0.9, 0.85, 0.951]], ["theirs", 12345.6, None]], "Note."
    )
    text = "<!-- results: speed -->\nold\n<!-- end -->\n"
    shown = results.rendered(text)
    assert "| ours | 0.123 | 0.900 (0.850 to 0.951) |\n| theirs | 12,346 | – |\n\nNote." in shown
    assert "    python benchmarks/speed.py" in shown
    assert "peer 1.2" in shown
    assert "old" not in shown
    assert results.rendered(shown) == shown


def test_a_row_of_another_length_is_refused(
    results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="Seconds: 2 columns and a row of 1"):
        results.Results("speed", "x").table("Seconds", ["who", "s"], [["ours"]])
