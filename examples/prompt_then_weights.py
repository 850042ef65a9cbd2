"""A prompt, then weights, then a prompt again: a search, GRPO with the same reward function on the prompted dataset, a search.

Offline, about two minutes on a CPU.
"""

import copy
import tempfile

import torch
from trl import GRPOConfig, GRPOTrainer

from hfdataopt import PromptConfig, PromptTrainer
from hfdataopt.demo import follower_tasks

torch.set_num_threads(1)
model, tokenizer = follower_tasks.load_follower()
model = copy.deepcopy(model)
rows = follower_tasks.rows("first_letter", "train")
fresh = follower_tasks.rows("first_letter", "test")
reward = follower_tasks.exact_match  # one function for the search and for GRPO


def search(seed):
    trainer = PromptTrainer(
        "racing",
        model=model,
        processing_class=tokenizer,
        proposer=follower_tasks.load_follower(),  # writes the prompts, and is not trained
        reward_funcs=reward,
        train_dataset=rows,
        eval_dataset=fresh,
        args=PromptConfig(max_calls=200, items=10, max_new_tokens=12, final_items=20, seed=seed, logging_steps=0),
    )
    result = trainer.train()
    print(result)
    return trainer


print("1. The best prompt of the model as it is")
first = search(seed=0)

print("\n2. GRPO on the dataset with that prompt")
with tempfile.TemporaryDirectory() as folder:
    training = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=reward,
        train_dataset=rows.map(first.apply_prompt),
        args=GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=16,
            num_generations=8,
            max_completion_length=8,
            learning_rate=2e-4,
            max_steps=40,
            logging_steps=10,
            report_to="none",
            save_strategy="no",
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
        ),
    )
    training.train()
print("mean reward while training:", [round(log["reward"], 2) for log in training.state.log_history if "reward" in log])

print("\n3. The best prompt of the trained model")
model.eval()
search(seed=1)
