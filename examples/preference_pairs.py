"""From prompts and a reward to a DPO run: completions, preference pairs, an order from easy to hard, training.

    python examples/preference_pairs.py                                                   # offline, a tiny model
    python examples/preference_pairs.py --pairs_by rejection-sampling --order reward-margin
    python examples/preference_pairs.py --model HuggingFaceTB/SmolLM2-135M-Instruct --dataset trl-lib/ultrafeedback-prompt \
        --max_new_tokens 128
    python examples/preference_pairs.py --model mine --dataset mine.jsonl --completions answers

1. take k completions of each prompt, from a column or sampled from the model, and a reward function as TRL takes them
2. `rejection-pairs`: the best against the worst, every pair, or statistical rejection sampling
3. `log-ratio` or `reward-margin` says how easy a pair is, `curriculum` puts the easy ones first
4. train with trl's DPOTrainer in this order, in the opposite one, and shuffled; compare the reward on held-out prompts

Offline, a prompt is a judgement, and the reward asks whether the completion's conclusion agrees with it. With --dataset the reward
is a stand-in, that an answer is short and ends with a full stop: put your own there.
"""

import argparse
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import numpy as np
import tiny_lm
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from hfdataopt import curriculum, get_filter
from hfdataopt.generation import LocalGenerator, as_messages
from hfdataopt.selection.rejection_pairs import with_completions
from hfdataopt.selection.source import as_text
from hfdataopt.statistics import mean_interval


def agreement_reward(completions: list[str], label: list[int], **_: Any) -> list[float]:
    """What GRPOTrainer(reward_funcs=...) takes: completions, and every other column of the dataset."""
    return [tiny_lm.agreement(completion, wanted) for completion, wanted in zip(completions, label, strict=True)]


def brevity_reward(completions: list[Any], **_: Any) -> list[float]:
    """1 for a full stop at the end, less one hundredth for each word."""
    texts = [completion if isinstance(completion, str) else completion[-1]["content"] for completion in completions]
    return [float(text.rstrip().endswith(".")) - len(text.split()) / 100 for text in texts]


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(argv)
    if not options.dataset:
        rows = tiny_lm.dataset(0, options.prompts + options.test, agree=1.0, disagree=0.0).remove_columns("completion")
        reward: Any = agreement_reward
    else:
        rows = load(options.dataset).shuffle(seed=0)
        rows = rows.select(range(min(len(rows), options.prompts + options.test)))
        reward = brevity_reward
    test = rows.select(range(options.test))
    prompts = rows.select(range(options.test, len(rows)))
    tokenizer = AutoTokenizer.from_pretrained(options.model)

    # These lines are what you need in a script of your own.
    if options.completions not in prompts.column_names:
        generator = LocalGenerator(load_model(options), tokenizer, max_new_tokens=options.max_new_tokens, batch_size=64)
        prompts = with_completions(prompts, generator, options.k, column=options.completions)
    settings: dict[str, Any] = {"completions": options.completions, "pairs_by": options.pairs_by}
    if options.pairs_by == "rejection-sampling":
        settings |= {"samples": 4, "beta": 0.5}
    pairs = get_filter("rejection-pairs", reward_funcs=reward, **settings).fit(prompts).pairs(prompts)
    if options.order == "log-ratio":  # how well the model tells a pair apart before training
        scored = get_filter("log-ratio", model=options.model, column="easiness").fit(pairs)
    else:
        rewards = {"chosen_reward": "chosen_reward", "rejected_reward": "rejected_reward"}
        scored = get_filter("reward-margin", **rewards, column="easiness").fit(pairs)
    ordered = curriculum(pairs.map(scored, batched=True), "easiness")  # what is easy comes first

    show(ordered, options.order)

    def dpo(rows: Any, seed: int, order: str) -> list[float]:
        """Mean rewards on the held-out prompts after direct preference optimisation."""
        with tempfile.TemporaryDirectory() as folder:
            trainer = DPOTrainer(
                load_model(options),
                args=DPOConfig(
                    folder,
                    num_train_epochs=1,
                    train_sampling_strategy=order,
                    beta=0.1,
                    learning_rate=options.learning_rate,
                    per_device_train_batch_size=options.batch_size,
                    bf16=torch.cuda.is_available(),
                    dataloader_pin_memory=torch.cuda.is_available(),
                    seed=seed,
                    save_strategy="no",
                    logging_strategy="no",
                    report_to="none",
                    disable_tqdm=True,
                ),
                train_dataset=rows.select_columns(["prompt", "chosen", "rejected"]),
                processing_class=tokenizer,
            )
            trainer.remove_callback(transformers.PrinterCallback)
            trainer.train()
        return mean_rewards(trainer.model, tokenizer, test, reward, options)

    before = mean_rewards(load_model(options), tokenizer, test, reward, options)
    reverse = ordered.select(range(len(ordered) - 1, -1, -1))
    found: dict[str, list[list[float]]] = {"no training": [before] * options.seeds}
    for seed in range(options.seeds):
        found.setdefault("shuffled", []).append(dpo(ordered, seed, "random"))
        found.setdefault("easy first", []).append(dpo(ordered, seed, "sequential"))
        found.setdefault("hard first", []).append(dpo(reverse, seed, "sequential"))
    compare(found, len(pairs), options)


