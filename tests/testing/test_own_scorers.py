"""All scorers that ship keep the promises of the kit; what one of them cannot keep is said with its reason."""

from typing import Any

import pytest

from hfdataopt.plugins import host
from hfdataopt.testing import tiny
from hfdataopt.testing.kit import NotChecked, checks_of, known_failures, make_case, run_check

SAMPLED = {"samples": 4, "max_new_tokens": 4, "reward_funcs": tiny.good_words}
OPTIONS: dict[str, dict[str, Any]] = {
    "freeshap": {"permutations": 20},
    "loo-retraining": {"epochs": 1},
    "nice": SAMPLED,
    "nice-amc": {"reward_funcs": tiny.good_words, "column": "completion"},
    "nice-if": SAMPLED,
    "tmc-shapley": {"permutations": 2, "epochs": 1},
}
ROUNDING = "the last bits of a padded forward pass grow over a training, and differences of utilities are as small"
EXPECTED = {
    "loo-retraining": {"padding": ROUNDING},
    "tmc-shapley": {"padding": ROUNDING},
    "representer": {
        "higher-is-helpful": "with targets='model' it explains the model's own probabilities and reads no label of the pool"
    },
}
NAMES = [name for name, one in host().components["scorer"].items() if one.source.distribution == "hfdataopt"]
CASES: dict[str, Any] = {}


def parameters(kind: str, names: list[str], expected: dict[str, dict[str, str]]) -> list[Any]:
    """One test per component and check; declared failures are strict."""
    found = []
    for name in names:
        reasons = known_failures(kind, expected.get(name))
        for check in checks_of(kind).values():
            reason = reasons.get(check.name)
            marks = [] if reason is None else [pytest.mark.xfail(reason=reason, strict=True)]
            found.append(pytest.param(name, check, id=f"{name}-{check.name}", marks=marks))
    return found


@pytest.mark.parametrize(("name", "check"), parameters("scorer", NAMES, EXPECTED))
def test_contract(name: str, check: Any) -> None:
    if name not in CASES:
        CASES.clear()  # of the scorer before
        CASES[name] = make_case(name, "scorer", **OPTIONS.get(name, {}))
    try:
        run_check(check, CASES[name])
    except NotChecked as reason:
        pytest.skip(str(reason))


def test_representer_of_the_labels_finds_wrong_ones() -> None:
    case = make_case("representer", "scorer", targets="labels")
    run_check(checks_of("scorer")["higher-is-helpful"], case)


def test_the_tables_name_scorers_that_there_are() -> None:
    assert {*OPTIONS, *EXPECTED} <= set(NAMES)
