"""Judges from rewards: the better answer is that of the higher reward."""

import math
from collections.abc import Sequence
from typing import Any

from hfdataopt.errors import OptionError
from hfdataopt.prompting.candidate import Comparison
from hfdataopt.prompting.judges.judge import Judge, Question
from hfdataopt.rewards.texts import is_messages


class RewardJudge(Judge):
    """The answer with the higher reward wins.

    Args:
        reward_funcs: as ``GRPOTrainer`` takes them, or :class:`~hfdataopt.rewards.RewardFunctions`. An answer to messages
            goes to them as a message of the assistant, an image as it is.
        reward_weights: a weight per function; 1 each by default.
        ties: rewards that differ by no more are a tie.

    A question of which an answer has no reward (all functions gave None) is skipped.
    """

    def __init__(self, reward_funcs: Any, reward_weights: Sequence[float] | None = None, *, ties: float = 0.0) -> None:
        from hfdataopt.rewards.functions import RewardFunctions

        who = type(self).__name__
        if isinstance(reward_funcs, RewardFunctions):
            if reward_weights is not None:
                raise OptionError(f"{who}: RewardFunctions have their own weights; drop reward_weights")
            self.rewards = reward_funcs
        else:
            self.rewards = RewardFunctions(reward_funcs, reward_weights=reward_weights, who=who)
        if not 0 <= ties < math.inf:
            raise OptionError(f"{who}: ties={ties!r} must be a finite number of at least 0")
        self.ties = float(ties)

    def begin(self, complete: Any, state: Any) -> None:
        super().begin(complete, state)
        self.rewards.load()

    def decide(self, questions: Sequence[Question]) -> list[Comparison]:
        words = []
        for question, (first, second) in zip(questions, self._scores(questions), strict=True):
            difference = first - second
            if math.isnan(difference):
                words.append(Comparison(None, "skip"))
            else:
                words.append(self._word(question, difference))
        return words

    def _word(self, question: Question, difference: float) -> Comparison:
        return Comparison.of(None if abs(difference) <= self.ties else int(difference < 0))

    def _scores(self, questions: Sequence[Question]) -> list[tuple[float, float]]:
        """Rewards of the first and of the second answers; all go to the reward functions in one call."""
        twice = [question for question in questions for _ in range(2)]
        answers = [
            [{"role": "assistant", "content": answer}]
            if is_messages(question.prompt) and isinstance(answer, str)
            else answer
            for question in questions
            for answer in question.answers
        ]
        names = dict.fromkeys(name for question in questions for name in question.columns)
        columns = {name: [question.columns.get(name) for question in twice] for name in names}
        found = self.rewards(
            [question.prompt for question in twice],
            answers,
            None,
            columns,
            row_ids=[question.item for question in twice],
        ).total.tolist()
        return list(zip(found[::2], found[1::2], strict=True))

    def describe(self) -> dict[str, Any]:
        from hfdataopt.attribution.identity import fingerprint

        return {"kind": type(self).__name__, "rewards": fingerprint(self.rewards), "ties": self.ties}
