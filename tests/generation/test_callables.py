"""Functions of the user's as generators, what may be handed over as a model, and generators by name."""

import asyncio
import functools
import inspect
from pathlib import Path
from typing import Any

import pytest

import hfdataopt
from hfdataopt import plugins
from hfdataopt.errors import DataError, GenerationError, OptionError
from hfdataopt.generation import (
    CallableGenerator,
    Completion,
    EndpointGenerator,
    Generator,
    LocalGenerator,
    Refused,
    as_generator,
)
from hfdataopt.plugins import Host

from .. import tiny

PROMPTS = ["one", "two", [{"role": "user", "content": "three"}]]
KEYS = ["a", "b", "c"]


def shout(prompts: list[Any]) -> list[str]:
    return [str(prompt).upper() for prompt in prompts]


async def shout_later(prompts: list[Any]) -> list[str]:
    await asyncio.sleep(0)
    return shout(prompts)


class Shouter:
    async def __call__(self, prompt: Any) -> str:
        return str(prompt).upper()


FORMS: list[tuple[Any, dict[str, Any]]] = [
    (shout, {}),
    (shout, {"batch_size": 2}),
    (shout_later, {"batch_size": 1, "concurrency": 2}),
    (functools.partial(shout_later), {}),
    (lambda prompt: str(prompt).upper(), {"batched": False}),
    (Shouter(), {"batched": False}),
]


@pytest.mark.parametrize(("function", "options"), FORMS)
def test_forms_of_functions(function: Any, options: dict[str, Any]) -> None:
    generator = as_generator(function, **options)
    assert isinstance(generator, CallableGenerator)
    arrived: dict[tuple[int, int], Completion] = {}
    found = generator.generate(PROMPTS, 2, keys=KEYS, on_done=lambda i, k, c: arrived.update({(i, k): c}))
    assert found == [[Completion(str(prompt).upper())] * 2 for prompt in PROMPTS]
    assert arrived == {(i, k): c for i, row in enumerate(found) for k, c in enumerate(row)}

    async def notebook() -> Any:
        return generator.generate(PROMPTS, 2, keys=KEYS)

    assert asyncio.run(notebook()) == found


def test_calls_have_the_batch_size_and_one_sample_each() -> None:
    calls: list[list[str]] = []

    def count(prompts: list[str]) -> list[str]:
        calls.append(list(prompts))
        return [f"{prompt}{len(calls)}" for prompt in prompts]

    generator = CallableGenerator(count, batch_size=2)
    found = generator.generate(["x", "y", "z"], 2, keys=KEYS, have={(0, 0): Completion("old")})
    assert calls == [["y", "z"], ["x", "y"], ["z"]]
    assert [[c.text for c in row] for row in found] == [["old", "x2"], ["y1", "y2"], ["z1", "z3"]]


def test_async_calls_under_way_at_a_time() -> None:
    now = most = 0

    async def slow(prompt: str) -> str:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return prompt

    CallableGenerator(slow, batched=False, concurrency=3).generate(PROMPTS[:2], 6, keys=KEYS[:2])
    assert most == 3


@pytest.mark.parametrize(("function", "options"), FORMS)
def test_refusals(function: Any, options: dict[str, Any]) -> None:
    asked: list[tuple[int, int]] = []

    def admit(index: int, sample: int) -> bool:
        asked.append((index, sample))
        return len(asked) <= 4

    arrived: list[Completion] = []
    with pytest.raises(Refused, match="4 completions were made; 2 were left"):
        as_generator(function, **options).generate(
            PROMPTS, 2, keys=KEYS, admit=admit, on_done=lambda *x: arrived.append(x[2])
        )
    assert len(arrived) == 4
    assert len(set(asked)) == len(asked) == 6


