"""Checks the hyperparameters of a component (a dataclass) against its own annotations.

Dataclasses do not check types, nor does ``HfArgumentParser.parse_dict``; a wrong value would surface hours later.
"""

import collections.abc
import dataclasses
import inspect
import math
import re
import types
import typing
from typing import Any, Literal, Union

from hfdataopt.errors import OptionError


def option_names(cls: type) -> list[str]:
    """Names of the hyperparameters of a component class: its ``init`` fields."""
    return [field.name for field in dataclasses.fields(cls) if field.init]


def check_options(component: Any) -> None:
    """Raise :class:`OptionError` for the first ``init`` field whose value its annotation does not allow.

    Understands ``bool, int, float, str, None, Literal[...], list[...], tuple[...], dict[...]`` and unions of them; any
    other annotation is left to the component. A float may be given as an int; NaN is never allowed.
    """
    who = getattr(type(component), "name", type(component).__name__)
    try:
        hints = typing.get_type_hints(type(component))
    except NameError as error:
        raise OptionError(
            f"{who}: the annotation of an option cannot be read: {error}; import it at run time"
        ) from error
    for field in dataclasses.fields(component):
        if field.init:  # others are state
            check_value(who, field.name, hints[field.name], getattr(component, field.name))


def check_value(who: str, option: str, hint: Any, value: Any) -> None:
    """Raise :class:`OptionError` where an annotation does not allow a value; see :func:`check_options`."""
    if not _allows(hint, value):
        raise OptionError(f"{who}: option {option}={value!r} is not allowed; it takes {describe(hint)}")


def check_range(
    component: Any,
    option: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """Raise :class:`OptionError` unless the option is a finite number in the range, or several; None and words pass."""
    value = getattr(component, option)
    for number in value if isinstance(value, list | tuple) else [value]:
        if number is None or isinstance(number, str):
            continue
        if (
            not math.isfinite(number)
            or (at_least is not None and number < at_least)
            or (at_most is not None and number > at_most)
            or (above is not None and number <= above)
            or (below is not None and number >= below)
        ):
            limits = {"at least": at_least, "at most": at_most, "above": above, "below": below}
            wanted = " and ".join(f"{word} {limit}" for word, limit in limits.items() if limit is not None)
            who = getattr(type(component), "name", type(component).__name__)
            raise OptionError(f"{who}: {option}={value!r} must be {wanted}")


def apply_preset(component: Any, preset: str, settings: dict[str, Any]) -> None:
    """Set these options; :class:`OptionError` where one was given another value than its default."""
    for option, value in settings.items():
        given = getattr(component, option)
        if given not in (type(component).__dataclass_fields__[option].default, value):
            raise OptionError(
                f"{component.name}: preset={preset!r} sets {option}={value!r}, but {option}={given!r} was given; drop one"
            )
        setattr(component, option, value)


def _allows(hint: Any, value: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_allows(part, value) for part in typing.get_args(hint))
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in typing.get_args(hint))
    if hint is None or hint is type(None):
        return value is None
    if origin in (list, tuple):
        parts = typing.get_args(hint)
        if origin is tuple and parts and parts[-1] is not Ellipsis:
            return isinstance(value, list | tuple) and len(value) == len(parts) and all(map(_allows, parts, value))
        return isinstance(value, list | tuple) and all(_allows(parts[0], item) for item in value) if parts else True
    if origin is dict:
        return isinstance(value, dict)
    if origin is collections.abc.Callable:
        return callable(value)
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    if hint is str:
        return isinstance(value, str)
    return True


def describe(hint: Any) -> str:
    """An annotation in words, for messages and ``--help``."""
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(part) for part in typing.get_args(hint))
    if origin is Literal:
        return " | ".join(repr(choice) for choice in typing.get_args(hint))
    if hint is type(None):
        return "None"
    if origin is collections.abc.Callable:
        return "a callable"
    if origin in (list, tuple, dict):
        inside = ["..." if part in (Ellipsis, Any) else describe(part) for part in typing.get_args(hint)]
        return f"{origin.__name__}[{', '.join(inside)}]"
    return getattr(hint, "__name__", str(hint)) if origin is None else str(hint)


_ENTRY = re.compile(r"(?P<names>\w+(?:, \w+)*):\s+(?P<text>\S.*)")


def option_help(cls: type) -> dict[str, str]:
    """What the docstrings say of each hyperparameter: its entry under ``Args:`` in the class, or in the nearest base that
    has one; else the field's ``metadata["help"]``. An option that nobody describes is left out."""
    found = {f.name: f.metadata["help"] for f in dataclasses.fields(cls) if "help" in f.metadata}
    options = option_names(cls)
    for base in reversed(cls.__mro__):
        found.update(_entries(vars(base).get("__doc__") or "", options))
    return {name: found[name] for name in options if name in found}


def _entries(docstring: str, options: list[str]) -> dict[str, str]:
    """The entries of the sections ``Args:`` and ``Attributes:`` of a docstring by name; ``a, b: text`` is one for both.

    An option whose entry stands in the line of another (``x: of it. y: the other``) has one of its own.
    """
    found: dict[str, str] = {}
    names: list[str] = []
    margin = None  # of the section's entries; None: outside
    for line in inspect.cleandoc(docstring).splitlines():
        indent = len(line) - len(line.lstrip())
        if line.strip() in ("Args:", "Attributes:"):
            margin, names = indent + 4, []
        elif margin is not None and line.strip():
            if indent < margin:
                margin = None
            elif indent == margin and (entry := _ENTRY.match(line.strip())):
                names = entry["names"].split(", ")
                found.update(dict.fromkeys(names, entry["text"]))
            else:
                found.update({name: f"{found[name]} {line.strip()}" for name in names})
    for name, text in list(found.items()):
        parts = re.split(r"(?<=[.;]) (?=[a-z]\w*(?:, \w+)*: )", text)
        for part in reversed(parts[1:]):
            more, _, rest = part.partition(": ")
            if not set(more.split(", ")) <= set(options):
                break
            found[name] = parts[0].rstrip(";")
            for other in more.split(", "):
                found.setdefault(other, rest.rstrip(";"))
    return found
