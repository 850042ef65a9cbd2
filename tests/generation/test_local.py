"""Sampling from a live model: the distribution, what a draw may depend on, and that nothing stays behind."""

import copy
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2, chisquare, kstest
from transformers import GenerationConfig

from hfdataopt.errors import DataError, OptionError
from hfdataopt.generation import Completion, LocalGenerator, prompt_ids, unfinished_share
from hfdataopt.generation.draws import gumbel, stream_of

from .. import tiny

STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories260K"
PROMPTS = ["the film", "the film was very very very lovely and the plot", "it was the actor and", "scene", "the plot"]
KEYS = ["a", "b", "c", "d", "e"]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HFDATAOPT_QUIET", "1")


def build(kind: str, seed: int = 0) -> Any:
    """A tiny model whose next tokens differ in probability, and which ends now and then."""
    model = getattr(tiny, kind)(seed)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(3)
    return model


def make(kind: str = "llama", model: Any = None, **options: Any) -> LocalGenerator:
    tokenizer = tiny.tokenizer()
    tokenizer.model_max_length = 10**6
    return LocalGenerator(model or build(kind), tokenizer, **{"max_new_tokens": 8, **options})


def tokens(completions: list[list[Completion]]) -> list[list[list[int] | None]]:
    return [[completion.token_ids for completion in row] for row in completions]


def next_logits(model: Any, ids: list[int]) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, -1].double()


# -- the distribution


def test_noise_is_gumbel_and_independent() -> None:
    streams = torch.tensor([stream_of(0, key, sample) for key in range(20) for sample in range(10)])
    noise = torch.stack([gumbel(streams, step, 50) for step in range(20)])
    assert kstest(noise.flatten().numpy(), "gumbel_r").pvalue > 1e-3
    uniform = torch.exp(-torch.exp(-noise.double())).numpy() - 0.5
    for axis in range(3):  # between steps, sequences and tokens
        for lag in (1, 2, 5):
            rolled = np.roll(uniform, lag, axis)
            assert abs((uniform * rolled).mean() * 12) * np.sqrt(uniform.size) < 4.5
    assert len(set(noise.flatten().tolist())) > 0.98 * noise.numel()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_tokens_have_the_probabilities_of_the_model(kind: str) -> None:
    generator = make(kind, max_new_tokens=2, batch_size=500)
    draws = 4000
    found = generator.generate(["the film"], draws, keys=["x"], seed=3)[0]
    ids = prompt_ids("the film", generator.processing_class, "test", 0)
    first = next_logits(generator.model, ids).softmax(0).numpy()
    counts = np.bincount([c.token_ids[0] for c in found], minlength=tiny.VOCABULARY)  # type: ignore[index]
    assert chisquare(counts, first * draws).pvalue > 1e-3

    statistic, freedom = 0.0, 0
    for token in range(tiny.VOCABULARY):
        seconds = [c.token_ids[1] for c in found if len(c.token_ids) == 2 and c.token_ids[0] == token]  # type: ignore[arg-type, index]
        if len(seconds) < 200 or token == 5:
            continue
        expected = next_logits(generator.model, [*ids, token]).softmax(0).numpy() * len(seconds)
        seen = np.bincount(seconds, minlength=tiny.VOCABULARY)
        statistic, freedom = statistic + float(((seen - expected) ** 2 / expected).sum()), freedom + len(expected) - 1
    assert freedom > 0
    assert chi2.sf(statistic, freedom) > 1e-3


def test_agrees_with_the_multinomial_draws_of_transformers() -> None:
    """Lengths and tokens of both samplers, compared as contingency tables."""
    generator = make(max_new_tokens=6, batch_size=500)
    draws = 3000
    ours = [c.token_ids for c in generator.generate(["the film"], draws, keys=[0])[0]]
    ids = torch.tensor([prompt_ids("the film", generator.processing_class, "test", 0)] * draws)
    generator.model.eval()
    torch.manual_seed(5)
    rows = generator.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        generation_config=GenerationConfig(
            do_sample=True, top_k=0, max_new_tokens=6, eos_token_id=5, pad_token_id=0, temperature=1.0, top_p=1.0
        ),
    )[:, ids.shape[1] :].tolist()
    theirs = [row[: row.index(5) + 1] if 5 in row else row for row in rows]
    for feature in (len, lambda row: row[-1], lambda row: row[1] if len(row) > 1 else -1):
        values = sorted({feature(row) for row in [*ours, *theirs]})
        table = np.array([[sum(feature(row) == v for row in side) for v in values] for side in (ours, theirs)])
        table = table[:, table.sum(0) >= 10]
        expected = table.sum(0) / 2
        assert chi2.sf(((table - expected) ** 2 / expected).sum(), table.shape[1] - 1) > 1e-3


