"""The check of a component's hyperparameters against its annotations."""

import collections.abc
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Optional

import pytest

from hfdataopt.errors import OptionError
from hfdataopt.options import check_options, option_help, option_names

if TYPE_CHECKING:
    from somewhere import Absent


@dataclass
class Component:
    name: ClassVar[str] = "component"

    flag: bool = False
    count: int = 1
    share: float = 0.5
    word: str = "a"
    choice: Literal["x", "y", 3] = "x"
    layers: str | list[str] | None = None
    pair: tuple[float, float] = (1.0, 2.0)
    numbers: tuple[int, ...] = ()
    table: dict[str, int] = field(default_factory=dict)
    maybe: Optional[int] = None  # noqa: UP045  (plugins may write it either way)
    function: Literal["sum"] | collections.abc.Callable[..., Any] = "sum"
    anything: Any = None
    fitted: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        check_options(self)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("flag", True),
        ("count", -3),
        ("share", 2),
        ("share", math.inf),
        ("word", ""),
        ("choice", 3),
        ("layers", "last:2"),
        ("layers", ["a", "b"]),
        ("layers", []),
        ("layers", None),
        ("pair", (1, 2.5)),
        ("pair", [1, 2]),
        ("numbers", (1, 2, 3)),
        ("table", {"a": 1}),
        ("maybe", 5),
        ("function", "sum"),
        ("function", len),
        ("anything", object()),
    ],
)
def test_what_the_annotation_allows(name, value):
    assert getattr(Component(**{name: value}), name) is value


@pytest.mark.parametrize(
    ("name", "value", "takes"),
    [
        ("flag", 1, "bool"),
        ("flag", "yes", "bool"),
        ("count", 1.0, "int"),
        ("count", True, "int"),
        ("count", "1", "int"),
        ("count", None, "int"),
        ("share", "0.5", "float"),
        ("share", True, "float"),
        ("share", math.nan, "float"),
        ("word", 3, "str"),
        ("choice", "z", "'x' | 'y' | 3"),
        ("choice", 3.0, "'x' | 'y' | 3"),
        ("layers", 3, r"str or list[str] or None"),
        ("layers", ["a", 3], r"str or list[str] or None"),
        ("pair", (1.0,), "tuple[float, float]"),
        ("pair", (1.0, "2"), "tuple[float, float]"),
        ("numbers", (1, 2.5), "tuple[int, ...]"),
        ("table", [1], "dict[str, int]"),
        ("maybe", "5", "int or None"),
        ("function", "product", "'sum' or a callable"),
    ],
)
def test_what_it_refuses(name, value, takes):
    with pytest.raises(OptionError) as caught:
        Component(**{name: value})
    assert str(caught.value) == f"component: option {name}={value!r} is not allowed; it takes {takes}"


def test_option_names_are_the_init_fields():
    assert "fitted" not in option_names(Component)
    assert "name" not in option_names(Component)
    assert option_names(Component)[:3] == ["flag", "count", "share"]


def test_an_annotation_that_cannot_be_read_is_an_error():
    @dataclass
    class Unreadable:
        name: ClassVar[str] = "unreadable"
        option: "Absent | None" = None

    with pytest.raises(OptionError, match=r"unreadable: the annotation of an option cannot be read: .*'Absent'"):
        check_options(Unreadable())


def test_option_errors_are_value_errors():
    with pytest.raises(ValueError, match="count"):
        Component(count="1")


def test_help_comes_from_the_docstrings_of_the_class_and_its_bases():
    @dataclass
    class Base:
        """A base.

        Args:
            first: of the base,
                on two lines.
            second, third: both. fourth: within a line; fifth: too.

        Afterwards: no option.
        """

        first: int = 0
        second: int = 0
        third: int = 0
        fourth: int = 0
        fifth: int = 0
        sixth: int = field(default=0, metadata={"help": "of its field"})
        seventh: int = 0

    @dataclass
    class Derived(Base):
        """Derived.

        Args:
            first: of the class: see note: it stays.
        """

    assert option_help(Derived) == {
        "first": "of the class: see note: it stays.",
        "second": "both.",
        "third": "both.",
        "fourth": "within a line",
        "fifth": "too.",
        "sixth": "of its field",
    }
