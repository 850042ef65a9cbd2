"""A prompt, then weights, then a prompt again: a search, GRPO with the same reward function on the prompted dataset, a search.

    python examples/prompt_then_weights.py

Offline, half a minute on a CPU. At the end both prompts are tried on both models, on inputs that nothing has seen.
"""

import argparse
import copy
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from trl import GRPOConfig, GRPOTrainer

from hfdataopt import ApplyPrompt, PromptConfig, PromptTrainer
from hfdataopt.demo import follower_tasks
from hfdataopt.generation import LocalGenerator

reward = follower_tasks.exact_match  # one function for the searches and for GRPO


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", default="first_letter", choices=follower_tasks.TASKS)
    parser.add_argument("--calls", type=int, default=200, help="of each search")
    parser.add_argument("--steps", type=int, default=40, help="of GRPO")
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="some seconds: does it run?")
    options = parser.parse_args(argv)
    if options.smoke:
        options.calls, options.steps = 60, 3
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    before, tokenizer = follower_tasks.load_follower()
    model = copy.deepcopy(before)
    rows, fresh = (follower_tasks.rows(options.task, split) for split in ("train", "test"))

    print("1. The best prompt of the model as it is")
    first = search(before, tokenizer, rows, [], options)

    print("\n2. GRPO on the dataset with that prompt")
    with tempfile.TemporaryDirectory() as folder:
        training = GRPOTrainer(
            model=model,
            processing_class=tokenizer,
            reward_funcs=reward,
            train_dataset=rows.map(first.apply_prompt),
            args=GRPOConfig(
                output_dir=folder,
                per_device_train_batch_size=32,
                num_generations=8,
                max_completion_length=8,
                learning_rate=options.learning_rate,
                max_steps=options.steps,
                logging_steps=max(1, options.steps // 4),
                seed=options.seed,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                use_cpu=True,
                bf16=False,
            ),
        )
        training.remove_callback(transformers.PrinterCallback)
        training.train()
    model.eval()
    rewards = [log["reward"] for log in training.state.log_history if "reward" in log]
    print("mean reward while training: " + ", ".join(f"{one:.2f}" for one in rewards))

    print("\n3. The best prompt of the trained model")
    second = search(model, tokenizer, rows, [first.best_prompt], options)

    print(
        f"\nShare of {len(fresh)} other inputs that are answered rightly:\n\n                  model before   model trained"
    )
    for name, prompt in (
        ("no prompt", ApplyPrompt()),
        ("first prompt", first.apply_prompt),
        ("second prompt", second.apply_prompt),
    ):
        shares = [accuracy(one, tokenizer, prompt, fresh) for one in (before, model)]
        print(f"  {name:<14}  {shares[0]:>12.2f}  {shares[1]:>14.2f}")


def search(model: Any, tokenizer: Any, rows: Any, start: list[str], options: argparse.Namespace) -> PromptTrainer:
    trainer = PromptTrainer(
        "racing",
        model=model,
        processing_class=tokenizer,
        proposer=follower_tasks.load_follower(),  # writes the prompts, and is not trained
        reward_funcs=reward,
        train_dataset=rows,
        args=PromptConfig(
            max_calls=options.calls, items=15, max_new_tokens=12, start=start, seed=options.seed, logging_steps=0
        ),
    )
    trainer.train()
    print(f"{trainer.result.spent['calls']:g} calls: {trainer.best_prompt!r}")
    return trainer


def accuracy(model: Any, tokenizer: Any, prompt: ApplyPrompt, rows: Any) -> float:
    generator = LocalGenerator(model, tokenizer, max_new_tokens=12, temperature=0.0)
    answers = generator.generate(list(rows.map(prompt)["prompt"]), 1, keys=list(range(len(rows))))
    rewards = reward([one.text for (one,) in answers], list(rows["answer"]))
    return sum(rewards) / len(rewards)


if __name__ == "__main__":
    main()
