"""Whether a program passes a test: the part of the sandbox that shares an interpreter with the program."""

from __future__ import annotations

import builtins
import operator
import sys
import types

TYPE_CHECKING = False  # as in sandbox_inside: typing is slow to import
if TYPE_CHECKING:
    from typing import Any


def passes(job: dict[str, Any]) -> bool:
    """Whether the program runs to its end and then the test does.

    The program gets a copy of Python's builtins to change. The test runs with the true ones, and sees those names of the
    program that hide one only if its subject is among them.
    """
    genuine = dict(vars(builtins))
    copy, program = types.ModuleType("builtins"), types.ModuleType("program")
    vars(copy).update(genuine)
    vars(program)["__builtins__"] = copy
    sys.modules.update(builtins=copy, program=program)
    try:
        exec(compile(job["code"], "<program>", "exec", dont_inherit=True), vars(program))
        names = dict(vars(program))
        hiding = {name for name in names if name in genuine and not name.startswith("__")}
        called = job["called"] & set(names)
        subject = {job["entry_point"]} if job["entry_point"] is not None else called if called <= hiding else set()
        for name in hiding - subject:
            del names[name]
        exec(job["test"], {**names, "__builtins__": genuine, job["check"]: _no_impostor})
    except BaseException:
        return False
    return True


_PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None)})
_COMPARISONS = (operator.eq, operator.lt, operator.le, operator.gt, operator.ge)


def _no_impostor(value: Any) -> Any:
    """The value, unless it or something in it calls itself equal to, less or greater than, whatever it is compared with."""
    waiting: list[Any] = [value]
    seen: set[int] = set()
    while waiting:
        item = waiting.pop()
        if type(item) in _PLAIN or id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, list | tuple | set | frozenset | dict):
            waiting += item
            if isinstance(item, dict):
                waiting += item.values()
        stranger: Any = object()
        for compare in _COMPARISONS:
            try:
                agrees = bool(compare(item, stranger))
            except Exception:
                continue
            if agrees:
                raise AssertionError
    return value
