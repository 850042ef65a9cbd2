"""A sequence-classification model as a reward: equal to a direct forward, whatever else is in the batch."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification

from hfdataopt.errors import DataError, OptionError
from hfdataopt.rewards import RewardFunctions

from ..tiny import VOCABULARY, bert, gpt2, llama, tokenizer

PROMPTS = ["the film was", "it", "the plot and the actor", "very"]
COMPLETIONS = [" fine", " awful dire bleak poor awful", " great", ""]
ROWS = ["a", "b", "c", "d"]
TEMPLATE = "{% for m in messages %}{{ '[CLS] ' + m['content'] + ' [SEP] ' }}{% endfor %}"


def causal():
    """Reads the score at the last token that is not padding."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=24, num_labels=1)
    return GPT2ForSequenceClassification(config).double()


def read(template=None):
    tokens = tokenizer()
    tokens.chat_template = template
    return tokens


def rewards(model, prompts=PROMPTS, completions=COMPLETIONS, rows=ROWS, tokens=None, **options):
    functions = RewardFunctions(model, reward_processing_classes=tokens or read(), **options)
    return functions(prompts, completions, None, {}, row_ids=rows).per_function[:, 0]


def direct(model, text, special=False):
    """One text, one forward, no padding."""
    inputs = tokenizer()(*text, add_special_tokens=special, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**inputs).logits[0, 0].item()


@pytest.mark.parametrize("make", [causal, lambda: bert(labels=1).double()], ids=["last token", "first token"])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_reward_is_the_logit_of_the_text_alone(make, batch_size):
    model = make().train()
    expected = [direct(make(), [prompt + completion]) for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)]
    found = rewards(model, batch_size=batch_size)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert np.ptp(expected) > 1e-3
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    order = [2, 0, 3, 1]
    moved = rewards(model, [PROMPTS[i] for i in order], [COMPLETIONS[i] for i in order], batch_size=batch_size)
    np.testing.assert_allclose(moved, found[order], atol=1e-12)


def test_a_tokenizer_that_pads_left_makes_no_difference():
    tokens = read()
    tokens.padding_side = "left"
    np.testing.assert_array_equal(rewards(causal(), tokens=tokens), rewards(causal()))