@pytest.mark.parametrize("options", [{"top_k": 3}, {"top_p": 0.5}, {"temperature": 0.5}, {"temperature": 2.0}])
def test_truncation_and_temperature(options: dict[str, Any]) -> None:
    generator = make(max_new_tokens=1, batch_size=500, **options)
    assert not generator.on_policy
    draws = 2000
    found = [c.token_ids[0] for c in generator.generate(["the film"], draws, keys=[0])[0]]  # type: ignore[index]
    logits = next_logits(generator.model, prompt_ids("the film", generator.processing_class, "test", 0))
    p = (logits / options.get("temperature", 1.0)).softmax(0)
    order = p.argsort(descending=True)
    kept = torch.zeros_like(p)
    before = p[order].cumsum(0) - p[order]
    keep = order[: options["top_k"]] if "top_k" in options else order[before < options.get("top_p", 2.0)]
    kept[keep] = p[keep]
    kept = kept / kept.sum()
    counts = np.bincount(found, minlength=len(p))
    assert counts[(kept == 0).numpy()].sum() == 0
    wanted = kept[kept > 0].numpy() * draws
    assert chisquare(counts[(kept > 0).numpy()], wanted).pvalue > 1e-3


def test_temperature_zero_is_greedy() -> None:
    generator = make(temperature=0.0)
    found = generator.generate(PROMPTS, 1, keys=KEYS)
    for prompt, (completion,) in zip(PROMPTS, found, strict=True):
        ids = prompt_ids(prompt, generator.processing_class, "test", 0)
        for token in completion.token_ids or []:
            assert token == int(next_logits(generator.model, ids).argmax())
            ids.append(token)
    with pytest.raises(OptionError, match=r"temperature=0 always gives the same completion, so n must be 1; got n=2"):
        generator.generate(PROMPTS, 2, keys=KEYS)


# -- what a draw may depend on


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_batch_order_and_company_do_not_matter(kind: str) -> None:
    model = build(kind).double()
    wanted = make(kind, model, batch_size=1).generate(PROMPTS, 4, keys=KEYS)
    for size in (3, 16):
        assert make(kind, model, batch_size=size).generate(PROMPTS, 4, keys=KEYS) == wanted
    back = make(kind, model, batch_size=7).generate(PROMPTS[::-1], 4, keys=KEYS[::-1])
    assert back[::-1] == wanted
    assert make(kind, model).generate(PROMPTS[2:3], 2, keys=["c"]) == [wanted[2][:2]]


def test_seed_key_and_sample_matter() -> None:
    generator = make()
    rows = [
        generator.generate(["the film"], 4, keys=[key], seed=seed)[0]
        for key, seed in ((0, 0), (0, 1), (1, 0), ("0", 0), ("1", 0))
    ]
    flat = [str(c.token_ids) for row in rows for c in row]
    assert len(set(flat)) > 0.8 * len(flat)
    assert generator.generate(["the film"], 4, keys=[0])[0] == rows[0]


