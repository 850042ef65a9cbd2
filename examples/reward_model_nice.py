"""Which training rows move a language model towards a reward model, and which away from it?

    python examples/reward_model_nice.py                                                  # offline, tiny models
    python examples/reward_model_nice.py --model HuggingFaceTB/SmolLM2-135M --dataset trl-lib/tldr \\
        --reward_model trl-lib/Qwen2-0.5B-Reward --max_new_tokens 64

1. a sequence-classification reward model; offline it is trained here on pairs of a chosen and a rejected completion
2. `nice` samples completions of the queries, lets the reward model judge them, and scores the rows of the pool by what a training
   step on each would do to the reward
3. where the reward has a signal at all (its variance by query), the rows that help and harm most, and those of one query

Offline, the pool is that of sft_nice_selection.py: few rows whose conclusion agrees with their judgement, many with the opposite.
"""

import argparse
import tempfile
import textwrap
from collections.abc import Sequence
from typing import Any

import datasets
import tiny_lm
import torch
import transformers
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from hfdataopt import attribute


def formatted(prompt: str, completion: str) -> str:
    """What the reward model reads. It was trained on this form, so it must be judged on this form."""
    return f"[CLS] {prompt} [SEP] {completion} [SEP]"


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(argv)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype="float32")
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    pool, queries = data(options)
    reward: dict[str, Any] = {"reward_funcs": options.reward_model}
    if not options.reward_model:
        words = AutoTokenizer.from_pretrained(tiny_lm.ENCODER)
        reward_model = train_reward_model(words, options)
        # These are needed where the reward model's input is not simply prompt + completion, or has a tokenizer of its own.
        reward = {
            "reward_funcs": reward_model,
            "reward_processing_classes": words,
            "reward_formatting_funcs": formatted,
        }

    # This call is what you need in a script of your own.
    scores = attribute(
        model,
        pool,
        queries,
        "nice",
        processing_class=tokenizer,
        samples=options.samples,
        max_new_tokens=options.max_new_tokens,
        **reward,
    )

    show_variance(scores, queries)
    show_rows("help", scores.top(k=options.show), scores, pool)
    show_rows("harm", scores.bottom(k=options.show), scores, pool)
    variances = scores.metadata["moments"][-1]["policy"]["reward_variance"]
    strongest = max(range(len(queries)), key=lambda query: variances[query] or 0.0)
    print(
        f"\nThe rows for the query of the largest variance:\n{scores.explain(strongest, k=3, dataset=pool)}\nIts prompt:"
    )
    print(f"  {one_line(queries[strongest]['prompt'])}")
    if "kind" in pool.column_names:
        print("\nWhat these rows are (the reward model never sees these names):")
        parts = {
            "highest 5 %": scores.top(fraction=0.05),
            "all": scores.row_ids,
            "lowest 5 %": scores.bottom(fraction=0.05),
        }
        for name, rows in parts.items():
            kinds = [pool[row]["kind"] for row in rows]
            shares = {kind: kinds.count(kind) / len(kinds) for kind in ("agrees", "disagrees", "small talk")}
            print(f"  {name:<11}" + "".join(f"   {kind} {share:>4.0%}" for kind, share in shares.items()))


def show_variance(scores: Any, queries: Any) -> None:
    """Where all completions of a query get the same reward there is nothing to learn from it."""
    variances = [variance or 0.0 for variance in scores.metadata["moments"][-1]["policy"]["reward_variance"]]
    order = sorted(range(len(queries)), key=lambda query: -variances[query])
    print(f"\nReward variance of the completions of a query, {len(queries)} queries:")
    for query in [*order[:3], *order[-3:]]:
        print(f"  {variances[query]:8.3f}  query {query:>3}  {one_line(queries[query]['prompt'])}")


