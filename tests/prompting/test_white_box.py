"""Soft prompts in front of a model: against one forward pass at a time, whatever the batch, with the model left alone."""

import random

import numpy as np
import pytest
import torch

from hfdataopt.errors import DataError
from hfdataopt.prompting.white_box import WhiteBox
from tests import tiny

MESSAGES = [{"role": "user", "content": "the film was fine"}]
TEMPLATE = "{% for m in messages %}[CLS] {{ m.content }} [SEP] {% endfor %}{% if add_generation_prompt %}it{% endif %}"


def soft_prompts(box, n=7, tokens=6, seed=0):
    return np.random.default_rng(seed).normal(0, 10 * box.scale, (n, tokens, box.width)).astype(np.float32)


def inputs_of(model, soft, ids):
    return torch.cat([torch.tensor(soft)[None], model.get_input_embeddings()(torch.tensor([ids]))], 1)


def greedy(model, read, soft, ids, steps):
    """By hand: a full forward pass per token."""
    made = []
    for _ in range(steps):
        with torch.no_grad():
            token = int(model(inputs_embeds=inputs_of(model, soft, ids + made)).logits[0, -1].argmax())
        if token == 5:
            break
        made.append(token)
    return read.decode(made, skip_special_tokens=True)


@pytest.fixture(params=["llama", "gpt2"])
def model(request):
    model = getattr(tiny, request.param)().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "attn" in name:  # so that what is in front decides what is continued
                parameter.mul_(8)
    return model


@pytest.mark.parametrize("chat", [False, True])
def test_decode_and_hidden_equal_plain_passes(model, chat):
    read = tiny.tokenizer(special=False)
    read.chat_template = TEMPLATE if chat else None
    box = WhiteBox(model, read, max_new_tokens=6, batch_size=3)
    ids = tiny.word_ids(MESSAGES[0]["content"])
    if chat:
        ids = tiny.word_ids(f"[CLS] {MESSAGES[0]['content']} [SEP] it")
    soft = soft_prompts(box)
    texts = box.decode(soft, MESSAGES)
    assert texts == [greedy(model, read, one, ids, 6) for one in soft]
    assert len(set(texts)) > 2
    hidden = box.hidden(soft, MESSAGES)
    assert hidden.dtype == np.float32
    for one, found in zip(soft, hidden, strict=True):
        with torch.no_grad():
            states = model(inputs_embeds=inputs_of(model, one, ids), output_hidden_states=True).hidden_states
        np.testing.assert_allclose(found, states[-1][0, -1].numpy(), atol=1e-5)


def test_nothing_depends_on_the_batch(model):
    boxes = [WhiteBox(model, tiny.tokenizer(special=False), max_new_tokens=5, batch_size=size) for size in (1, 4, 16)]
    soft = soft_prompts(boxes[0], n=11)
    decoded = [box.decode(soft, MESSAGES) for box in boxes]
    assert decoded[0] == decoded[1] == decoded[2]
    hidden = [box.hidden(soft, MESSAGES) for box in boxes]
    for other in (*hidden[1:], boxes[1].hidden(soft[::-1], MESSAGES)[::-1]):
        np.testing.assert_allclose(other, hidden[0], atol=1e-5)


def test_the_scale_is_that_of_the_embeddings(model):
    box = WhiteBox(model, tiny.tokenizer(special=False))
    weights = model.get_input_embeddings().weight
    assert box.width == weights.shape[1]
    assert box.scale == pytest.approx(float(weights.detach().square().mean().sqrt()), rel=1e-6)


def test_the_model_is_left_alone(model):
    model.train()
    model.generation_config.max_length = 7
    model.generation_config.do_sample = True
    parameter = next(model.parameters())
    before = parameter.detach().clone()
    torch.manual_seed(3), random.seed(3), np.random.seed(3)  # noqa: NPY002
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    box = WhiteBox(model, tiny.tokenizer(special=False), max_new_tokens=5)
    soft = soft_prompts(box, n=2)
    box.decode(soft, MESSAGES), box.hidden(soft, MESSAGES)
    assert model.training
    assert parameter.requires_grad
    assert parameter.grad is None
    assert torch.equal(parameter, before)
    assert model.generation_config.max_length == 7
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    np.testing.assert_array_equal(np.random.get_state()[1], states[2])  # noqa: NPY002


def test_what_does_not_fit_is_said():
    box = WhiteBox(tiny.gpt2(), tiny.tokenizer(special=False), max_new_tokens=31)
    with pytest.raises(
        DataError, match=r"'meta-prompt' has 10 tokens.* max_new_tokens=31 .* more than the 40 positions"
    ):
        box.decode(soft_prompts(box), MESSAGES)
    with pytest.raises(DataError, match=r"shape \(2, 3, 5\); they must be \[n, tokens, 16\]"):
        box.hidden(np.zeros((2, 3, 5), np.float32), MESSAGES)