def test_left_padding_does_not_move_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is told no positions gets prompts of one length at a time."""
    model = build("gpt2").double()
    wanted = make("gpt2", model, batch_size=1).generate(PROMPTS, 3, keys=KEYS)
    masks, sizes = [], []
    real = model.forward

    def blind(input_ids: Any = None, attention_mask: Any = None, **options: Any) -> Any:
        masks.append(attention_mask)
        sizes.append(len(input_ids))
        return real(input_ids=input_ids, attention_mask=attention_mask, **options)

    monkeypatch.setattr(model, "forward", blind)
    assert make("gpt2", model, batch_size=16).generate(PROMPTS, 3, keys=KEYS) == wanted
    assert all(mask is None or bool((mask == 1).all()) for mask in masks)
    assert max(sizes) == 6  # "the film" and "the plot" have one length


def test_long_prompts_do_not_pad_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = make(batch_size=4)
    masks: list[Any] = []
    real = generator.model.generate

    def spy(**options: Any) -> Any:
        masks.append(options["attention_mask"])
        return real(**options)

    monkeypatch.setattr(generator.model, "generate", spy)
    generator.generate(PROMPTS, 4, keys=KEYS)
    assert all(bool((mask == 1).all()) for mask in masks)
    assert [mask.shape[1] for mask in masks] == sorted(mask.shape[1] for mask in masks)


# -- ends


def test_end_tokens() -> None:
    generator = make(max_new_tokens=12, batch_size=50)
    found = generator.generate(PROMPTS, 40, keys=KEYS)
    flat = [completion for row in found for completion in row]
    assert 0 < unfinished_share(flat) < 1
    for completion in flat:
        ids = completion.token_ids or []
        assert completion.finished == (ids[-1] == 5)
        assert 5 not in ids[:-1]
        assert len(ids) == 12 or completion.finished
        words = [tiny.WORDS[token] for token in ids]
        assert completion.text == " ".join(word for word in words if word not in tiny.SPECIAL)


def test_several_end_tokens_from_model_and_tokenizer() -> None:
    model = build("llama")
    plain = [c for row in make(model=model, max_new_tokens=12).generate(PROMPTS, 16, keys=KEYS) for c in row]
    counts = np.bincount([token for c in plain for token in c.token_ids or []], minlength=tiny.VOCABULARY)
    counts[: len(tiny.SPECIAL)] = 0
    common = sorted(np.argsort(counts)[-2:].tolist())
    model.generation_config.eos_token_id = common
    generator = make(model=model, max_new_tokens=12)
    assert generator.describe()["end_tokens"] == [5, *common]
    found = [c for row in generator.generate(PROMPTS, 16, keys=KEYS) for c in row]
    assert {c.token_ids[-1] for c in found if c.finished} == {5, *common}  # type: ignore[index]
    assert not any({5, *common} & set(c.token_ids[:-1]) for c in found)  # type: ignore[index]
    assert all(c.text == "" for c in found if c.token_ids in ([5], [common[0]], [common[1]]))


def test_without_a_pad_token() -> None:
    model = build("llama").double()
    wanted = make(model=model).generate(PROMPTS, 4, keys=KEYS)
    generator = make(model=model)
    generator.processing_class.pad_token = None
    model.config.pad_token_id = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert generator.generate(PROMPTS, 4, keys=KEYS) == wanted


def test_without_any_end_token(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HFDATAOPT_QUIET", "0")
    model = build("llama")
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    generator = make(model=model)
    generator.processing_class.eos_token = None
    found = generator.generate(PROMPTS, 2, keys=KEYS)
    assert {len(c.token_ids) for row in found for c in row} == {8}  # type: ignore[arg-type]
    assert "100% of 10 completions did not end within max_new_tokens=8; the model has no end token" in (
        capsys.readouterr().err
    )


def test_too_few_new_tokens_are_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HFDATAOPT_QUIET", "0")
    found = make(max_new_tokens=1).generate(PROMPTS, 2, keys=KEYS)
    assert unfinished_share([c for row in found for c in row]) > 0.5
    assert "did not end within max_new_tokens=1; give them more" in capsys.readouterr().err


def test_stop_strings() -> None:
    model = build("llama").double()
    plain = [c for row in make(model=model, max_new_tokens=10).generate(PROMPTS, 8, keys=KEYS) for c in row]
    generator = make(model=model, max_new_tokens=10, stop=["film", "fine"])
    assert not generator.on_policy
    found = [c for row in generator.generate(["the film", *PROMPTS[1:]], 8, keys=KEYS) for c in row]
    stopped = 0
    for before, after in zip(plain, found, strict=True):
        words = (before.token_ids or [])[:]
        places = [place for place, token in enumerate(words) if tiny.WORDS[token] in ("film", "fine")]
        if not places:
            assert after == before
            continue
        stopped += 1
        assert after.token_ids == words[: places[0] + 1]
        assert after.finished
        assert "film" not in after.text
        assert "fine" not in after.text
        assert before.text.startswith(after.text)
    assert stopped > 3


# -- the model is left as it was


def test_the_generation_config_of_the_model_does_not_leak_in() -> None:
    model = build("llama").double()
    wanted = make(model=model).generate(PROMPTS, 4, keys=KEYS)
    model.generation_config = GenerationConfig(
        temperature=0.1,
        top_k=1,
        top_p=0.1,
        do_sample=True,
        repetition_penalty=5.0,
        no_repeat_ngram_size=1,
        suppress_tokens=[6, 7, 8],
        forced_eos_token_id=9,
        forced_bos_token_id=9,
        min_new_tokens=7,
        num_beams=2,
        max_length=4,
        eos_token_id=5,
        renormalize_logits=True,
    )
    before = model.generation_config.to_dict()
    assert make(model=model).generate(PROMPTS, 4, keys=KEYS) == wanted
    assert model.generation_config.to_dict() == before


def state_of(model: Any) -> Any:
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    modes = {name: (m.training, sorted(vars(m))) for name, m in model.named_modules()}
    flags = {name: (p.requires_grad, p.grad is None) for name, p in model.named_parameters()}
    return weights, modes, flags, copy.deepcopy(model.config.to_dict())


def legacy_numpy() -> list[int]:
    return np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002


@pytest.mark.parametrize("wrapper", ["none", "lora"])
def test_a_model_in_training_is_left_as_it_was(wrapper: str) -> None:
    model = build("llama").double()
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    if wrapper == "lora":
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.5, init_lora_weights=False)
        model = get_peft_model(model, lora).double()
    model.eval()
    wanted = make(model=model).generate(PROMPTS, 4, keys=KEYS)
    if wrapper == "lora":
        with model.disable_adapter():
            assert make(model=model).generate(PROMPTS, 4, keys=KEYS) != wanted
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model.config.use_cache = False
    model.train()
    model.get_input_embeddings().eval()
    states = state_of(model), random.getstate(), legacy_numpy(), torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make(model=model).generate(PROMPTS, 4, keys=KEYS) == wanted
    after = state_of(model), random.getstate(), legacy_numpy(), torch.get_rng_state()
    assert torch.equal(states[3], after[3])
    assert states[1:3] == after[1:3]
    assert states[0][1:] == after[0][1:]
    assert all(torch.equal(value, after[0][0][name]) for name, value in states[0][0].items())


def test_wrapped_by_data_parallel_training(tmp_path: Path) -> None:
    import torch.distributed as dist

    model = build("llama").double()
    wanted = make(model=model).generate(PROMPTS, 3, keys=KEYS)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        wrapped.train()
        assert make(model=wrapped).generate(PROMPTS, 3, keys=KEYS) == wanted
        assert wrapped.training
        assert model.training
    finally:
        dist.destroy_process_group()


def test_left_as_it_was_after_an_error() -> None:
    model = build("llama").train()
    config = model.generation_config

    def refuse(*_: Any) -> None:
        raise RuntimeError("full disk")

    with pytest.raises(RuntimeError, match="full disk"):
        make(model=model).generate(PROMPTS, 2, keys=KEYS, on_done=refuse)
    assert model.generation_config is config
    assert all(module.training for module in model.modules())


# -- memory, resume, errors


def test_out_of_memory_halves_the_batch_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama").double()
    wanted = make(model=model).generate(PROMPTS, 4, keys=KEYS)
    real, sizes = model.generate, []

    def small(**options: Any) -> Any:
        sizes.append(len(options["input_ids"]))
        if sizes[-1] > limit:
            raise torch.OutOfMemoryError("injected")
        return real(**options)

    monkeypatch.setattr(model, "generate", small)
    limit = 5
    generator = make(model=model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert generator.generate(PROMPTS, 4, keys=KEYS) == wanted
        assert generator.generate(PROMPTS, 4, keys=KEYS) == wanted
    assert [str(x.message)[:46] for x in caught] == ["generation: a batch of 16 rows did not run (ou"]
    assert sizes == [16, 8, *[4] * 5, *[4] * 5]
    limit = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError, match="row 'd' alone does not fit into memory"):
            make(model=model).generate(PROMPTS, 4, keys=KEYS)


def test_completions_arrive_as_they_are_made_and_are_not_made_again() -> None:
    model = build("llama").double()
    arrived: dict[tuple[int, int], Completion] = {}
    wanted = make(model=model).generate(
        PROMPTS, 4, keys=KEYS, on_done=lambda index, sample, done: arrived.update({(index, sample): done})
    )
    assert arrived == {(index, sample): c for index, row in enumerate(wanted) for sample, c in enumerate(row)}
    have = {job: completion for job, completion in arrived.items() if sum(job) % 2}
    again: list[tuple[int, int]] = []
    found = make(model=model).generate(PROMPTS, 4, keys=KEYS, have=have, on_done=lambda i, k, _: again.append((i, k)))
    assert found == wanted
    assert sorted(again) == sorted(set(arrived) - set(have))


def test_long_prompts_are_named() -> None:
    with pytest.raises(
        DataError,
        match=r"row 'b' has 11 tokens; with max_new_tokens=30 .* 40 positions of GPT2LMHeadModel \(rows: 'b'\)",
    ):
        make("gpt2", max_new_tokens=30).generate(PROMPTS, 2, keys=KEYS)
    make("gpt2", max_new_tokens=29).generate(PROMPTS, 1, keys=KEYS)


def test_broken_logits_are_named() -> None:
    model = build("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[tiny.WORDS.index("actor")] = float("nan")
        model.get_output_embeddings().weight[tiny.WORDS.index("actor")] = -1.0
    with pytest.raises(DataError, match=r"not numbers .* for row 'c'"):
        make(model=model, max_new_tokens=1, temperature=0.0).generate(PROMPTS[:3], 1, keys=KEYS[:3])


def test_bad_arguments() -> None:
    generator = make()
    with pytest.raises(DataError, match="row 'b' has no prompt"):
        generator.generate(["the film", None], 2, keys=["a", "b"])
    with pytest.raises(DataError, match="key 'a' names two prompts"):
        generator.generate(["the film", "scene"], 2, keys=["a", "a"])
    with pytest.raises(DataError, match="1 keys arrived for 2 prompts"):
        generator.generate(["the film", "scene"], 2, keys=["a"])
    with pytest.raises(OptionError, match="n=0 completions per prompt"):
        generator.generate(["the film"], 0, keys=["a"])
    for options in (
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"batch_size": 0},
        {"stop": [""]},
        {"stop": "x"},
    ):
        with pytest.raises(OptionError, match=next(iter(options))):
            make(**options)
    with pytest.raises(OptionError, match="BertForSequenceClassification is not a causal language model"):
        make(model=tiny.bert())


def test_adapters_that_learn_a_prompt_are_refused() -> None:
    from peft import PromptTuningConfig, TaskType, get_peft_model

    learned = get_peft_model(build("llama"), PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2))
    with pytest.raises(OptionError, match="adapters that learn a prompt are not supported"):
        make(model=learned)


def test_describe_names_what_changes_the_output() -> None:
    model = build("llama")
    base = make(model=model).describe()
    assert make(model=model, batch_size=3).describe() == base
    for options in ({"max_new_tokens": 9}, {"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.5}, {"stop": ["x"]}):
        assert make(model=model, **options).describe() != base
    assert make(model=model).on_policy


# -- a trained model


@pytest.mark.skipif(not STORIES.is_dir(), reason="the small trained Llama is not here")
def test_a_trained_model_in_float32() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(STORIES)
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    prompts = ["Once upon a time", "Lily saw a big dog in the garden of her friend and", "Tom was sad. He"]
    rows = [
        LocalGenerator(model, tokenizer, max_new_tokens=24, batch_size=size).generate(prompts, 3, keys=range(3))
        for size in (1, 4, 16)
    ]
    assert rows[0] == rows[1] == rows[2]
    flat = [c for row in rows[0] for c in row]
    assert len({c.text for c in flat}) == len(flat)
    assert all(len(c.text.split()) > 5 for c in flat)
    greedy = LocalGenerator(model, tokenizer, max_new_tokens=20, temperature=0.0).generate(prompts[:1], 1, keys=[0])
    ids = torch.tensor([prompt_ids(prompts[0], tokenizer, "test", 0)])
    wanted = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20)
    assert greedy[0][0].token_ids == wanted[0, ids.shape[1] :].tolist()
