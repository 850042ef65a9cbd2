"""Find a better instruction for a model that can only be called, with a TRL reward function and a budget of calls.

    python examples/optimize_prompt.py

The stand-in for your model is a small follower that ships with hfdataopt; write the id of your own, or a name at an
OpenAI-compatible server with ``base_url``. Offline, some seconds on a CPU.
"""

import argparse
from collections.abc import Sequence

import torch

from hfdataopt import PromptConfig, PromptTrainer
from hfdataopt.demo import follower_tasks


def exact_match(completions, answer, **kwargs):  # as GRPOTrainer(reward_funcs=...) takes it
    return [float(text.strip() == right) for text, right in zip(completions, answer, strict=True)]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=int, default=240, help="the budget")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="some seconds: does it run?")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)  # so small a model is slower on more
    model, tokenizer = follower_tasks.load_follower()
    rows = follower_tasks.rows("french", "train")  # prompt, answer, input
    fresh = follower_tasks.rows("french", "test")

    trainer = PromptTrainer(
        "instinct",  # soft prompts of a white-box model, chosen by a neural bandit
        model=model,
        processing_class=tokenizer,
        white_box=(model, tokenizer),
        reward_funcs=exact_match,
        train_dataset=rows,
        eval_dataset=fresh,
        args=PromptConfig(
            max_calls=60 if options.smoke else options.calls,
            items=5 if options.smoke else 12,
            max_new_tokens=12,
            start=["translate"],  # what you use now
            optimizer_options={"pool_size": 50 if options.smoke else 200},
            logging_steps=0,
            seed=options.seed,
        ),
    )
    result = trainer.train()
    print(result)

    # The prompt goes into any TRL dataset with one map: what was scored is what is written.
    prompted = rows.map(trainer.apply_prompt)
    print("\nFirst row of the dataset with the prompt:\n" + prompted[0]["prompt"])


if __name__ == "__main__":
    main()
