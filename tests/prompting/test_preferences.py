"""Votes as a dataset of preferences."""

import pytest

from hfdataopt.errors import DataError
from hfdataopt.prompting.candidate import Candidate, Comparison, Duel, Vote
from hfdataopt.prompting.optimizer import Item
from hfdataopt.prompting.preferences import preference_dataset
from tests import tiny

CHAT = [{"role": "user", "content": "the film was"}]


def vote(item, winner, answers=("great", "poor"), outcome="preferred"):
    duel = Duel(Candidate("one"), Candidate("other"), item)
    return Vote(duel, Comparison(winner, outcome), answers)


def items(prompt):
    return [Item(i, prompt, "the film was", None) for i in range(4)]


def test_votes_for_one_of_two_answers_are_the_rows():
    votes = [
        vote(0, 0),
        vote(1, 1),
        vote(2, None, outcome="tie"),
        vote(2, None, outcome="skip"),
        vote(3, None, outcome="invalid"),
        vote(3, 0, ("same", "same")),
        vote(3, 1, ("", "fine")),
    ]
    rows = preference_dataset(votes, items("the film was"))
    assert rows.to_dict() == {
        "prompt": ["the film was"] * 3,
        "chosen": ["great", "poor", "fine"],
        "rejected": ["poor", "great", ""],
    }


def test_messages_stay_messages():
    row = preference_dataset([vote(1, 1)], items(CHAT))[0]
    assert row == {
        "prompt": CHAT,
        "chosen": [{"role": "assistant", "content": "poor"}],
        "rejected": [{"role": "assistant", "content": "great"}],
    }


def test_what_teaches_no_preference_is_said():
    with pytest.raises(DataError, match="no vote is for one of two different answers"):
        preference_dataset([vote(0, None, outcome="tie")], items("a"))
    with pytest.raises(DataError, match="item 9"):
        preference_dataset([vote(9, 0)], items("a"))
    with pytest.raises(DataError, match="one form"):
        preference_dataset([vote(0, 0), vote(1, 0)], [Item(0, "a", "a", None), Item(1, CHAT, "a", None)])


@pytest.mark.parametrize("prompt", ["the film was", CHAT])
def test_dpo_trains_on_it_as_it_is(prompt, tmp_path):
    from trl import DPOConfig, DPOTrainer

    tokenizer = tiny.tokenizer(special=False)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] + ' ' }}{% endfor %}"
    model = tiny.gpt2()
    before = model.transformer.wte.weight.detach().clone()
    trainer = DPOTrainer(
        model=model,
        ref_model=tiny.gpt2(),
        args=DPOConfig(
            output_dir=str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=2,
            learning_rate=0.1,
            report_to="none",
            use_cpu=True,
            bf16=False,
        ),
        train_dataset=preference_dataset([vote(i, i % 2) for i in range(4)], items(prompt)),
        processing_class=tokenizer,
    )
    trainer.train()
    assert trainer.state.global_step == 1
    assert not before.equal(model.transformer.wte.weight)