def show_rows(verb: str, ids: list[Any], scores: Any, pool: Any) -> None:
    print(f"\nThe rows that {verb} most:")
    for row in ids:  # positions, since the pool has no column row_id
        print(
            f"  {scores.values[row]:+.4f}  row {row:>4}  {one_line(pool[row]['prompt'])} | {one_line(pool[row]['completion'])}"
        )


def one_line(text: Any) -> str:
    """The text, or the last message's."""
    return textwrap.shorten(text if isinstance(text, str) else text[-1]["content"], 100, placeholder=" ...")


def train_reward_model(words: Any, options: argparse.Namespace) -> Any:
    """A classifier with one logit, trained on pairs: a conclusion that agrees against one that does not, or small talk."""
    count = 200 if options.smoke else 3000
    chosen, rejected = (
        tiny_lm.dataset(4000, 4200 + count, **shares)
        for shares in ({"agree": 1.0, "disagree": 0.0}, {"agree": 0.0, "disagree": 0.8})
    )
    columns = {
        name: [
            words(formatted(row["prompt"], row["completion"]), add_special_tokens=False)["input_ids"] for row in rows
        ]
        for name, rows in (("chosen_ids", chosen), ("rejected_ids", rejected))
    }
    pairs = Dataset.from_dict(columns)
    train, held_out = pairs.select(range(200, len(pairs))), pairs.select(range(200))
    transformers.set_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = RewardTrainer(
            AutoModelForSequenceClassification.from_pretrained(tiny_lm.ENCODER, num_labels=1),
            RewardConfig(
                folder,
                learning_rate=1e-3,
                num_train_epochs=2,
                per_device_train_batch_size=32,
                per_device_eval_batch_size=100,
                bf16=False,
                gradient_checkpointing=False,
                dataloader_pin_memory=False,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=train,
            eval_dataset=held_out,
            processing_class=words,
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        found = trainer.evaluate()
    print(
        f"The reward model prefers the chosen completion in {found['eval_accuracy']:.1%} of 200 held-out pairs.",
        flush=True,
    )
    return trainer.model


def data(options: argparse.Namespace) -> list[Any]:
    """Pool (prompt and completion) and queries (prompt)."""
    if not options.dataset:
        return [
            tiny_lm.dataset(500, 500 + options.pool, agree=0.1, disagree=0.4),
            tiny_lm.dataset(0, options.queries, agree=0.0, disagree=0.0),
        ]
    if options.dataset.endswith((".json", ".jsonl")):
        rows = datasets.load_dataset("json", data_files=options.dataset, split="train")
    else:
        rows = datasets.load_dataset(options.dataset, split="train")
    rows = rows.select_columns(["prompt", "completion"]).shuffle(seed=0)
    last = min(len(rows), options.queries + options.pool)
    return [rows.select(range(options.queries, last)), rows.select(range(options.queries))]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="a causal LM, hub id or folder (default: a tiny one, made here)")
    parser.add_argument("--dataset", help="columns prompt and completion: hub id, or a file of JSON lines")
    parser.add_argument(
        "--reward_model", help="one with a single logit, hub id or folder (default: a tiny one, trained here)"
    )
    parser.add_argument("--pool", type=int, default=1200, help="rows to score")
    parser.add_argument("--queries", type=int, default=64, help="prompts to score with")
    parser.add_argument("--samples", type=int, default=16, help="completions of each")
    parser.add_argument("--max_new_tokens", type=int, default=16)
    parser.add_argument("--show", type=int, default=5, help="rows to list on either side")
    parser.add_argument("--smoke", action="store_true", help="some seconds: does it run?")
    options = parser.parse_args(argv)
    if len({bool(options.model), bool(options.dataset), bool(options.reward_model)}) > 1:
        parser.error("--model, --dataset and --reward_model go together")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    if options.smoke:
        options.pool, options.queries = 80, 8
    if not options.model:
        print("Making a tiny language model ...", flush=True)
        options.model = tiny_lm.make(tempfile.mkdtemp(), steps=0.15 if options.smoke else 1.0)
    return options


if __name__ == "__main__":
    main()
