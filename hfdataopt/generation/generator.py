"""What every source of completions offers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from hfdataopt.errors import DataError, OptionError
from hfdataopt.generation.completion import Completion

RowId = str | int
Job = tuple[int, int]  # (index of the prompt, number of the sample)
OnDone = Callable[[int, int, Completion], None]
Have = Mapping[Job, Completion]


class Generator(Protocol):
    """Samples ``n`` completions of each prompt.

    ``on_policy``: whether they are draws from the model under study, unchanged.
    """

    @property
    def on_policy(self) -> bool: ...

    def describe(self) -> dict[str, Any]:
        """A JSON object of everything that changes the output, apart from the weights of a live model."""
        ...

    def generate(
        self,
        prompts: Sequence[Any],
        n: int,
        *,
        keys: Sequence[RowId],
        seed: int = 0,
        have: Have | None = None,
        on_done: OnDone | None = None,
    ) -> list[list[Completion]]:
        """``[prompts][n]`` completions.

        Args:
            prompts: strings, or lists of messages.
            keys: a unique name of each prompt, such as its row id; draws depend on (seed, key, sample) only.
            have: completions of an earlier run by ``(index, sample)``; they are returned and not made again.
            on_done: ``(index, sample, completion)``, called as each one arrives.
        """
        ...


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
