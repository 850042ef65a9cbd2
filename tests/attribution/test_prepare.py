"""Raw text becomes model inputs; what is tokenized stays as it is; what cannot be read is refused."""

import pytest
import torch
from datasets import Dataset
from tokenizers.processors import TemplateProcessing
from trl import SFTConfig, SFTTrainer

from hfdataopt.attribution.prepare import prepare_dataset
from hfdataopt.attribution.rows import pad_batch
from hfdataopt.errors import DataError

from ..tiny import SPECIAL, WORDS, bert, llama, tokenizer

PAD, CLS, SEP, EOS = (SPECIAL.index(name) for name in ("[PAD]", "[CLS]", "[SEP]", "<eos>"))


def ids(text):
    return [WORDS.index(word) for word in text.split()]


@pytest.fixture(scope="module")
def classifier():
    return bert()


@pytest.fixture(scope="module")
def causal():
    return llama()


def prepare(columns, model, processing_class=None, collate=None, side="pool"):
    return prepare_dataset(Dataset.from_dict(columns), model, processing_class, collate, side)


def test_tokenized_rows_are_returned_as_they_are(classifier):
    dataset = Dataset.from_dict({"input_ids": [[1, 2], [3]], "label": [0, 1], "text": ["x", "y"]})
    prepared, collate = prepare_dataset(dataset, classifier, tokenizer(), None, "pool")
    assert prepared is dataset
    batch = collate([{"input_ids": [4, 5]}, {"input_ids": [6]}])
    assert batch["input_ids"].tolist() == [[4, 5], [6, PAD]]
    assert prepare_dataset(dataset, classifier, None, pad_batch, "pool") == (dataset, pad_batch)


@pytest.mark.parametrize("columns", [("text",), ("sentence",)])
def test_one_text_column(classifier, columns):
    prepared, _ = prepare({columns[0]: ["fine film", "awful"], "label": [1, 0]}, classifier, tokenizer())
    assert prepared["input_ids"][:] == [[CLS, *ids("fine film"), SEP], [CLS, *ids("awful"), SEP]]
    assert prepared["label"][:] == [1, 0]
    assert prepared[columns[0]][:] == ["fine film", "awful"], "the text stays, for joins and explanations"


@pytest.mark.parametrize("pair", [("text", "text_pair"), ("premise", "hypothesis"), ("sentence1", "sentence2")])
def test_two_text_columns(classifier, pair):
    prepared, _ = prepare({pair[0]: ["fine"], pair[1]: ["awful"], "label": [0]}, classifier, tokenizer())
    assert prepared["input_ids"][0] == [CLS, *ids("fine"), SEP, *ids("awful"), SEP]


def test_text_for_a_causal_model_is_its_own_label(causal, classifier):
    prepared, collate = prepare({"text": ["fine film", "awful"]}, causal, tokenizer(special=False))
    assert prepared["labels"][:] == prepared["input_ids"][:] == [[*ids("fine film"), EOS], [*ids("awful"), EOS]]
    assert collate([dict(row) for row in prepared.remove_columns("text")])["labels"].tolist()[1][2] == -100
    assert "labels" not in prepare({"text": ["fine"]}, classifier, tokenizer())[0].column_names


@pytest.fixture
def ending():
    """A tokenizer that reads ``word<eos>`` as two tokens, as those of language models do."""
    read = tokenizer(special=False)
    read.add_special_tokens({"eos_token": "<eos>"})
    return read


def test_texts_for_a_causal_model_are_those_of_sft_trainer(causal, ending, tmp_path):
    columns = {"text": ["fine film", "awful<eos>", "the film was " * 20]}
    args = SFTConfig(str(tmp_path), max_length=ending.model_max_length, report_to="none", use_cpu=True, bf16=False)
    theirs = SFTTrainer(causal, args, train_dataset=Dataset.from_dict(columns), processing_class=ending).train_dataset
    ours, _ = prepare(columns, causal, ending)
    assert ours["input_ids"][:] == theirs["input_ids"][:]
    assert ours["input_ids"][1] == [*ids("awful"), EOS]
    assert len(ours["input_ids"][2]) == len(ours["labels"][2]) == 32


def test_an_end_that_the_tokenizer_adds_is_not_doubled(causal, ending):
    ending.backend_tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", EOS)])
    assert prepare({"text": ["fine film"]}, causal, ending)[0]["input_ids"][0] == [*ids("fine film"), EOS]
    ending.eos_token = None
    plain = tokenizer(special=False)
    plain.eos_token = None
    assert prepare({"text": ["fine film"]}, causal, plain)[0]["input_ids"][0] == ids("fine film")


