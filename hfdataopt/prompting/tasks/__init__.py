"""The experiments that prompt optimizers are published with: their data as datasets, their metrics as reward functions.

- :mod:`~hfdataopt.prompting.tasks.instruction_induction`: 33 tasks of inputs and outputs
- :mod:`~hfdataopt.prompting.tasks.summarisation`: dialogues, and ROUGE
- :mod:`~hfdataopt.prompting.tasks.chain_of_thought`: word problems, and a second call that extracts the answer
- :mod:`~hfdataopt.prompting.tasks.text_to_image`: an offline renderer, features of its images, and a simulated user
- :mod:`~hfdataopt.prompting.tasks.image_encoder`: features of images by a vision model of transformers

The last two need Pillow: ``pip install 'hfdataopt[images]'``.
"""

from hfdataopt.prompting.tasks.chain_of_thought import ChainOfThought, load_reasoning, reasoning_score
from hfdataopt.prompting.tasks.instruction_induction import (
    TASKS,
    instruction_induction_score,
    load_instruction_induction,
    reward_for,
)
from hfdataopt.prompting.tasks.summarisation import load_summarisation, rouge_1, rouge_2, rouge_l, rouge_reward

__all__ = [
    "TASKS",
    "ChainOfThought",
    "instruction_induction_score",
    "load_instruction_induction",
    "load_reasoning",
    "load_summarisation",
    "reasoning_score",
    "reward_for",
    "rouge_1",
    "rouge_2",
    "rouge_l",
    "rouge_reward",
]