@pytest.mark.parametrize("late", [False, True])
def test_a_function_that_raises_stops_and_keeps(late: bool) -> None:
    calls = []

    def body(prompt: str) -> str:
        calls.append(prompt)
        if prompt == "y":
            raise KeyError("quota")
        return prompt

    async def later(prompt: str) -> str:
        return body(prompt)

    arrived: list[int] = []
    generator = CallableGenerator(later if late else body, batched=False, concurrency=1 if late else None)
    with pytest.raises(
        GenerationError, match=r"1 of 3 completions arrived; then it raised KeyError: 'quota'"
    ) as caught:
        generator.generate(["x", "y", "z"], 1, keys=KEYS, on_done=lambda index, *_: arrived.append(index))
    assert isinstance(caught.value.__cause__, KeyError)
    assert calls == ["x", "y"]
    assert arrived == [0]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (["x", "y"], "2 texts arrived for 3 prompts .rows 'a' to 'c'.; return one for each"),
        (["x", 3, "z"], "completion of row 'b' is int, not text; got '3'"),
        (["x", "y", None], "completion of row 'c' is NoneType, not text"),
        (
            "xyz",
            "must return a list of as many texts; it returned 'xyz'; .* is handed over as CallableGenerator.*batched=False",
        ),
        (None, "must return a list"),
    ],
)
def test_wrong_answers_are_named(returned: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        CallableGenerator(lambda prompts: returned).generate(PROMPTS, 1, keys=KEYS)
    with pytest.raises(DataError, match="completion of row 'a' is list, not text"):
        CallableGenerator(lambda prompt: [prompt], batched=False).generate(PROMPTS, 1, keys=KEYS)


def test_options_that_would_be_ignored_are_refused() -> None:
    with pytest.raises(OptionError, match="batch_size=4 counts with batched=True only"):
        CallableGenerator(shout, batched=False, batch_size=4)
    with pytest.raises(OptionError, match="concurrency=4 counts for async functions only"):
        CallableGenerator(shout, concurrency=4)
    with pytest.raises(OptionError, match="function"):
        CallableGenerator("shout")  # type: ignore[arg-type]


def test_describe_and_token_bounds() -> None:
    generator = CallableGenerator(shout, max_new_tokens=30)
    assert generator.describe() == {
        "kind": "callable",
        "function": "shout",
        "batched": True,
        "max_new_tokens": 30,
    }
    assert generator.max_new_tokens == 30
    assert CallableGenerator(shout).max_new_tokens is None
    assert generator.count_tokens(PROMPTS[2]) == 5 + 16
    assert generator.count_tokens([{"role": "user", "content": [{"type": "text", "text": "three"}]}]) > 5 + 16


# -- what a model may be


def test_models_of_transformers(tmp_path: Path) -> None:
    model, tokenizer = tiny.llama(), tiny.tokenizer()
    made = as_generator(model, tokenizer, max_new_tokens=4, temperature=0.0, batch_size=2)
    assert isinstance(made, LocalGenerator)
    assert (made.max_new_tokens, made.temperature, made.batch_size) == (4, 0.0, 2)
    with pytest.raises(OptionError, match="processing_class= is needed: nothing says where the tokenizer"):
        as_generator(model)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    wanted = made.generate(["the film"], 1, keys=[0])
    assert as_generator(str(tmp_path), max_new_tokens=4, temperature=0.0).generate(["the film"], 1, keys=[0]) == wanted
    by_name = hfdataopt.get_generator("transformers", model=str(tmp_path), max_new_tokens=4, temperature=0.0)
    assert by_name.generate(["the film"], 1, keys=[0]) == wanted
    with pytest.raises(OptionError, match="nothing' does not exist"):
        as_generator(str(tmp_path / "nothing"))
    with pytest.raises(
        OptionError, match="LocalGenerator has no option 'max_tokens'; it accepts: processing_class, max"
    ):
        as_generator(model, tokenizer, max_tokens=4)


def test_generators_pass_as_they_are() -> None:
    class Duck:
        def generate(self, prompts: Any, n: int, *, keys: Any, seed: int = 0, **_: Any) -> Any:
            return [[Completion("quack")] * n for _ in prompts]

    for generator in (Duck(), CallableGenerator(shout), EndpointGenerator("m", base_url="http://localhost/v1")):
        assert as_generator(generator) is generator
        with pytest.raises(OptionError, match="is a generator already, and max_new_tokens would be ignored"):
            as_generator(generator, max_new_tokens=3)
        with pytest.raises(OptionError, match="processing_class= belongs to a model of transformers"):
            as_generator(generator, tiny.tokenizer())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (3, "model=3 is a int; it takes a hub id or folder, a PreTrainedModel, a generator, or a function"),
        (None, "model=None is a NoneType"),
        (CallableGenerator, "model=CallableGenerator is a class; hand over an instance"),
    ],
)
def test_other_models_are_named(model: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        as_generator(model)


def test_a_generate_of_another_form_is_named() -> None:
    class Other:
        def generate(self, prompts: Any, n: int = 1, *, keys: Any = None, seed: int = 0) -> Any: ...

    with pytest.raises(
        OptionError, match=r"Other: its generate\(\) does not take have, on_done, admit, allowed; inherit from"
    ):
        as_generator(Other())
    with pytest.raises(OptionError, match="CallableGenerator has no option 'temperature'"):
        as_generator(shout, temperature=0.5)


# -- by name


def test_every_generator_takes_the_same_arguments() -> None:
    wanted = list(inspect.signature(Generator.generate).parameters)
    for kind in (LocalGenerator, EndpointGenerator, CallableGenerator):
        assert list(inspect.signature(kind.generate).parameters) == wanted


def test_generators_by_name() -> None:
    found = {c.name: c.cls for c in plugins.host().all_components() if c.kind == "generator"}
    assert found == {"endpoint": EndpointGenerator, "transformers": LocalGenerator}
    made = hfdataopt.get_generator("endpoint", model="m", base_url="http://localhost/v1", concurrency=3)
    assert made == EndpointGenerator("m", base_url="http://localhost/v1", concurrency=3)
    with pytest.raises(OptionError, match="needs the option 'model'"):
        hfdataopt.get_generator("endpoint")
    with pytest.raises(OptionError, match="did you mean 'max_new_tokens'"):
        hfdataopt.get_generator("endpoint", model="m", max_tokens=3)


def test_a_generator_of_a_third_party() -> None:
    from dataclasses import dataclass

    @dataclass
    class Parrot(Generator):
        name = "parrot"
        words: int = 3

        def describe(self) -> dict[str, Any]:
            return {"kind": "parrot", "words": self.words}

        def generate(
            self, prompts: Any, n: int, *, keys: Any, seed: int = 0, have=None, on_done=None, admit=None, allowed=None
        ) -> Any:
            return [[Completion(" ".join(prompt.split()[: self.words]))] * n for prompt in prompts]

    class Plugin:
        @hfdataopt.hookimpl
        def register_generators(self, register: Any) -> None:
            register(Parrot)

    host = Host()
    host.register(Plugin())
    parrot = host.create("generator", "parrot", words=1)
    assert as_generator(parrot) is parrot
    assert parrot.generate(["a b"], 1, keys=[0]) == [[Completion("a")]]
    assert (parrot.on_policy, parrot.max_new_tokens, parrot.count_tokens("a b")) == (False, None, 19)

    class Bare:
        @hfdataopt.hookimpl
        def register_generators(self, register: Any) -> None:
            register(dataclass(type("Bare", (), {"name": "bare"})))

    with pytest.raises(
        hfdataopt.plugins.PluginError, match=r"does not inherit from hfdataopt.generation.generator.Gen"
    ):
        host.register(Bare())