def show(ordered: Any, order: str) -> None:
    """The first and last pairs of the order."""
    print(f"\n{len(ordered)} pairs by {order}, the easiest and the hardest:")
    places = sorted({0, 1, len(ordered) - 2, len(ordered) - 1} & set(range(len(ordered))))
    for row in ordered.select(places):
        texts = [textwrap.shorten(as_text(row[name]), 60) for name in ("prompt", "chosen", "rejected")]
        print("  {:+.2f}  {} | {} | not: {}".format(row["easiness"], *texts))


def mean_rewards(model: Any, tokenizer: Any, test: Any, reward: Callable[..., list[Any]], options: Any) -> list[float]:
    """Mean reward of 4 sampled completions of each prompt. What is drawn is a function of the prompt: models have equal luck."""
    generator = LocalGenerator(model, tokenizer, max_new_tokens=options.max_new_tokens, batch_size=64)
    prompts = test["prompt"][:]
    found = []
    for row, completions in enumerate(generator.generate(prompts, 4, keys=range(len(test)))):
        columns = {
            name: [value] * 4 for name, value in test[row].items() if name not in ("prompt", options.completions)
        }
        texts = [as_messages(completion, prompts[row]) for completion in completions]
        found.append(float(np.mean(reward(prompts=[prompts[row]] * 4, completions=texts, **columns))))
    return found


def compare(rewards: dict[str, list[list[float]]], count: int, options: argparse.Namespace) -> None:
    """Mean rewards, and paired differences to the shuffled pairs with 95 % t intervals over the trainings."""
    print(f"\nMean reward on {options.test} other prompts, {options.seeds} trainings on {count} pairs, one epoch each:")
    shuffled = np.mean(rewards["shuffled"], axis=1)
    for name, of_choice in rewards.items():
        values = np.mean(of_choice, axis=1)
        line = f"  {name:<14}{values.mean():>7.3f}"
        if name != "shuffled":
            mean, low, high = mean_interval((values - shuffled).tolist())
            verdict = "better" if low > 0 else "worse" if high < 0 else "no clear difference"
            line += f"   {mean:+.3f} ({low:+.3f} to {high:+.3f}) against shuffled  {verdict}"
        print(line)


def load_model(options: argparse.Namespace) -> Any:
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype="float32")
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def load(name: str) -> Any:
    """The training split of a hub data set, or a file of JSON lines."""
    if name.endswith((".json", ".jsonl")):
        return datasets.load_dataset("json", data_files=name, split="train")
    return datasets.load_dataset(name, split="train")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="a causal LM, hub id or folder (default: a tiny one, made here)")
    parser.add_argument("--dataset", help="column prompt: hub id, or a file of JSON lines")
    parser.add_argument(
        "--completions", default="completions", help="column of lists; sampled from the model where it is missing"
    )
    parser.add_argument("--k", type=int, default=8, help="completions to sample of each prompt")
    parser.add_argument(
        "--pairs_by",
        default="best-worst",
        choices=("best-worst", "all-pairs", "rejection-sampling"),
        help="how pairs are made",
    )
    parser.add_argument(
        "--order", default="log-ratio", choices=("log-ratio", "reward-margin"), help="what makes a pair easy"
    )
    parser.add_argument("--prompts", type=int, default=300, help="prompts to make pairs from")
    parser.add_argument("--test", type=int, default=150, help="prompts to compare on")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each choice")
    parser.add_argument("--learning_rate", type=float, help="default: 3e-4 for the tiny model, else 1e-6")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--max_new_tokens", type=int, default=16)
    parser.add_argument("--smoke", action="store_true", help="some seconds: does it run?")
    options = parser.parse_args(argv)
    if bool(options.model) != bool(options.dataset):
        parser.error("--model and --dataset go together")
    options.learning_rate = options.learning_rate or (1e-6 if options.model else 3e-4)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    if options.smoke:
        options.prompts, options.test, options.seeds, options.k = 24, 8, 2, 4
    if not options.model:
        print("Making a tiny language model ...", flush=True)
        options.model = tiny_lm.make(tempfile.mkdtemp(), steps=0.15 if options.smoke else 1.0)
    return options


if __name__ == "__main__":
    main()
