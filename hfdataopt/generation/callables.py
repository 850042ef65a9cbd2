"""Completions from a function of the user's, and what may stand for a generator."""

import asyncio
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from hfdataopt.errors import DataError, GenerationError, HfDataOptError, OptionError
from hfdataopt.generation.completion import Completion
from hfdataopt.generation.endpoint import run_async
from hfdataopt.generation.generator import (
    Admit,
    Allowed,
    Generator,
    Have,
    Job,
    OnDone,
    RowId,
    check_refused,
    open_jobs,
    table,
)
from hfdataopt.generation.local import LocalGenerator
from hfdataopt.generation.prompts import check_prompt
from hfdataopt.options import check_options, check_range, option_names

BATCH_SIZE, CONCURRENCY = 16, 8


@dataclass
class CallableGenerator(Generator):
    """Completions from ``function(prompts: list) -> list[str]``, or with ``batched=False`` ``function(prompt) -> str``.

    The function may be async. It gets prompts as they are, text or messages, and is called once for each sample: ``n``
    completions of a prompt are ``n`` calls, which differ only where the function draws.

    Attributes:
        batched: whether it takes a list of prompts.
        batch_size: prompts per call of a batched function; None = 16.
        concurrency: calls of an async function that are under way at a time; None = 8.
        max_new_tokens: the most tokens of a completion, as the function limits it; None = not known. It is what a budget
            of tokens counts on.
    """

    function: Callable[..., Any] = field(repr=False)
    batched: bool = field(default=True, kw_only=True)
    batch_size: int | None = field(default=None, kw_only=True)
    concurrency: int | None = field(default=None, kw_only=True)
    max_new_tokens: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_options(self)
        for option in ("batch_size", "concurrency", "max_new_tokens"):
            check_range(self, option, at_least=1)
        if not self.batched and self.batch_size is not None:
            raise OptionError(f"{self._who}: batch_size={self.batch_size} counts with batched=True only; drop one")
        if self.concurrency is not None and not is_async(self.function):
            raise OptionError(f"{self._who}: concurrency={self.concurrency} counts for async functions only; drop it")

    @property
    def _who(self) -> str:
        return f"function {name_of(self.function)}"

    def describe(self) -> dict[str, Any]:
        """A JSON object: the function's name, which is all that is known of what it does, and the options."""
        return {
            "kind": "callable",
            "function": name_of(self.function),
            "batched": self.batched,
            "max_new_tokens": self.max_new_tokens,
        }

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
        """``[prompts][n]`` completions; see :class:`~hfdataopt.generation.generator.Generator`. ``seed`` is the function's affair.

        Nothing is tried again, so ``allowed`` is never asked.

        Raises:
            GenerationError: the function raised; no more calls are made.
            DataError: it returned something else than a text for each prompt; the row is named.
            Refused: ``admit`` left some out.
        """
        jobs = open_jobs(self._who, prompts, n, keys, 1.0, have)
        for index in sorted({index for index, _ in jobs}):
            check_prompt(prompts[index], self._who, keys[index])
        size = (self.batch_size or BATCH_SIZE) if self.batched else 1
        batches = [
            of_sample[start : start + size]
            for sample in range(n)
            if (of_sample := [job for job in jobs if job[1] == sample])
            for start in range(0, len(of_sample), size)
        ]
        made: dict[Job, Completion] = {}
        admitted = set[Job]()

        def begin(batch: list[Job]) -> tuple[list[Job], Any]:
            kept = batch if admit is None else [job for job in batch if admit(*job)]
            admitted.update(kept)
            given = [prompts[index] for index, _ in kept]
            return kept, given if self.batched else given[:1]

        def end(batch: list[Job], returned: Any) -> None:
            texts = self._texts(returned, [keys[index] for index, _ in batch])
            for job, text in zip(batch, texts, strict=True):
                made[job] = Completion(text)
                if on_done is not None:
                    on_done(*job, made[job])

        try:
            if is_async(self.function):
                run_async(self._together(batches, begin, end))
            else:
                for batch in batches:
                    kept, given = begin(batch)
                    if kept:
                        end(kept, self._guarded(self.function, given))
        except _Raised as error:
            cause = error.__cause__
            raise GenerationError(
                f"{self._who}: {len(made)} of {len(jobs)} completions arrived; then it raised {type(cause).__name__}: {cause}"
            ) from cause
        check_refused(self._who, len(jobs) - len(admitted), len(made))
        return table(prompts, n, have, made)

    async def _together(self, batches: list[list[Job]], begin: Any, end: Any) -> None:
        queue = iter(batches)
        problems: list[Exception] = []

        async def work() -> None:
            try:
                for batch in queue:
                    kept, given = begin(batch)
                    if kept:
                        end(kept, await self._awaited(given))
            except Exception as error:
                problems.append(error)
                for _ in queue:  # nothing more is begun; what is under way comes to its end
                    pass

        await asyncio.gather(*(work() for _ in range(min(self.concurrency or CONCURRENCY, len(batches)))))
        if problems:
            raise problems[0]

    async def _awaited(self, given: list[Any]) -> Any:
        try:
            return await (self.function(given) if self.batched else self.function(given[0]))
        except HfDataOptError:
            raise
        except Exception as error:
            raise _Raised from error

    def _guarded(self, function: Any, given: list[Any]) -> Any:
        try:
            return function(given) if self.batched else function(given[0])
        except HfDataOptError:
            raise
        except Exception as error:
            raise _Raised from error

    def _texts(self, returned: Any, keys: list[RowId]) -> list[str]:
        texts = returned if self.batched else [returned]
        if not isinstance(texts, list | tuple):
            raise DataError(
                f"{self._who}: a call for {len(keys)} prompts (rows {keys[0]!r} to {keys[-1]!r}) must return a list of as many "
                f"texts; it returned {str(returned)[:80]!r}; a function of one prompt is handed over as CallableGenerator(function, batched=False)"
            )
        if len(texts) != len(keys):
            raise DataError(
                f"{self._who}: {len(texts)} texts arrived for {len(keys)} prompts (rows {keys[0]!r} to {keys[-1]!r}); return "
                "one for each, in their order"
            )
        for text, key in zip(texts, keys, strict=True):
            if not isinstance(text, str):
                raise DataError(
                    f"{self._who}: the completion of row {key!r} is {type(text).__name__}, not text; got {str(text)[:80]!r}"
                )
        return list(texts)


