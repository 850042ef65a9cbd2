"""Which 5 % of the data should a language model be fine-tuned on, when the goal is a reward that has no gradient?

    python examples/sft_nice_selection.py                                                 # offline, a tiny model
    python examples/sft_nice_selection.py --model HuggingFaceTB/SmolLM2-135M --dataset trl-lib/tldr

1. warm up on a small random part of the pool, and score the whole pool on the way (`nice`, and `less` beside it)
2. select 5 %
3. fine-tune the base model on it, and on other choices, for the same number of steps
4. compare mean rewards on prompts that neither training nor scoring has seen

Offline, the reward asks whether a review's conclusion agrees with its judgement. 10 % of the pool's rows show that, 40 % the
opposite, the rest and all reference answers are small talk: LESS, which follows the references, cannot find what is wanted.
With --dataset (columns prompt and completion) the reward is the token F1 with the completion: put your own there.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import numpy as np
import tiny_lm
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from hfdataopt import AttributionCallback, reward_from_metric, select
from hfdataopt.generation import LocalGenerator, as_messages
from hfdataopt.rewards import token_f1
from hfdataopt.statistics import mean_interval


def agreement_reward(completions: list[str], label: list[int], **_: Any) -> list[float]:
    """What GRPOTrainer(reward_funcs=...) takes: completions, and every other column of the dataset."""
    return [tiny_lm.agreement(completion, wanted) for completion, wanted in zip(completions, label, strict=True)]


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(argv)
    if not options.dataset:
        others = tiny_lm.dataset(0, options.queries + options.test, agree=0.0, disagree=0.0)
        pool = tiny_lm.dataset(len(others), len(others) + options.pool, agree=0.1, disagree=0.4)
        reward: Callable[..., list[Any]] = agreement_reward
    else:
        everything = load(options.dataset).shuffle(seed=0)
        if len(everything) < options.queries + options.test + 100:
            raise SystemExit(
                f"--dataset has {len(everything)} rows: too few beside {options.queries} + {options.test} prompts"
            )
        everything = everything.add_column("reference", everything["completion"][:])
        others = everything.select(range(options.queries + options.test))
        pool = everything.select(range(len(others), min(len(everything), len(others) + options.pool)))
        reward = reward_from_metric(token_f1, reference_column="reference")
    queries = others.select(range(options.queries))
    test = others.select(range(options.queries, len(others)))
    tokenizer = AutoTokenizer.from_pretrained(options.model)

    def sft(rows: Any, seed: int, callbacks: list[Any] | None = None, **settings: Any) -> Any:
        """The base model after supervised fine-tuning."""
        with tempfile.TemporaryDirectory() as folder:
            trainer = SFTTrainer(
                AutoModelForCausalLM.from_pretrained(options.model, dtype="float32"),
                SFTConfig(
                    folder,
                    learning_rate=options.learning_rate,
                    per_device_train_batch_size=options.batch_size,
                    per_device_eval_batch_size=options.batch_size,
                    bf16=torch.cuda.is_available(),
                    dataloader_pin_memory=torch.cuda.is_available(),
                    seed=seed,
                    save_strategy="no",
                    logging_strategy="no",
                    report_to="none",
                    disable_tqdm=True,
                    **settings,
                ),
                train_dataset=rows,
                processing_class=tokenizer,
                callbacks=callbacks,
            )
            trainer.remove_callback(transformers.PrinterCallback)
            trainer.train()
        return trainer.model

    # These lines are what you need in a script of your own.
    nice = AttributionCallback(
        "nice",
        queries=queries,
        pool=pool,
        reward_funcs=reward,
        max_new_tokens=options.max_new_tokens,
        precondition="none",  # leave it out for the paper's Adam-preconditioned gradients; here they found fewer good rows
    )
    less = AttributionCallback("less", queries=queries, pool=pool)  # learns from the queries' completions
    warm_up = pool.shuffle(seed=0).select(range(len(pool) // 10))
    sft(warm_up, seed=0, num_train_epochs=options.warm_up, callbacks=[nice, less])
    choices = {
        "5 % by NICE": select(pool, nice.scores, fraction=0.05),
        "5 % by LESS": select(pool, less.scores, fraction=0.05),
    }

    base = AutoModelForCausalLM.from_pretrained(options.model, dtype="float32")
    base.to("cuda" if torch.cuda.is_available() else "cpu")
    rewards = {"no fine-tuning": [mean_rewards(base, tokenizer, test, reward, options)] * options.seeds}
    for seed in range(options.seeds):
        choices["5 % at random"] = pool.shuffle(seed=100 + seed).select(range(len(choices["5 % by NICE"])))
        choices["everything"] = pool
        for name, rows in choices.items():
            model = sft(rows, seed, max_steps=options.steps)
            rewards.setdefault(name, []).append(mean_rewards(model, tokenizer, test, reward, options))
    report(rewards, choices, options)


def mean_rewards(model: Any, tokenizer: Any, test: Any, reward: Callable[..., list[Any]], options: Any) -> list[float]:
    """Mean reward of 4 sampled completions of each prompt. What is drawn is a function of the prompt: models have equal luck."""
    generator = LocalGenerator(model, tokenizer, max_new_tokens=options.max_new_tokens, batch_size=64)
    prompts = test["prompt"][:]
    found = []
    for row, completions in enumerate(generator.generate(prompts, 4, keys=range(len(test)))):
        columns = {name: [value] * 4 for name, value in test[row].items() if name not in ("prompt", "completion")}
        texts = [as_messages(completion, prompts[row]) for completion in completions]
        found.append(float(np.mean(reward(prompts=[prompts[row]] * 4, completions=texts, **columns))))
    return found


def report(rewards: dict[str, list[list[float]]], choices: dict[str, Any], options: Any) -> None:
    """Means, and paired differences with 95 % intervals over trainings and prompts."""
    print(
        f"\nMean reward on {options.test} prompts of a third split; {options.seeds} trainings of {options.steps} steps each:\n"
    )
    print(f"  {'':<16}{'rows':>6}{'reward':>9}   NICE less this, paired (95 % interval)")
    nice = np.array(rewards["5 % by NICE"])
    for name, of_choice in rewards.items():
        line = f"  {name:<16}{len(choices.get(name, ())) or '-':>6}{np.mean(of_choice):>9.3f}"
        if name != "5 % by NICE":
            difference = nice - np.array(of_choice)  # [seeds, prompts]
            mean, over_seeds, _ = mean_interval(difference.mean(1))
            over_prompts = mean_interval(difference.mean(0))[1]
            half = np.hypot(mean - over_seeds, mean - over_prompts)  # both vary; a little too wide
            verdict = "better" if mean > half else "worse" if mean < -half else "no clear difference"
            line += f"   {mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f})  {verdict}"
        print(line)
    if "kind" in choices["everything"].column_names:
        print("\nWhat was selected (the reward never sees these names):")
        for name, rows in choices.items():
            shares = {kind: rows["kind"][:].count(kind) / len(rows) for kind in ("agrees", "disagrees", "small talk")}
            print(f"  {name:<13}" + "".join(f"   {kind} {share:>4.0%}" for kind, share in shares.items()))


def load(name: str) -> Any:
    """The training split of a hub data set, or a file of JSON lines."""
    if name.endswith((".json", ".jsonl")):
        return datasets.load_dataset("json", data_files=name, split="train")
    return datasets.load_dataset(name, split="train")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="a causal LM, hub id or folder (default: a tiny one, made here)")
    parser.add_argument("--dataset", help="columns prompt and completion: hub id, or a file of JSON lines")
    parser.add_argument("--pool", type=int, default=1200, help="rows to choose from")
    parser.add_argument("--queries", type=int, default=64, help="prompts to score with")
    parser.add_argument("--test", type=int, default=200, help="prompts to compare on")
    parser.add_argument(
        "--warm_up", type=int, default=4, help="epochs on a tenth of the pool; rows are scored after each"
    )
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each choice")
    parser.add_argument("--steps", type=int, default=40, help="of each of these trainings")
    parser.add_argument("--learning_rate", type=float, help="default: 1e-3 for the tiny model, else 2e-5")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--max_new_tokens", type=int, default=16)
    parser.add_argument("--smoke", action="store_true", help="some seconds: does it run?")
    options = parser.parse_args(argv)
    if bool(options.model) != bool(options.dataset):
        parser.error("--model and --dataset go together")
    options.learning_rate = options.learning_rate or (2e-5 if options.model else 1e-3)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    if options.smoke:
        options.pool, options.queries, options.test = 80, 4, 8
        options.warm_up, options.seeds, options.steps = 1, 2, 2
    if not options.model:
        print("Making a tiny language model ...", flush=True)
        options.model = tiny_lm.make(tempfile.mkdtemp(), steps=0.15 if options.smoke else 1.0)
    return options


if __name__ == "__main__":
    main()
