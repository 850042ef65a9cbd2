"""The errors this package raises on purpose. Each message names who (plugin, component, row), what arrived, and what to do."""

import re
import traceback
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError
from types import FrameType

LONGEST = 1000  # characters of a message; what is quoted may be as long as a dataset


class HfDataOptError(Exception):
    """Base of every error raised on purpose by hfdataopt. Its message is one printable line, whatever it quotes."""

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


class PluginError(HfDataOptError):
    """A plugin broke the contract of the host, or a component was asked for that no plugin provides."""


class OptionError(HfDataOptError, ValueError):
    """An option has a value, or a combination of values, that cannot be honoured."""


class DataError(HfDataOptError, ValueError):
    """A dataset, its labels, its row ids or numbers computed from it cannot be used as they are."""


class StoreError(HfDataOptError):
    """A folder on disk holds something else than what was asked of it, or cannot be written."""


class MissingDependencyError(HfDataOptError, ImportError):
    """An optional package is needed; the message gives the pip command."""


class GenerationError(HfDataOptError):
    """A source of completions did not deliver all that was asked of it; the message says how many arrived."""


class Refused(HfDataOptError):
    """The caller let not every request through; the message says how many were left."""


def one_line(message: str) -> str:
    """The message in one line of at most ``LONGEST`` characters, without characters that a terminal would obey."""
    line = "; ".join(part.strip() for part in message.splitlines() if part.strip())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    end = LONGEST // 3  # what to do is said last
    return line if len(line) <= LONGEST else f"{line[: LONGEST - end - 5]} ... {line[-end:]}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the rest is for its author."""
    return (str(error).strip().splitlines() or [""])[0]


def frame_of(error: BaseException, mine: Callable[[str], bool]) -> tuple[FrameType, int] | None:
    """The last frame of an error, else of what caused it, whose module is ``mine``, and the line that it stands at."""
    for one in causes(error):
        frames = [
            found
            for found in traceback.walk_tb(one.__traceback__)
            if mine(module_of(found[0])) and found[0].f_code.co_filename != "<string>"  # written by @dataclass
        ]
        if frames:
            return frames[-1]
    return None


def place_of(frame: tuple[FrameType, int] | None) -> str:
    """``FILE:LINE, in FUNCTION``; empty for None."""
    return "" if frame is None else f"{frame[0].f_code.co_filename}:{frame[1]}, in {frame[0].f_code.co_name}"


def module_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        yield one
        seen.add(id(one))
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def advice_on(error: BaseException) -> str:
    """What the author of a component is to change, where the kind of the error says so; else empty."""
    if isinstance(error, FrozenInstanceError):
        name = re.search(r"'(\w+)'", str(error))
        field = name[1] if name else "name"
        return (
            f"A filter is frozen: in learn(pool, target), which works on the copy that is fitted, write self.set({field}=...) for "
            f"self.{field} = ...; score(batch) keeps nothing"
        )
    return ""