def test_a_completion_is_cut_to_what_can_be_read(causal, ending):
    columns = {"prompt": ["the film was " * 9, "the film was " * 20], "completion": [" fine awful" * 9] * 2}
    prepared, _ = prepare(columns, causal, ending)
    for row, labelled in zip(prepared, (32 - 27, 0), strict=True):
        assert len(row["input_ids"]) == len(row["labels"]) == len(row["attention_mask"]) == 32
        assert sum(label != -100 for label in row["labels"]) == labelled
    ending.model_max_length = int(1e30)
    prepared, _ = prepare({"prompt": ["the film was " * 30], "completion": [" fine"]}, causal, ending)
    assert len(prepared["input_ids"][0]) == causal.config.max_position_embeddings == 64


def test_a_completion_alone_is_labelled(causal):
    prepared, _ = prepare({"prompt": ["the film was "], "completion": ["fine"]}, causal, tokenizer(special=False))
    prompt = ids("the film was")
    assert prepared["input_ids"][0][: len(prompt)] == prompt
    assert prepared["labels"][0][: len(prompt)] == [-100] * len(prompt)
    assert -100 not in prepared["labels"][0][len(prompt) :]
    assert prepared["attention_mask"][0] == [1] * len(prepared["input_ids"][0])


def test_a_conversational_completion_is_labelled_after_the_prompt(causal):
    read = tokenizer(special=False)
    read.chat_template = (
        "{% for m in messages %}{{ '[CLS] ' + m['content'] + ' ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[CLS] ' }}{% endif %}"
    )
    columns = {
        "prompt": [[{"role": "user", "content": "the film"}]],
        "completion": [[{"role": "assistant", "content": "fine"}]],
    }
    prepared, _ = prepare(columns, causal, read)
    assert prepared["input_ids"][0] == [CLS, *ids("the film"), CLS, *ids("fine")]
    assert prepared["labels"][0] == [-100] * 4 + ids("fine")


def test_text_is_cut_to_what_tokenizer_or_model_can_read(classifier):
    read = tokenizer()
    columns = {"text": ["the film was " * 30], "label": [1]}
    assert len(prepare(columns, classifier, read)[0]["input_ids"][0]) == read.model_max_length == 32
    read.model_max_length = int(1e30)  # what transformers writes where nothing is known
    length = len(prepare(columns, classifier, read)[0]["input_ids"][0])
    assert length == classifier.config.max_position_embeddings == 40
    with torch.no_grad():
        classifier(**pad_batch([{"input_ids": prepare(columns, classifier, read)[0]["input_ids"][0]}]))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"text": ["fine", None], "label": [0, 1]},
            "the pool: column 'text' must hold text, but in a row .* it is None",
        ),
        (
            {"text": ["a", None], "row_id": ["r0", "r1"]},
            "the pool: column 'text' must hold text, but in row 'r1' it is None",
        ),
        ({"text": [3, 4], "row_id": [7, 8]}, "column 'text' must hold text, but in row 7 it is 3"),
        ({"premise": ["a"], "hypothesis": [None], "row_id": [5]}, "column 'hypothesis' must hold text, but in row 5"),
        ({"prompt": ["a"], "completion": [None], "row_id": [5]}, "column 'completion' must hold text, but in row 5"),
    ],
)
def test_a_row_without_text_is_named(classifier, columns, message):
    with pytest.raises(DataError, match=message):
        prepare(columns, classifier, tokenizer())


@pytest.mark.parametrize("processing_class", [None, tokenizer()])
def test_columns_that_are_not_understood_are_listed(classifier, processing_class):
    with pytest.raises(
        DataError, match=r"the queries has neither input_ids nor text .* it has: body, label. Tokenize it first"
    ):
        prepare({"body": ["fine"], "label": [0]}, classifier, processing_class, side="queries")


def test_raw_text_needs_a_tokenizer(classifier):
    with pytest.raises(DataError, match=r"the pool holds raw text \(text, label\); pass processing_class="):
        prepare({"text": ["fine"], "label": [0]}, classifier)


def test_inputs_of_other_models_pass(classifier):
    """Columns that the model's forward takes are inputs, whatever they are called, with or without a processor."""

    class Vision(torch.nn.Module):
        def forward(self, pixel_values, labels=None):
            raise AssertionError

    dataset = Dataset.from_dict({"pixel_values": [[0.1], [0.2]], "labels": [0, 1]})
    for processor in (None, object()):
        assert prepare_dataset(dataset, Vision(), processor, None, "pool")[0] is dataset
    embedded = Dataset.from_dict({"inputs_embeds": [[[0.1]]], "labels": [0]})
    assert prepare_dataset(embedded, classifier, tokenizer(), None, "pool")[0] is embedded
    with pytest.raises(DataError, match="neither"):
        prepare_dataset(embedded.remove_columns("inputs_embeds"), classifier, None, None, "pool")


def test_empty_and_streamed_data_are_refused(classifier):
    with pytest.raises(DataError, match="queries= is empty"):
        prepare({"input_ids": []}, classifier, side="queries")
    with pytest.raises(DataError, match="the pool: IterableDataset is a stream"):
        prepare_dataset(Dataset.from_dict({"text": ["a"]}).to_iterable_dataset(), classifier, None, None, "pool")
