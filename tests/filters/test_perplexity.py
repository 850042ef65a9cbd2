"""Perplexity: one-by-one cross-entropy, which tokens count, and the same numbers however rows come together."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from hfdataopt import get_filter, select
from hfdataopt.errors import DataError, OptionError
from tests import tiny
from tests.filters.invariance import check_invariance
from tests.tiny import word_ids as ids

STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories260K"
START, END = 5, 5  # the tiny tokenizer has no first token of its own, so its end of sequence stands in front
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def perplexity(model, before, scored):
    """Of the ids ``scored`` behind the ids ``before``: one row, no padding, transformers' own loss."""
    whole = torch.tensor([before + scored])
    labels = torch.tensor([[-100] * len(before) + scored])
    with torch.no_grad():
        return math.exp(model.eval()(input_ids=whole, labels=labels).loss)


def load(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def found_of(folder, columns, **options):
    data = Dataset.from_dict(columns)
    f = get_filter("perplexity", model=folder, **options).fit(data)
    return f(data[:])[f.score_column]


def pairs(rows=40):
    texts = tiny.texts(rows)["text"][:]
    answers = [" " + " ".join(text.split()[: 1 + i % 7]) for i, text in enumerate(reversed(texts))]
    return {"prompt": texts, "completion": answers}


# -- the formula


def test_every_token_of_a_text_counts(folder):
    texts = [*tiny.texts(20)["text"][:], "film"]
    expected = [-perplexity(load(folder), [START], ids(text)) for text in texts]
    np.testing.assert_allclose(found_of(folder, {"text": texts}), expected, rtol=1e-5)
    np.testing.assert_allclose(found_of(folder, {"text": texts}, best="highest"), np.negative(expected), rtol=1e-5)


def test_of_a_completion_only_its_own_tokens_count(folder):
    data, model = pairs(), load(folder)
    rows = zip(data["prompt"], data["completion"], strict=True)
    expected = [-perplexity(model, [START, *ids(prompt)], ids(completion)) for prompt, completion in rows]
    np.testing.assert_allclose(found_of(folder, data), expected, rtol=1e-5)


def test_several_columns_are_a_prompt_of_lines_and_an_answer(folder):
    columns = {"question": ["the film", "it was"], "context": ["very fine", ""], "answer": ["was poor", "bleak"]}
    found = found_of(folder, columns, text=["question", "context", "answer"])
    model = load(folder)
    expected = [([START, *ids("the film very fine")], ids("was poor")), ([START, *ids("it was")], ids("bleak"))]
    np.testing.assert_allclose(found, [-perplexity(model, *row) for row in expected], rtol=1e-5)


def test_the_last_answer_of_a_conversation_counts():
    model, read = tiny.llama(), tiny.tokenizer(special=False)
    read.chat_template = TEMPLATE
    talk = [
        {"role": "user", "content": "the film"},
        {"role": "assistant", "content": "was poor"},
        {"role": "user", "content": "it was"},
        {"role": "assistant", "content": "very fine"},
    ]
    whole = Dataset.from_dict({"messages": [talk, talk[:2]]})
    f = get_filter("perplexity", model=model, processing_class=read).fit(whole)
    before = [START, *ids("user the film <eos> assistant was poor <eos> user it was <eos> assistant")]
    expected = [
        perplexity(model, before, ids("very fine")),
        perplexity(model, [START, *ids("user the film <eos> assistant")], ids("was poor")),
    ]
    np.testing.assert_allclose(f(whole[:])["score_perplexity"], np.negative(expected), rtol=1e-5)
    split = Dataset.from_dict({"prompt": [talk[:3], talk[:1]], "completion": [talk[3:], talk[1:2]]})
    g = get_filter("perplexity", model=model, processing_class=read).fit(split)
    assert g(split[:])["score_perplexity"].tolist() == f(whole[:])["score_perplexity"].tolist()
    open_end = Dataset.from_dict({"messages": [talk[:1], talk[:3]]})
    h = get_filter("perplexity", model=model, processing_class=read, on_nan="drop").fit(open_end)
    assert h(open_end[:])["score_perplexity"] == pytest.approx([np.nan, -expected[1]], rel=1e-5, nan_ok=True)


def test_a_first_token_of_the_tokenizer_is_not_scored_and_no_last_one_is_added():
    model, read = tiny.llama(), tiny.tokenizer(special=True)
    data = Dataset.from_dict({"text": ["the film was fine"]})
    f = get_filter("perplexity", model=model, processing_class=read).fit(data)
    expected = -perplexity(model, ids("[CLS]"), ids("the film was fine"))
    assert f(data[:])["score_perplexity"][0] == pytest.approx(expected, rel=1e-5)
    read.bos_token = "[MASK]"
    expected = -perplexity(model, ids("[MASK]"), ids("film"))
    plain = tiny.tokenizer(special=False)
    plain.bos_token = "[MASK]"
    g = get_filter("perplexity", model=model, processing_class=plain).fit(data)
    assert g({"text": ["film"]})["score_perplexity"][0] == pytest.approx(expected, rel=1e-5)


# -- length


def test_long_rows_are_cut_at_the_end(folder, capfd):
    long = " ".join(["the film was fine and"] * 20)
    found = found_of(folder, {"prompt": ["it was"], "completion": [" " + long]})
    expected = perplexity(load(folder), [START, *ids("it was")], ids(long)[: 32 - 3])
    assert found[0] == pytest.approx(-expected, rel=1e-5)
    assert "longer rows are cut to 32 tokens" in capfd.readouterr().err
    shorter = found_of(folder, {"prompt": ["it was"], "completion": [" " + long]}, max_length=9)
    assert shorter[0] == pytest.approx(-perplexity(load(folder), [START, *ids("it was")], ids(long)[:6]), rel=1e-5)
    assert np.isnan(found_of(folder, {"prompt": [long, "it"], "completion": [" fine", " was"]}, on_nan="drop")[0])


@pytest.mark.parametrize(
    "columns",
    [
        {"text": ["the film", "", "  "]},
        {"text": ["the film", None]},
        {"prompt": ["it", "it"], "completion": [" was", ""]},
    ],
)
def test_a_row_with_nothing_to_predict_has_no_score(folder, columns):
    found = found_of(folder, columns, on_nan="drop")
    assert [bool(np.isnan(value)) for value in found] == [False] + [True] * (len(found) - 1)
    with pytest.raises(DataError, match=r"has no score|is None"):
        found_of(folder, columns)


def test_rows_without_a_score_are_told_before_the_model_runs(folder, monkeypatch):
    long = " ".join(["the film was fine and"] * 20)
    data = Dataset.from_dict({"prompt": ["it", long, "it", long], "completion": [" was"] * 4})
    f = get_filter("perplexity", model=folder)
    lenient = get_filter("perplexity", model=folder, on_nan="drop").fit(data)
    monkeypatch.setattr(LlamaForCausalLM, "forward", lambda *_, **__: pytest.fail("the model was run"))
    with pytest.raises(DataError, match=r"perplexity: row 1 .*has no score.*, nor have 1 other rows; drop such rows"):
        f.fit(data)
    monkeypatch.undo()
    assert np.isnan(lenient(data[:])["score_perplexity"]).tolist() == [False, True, False, True]


def test_a_blank_prompt_is_none(folder):
    found = found_of(folder, {"prompt": ["", " "], "completion": ["the film", "the film"]})
    alone = found_of(folder, {"text": ["the film"]})
    assert found.tolist() == [alone[0], alone[0]]


# -- wherever it runs


def test_the_same_scores_and_rows_however_it_runs(folder):
    data = Dataset.from_dict({**pairs(60), "row_id": list(range(60))})
    check_invariance(get_filter("perplexity", model=folder), data)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_bit_for_bit_the_same_for_every_length_and_neighbour(folder, batch_size):
    texts = [" ".join((tiny.PLAIN + tiny.GOOD) * 3)[: 5 * n] for n in range(1, 37)]
    data = Dataset.from_dict({"text": texts})
    f = get_filter("perplexity", model=folder, batch_size=batch_size).fit(data)
    whole = f(data[:])["score_perplexity"]
    assert whole.tolist() == [f({"text": [text]})["score_perplexity"][0] for text in texts]
    order = np.random.default_rng(0).permutation(len(texts))
    assert whole[order].tolist() == f({"text": [texts[i] for i in order]})["score_perplexity"].tolist()


def test_a_live_model_is_left_as_it_was(folder):
    model, read = load(folder).train(), tiny.tokenizer(special=False)
    data = Dataset.from_dict(pairs())
    state = torch.get_rng_state()
    f = get_filter("perplexity", model=model, processing_class=read).fit(data)
    found = data.map(f, batched=True, num_proc=2)["score_perplexity"][:]
    assert model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert found == list(found_of(folder, pairs()))


# -- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "perplexity: give model=, the hub id or folder of a causal language model"),
        ({"model": tiny.masked_lm(), "processing_class": tiny.tokenizer()}, "BertForMaskedLM is not a causal"),
        ({"model": tiny.gpt2()}, "a live model needs processing_class="),
        ({"model": tiny.gpt2().transformer, "processing_class": tiny.tokenizer()}, "GPT2Model is not a causal"),
        ({"model": "x", "best": "middle"}, "best='middle' is not allowed"),
    ],
)
def test_models_and_options_that_do_not_fit(options, message):
    data = Dataset.from_dict({"text": ["the film"]})
    with pytest.raises(OptionError, match=message):
        get_filter("perplexity", **options).fit(data)


