"""What tells a callable or an object from others, also in another process: whether kept results are still its own."""

import dataclasses
import functools
import hashlib
import inspect
import json
import re
import types
from collections.abc import Mapping
from typing import Any

import torch

from hfdataopt.gradients import weights_hash

_CONSTANT = (bool, int, float, str, type(None))


def fingerprint(value: Any) -> str:
    """A name and a hash of all that can be seen of what a value does; nothing of it can be read back from that.

    Of a function its code, defaults and closure (not what it calls), of a partial its arguments too, of a model its weights.
    Of an object its class's code and its own ``repr``; where that has only an address, its attributes that are constants,
    callables or models, but not collections, which may be its records.
    """
    if isinstance(value, torch.nn.Module):
        return f"{type(value).__name__} {weights_hash(value)[:16]}"
    inner = value.func if isinstance(value, functools.partial) else value
    name = getattr(inner, "__qualname__", type(inner).__qualname__)
    content = json.dumps(_content(value, ()), sort_keys=True)
    return f"{name} {hashlib.sha256(content.encode()).hexdigest()[:16]}"


def _content(value: Any, outer: tuple[int, ...]) -> Any:
    """JSON values that say what a value is; ``outer`` are the ids of what holds it."""
    if isinstance(value, _CONSTANT):
        return repr(value)
    if id(value) in outer:
        return "itself"

    def inside(part: Any) -> Any:
        return _content(part, (*outer, id(value)))

    if isinstance(value, torch.nn.Module):
        return fingerprint(value)
    if isinstance(value, list | tuple):
        return [inside(part) for part in value]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if isinstance(value, Mapping):
        return {str(key): inside(part) for key, part in value.items()}
    if isinstance(value, functools.partial):
        return ["partial", inside(value.func), inside(value.args), inside(value.keywords)]
    if isinstance(value, types.MethodType):
        return ["method", inside(value.__func__), inside(value.__self__)]
    if isinstance(value, types.FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        closed = {name: inside(_contents(cell)) for name, cell in cells if _telling(_contents(cell))}
        return [_code(value), inside(value.__defaults__), inside(value.__kwdefaults__), closed]
    if isinstance(value, type | types.BuiltinFunctionType | types.ModuleType):
        return [getattr(value, "__module__", None), value.__name__, _code(value) if isinstance(value, type) else ""]
    kind = type(value)
    if kind.__module__.partition(".")[0] == "hfdataopt" and hasattr(kind, "settings"):
        return [kind.__qualname__, inside(value.settings)]
    shown = repr(value)
    if not re.search(r" at 0x[0-9a-f]+", shown):
        return [_code(kind), shown]
    hidden = {x.name for x in dataclasses.fields(kind) if not x.repr} if dataclasses.is_dataclass(kind) else set()
    attributes = getattr(value, "__dict__", {}).items()
    return [_code(kind), {name: inside(x) for name, x in attributes if name not in hidden and _telling(x)}]


def _telling(value: Any) -> bool:
    """Whether an attribute or a variable is a setting rather than a record, a lock or a client."""
    kinds = (types.FunctionType, types.MethodType, functools.partial, type, torch.nn.Module)
    own = type(value).__module__.partition(".")[0] == "hfdataopt" and hasattr(type(value), "settings")
    return isinstance(value, (*_CONSTANT, *kinds)) or own


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _code(value: Any) -> str:
    """A name, and of a function the byte code, of a class the source where there is one."""
    named = f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, types.FunctionType):
        return f"{named} {_bytes(value.__code__)}"
    try:
        return f"{named} {inspect.getsource(value)}"
    except (OSError, TypeError):  # a built-in, or typed at a prompt
        return named


def _bytes(code: types.CodeType) -> str:
    constants = [_bytes(x) if isinstance(x, types.CodeType) else _content(x, ()) for x in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"
