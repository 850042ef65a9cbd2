"""What every source of completions offers."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from hfdataopt.errors import DataError, OptionError, Refused
from hfdataopt.generation.completion import Completion
from hfdataopt.options import check_options

RowId = str | int
Job = tuple[int, int]  # (index of the prompt, number of the sample)
OnDone = Callable[[int, int, Completion], None]
Admit = Callable[[int, int], bool]
Allowed = Callable[[float], bool]
Have = Mapping[Job, Completion]
TOKENS_PER_MESSAGE = 16  # the most that a chat template is taken to put around a message


class Generator(ABC):
    """Samples ``n`` completions of each prompt. A plugin's generator is a dataclass that inherits from this.

    Attributes:
        on_policy: whether completions are draws from the model under study, unchanged.
        max_new_tokens: the most tokens of a completion; None = not known.
    """

    on_policy: Any = False
    max_new_tokens: Any = None

    def __post_init__(self) -> None:
        check_options(self)

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """A JSON object of everything that changes the output, apart from the weights of a live model."""

    @abstractmethod
    def generate(
        self,
        prompts: Sequence[Any],
        n: int,
        *,
        keys: Sequence[RowId],
        seed: int = 0,
        have: Have | None = None,
        on_done: OnDone | None = None,
        admit: Admit | None = None,
        allowed: Allowed | None = None,
    ) -> list[list[Completion]]:
        """``[prompts][n]`` completions.

        ``on_done``, ``admit`` and ``allowed`` may be called from another thread, one call at a time.

        Args:
            prompts: strings, or lists of messages.
            keys: a unique name of each prompt, such as its row id; draws depend on (seed, key, sample) only.
            have: completions of an earlier run by ``(index, sample)``; they are returned and not made again.
            on_done: ``(index, sample, completion)``, called as each one arrives.
            admit: ``(index, sample)``, asked once per completion, right before it is asked for; where it says False, that
                one is left out.
            allowed: ``(seconds)``, whether a request may go out that many seconds from now. Asked before each wait for another
                try, and with 0 right before the try; where it says False, that completion is left out.

        Raises:
            GenerationError: some did not arrive; the others were handed to ``on_done``.
            Refused: ``admit`` or ``allowed`` left some out; the others were handed to ``on_done``.
        """

    def count_tokens(self, prompt: Any) -> int:
        """Tokens of a prompt, or a bound from above: a token is a byte or more, and a message costs some more."""
        messages = [{"content": prompt}] if isinstance(prompt, str) else prompt
        texts = [x if isinstance(x := message.get("content"), str) else json.dumps(x) for message in messages]
        return sum(len(text.encode()) + TOKENS_PER_MESSAGE for text in texts)


class TwoCalls(Generator):
    """A generator whose completion takes two calls of another one.

    A search makes both calls itself, so that each answer is kept as it arrives.

    Attributes:
        generator: the other one, which answers both calls.
    """

    generator: Any
    calls_per_completion: ClassVar[int] = 2

    @abstractmethod
    def second(self, prompt: Any, first: Completion) -> Any:
        """The prompt of the second call."""

    @abstractmethod
    def joined(self, prompt: Any, first: Completion, last: Completion) -> Completion:
        """The completion that the two answers make, with the tokens of both calls."""


def open_jobs(
    who: str, prompts: Sequence[Any], n: int, keys: Sequence[RowId], temperature: float, have: Have | None
) -> list[Job]:
    """The samples still to be made, in order, after the arguments of ``generate`` were checked."""
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise OptionError(f"{who}: n={n!r} completions per prompt; it must be a whole number of at least 1")
    if temperature == 0 and n > 1:
        raise OptionError(f"{who}: temperature=0 always gives the same completion, so n must be 1; got n={n}")
    if len(keys) != len(prompts):
        raise DataError(f"{who}: {len(keys)} keys arrived for {len(prompts)} prompts")
    if len(set(keys)) != len(keys):
        twice = next(key for place, key in enumerate(keys) if key in keys[:place])
        raise DataError(f"{who}: key {twice!r} names two prompts, whose draws would be the same; keys must be unique")
    done = have or {}
    return [(index, sample) for index in range(len(prompts)) for sample in range(n) if (index, sample) not in done]


def table(prompts: Sequence[Any], n: int, *found: Have | None) -> list[list[Completion]]:
    """``[prompts][n]`` from completions by ``(index, sample)``."""
    merged = {job: completion for part in found if part for job, completion in part.items()}
    return [[merged[index, sample] for sample in range(n)] for index in range(len(prompts))]


def check_refused(who: str, refused: int, made: int) -> None:
    """Raise :class:`Refused` where some were left out."""
    if refused:
        raise Refused(
            f"{who}: {made} completions were made; {refused} were left, for which admit() or allowed() said no"
        )
