"""Every option of every component, of the rules and of ``PromptConfig``: what its annotation does not allow is refused."""

import dataclasses
import math
import typing
from typing import Any

from hypothesis import strategies as st

from hfdataopt.options import describe
from hfdataopt.plugins import get_filter, get_optimizer, get_scorer, host
from hfdataopt.prompting.config import PromptConfig
from hfdataopt.selection.rules import RULES

from .inputs import anything, awkward_texts, objects, odd_numbers, scalars
from .kinds import kind, outcome, refused

MAKERS = {"scorer": get_scorer, "filter": get_filter, "optimizer": get_optimizer}
OF_KIND = {
    name: [
        (component, option)
        for component in host().all_components()
        if component.kind == name
        for option in component.options
    ]
    for name in ("scorer", "filter", "optimizer", "generator")
}
REQUIRED: dict[str, Any] = {
    "inputs": ["a", "b"],
    "given": "a",
    "function": len,
    "model": "tiny",
    "url": "http://localhost:1",
}


def plainly_wrong(hint: Any, value: Any) -> bool:
    """Whether a value is of none of the plain types of an annotation; False where the annotation says no plain types."""
    parts = typing.get_args(hint) if typing.get_origin(hint) is not None and "|" in str(hint) else (hint,)
    plain = {bool: bool, int: int, float: (int, float), str: str, type(None): type(None)}
    if any(part not in plain for part in parts):
        return False
    if isinstance(value, bool):
        return bool not in parts
    return not any(isinstance(value, plain[part]) for part in parts)


def required(component: Any) -> dict[str, Any]:
    """Values of the options that have no default."""
    fields = dataclasses.fields(component.cls)
    needed = [f.name for f in fields if f.init and f.default is f.default_factory is dataclasses.MISSING]
    return {name: REQUIRED.get(name) for name in needed}


def made(component: Any, option: str, value: Any) -> None:
    """A component with this option: it is refused, or the option has that very value."""
    found = outcome(lambda: component.create(**{**required(component), option: value}))
    hint = typing.get_type_hints(component.cls)[option]
    if plainly_wrong(hint, value) or (isinstance(value, float) and math.isnan(value) and hint is float):
        assert refused(found), f"{component.name}: {option}={value!r} was taken; it takes {describe(hint)}"
    if refused(found) and component.kind != "generator":
        assert option in str(found) or component.name in str(found)


@kind(60, which=st.sampled_from(OF_KIND["scorer"]), value=anything)
def test_options_of_scorers(which, value):
    made(*which, value)


@kind(60, which=st.sampled_from(OF_KIND["filter"]), value=anything)
def test_options_of_filters(which, value):
    made(*which, value)


@kind(60, which=st.sampled_from(OF_KIND["optimizer"]), value=anything)
def test_options_of_optimizers(which, value):
    made(*which, value)


@kind(30, which=st.sampled_from(OF_KIND["generator"]), value=scalars | objects)
def test_options_of_generators(which, value):
    made(*which, value)


@kind(
    40,
    which=st.sampled_from([pair for name in ("scorer", "filter", "optimizer") for pair in OF_KIND[name]]),
    value=odd_numbers,
)
def test_numbers_out_of_range(which, value):
    component, option = which
    found = outcome(lambda: component.create(**{**required(component), option: value}))
    hint = typing.get_type_hints(component.cls)[option]
    if hint is not Any and isinstance(value, float) and math.isnan(value):
        assert refused(found)


@kind(
    40,
    which=st.sampled_from(host().all_components()),
    name=awkward_texts | st.sampled_from(["seeds", "Seed", "rule ", "self", "cls", "name", "meaning", "__init__"]),
    value=scalars,
)
def test_unknown_options(which, name, value):
    if name in which.options:
        return
    found = outcome(lambda: which.create(**{**required(which), name: value}))
    assert refused(found)
    assert which.name in str(found)


@kind(
    40,
    kind_of=st.sampled_from(sorted(MAKERS)),
    name=anything | st.sampled_from(["freeshp", "Loss", "loss ", "bm-25", "nice_if"]),
)
def test_names_of_components(kind_of, name):
    if isinstance(name, str) and name in host().components[kind_of]:
        return
    assert refused(outcome(lambda: MAKERS[kind_of](name)))


RULE_OPTIONS = [(rule, f.name) for rule in RULES.values() for f in dataclasses.fields(rule)]


@kind(50, which=st.sampled_from(RULE_OPTIONS), value=anything | odd_numbers, size=st.sampled_from(["k", "fraction"]))
def test_options_of_rules(which, value, size):
    rule, option = which
    given = (
        {"column": "label", "value": 0.5, "q": 0.5, "k": 2}
        if size == "k"
        else {"column": "label", "value": 0.5, "q": 0.5, "fraction": 0.5}
    )
    names = {f.name for f in dataclasses.fields(rule)}
    found = outcome(lambda: rule(**{**{n: v for n, v in given.items() if n in names}, option: value}))
    if plainly_wrong(typing.get_type_hints(rule)[option], value):
        assert refused(found)
    elif not refused(found):
        assert str(found).startswith(rule.name)


CONFIG = typing.get_type_hints(PromptConfig)


@kind(80, option=st.sampled_from(sorted(CONFIG)), value=anything | odd_numbers)
def test_options_of_prompt_config(option, value):
    found = outcome(lambda: PromptConfig(**{option: value}))
    if plainly_wrong(CONFIG[option], value):
        assert refused(found)
    if refused(found):
        assert option in str(found)


@kind(
    20,
    prices=st.dictionaries(
        st.sampled_from(["model", "proposer", "judge", "other", ""]),
        anything | st.tuples(odd_numbers, odd_numbers),
        max_size=2,
    ),
)
def test_prices(prices):
    found = outcome(lambda: PromptConfig(prices=prices, max_cost=1.0))
    good = prices and all(
        role in ("model", "proposer", "judge")
        and isinstance(price, list | tuple)
        and len(price) == 2
        and all(type(x) in (int, float) and 0 <= x < math.inf for x in price)
        for role, price in prices.items()
    )
    assert refused(found) == (not good)
