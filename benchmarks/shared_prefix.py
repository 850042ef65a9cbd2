"""One instruction in front of 20 items: read once for all, or with each.

    python benchmarks/shared_prefix.py shared/models/stories260K

One thread, CPU seconds, medians of repeats that take turns. The second model has random weights.
"""

import argparse
import os
import random
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from quiet import quiet_and_single_threaded
from results import Results
from timing import in_turn, ratio
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from hfdataopt.generation import LocalGenerator

ITEMS = 20
WORDS = [
    "Once",
    "upon",
    "a",
    "time",
    "there",
    "was",
    "girl",
    "named",
    "Lily",
    "who",
    "saw",
    "the",
    "big",
    "dog",
    "friend",
]


def larger(vocabulary: int) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=512,
        intermediate_size=1400,
        num_hidden_layers=8,
        num_attention_heads=8,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


def compare(
    results: Results, model: Any, tokenizer: Any, prefixes: Sequence[int], lengths: Sequence[int], repeats: int
) -> None:
    """A table of a model: tokens in front, new tokens."""
    lines: list[list[Any]] = []
    for tokens in prefixes:
        rng = random.Random(0)
        instruction = ""
        while len(tokenizer(instruction)["input_ids"]) < tokens:
            instruction += " " + rng.choice(WORDS)
        prompts = [f"{instruction} {' '.join(rng.choices(WORDS, k=rng.randint(2, 5)))}" for _ in range(ITEMS)]
        for new in lengths:

            def run(share: bool, prompts: list[str] = prompts, new: int = new) -> Any:
                generator = LocalGenerator(
                    model, tokenizer, max_new_tokens=new, temperature=0.0, batch_size=ITEMS, share_prefix=share
                )
                return generator.generate(prompts, 1, keys=range(ITEMS))

            times, found = in_turn({"shared": lambda: run(True), "each": lambda: run(False)}, repeats)
            same = "the same" if found["shared"] == found["each"] else "OTHER"
            medians = [statistics.median(times[name]) for name in ("shared", "each")]
            lines.append([tokens, new, *medians, ratio(times["each"], times["shared"]), same])
    weights = sum(p.numel() for p in model.parameters())
    results.table(
        f"{weights:,} weights, a batch of {ITEMS}; medians of {repeats}",
        ["tokens in front", "new tokens", "read once, CPU s", "with each, CPU s", "times as fast", "completions"],
        lines,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", help="hub id or folder of a small causal LM")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prefix", type=int, nargs="+", default=[16, 64, 200])
    parser.add_argument("--new", type=int, nargs="+", default=[8, 64])
    arguments = parser.parse_args()
    quiet_and_single_threaded()
    os.environ["HFDATAOPT_QUIET"] = "1"
    command = f"python benchmarks/shared_prefix.py FOLDER_OF_A_SMALL_LLAMA --repeats {arguments.repeats}"
    results = Results("shared_prefix", command)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    small = AutoModelForCausalLM.from_pretrained(arguments.model)
    for model in (small, larger(len(tokenizer))):
        compare(results, model, tokenizer, arguments.prefix, arguments.new, arguments.repeats)


if __name__ == "__main__":
    main()
