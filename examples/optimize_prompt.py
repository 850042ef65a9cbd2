"""Find a better instruction for a model that can only be called, with a TRL reward function and a budget of calls.

The stand-in for your model is a small follower that ships with hfdataopt; write the id of your own, or a name at an
OpenAI-compatible server with ``base_url``. Offline, under a minute on a CPU.
"""

import torch

from hfdataopt import PromptConfig, PromptTrainer
from hfdataopt.demo import follower_tasks

torch.set_num_threads(1)  # so small a model is slower on more
model, tokenizer = follower_tasks.load_follower()
rows = follower_tasks.rows("french", "train")  # prompt, answer, input
fresh = follower_tasks.rows("french", "test")


def exact_match(completions, answer, **kwargs):  # as GRPOTrainer(reward_funcs=...) takes it
    return [float(text.strip() == right) for text, right in zip(completions, answer, strict=True)]


trainer = PromptTrainer(
    "instinct",  # soft prompts of a white-box model, chosen by a neural bandit
    model=model,
    processing_class=tokenizer,
    white_box=(model, tokenizer),
    reward_funcs=exact_match,
    train_dataset=rows,
    eval_dataset=fresh,
    args=PromptConfig(
        max_calls=400,
        items=20,
        max_new_tokens=12,
        start=["translate"],  # what you use now
        logging_steps=10,
    ),
)
result = trainer.train()
print(result)

# The prompt goes into any TRL dataset with one map: what was scored is what is written.
prompted = rows.map(trainer.apply_prompt)
print("\nFirst row of the dataset with the prompt:\n" + prompted[0]["prompt"])