def test_conversations_go_through_the_chat_template():
    model = causal()
    prompts = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    completions = [[{"role": "assistant", "content": completion.strip()}] for completion in COMPLETIONS]
    texts = [f"[CLS] {p} [SEP] [CLS] {c.strip()} [SEP] " for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    np.testing.assert_allclose(
        rewards(model, prompts, completions, tokens=read(TEMPLATE)), [direct(model, [t]) for t in texts], atol=1e-12
    )
    with pytest.raises(OptionError, match="prompts are conversations, but its tokenizer has no chat template"):
        rewards(model, prompts, completions)


def test_a_formatting_function_gives_a_text_or_a_pair():
    model = bert(labels=1).double()
    found = rewards(model, reward_formatting_funcs=lambda prompt, completion: f"[CLS] {completion} {prompt} [SEP]")
    turned = [direct(model, [f"{c} {p}"], special=True) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    np.testing.assert_allclose(found, turned, atol=1e-12)
    found = rewards(model, reward_formatting_funcs=lambda prompt, completion: (prompt, completion))
    pairs = [direct(model, pair, special=True) for pair in zip(PROMPTS, COMPLETIONS, strict=True)]
    np.testing.assert_allclose(found, pairs, atol=1e-12)
    for wrong in (None, ["a", "b"], ("a", 1)):
        with pytest.raises(DataError, match=r"must return a string or two, got .* for row 'a'"):
            rewards(model, reward_formatting_funcs=lambda prompt, completion, wrong=wrong: wrong)
    with pytest.raises(DataError, match="formatting row 'b' raised KeyError"):
        rewards(model, reward_formatting_funcs=lambda prompt, completion: {PROMPTS[0]: "fine"}[prompt])


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "kind-judge"
    causal().float().save_pretrained(path)
    read().save_pretrained(path)
    return path


@pytest.mark.parametrize("as_text", [True, False])
def test_a_path_is_loaded_late_and_once(saved, as_text, monkeypatch):
    from transformers import AutoModelForSequenceClassification

    functions = RewardFunctions(str(saved) if as_text else saved)
    assert functions.names == ("kind-judge",)
    loads, load = [], AutoModelForSequenceClassification.from_pretrained
    monkeypatch.setattr(
        AutoModelForSequenceClassification,
        "from_pretrained",
        lambda *args, **kwargs: loads.append(args) or load(*args, **kwargs),
    )
    expected = [direct(causal().float(), [p + c]) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    for _ in range(2):
        found = functions(PROMPTS, COMPLETIONS, None, {}, row_ids=ROWS).total
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len(loads) == 1


def test_functions_and_models_mix():
    functions = RewardFunctions(
        [lambda completions, **kwargs: [1.0] * len(completions), causal()], reward_processing_classes=[None, read()]
    )
    found = functions(PROMPTS, COMPLETIONS, None, {}, row_ids=ROWS)
    assert functions.names == ("<lambda>", "GPT2ForSequenceClassification")
    np.testing.assert_allclose(found.total, 1 + rewards(causal()), atol=1e-12)


# -- what cannot be used


def test_models_of_another_kind_are_refused():
    with pytest.raises(OptionError, match="num_labels=2; a reward model is"):
        RewardFunctions(bert(labels=2))
    model = gpt2()
    model.config.num_labels = 1
    with pytest.raises(OptionError, match=r"gives logits of shape \[4, 6, 26\], not \[4, 1\]"):
        rewards(model)
    with pytest.raises(OptionError, match="num_labels=None"):
        RewardFunctions(torch.nn.Linear(2, 1))


def test_a_tokenizer_without_a_pad_token_is_refused():
    tokens = read()
    tokens.pad_token = None
    with pytest.raises(OptionError, match="'GPT2ForSequenceClassification': its tokenizer has no pad token"):
        rewards(causal(), tokens=tokens)


def test_a_model_without_a_tokenizer_says_what_to_pass():
    with pytest.raises(OptionError, match=r"no tokenizer can be loaded from '' .* pass reward_processing_classes"):
        RewardFunctions(causal())(PROMPTS, COMPLETIONS, None, {}, row_ids=ROWS)


def test_a_folder_without_a_trained_head_or_a_model_is_refused(tmp_path):
    llama().save_pretrained(tmp_path / "base")
    with pytest.raises(OptionError, match=r"lacks the weights score\.weight; it is not a trained reward model"):
        rewards(str(tmp_path / "base"))
    with pytest.raises(OptionError, match="reward model 'nothing' cannot be loaded"):
        rewards(str(tmp_path / "nothing"))


def test_a_text_that_is_too_long_names_its_rows():
    with pytest.raises(DataError, match=r"raised IndexError: .* \(rows 'b', padded to 45 tokens"):
        rewards(causal(), completions=[*COMPLETIONS[:1], " fine" * 44, *COMPLETIONS[2:]], batch_size=1)


def test_a_text_without_tokens_is_refused():
    with pytest.raises(DataError, match="row 'b' has no tokens"):
        rewards(causal(), ["the", "", "it", "was"], ["", "", "", ""])


def test_a_model_that_gives_nan_names_the_row():
    model = causal()
    with torch.no_grad():
        model.transformer.wpe.weight[6] = torch.nan
    with pytest.raises(DataError, match="'GPT2ForSequenceClassification' returned nan for row 'b'"):
        rewards(model, ["the", "the film was fine and it was", "it", "was"], [""] * 4, batch_size=1)


def test_an_id_that_is_none_can_be_found_before_the_first_call(tmp_path):
    functions = RewardFunctions(str(tmp_path / "nothing"))
    with pytest.raises(OptionError, match="reward model 'nothing' cannot be loaded"):
        functions.load()
