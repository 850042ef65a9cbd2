"""The kit itself: each check finds the fault it is for, in a plugin that has no other, and says what to change."""

import os
import subprocess
import sys
from typing import Any

import pytest

from hfdataopt import testing
from hfdataopt.errors import OptionError
from hfdataopt.testing import tiny
from hfdataopt.testing.kit import CheckFailure, checks_of, conformance, make_case, run_check, run_checks
from tests.testing.broken import BROKEN, GOOD, GoodFilter, GoodScorer

EVERY = [(kind, name) for kind in BROKEN for name in checks_of(kind)]


@pytest.mark.parametrize("kind", GOOD)
def test_a_good_component_passes(kind: str) -> None:
    report = run_checks(make_case(GOOD[kind]))
    assert report.passed, str(report)
    assert not [
        one
        for one in report.outcomes
        if one.status == "not checked" and one.check.name not in ("reads-target", "higher-is-helpful")
    ]
    assert GOOD[kind].name in report.who


@pytest.mark.parametrize(("kind", "name"), EVERY, ids=lambda value: value)
def test_a_check_finds_its_fault_and_no_other_check_does(kind: str, name: str) -> None:
    cls, says = BROKEN[kind][name]
    report = run_checks(make_case(cls))
    failed = {one.check.name: one.message for one in report.outcomes if one.status == "FAILED"}
    assert list(failed) == [name], str(report)
    assert says in failed[name]
    assert failed[name].startswith(f"{kind} {cls.name!r}: ")
    assert "\n" not in failed[name]


def test_there_are_about_twenty_names_and_each_has_a_promise() -> None:
    names = {name for _, name in EVERY}
    assert 18 <= len(names) <= 30
    for kind, name in EVERY:
        assert checks_of(kind)[name].promise


# -- declared failures

OWN = {"batch-size": "counts the rows of a batch"}


def test_a_declared_failure_is_no_failure_and_one_that_passes_is_told() -> None:
    broken = BROKEN["filter"]["batch-size"][0]
    report = testing.check_filter(broken(), expected_failures=OWN)
    assert [(one.check.name, one.message) for one in report.outcomes if one.status == "expected"] == list(OWN.items())
    with pytest.raises(
        CheckFailure, match=r"UNEXPECTED +batch-size +passes, but was expected to fail \(counts the rows of a batch\)"
    ):
        testing.check_filter(GoodFilter(), expected_failures=OWN)
    with pytest.raises(CheckFailure, match=r"FAILED +batch-size"):
        testing.check_filter(broken())


@pytest.mark.parametrize(
    ("expected", "says"),
    [
        ({"batchsize": "x"}, "no check of a filter is called 'batchsize'; there are: "),
        ({"padding": "x"}, "no check of a filter is called 'padding'"),
        ({"batch-size": " "}, "say why 'batch-size' is expected to fail"),
    ],
)
def test_what_is_declared_must_exist_and_have_a_reason(expected: dict[str, str], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        conformance(GoodFilter(), expected_failures=expected)


# -- the front doors


def test_instances_classes_and_names() -> None:
    assert make_case(GoodFilter(power=2.0)).component.power == 2.0
    assert make_case(GoodFilter, power=3.0).component.power == 3.0
    assert make_case("length", best="shortest").component.best == "shortest"
    assert make_case("random", "scorer", seed=4).component.seed == 4
    for given, options, says in (
        ("random", {}, "'random' is the name of a scorer and of a filter and of a optimizer; say which"),
        (GoodFilter(), {"power": 2.0}, "has its options already; power belong"),
        (GoodFilter(), {"kind": "scorer"}, "is a filter, not a scorer"),
        (object(), {}, "is no component; it must inherit from one of: hfdataopt.attribution.scorer.Scorer, "),
    ):
        with pytest.raises(OptionError) as caught:
            make_case(given, **options)
        assert says in str(caught.value)


def test_data_of_ones_own() -> None:
    from datasets import Dataset

    data = Dataset.from_dict({"text": ["a", "b c", "d e f", "g h i j"]})
    assert testing.check_filter(GoodFilter(), dataset=data).passed
    case = make_case(GoodScorer(), pool=tiny.encoded(9, 4))
    assert len(case.pool) == 9
    assert case.pool["row_id"][:2] == ["row 0", "row 1"]


FILE = """
from hfdataopt.testing import conformance
from tests.testing.broken import BROKEN, GoodFilter

WRONG = BROKEN["filter"]["row-order"][0]

@conformance(WRONG(), expected_failures={"row-order": "it is about the first row"})
def test_declared(check):
    check()

@conformance(WRONG())
def test_not_declared(check):
    check()

@conformance(GoodFilter(), expected_failures={"row-order": "nobody knows why"})
def test_declared_in_vain(check):
    check()
"""


def test_the_decorator_makes_one_test_per_check(tmp_path: Any) -> None:
    (tmp_path / "test_it.py").write_text(FILE)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rxfs",
        "-p",
        "no:cacheprovider",
        "-k",
        "row-order or finite or reads",
        ".",
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd(), "COLUMNS": "400"},
    )
    lines = done.stdout.splitlines()
    assert any(
        line.startswith("XFAIL test_it.py::test_declared[row-order] - it is about the first row") for line in lines
    )
    assert any(
        line.startswith("FAILED test_it.py::test_not_declared[row-order] - ") and "in another order" in line
        for line in lines
    )
    assert any(
        line.startswith("FAILED test_it.py::test_declared_in_vain[row-order]") and "nobody knows why" in line
        for line in lines
    )
    assert any(line.startswith("SKIPPED [3]") and "it needs no target" in line for line in lines)
    assert "2 failed, 3 passed, 3 skipped" in lines[-1]
    assert "1 xfailed" in lines[-1]
    assert done.returncode == 1


def test_the_import_needs_neither_pytest_nor_torch() -> None:
    code = "import sys, hfdataopt.testing; print(sorted({'torch', 'pytest', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    code = (
        "import sys; from hfdataopt.testing import check_filter; check_filter('length'); print('pytest' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_what_a_component_raises_names_the_check() -> None:
    case = make_case(GoodFilter())
    case.baseline  # noqa: B018 - it could score before

    def fail() -> Any:
        raise ZeroDivisionError("division by zero")

    case.fresh = fail  # type: ignore[method-assign]
    with pytest.raises(
        CheckFailure,
        match=r"filter 'brevity': raised ZeroDivisionError: division by zero \(.+, in fail\)\. The promise is: ",
    ):
        run_check(checks_of("filter")["batch-size"], case)
