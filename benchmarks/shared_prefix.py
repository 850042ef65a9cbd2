"""One instruction in front of 20 items: read once for all, or with each.

    python benchmarks/shared_prefix.py shared/models/stories260K

One thread, CPU seconds, the least of interleaved repeats. The second model has random weights.
"""

import argparse
import os
import random
import time
from typing import Any

import torch
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="hub id or folder of a small causal LM")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prefix", type=int, nargs="+", default=[16, 64, 200])
    parser.add_argument("--new", type=int, nargs="+", default=[8, 64])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["HFDATAOPT_QUIET"] = "1"
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    small = AutoModelForCausalLM.from_pretrained(arguments.model)
    for model in (small, larger(len(tokenizer))):
        print(f"\n{sum(p.numel() for p in model.parameters()):,} weights, batch of {ITEMS}")
        for tokens in arguments.prefix:
            rng = random.Random(0)
            instruction = ""
            while len(tokenizer(instruction)["input_ids"]) < tokens:
                instruction += " " + rng.choice(WORDS)
            prompts = [f"{instruction} {' '.join(rng.choices(WORDS, k=rng.randint(2, 5)))}" for _ in range(ITEMS)]
            for new in arguments.new:
                times: dict[bool, list[float]] = {True: [], False: []}
                found = {}
                for _ in range(arguments.repeats):
                    for share in times:
                        generator = LocalGenerator(
                            model, tokenizer, max_new_tokens=new, temperature=0.0, batch_size=ITEMS, share_prefix=share
                        )
                        began = time.process_time()
                        found[share] = generator.generate(prompts, 1, keys=range(ITEMS))
                        times[share].append(time.process_time() - began)
                shared, plain = min(times[True]), min(times[False])
                print(
                    f"  {tokens:>3} tokens in front, {new:>2} new: {shared:.3f} s, without {plain:.3f} s, "
                    f"{plain / shared:.2f} x, {'the same' if found[True] == found[False] else 'OTHER'} completions",
                    flush=True,
                )


if __name__ == "__main__":
    main()
