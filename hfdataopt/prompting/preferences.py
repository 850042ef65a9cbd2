"""Votes as a dataset of preferences, which TRL's ``DPOTrainer`` and ``RewardTrainer`` take as it is."""

from collections.abc import Iterable
from typing import Any

from hfdataopt.errors import DataError
from hfdataopt.prompting.candidate import Vote
from hfdataopt.prompting.optimizer import Item


def preference_dataset(votes: Iterable[Vote], items: Iterable[Item]) -> Any:
    """A ``datasets.Dataset`` with ``prompt``, ``chosen`` and ``rejected``, one row per vote for one of two answers.

    The prompt is the item's own, without the instruction: what is learnt is to answer like that unasked. Messages stay
    messages, and answers to them become messages of the assistant. Ties, skipped and invalid votes are left out, and so are
    votes on two answers that are the same text.

    Args:
        items: those that the votes are about, and possibly others.

    Raises:
        DataError: a vote is on an item that is not there; no vote is for one of two different answers; or some items have
            text as prompt and others messages.
    """
    from datasets import Dataset

    prompts = {item.id: item.prompt for item in items}
    rows: dict[str, list[Any]] = {"prompt": [], "chosen": [], "rejected": []}
    for vote in votes:
        winner = vote.comparison.winner
        if winner is None or vote.answers[0] == vote.answers[1]:
            continue
        if vote.duel.item not in prompts:
            raise DataError(f"preference_dataset: a vote is on item {vote.duel.item!r}, which is not among the items")
        prompt = prompts[vote.duel.item]
        rows["prompt"].append(prompt)
        for name, answer in (("chosen", vote.answers[winner]), ("rejected", vote.answers[1 - winner])):
            rows[name].append(answer if isinstance(prompt, str) else [{"role": "assistant", "content": answer}])
    if not rows["prompt"]:
        raise DataError(
            "preference_dataset: no vote is for one of two different answers; ties, skips and invalid votes teach no preference"
        )
    if len({isinstance(prompt, str) for prompt in rows["prompt"]}) > 1:
        raise DataError("preference_dataset: some prompts are text and others messages; bring them to one form")
    return Dataset.from_dict(rows)
