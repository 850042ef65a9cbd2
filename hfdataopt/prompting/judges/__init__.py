"""Judges: who says which of two answers is better.

The loop shows the two answers in a random order, once, and turns the word back; a judge never shuffles.

- :mod:`~hfdataopt.prompting.judges.judge`: what a judge is, a question, a decision
- :mod:`~hfdataopt.prompting.judges.callable_judge`: one written for older TRL
- :mod:`~hfdataopt.prompting.judges.reward`: the higher reward wins
- :mod:`~hfdataopt.prompting.judges.simulated`: draws from the difference of rewards
- :mod:`~hfdataopt.prompting.judges.model`: a language model
- :mod:`~hfdataopt.prompting.judges.terminal`: a person at the terminal
"""

from hfdataopt.prompting.judges.callable_judge import CallableJudge, as_judge
from hfdataopt.prompting.judges.judge import Decision, Judge, Question
from hfdataopt.prompting.judges.model import ModelJudge
from hfdataopt.prompting.judges.reward import RewardJudge
from hfdataopt.prompting.judges.simulated import SimulatedJudge
from hfdataopt.prompting.judges.terminal import TerminalJudge

__all__ = [
    "CallableJudge",
    "Decision",
    "Judge",
    "ModelJudge",
    "Question",
    "RewardJudge",
    "SimulatedJudge",
    "TerminalJudge",
    "as_judge",
]