class _Raised(Exception):
    """The function raised its ``__cause__``."""


def as_generator(model: Any, processing_class: Any = None, **options: Any) -> Any:
    """What ``model`` stands for, as a generator.

    Args:
        model: a hub id or folder, or a ``PreTrainedModel`` (a :class:`LocalGenerator`); an object whose ``generate`` is that
            of :class:`~hfdataopt.generation.generator.Generator`, which is returned as it is; or any other callable (a
            :class:`CallableGenerator`).
        processing_class: the tokenizer of a model; None = the one beside its weights.
        options: those of the generator that is made, such as ``max_new_tokens=64``.

    Raises:
        OptionError: something else arrived, or options that it has no use for.
    """
    if isinstance(model, str | torch.nn.Module):
        return _make(LocalGenerator, model, processing_class=processing_class, **options)
    if isinstance(model, type):
        raise OptionError(f"model={model.__name__} is a class; hand over an instance of it")
    if processing_class is not None:
        raise OptionError(
            f"processing_class= belongs to a model of transformers; model is a {type(model).__name__}: drop it"
        )
    generate = getattr(model, "generate", None)
    if callable(generate):
        lacking = _lacking(generate)
        if lacking:
            raise OptionError(
                f"model={type(model).__name__}: its generate() does not take {', '.join(lacking)}; inherit from "
                "hfdataopt.generation.Generator, or hand over a function of a list of prompts"
            )
        if options:
            raise OptionError(
                f"model={type(model).__name__} is a generator already, and {', '.join(options)} would be ignored; set it "
                "where the generator is made"
            )
        return model
    if callable(model):
        return _make(CallableGenerator, model, **options)
    raise OptionError(
        f"model={model!r} is a {type(model).__name__}; it takes a hub id or folder, a PreTrainedModel, a generator, or a function"
    )


def is_async(function: Any) -> bool:
    """Whether calling it gives something to await; also for partials and objects with an async ``__call__``."""
    while hasattr(function, "func") and hasattr(function, "keywords"):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def name_of(function: Any) -> str:
    """A name for messages and records, without addresses in memory."""
    while hasattr(function, "func") and hasattr(function, "keywords"):
        function = function.func
    return getattr(function, "__qualname__", type(function).__qualname__)


def _make(kind: type, model: Any, **options: Any) -> Any:
    known = option_names(kind)[1:]  # the first is the model or function itself
    for option in options:
        if option not in known:
            raise OptionError(f"a {kind.__name__} has no option {option!r}; it accepts: {', '.join(known)}")
    return kind(model, **options)


def _lacking(generate: Callable[..., Any]) -> list[str]:
    """Arguments of ``Generator.generate`` that this one does not take."""
    parameters = inspect.signature(generate).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return []
    wanted = list(inspect.signature(Generator.generate).parameters)[3:]  # after self, prompts and n
    return [name for name in wanted if name not in parameters]
