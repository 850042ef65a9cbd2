from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

import hfdataopt.demo
from hfdataopt.demo.make_encoder import make_model, make_tokenizer, pretrain, start_words
from hfdataopt.demo.sentences import demo_dataset, flip_labels, generate

ENCODER = Path(hfdataopt.demo.__file__).parent / "encoder"


@pytest.fixture(scope="module", autouse=True)
def _one_offline_thread():
    patch = pytest.MonkeyPatch()
    patch.setenv("HF_HUB_OFFLINE", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    patch.undo()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ENCODER)


@pytest.fixture(scope="module")
def splits():
    return demo_dataset()


def test_files_are_small_and_hold_no_pickle():
    names = {path.name for path in ENCODER.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)
    assert sum(path.stat().st_size for path in ENCODER.iterdir()) < 600_000


def test_loads_as_a_float32_masked_lm_with_its_head():
    model, info = AutoModelForMaskedLM.from_pretrained(ENCODER, output_loading_info=True)
    assert not info["missing_keys"]
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_tokenizer_knows_every_word(tokenizer):
    texts = [row["text"] for row in generate(2000, seed=11)]
    ids = tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]
    assert not (ids == tokenizer.unk_token_id).any()
    assert (ids[:, 0] == tokenizer.cls_token_id).all()
    assert ids.shape[1] <= tokenizer.model_max_length


@torch.no_grad()
def features(body, tokenizer, texts):
    pooled = []
    for i in range(0, len(texts), 250):
        batch = tokenizer(texts[i : i + 250], padding=True, return_tensors="pt")
        mask = batch["attention_mask"][..., None]
        pooled.append((body(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
    return torch.cat(pooled).double().numpy()


def leave_one_out(train, labels, test):
    """The smallest leave-one-out error over ridges: margins of the given labels, and the test predictions."""
    mean, scale = train.mean(0), train.std()
    train, test = (train - mean) / scale, (test - mean) / scale
    signs = 2.0 * np.asarray(labels) - 1
    values, vectors = np.linalg.eigh(train @ train.T + 1)
    best = None
    for ridge in np.logspace(-4, 4, 17):
        share = values / (values + ridge)
        fitted = vectors @ (share * (vectors.T @ signs))
        error = (signs - fitted) / (1 - (vectors**2) @ share)
        if best is None or np.mean(error**2) < best[0]:
            dual = vectors @ ((vectors.T @ signs) / (values + ridge))
            best = np.mean(error**2), signs * (signs - error), (test @ train.T + 1) @ dual > 0
    return best[1:]


def test_frozen_pretrained_features_find_flips_that_untrained_ones_miss(tokenizer, splits):
    torch.manual_seed(0)
    bodies = {
        "pretrained": AutoModel.from_pretrained(ENCODER),
        "untrained": AutoModel.from_config(AutoConfig.from_pretrained(ENCODER)),
    }
    labels, flipped = flip_labels(splits["train"]["label"], 0.1, seed=0)
    auc, accuracy = {}, {}
    for name, body in bodies.items():
        train, test = (features(body.eval(), tokenizer, splits[part]["text"]) for part in ("train", "test"))
        margins, predicted = leave_one_out(train, labels, test)
        mask = np.array(flipped)
        auc[name] = np.mean(margins[mask][:, None] < margins[~mask])
        accuracy[name] = np.mean(predicted == np.array(splits["test"]["label"]))
    assert auc["pretrained"] > auc["untrained"] + 0.1
    assert accuracy["pretrained"] > max(0.8, accuracy["untrained"] + 0.1)


def test_a_fine_tuned_classifier_beats_0_8_held_out(tokenizer, splits):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(ENCODER, num_labels=2)
    train = tokenizer(splits["train"]["text"][:], padding=True, return_tensors="pt")
    labels = torch.tensor(splits["train"]["label"][:])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    model.train()
    for _ in range(3):
        for rows in torch.randperm(len(labels)).split(32):
            loss = model(**{name: column[rows] for name, column in train.items()}, labels=labels[rows]).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        logits = model(**tokenizer(splits["test"]["text"][:], padding=True, return_tensors="pt")).logits
    assert (logits.argmax(1) == torch.tensor(splits["test"]["label"][:])).float().mean() > 0.8


def test_pretraining_is_reproducible():
    texts = [row["text"] for row in generate(300, seed=1, labelled=False)]
    tokenizer = make_tokenizer(texts)
    ids = tokenizer(texts, padding="max_length", return_tensors="pt")["input_ids"]
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        model = make_model(tokenizer)
        start_words(model, ids)
        pretrain(model, tokenizer, ids, steps=4, seed=2)
        runs.append(model.state_dict())
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_freeshap_on_the_pretrained_body_beats_an_untrained_body(tokenizer, splits):
    from hfdataopt import attribute

    train, queries = splits["train"].select(range(240)), splits["validation"].select(range(120))
    labels, flipped = flip_labels(train["label"][:], 0.1, seed=3)
    train = train.remove_columns("label").add_column("label", labels)
    flipped = np.array(flipped)
    torch.manual_seed(0)
    bodies = {
        "pretrained": AutoModelForSequenceClassification.from_pretrained(ENCODER, num_labels=2),
        "untrained": AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(ENCODER, num_labels=2)),
    }
    area = {}
    for name, model in bodies.items():
        values = attribute(model, train, queries, "freeshap", processing_class=tokenizer, permutations=60).values
        area[name] = (values[flipped][:, None] < values[~flipped][None]).mean()
    assert area["pretrained"] > 0.9
    assert area["pretrained"] > area["untrained"] + 0.2
