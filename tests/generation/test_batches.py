"""Prompts that begin alike are read together, and nothing but the time changes."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from hfdataopt.generation import Completion, LocalGenerator, Refused, prompt_ids
from hfdataopt.generation.batches import LEAST_SHARED, Prefixes, common, plan

from .. import tiny

STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories260K"
WORDS = [*tiny.GOOD, *tiny.BAD, *tiny.PLAIN]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HFDATAOPT_QUIET", "1")


def phrase(words: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def prompts(instructions: int = 1, items: int = 20, words: int = 40) -> list[str]:
    """Items of other lengths behind instructions that take turns."""
    return [f"{phrase(words, i % instructions)} {phrase(1 + i % 7, 100 + i)}" for i in range(items)]


def build(kind: str, dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    size = {"vocab_size": tiny.VOCABULARY, "bos_token_id": 2, "eos_token_id": 5}
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    room = {"num_key_value_heads": 1, "max_position_embeddings": 128, "pad_token_id": 0}
    if kind == "gpt2":
        model: Any = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=128, **size))
    elif kind == "sliding":
        model = MistralForCausalLM(MistralConfig(sliding_window=16, **size, **small, **room))
    elif kind == "stretched":
        rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
        model = LlamaForCausalLM(LlamaConfig(rope_parameters=rope, **size, **small, **room))
    else:
        model = LlamaForCausalLM(LlamaConfig(**size, **small, **room))
    model = tiny._spread(model)
    with torch.no_grad():  # far from uniform attention, so that greedy completions differ too
        for name, weight in model.named_parameters():
            weight.mul_(3 if "embed" in name or "wte" in name or "wpe" in name or "attn" in name else 1)
    return model.to(dtype).eval()


def make(model: Any, **options: Any) -> LocalGenerator:
    tokenizer = tiny.tokenizer()
    tokenizer.model_max_length = 10**6
    return LocalGenerator(model, tokenizer, **{"max_new_tokens": 8, **options})


def forwards(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """``(batch, tokens)`` of each forward pass from now on."""
    shapes: list[tuple[int, int]] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    monkeypatch.setattr(model, "_handle_of_the_test", handle, raising=False)
    return shapes


# -- the same completions


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_completions_are_those_of_one_at_a_time(kind: str, dtype: torch.dtype, temperature: float) -> None:
    model, texts = build(kind, dtype), prompts(2)
    options: dict[str, Any] = {"temperature": temperature, "stop": ["superb"]}
    alone = make(model, batch_size=1, share_prefix=False, **options).generate(texts, 1, keys=range(20))
    for size in (3, 7, 32):
        assert make(model, batch_size=size, **options).generate(texts, 1, keys=range(20)) == alone
    assert len({c.text for row in alone for c in row}) > 5


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_greedy_tokens_by_plain_forward_passes(kind: str) -> None:
    """An independent reference: no cache, no padding, no ``generate``."""
    model, texts = build(kind), prompts(items=6)
    found = make(model, temperature=0.0).generate(texts, 1, keys=range(6))
    for text, (completion,) in zip(texts, found, strict=True):
        ids = prompt_ids(text, make(model).processing_class, "test", 0)
        for token in completion.token_ids or []:
            with torch.no_grad():
                assert token == int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)


def test_samples_of_one_prompt_share_all_but_its_last_token(monkeypatch: pytest.MonkeyPatch) -> None:
    model, text = build("llama"), phrase(50, 0)
    alone = make(model, batch_size=1, share_prefix=False).generate([text], 6, keys=["a"])
    shapes = forwards(model, monkeypatch)
    assert make(model).generate([text], 6, keys=["a"]) == alone
    assert shapes[:3] == [(1, 50), (6, 1), (6, 1)]  # [CLS] and 50 words, the last of which is left


# -- what is read


def test_the_instruction_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, texts = build("llama"), prompts()
    shapes = forwards(model, monkeypatch)
    make(model, batch_size=8, temperature=0.0, max_new_tokens=1).generate(texts, 1, keys=range(20))
    once = [shape for shape in shapes if shape[0] == 1]
    assert once == [(1, 41)]  # for three batches
    assert sorted(batch for batch, _ in shapes if batch > 1) == [4, 8, 8]
    assert all(tokens <= 8 for batch, tokens in shapes if batch > 1)
    shapes.clear()
    make(model, batch_size=8, max_new_tokens=1, share_prefix=False).generate(texts, 1, keys=range(20))
    assert all(tokens > 41 for _, tokens in shapes)


def test_what_begins_alike_by_too_little_is_not_split(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    shapes = forwards(model, monkeypatch)
    make(model, max_new_tokens=1).generate(prompts(words=LEAST_SHARED - 2), 1, keys=range(20))
    make(model, max_new_tokens=1).generate([phrase(60, 0)], 1, keys=range(1))
    assert len(shapes) == 3


@pytest.mark.parametrize("kind", ["sliding", "stretched"])
def test_models_for_which_padding_in_between_would_count_do_not_share(kind: str) -> None:
    model, texts = build(kind), prompts()
    assert not Prefixes(model, frozenset({"past_key_values"})).usable
    alone = make(model, batch_size=1, temperature=0.0).generate(texts, 1, keys=range(20))
    if kind == "sliding":
        assert make(model, temperature=0.0).generate(texts, 1, keys=range(20)) == alone


def test_a_model_of_no_cache_does_not_share() -> None:
    assert not Prefixes(build("llama"), frozenset({"input_ids"})).usable


# -- batches


def test_common() -> None:
    assert common([[1, 2, 3], [1, 2], [1, 2, 4, 5]]) == 2
    assert common([[1, 2], [3]]) == 0
    assert common([[1, 2], [1, 2]]) == 2


def ids_of(instructions: int, items: int, shared: int = 40) -> dict[int, list[int]]:
    """Prompts of token ids; those of one instruction are spread over all."""
    return {i: [i % instructions] * shared + [50 + i] * (1 + i % 5) for i in range(items)}


def test_batches_of_other_instructions_do_not_mix() -> None:
    ids = ids_of(2, 40)
    jobs = [(i, 0) for i in range(40)]
    for size, sizes in ((20, [20, 20]), (32, [20, 20]), (10, [10] * 4)):
        batches = plan(jobs, ids, size, True)
        assert sorted(map(len, batches)) == sorted(sizes)
        assert all(len({ids[index][0] for index, _ in batch}) == 1 for batch in batches)


def test_there_are_never_more_batches() -> None:
    rng = random.Random(0)
    for _ in range(200):
        ids = ids_of(rng.randint(1, 6), rng.randint(1, 40), rng.choice([0, 3, 40, 60]))
        jobs = [(i, k) for i in ids for k in range(rng.randint(1, 4))]
        size = rng.randint(1, 20)
        batches = plan(jobs, ids, size, True)
        assert sorted(job for batch in batches for job in batch) == sorted(jobs)
        assert all(1 <= len(batch) <= size for batch in batches)
        assert len(batches) == -(-len(jobs) // size)
        longest = [max(len(ids[index]) for index, _ in batch) for batch in batches]
        assert longest == sorted(longest)


def test_without_padding_a_batch_has_one_length() -> None:
    ids = ids_of(2, 40)
    for batch in plan([(i, 0) for i in range(40)], ids, 16, False):
        assert len({len(ids[index]) for index, _ in batch}) == 1


# -- budgets and accounts


@pytest.mark.parametrize("size", [1, 4, 32])
def test_refusals(size: int) -> None:
    model, texts = build("llama"), prompts()
    asked: list[tuple[int, int]] = []
    arrived: dict[tuple[int, int], Completion] = {}

    def admit(index: int, sample: int) -> bool:
        asked.append((index, sample))
        return index % 4 != 0

    def on_done(index: int, sample: int, completion: Completion) -> None:
        arrived[index, sample] = completion

    generator = make(model, batch_size=size)
    with pytest.raises(Refused, match="15 completions were made; 5 were left, for which admit"):
        generator.generate(texts, 1, keys=range(20), admit=admit, on_done=on_done)
    assert sorted(asked) == [(i, 0) for i in range(20)]
    assert sorted(arrived) == [(i, 0) for i in range(20) if i % 4]
    whole = generator.generate(texts, 1, keys=range(20))
    assert all(arrived[job] == whole[job[0]][0] for job in arrived)
    assert generator.generate(texts, 1, keys=range(20), have=arrived) == whole


def test_admission_is_asked_before_each_batch_and_once_where_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model, texts = build("llama"), prompts()
    events: list[str] = []
    real = model.generate

    def narrow(**options: Any) -> Any:
        if len(options["input_ids"]) > 4:
            raise torch.OutOfMemoryError("no")
        events.append("run")
        return real(**options)

    wanted = make(model).generate(texts, 1, keys=range(20))
    monkeypatch.setattr(model, "generate", narrow)
    generator = make(model, batch_size=8)
    found = generator.generate(texts, 1, keys=range(20), admit=lambda i, k: events.append(f"ask {i}") is None)
    assert found == wanted
    assert events[:9] == [*events[:8], "run"]
    assert len([x for x in events if x != "run"]) == len({x for x in events if x != "run"}) == 20


def test_tokens_are_counted() -> None:
    generator = make(build("llama"))
    texts = prompts(items=5)
    for text, (completion,) in zip(texts, generator.generate(texts, 1, keys=range(5)), strict=True):
        assert completion.prompt_tokens == generator.count_tokens(text) == 1 + len(text.split())
        assert completion.completion_tokens == len(completion.token_ids or [])


@pytest.mark.skipif(not STORIES.is_dir(), reason="the small trained Llama is not here")
def test_a_trained_model_in_float32() -> None:
    start = "Once upon a time there was a girl named Lily. She had a red ball and a dog. " * 4
    texts = [f"{start} {item}" for item in ("One day", "Her dog", "The ball was lost and", "Mom", "In the park, she")]
    rows = [
        LocalGenerator(str(STORIES), max_new_tokens=24, temperature=0.0, batch_size=size, share_prefix=share).generate(
            texts, 1, keys=range(5)
        )
        for size, share in ((1, False), (5, False), (5, True), (2, True))
    ]
    assert rows[0] == rows[1] == rows[2] == rows[3]