def test_an_encoder_loaded_as_a_language_model_is_refused(tmp_path):
    tiny.masked_lm().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(OptionError, match="is not a causal language model"):
        get_filter("perplexity", model=str(tmp_path)).fit(Dataset.from_dict({"text": ["the film"]}))


def test_messages_need_a_chat_template(folder):
    data = Dataset.from_dict(
        {"messages": [[{"role": "user", "content": "it"}, {"role": "assistant", "content": "was"}]]}
    )
    with pytest.raises(DataError, match="the tokenizer has no chat template"):
        get_filter("perplexity", model=folder).fit(data)


@pytest.mark.skipif(not STORIES.is_dir(), reason="the model ../shared/models/stories260K is not here")
def test_a_story_is_expected_and_shuffled_words_are_not():
    story = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park with her mom."
    words = story.split()
    texts = [story] + [" ".join(np.random.default_rng(seed).permutation(words)) for seed in range(4)]
    kept = select(Dataset.from_dict({"text": texts}), "perplexity", model=str(STORIES), k=1)
    assert kept["text"] == [story]
    found = found_of(str(STORIES), {"text": texts})
    assert found[0] > -10
    assert max(found[1:]) < -50


def test_the_number_of_threads_does_not_matter():
    """A product that several threads share is rounded in another way than that of one thread: a worker process has one."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
    )
    model, read = LlamaForCausalLM(config), tiny.tokenizer(special=False)
    read.model_max_length = 512
    data = Dataset.from_dict({"text": [" ".join(["the film was fine and"] * n) for n in range(1, 60, 3)]})
    f = get_filter("perplexity", model=model, processing_class=read).fit(data)
    found = []
    for threads in (1, 3, 8):
        torch.set_num_threads(threads)
        found.append(f(data[:])["score_perplexity"].tolist())
        assert torch.get_num_threads() == threads
    assert found[0] == found[1] == found[2]
