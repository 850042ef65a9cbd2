import pytest
import torch
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

from hfdataopt import PromptConfig
from hfdataopt.demo import follower_tasks as world
from hfdataopt.errors import OptionError
from hfdataopt.prompting.callback import PromptSearchCallback


def train(folder, callbacks):
    model, tokenizer = world.load_follower()
    shown = world.rows("plural", "train").select(range(16))
    texts = [f"{row['prompt']} {row['answer']}" for row in shown]
    rows = [tokenizer(text) for text in texts]
    args = TrainingArguments(
        str(folder),
        num_train_epochs=2,
        per_device_train_batch_size=8,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
    )
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    trainer = Trainer(
        model, args, train_dataset=rows, data_collator=collator, processing_class=tokenizer, callbacks=callbacks
    )
    trainer.train()
    return trainer


def test_a_search_at_each_epoch_leaves_the_training_as_it_was(tmp_path):
    search = PromptSearchCallback(
        "random",
        PromptConfig(max_calls=20, items=5, leaders=0, max_new_tokens=8, logging_steps=0),
        reward_funcs=world.exact_match,
        train_dataset=world.rows("plural", "train"),
    )
    watched, plain = train(tmp_path / "a", [search]), train(tmp_path / "b", [])
    for one, other in zip(watched.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [result.spent["calls"] for result in search.results] == [20, 20]
    logged = [log for log in watched.state.log_history if "prompt" in log]
    assert [log["epoch"] for log in logged] == [1.0, 2.0]
    assert logged[-1]["prompt"] == search.best_prompt
    assert (tmp_path / "a" / "prompt-search" / "epoch-2" / "prompt.json").is_file()


def test_every_second_epoch(tmp_path):
    search = PromptSearchCallback(
        "random",
        PromptConfig(max_calls=10, items=5, leaders=0, max_new_tokens=8, logging_steps=0),
        every=2,
        reward_funcs=world.exact_match,
        train_dataset=world.rows("plural", "train"),
    )
    train(tmp_path, [search])
    assert len(search.results) == 1


def test_mistakes():
    with pytest.raises(OptionError, match="every=0"):
        PromptSearchCallback("random", every=0)
    with pytest.raises(OptionError, match="drop model="):
        PromptSearchCallback("random", model="x")
    with pytest.raises(OptionError, match="no search yet"):
        _ = PromptSearchCallback("random").best_prompt
