"""Checks that components of several kinds have in common."""

import dataclasses
import inspect
import random
import re
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from typing import Any

from hfdataopt.errors import OptionError, first_line
from hfdataopt.options import _allows, describe
from hfdataopt.plugins import BASES
from hfdataopt.testing.kit import Case, fields_of, promise

SENT = ("scorer", "filter", "optimizer")  # to other processes
EVERY = (*SENT, "generator")
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class Nothing:
    """A value that no option takes."""


@promise("options-are-fields", *EVERY)
def options_are_fields(case: Case) -> None:
    """Every option is a field of the dataclass, so that the command line, --help and configs have it."""
    cls = type(case.component)
    if "__dataclass_fields__" not in vars(cls):
        case.fail(f"{cls.__name__} is no dataclass itself", "Write @dataclass above the class")
    known = {one.name for one in dataclasses.fields(cls)}
    for name, parameter in inspect.signature(cls.__init__).parameters.items():
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if named and name != "self" and name not in known:
            case.fail(
                f"__init__ takes {name!r}, which is no field",
                f"Declare it in the class as `{name}: its type = its default`, and leave __init__ to @dataclass",
            )
    own = [base for base in cls.__mro__ if base.__module__.partition(".")[0] != "hfdataopt" and base is not object]
    facts = {name for base in cls.__mro__ if base not in own for name in typing_names(base)}
    for base in own:
        for name, value in vars(base).items():
            if name.startswith("_") or name.isupper() or name in known or name in facts or name in typing_names(base):
                continue
            if isinstance(value, bool | int | float | str):
                case.fail(
                    f"{name}={value!r} has no annotation, and so is no option",
                    f"Write `{name}: {type(value).__name__} = {value!r}`, or `ClassVar[...]` if nobody should change it",
                )


def typing_names(cls: type) -> set[str]:
    """Names that a class annotates itself."""
    return set(vars(cls).get("__annotations__", {}))


@promise("options-are-checked", *EVERY)
def options_are_checked(case: Case) -> None:
    """An option that does not exist, or a value of the wrong type, is a clear error at once."""
    cls, given = (
        type(case.component),
        {one.name: getattr(case.component, one.name) for one in fields_of(case.component)},
    )
    try:
        cls(**given, no_such_option=1)
    except TypeError:
        pass
    else:
        case.fail("takes the option no_such_option, which it does not have", "Leave __init__ to @dataclass")
    hints = typing.get_type_hints(cls)
    for name in given:
        if _allows(hints[name], Nothing()):
            continue
        wanted = describe(hints[name])
        try:
            cls(**{**given, name: Nothing()})
        except OptionError as error:
            if name not in str(error):
                case.fail(f"the error for a wrong {name} does not name it: {first_line(error)}", "Name the option")
        except Exception as error:
            case.fail(
                f"{name}=object() raises {case.told(error)}; it takes {wanted}",
                "In __post_init__, call super().__post_init__() before anything else: it checks types and says what is wrong",
            )
        else:
            case.fail(
                f"{name}=object() is taken without a word; it takes {wanted}",
                "In __post_init__, call super().__post_init__(), which checks types",
            )


@promise("meaning", *EVERY)
def meaning(case: Case) -> None:
    """It has a name, a docstring, and says what a high score means."""
    cls = type(case.component)
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        case.fail(f"its name is {name!r}", "Set `name: ClassVar[str]` to lower-case words joined by dashes")
    doc = vars(cls).get("__doc__") or ""
    if not doc.strip() or doc.startswith(f"{cls.__name__}("):
        case.fail(
            f"{cls.__name__} has no docstring", "Say in one what it computes and, under Args, what each option does"
        )
    if case.kind in ("optimizer", "generator"):
        return
    said = getattr(cls, "meaning", "")
    if not isinstance(said, str) or not said.strip():
        case.fail(
            f"meaning is {said!r}", 'Set `meaning: ClassVar[str]` to what a high score says, such as "a longer text"'
        )
    looks = cls.needs_queries if case.kind == "scorer" else cls.needs_target
    module, _, base = BASES[case.kind].partition(":")
    inherited = next(one for one in cls.__mro__ if "meaning" in vars(one))
    if said == "helpfulness" and not looks and (inherited.__module__, inherited.__name__) == (module, base):
        case.fail(
            "does not say what a high score means; the default, helpful to the validation data, cannot be meant, for it reads none",
            'Set `meaning: ClassVar[str]`, such as "suspicion", "chance", or a sentence of your own',
        )


@promise("pickles", *SENT)
def pickles(case: Case) -> None:
    """It can be sent to another process, and is the same there."""
    try:
        data = bytes(ForkingPickler.dumps(case.fresh()))
        again = ForkingPickler.loads(data)  # what a worker process does with it
    except Exception as error:
        case.fail(
            f"cannot be sent to another process: {case.told(error)}",
            "Keep no open file, lock, lambda or local class in it; make such things when they are needed",
        )
    for one in fields_of(case.component):
        if repr(getattr(again, one.name)) != repr(getattr(case.component, one.name)) and _plain(case.component, one):
            case.fail(
                f"{one.name} is {getattr(again, one.name)!r:.80} in another process, and here {getattr(case.component, one.name)!r:.80}",
                "Let __getstate__ and __reduce__ keep every option, or leave them out",
            )


def _plain(component: Any, one: dataclasses.Field[Any]) -> bool:
    return isinstance(getattr(component, one.name), bool | int | float | str | list | tuple | type(None))


@contextmanager
def other_random_states(seed: int = 7231) -> Iterator[None]:
    """Other global random states inside, on which nothing may depend; those of before come back."""
    import torch

    from hfdataopt.attribution.quiet import reseed, untouched

    with untouched(torch.nn.Module()):
        reseed(seed)
        yield


@contextmanager
def global_random_states(case: Case) -> Iterator[None]:
    """Fail where the global random states are others after than before."""
    import numpy as np
    import torch

    def states() -> list[Any]:
        return [random.getstate(), repr(np.random.get_state(legacy=False)), torch.get_rng_state().tolist()]  # noqa: NPY002

    with other_random_states():  # no plugin seeds with this seed, which would go unseen
        before = states()
        yield
        after = states()
    for library, one, other in zip(("random", "numpy.random", "torch"), before, after, strict=True):
        if one != other:
            case.fail(
                f"draws from the global random state of {library}, or seeds it, and so changes whatever runs beside it",
                "Draw from a generator of your own: random.Random(seed), numpy.random.default_rng(seed), "
                "torch.Generator().manual_seed(seed)",
            )
