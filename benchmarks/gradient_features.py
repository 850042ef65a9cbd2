"""Speed and fidelity of gradient features on a small Llama: one run, one thread, CPU seconds, ratios printed.

    python benchmarks/gradient_features.py [--rows 512] [--repeats 5] [--seed 0] [--device cpu]

Speed: rows per second of each kind of feature over rows per second of a plain forward and backward with frozen block
weights (the graph is kept alive by the embeddings; no weight gradient of a linear layer is computed). Runs are
interleaved and medians taken, since other processes may share the machine.

Fidelity: mean over queries of the Spearman rank correlation with exact dot products of the same linear layers, over pool
rows that the basis was not fitted on, before and after 120 steps of AdamW on text with topics (each topic is a Markov
chain over its own words, mixed with common ones).
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from hfdataopt.gradients import Basis, find_blocks, fit_basis, gram, kept_share, per_example_gradients

VOCABULARY, COMMON, LENGTH, BATCH, TOPICS = 1000, 100, 128, 16, 16
Batches = list[dict[str, Any]]


def make_text(rows: int, seed: int) -> Tensor:
    """Token ids ``[rows, LENGTH]``: every row follows the bigram chain of one topic, with common words between."""
    chains = torch.Generator().manual_seed(12345)
    words = (VOCABULARY - COMMON) // TOPICS  # each topic has words of its own, each with four successors
    successors = torch.randint(0, words, (TOPICS, words, 4), generator=chains)
    generator = torch.Generator().manual_seed(seed)
    topic = torch.randint(0, TOPICS, (rows,), generator=generator)
    word = torch.randint(0, words, (rows,), generator=generator)
    ids = torch.empty(rows, LENGTH, dtype=torch.long)
    for position in range(LENGTH):
        common = torch.randint(0, COMMON, (rows,), generator=generator)
        is_common = torch.rand(rows, generator=generator) < 0.15
        ids[:, position] = torch.where(is_common, common, COMMON + topic * words + word)
        following = successors[topic, word, torch.randint(0, 4, (rows,), generator=generator)]
        word = torch.where(is_common, word, following)
    return ids


def make_model(seed: int, device: str) -> LlamaForCausalLM:
    """Hidden 128, 4 layers, intermediate 344: 28 linear layers with 790,528 parameters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=LENGTH,
        use_cache=False,
    )
    return LlamaForCausalLM(config).to(device)


def train(model: LlamaForCausalLM, steps: int, seed: int, device: str) -> float:
    """AdamW on fresh text; returns the last loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    text = make_text(steps * BATCH, seed + 1000).to(device)
    model.train()
    loss = 0.0
    for step in range(steps):
        ids = text[step * BATCH : (step + 1) * BATCH]
        output = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        output.backward()
        optimizer.step()
        loss = float(output.detach())
    return loss


def as_batches(ids: Tensor, name: str) -> Batches:
    """Batches of BATCH rows with labels and row ids."""
    return [
        {
            "input_ids": part,
            "attention_mask": torch.ones_like(part),
            "labels": part,
            "row_id": [f"{name}{start * BATCH + place}" for place in range(len(part))],
        }
        for start, part in enumerate(ids.split(BATCH))
    ]


def plain(model: LlamaForCausalLM, batches: Batches) -> None:
    """The floor: forward and backward with frozen block weights."""
    model.eval().requires_grad_(False)
    embeddings = model.get_input_embeddings().weight
    embeddings.requires_grad_(True)
    for batch in batches:
        loss = model(**{key: x for key, x in batch.items() if key != "row_id"}).loss
        torch.autograd.grad(loss, embeddings)
    model.requires_grad_(True)


def features(model: LlamaForCausalLM, batches: Batches, basis: Basis) -> Tensor:
    """Features of all rows ``[rows, d]``."""
    return torch.cat([result.features for result in per_example_gradients(model, batches, basis=basis)])


def rank_correlation(found: Tensor, wanted: Tensor) -> float:
    """Mean over columns of the Spearman correlation of ``[rows, queries]``."""

    def ranks(x: Tensor) -> Tensor:
        order = x.argsort(0).argsort(0).double()
        return order - order.mean(0)

    one, other = ranks(found), ranks(wanted)
    return float(((one * other).sum(0) / (one.norm(dim=0) * other.norm(dim=0))).mean())


def seconds(function: Callable[[], Any], device: str) -> float:
    """CPU seconds of a call; wall seconds on a GPU."""
    if device != "cpu":
        torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        torch.cuda.synchronize()
        return time.perf_counter() - start
    start = time.process_time()
    function()
    return time.process_time() - start


def speed(model: LlamaForCausalLM, batches: Batches, repeats: int, device: str) -> None:
    """Print rows per second of each kind, and its ratio to the floor."""
    rows = sum(len(batch["labels"]) for batch in batches)
    start = time.process_time()
    eigen = fit_basis(model, batches, floats_per_row=8192, rows=128)
    fit = time.process_time() - start
    random = Basis.random(find_blocks(model), 8192, 0)
    tasks: dict[str, Callable[[], Any]] = {
        "plain forward+backward, frozen": lambda: plain(model, batches),
        f"eigen, {eigen.size} floats": lambda: features(model, batches, eigen),
        f"random, {random.size} floats": lambda: features(model, batches, random),
        f"exact dot products with {BATCH} rows": lambda: gram(model, batches, batches[:1]),
    }
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for task in tasks.values():
        task()  # the first call of each pays for set-up
    for _ in range(repeats):
        for name, task in tasks.items():
            times[name].append(seconds(task, device))
    floor = times["plain forward+backward, frozen"]
    print(f"\nspeed, {rows} rows of {LENGTH} tokens, {repeats} interleaved repeats; basis fit on 128 rows {fit:.2f} s")
    for name, taken in times.items():
        ratio = statistics.median(a / b for a, b in zip(floor, taken, strict=True))
        print(f"  {name:40s} {rows / statistics.median(taken):8.1f} rows/s   {ratio:.3f} x the floor")


def fidelity(model: LlamaForCausalLM, label: str, rows: int, queries: int, seed: int, device: str) -> None:
    """Print the rank correlation with exact dot products for each basis."""
    pool = as_batches(make_text(rows, seed + 1).to(device), "p")
    asked = as_batches(make_text(queries, seed + 2).to(device), "q")
    wanted = gram(model, pool, asked)
    print(f"\nrank correlation with exact dot products, {rows} rows x {queries} queries, {label}")
    for kind in ("eigen", "random"):
        for floats in (1792, 7168, 8192):
            basis = fit_basis(model, pool + asked, kind=kind, floats_per_row=floats, rows=128)  # type: ignore[arg-type]
            found = features(model, pool, basis) @ features(model, asked, basis).T
            fitted = set(basis.sample)
            ids = [row for batch in pool for row in batch["row_id"]]
            fresh = [place for place, row in enumerate(ids) if row not in fitted]
            rho = rank_correlation(found[fresh], wanted[fresh])
            share = f", keeps {kept_share(model, basis, pool):.2f} of the norm" if kind == "eigen" else ""
            print(f"  {kind:7s} {basis.size:5d} floats   {rho:.3f}{share}")


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--part", choices=["speed", "fidelity", "all"], default="all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = make_model(options.seed, options.device)
    if options.part != "fidelity":
        batches = as_batches(make_text(options.rows // 4, options.seed + 1).to(options.device), "p")
        speed(model, batches, options.repeats, options.device)
    if options.part != "speed":
        fidelity(model, "random weights", options.rows, options.queries, options.seed, options.device)
        loss = train(model, options.steps, options.seed, options.device)
        label = f"after {options.steps} steps of AdamW (loss {loss:.2f})"
        fidelity(model, label, options.rows, options.queries, options.seed, options.device)


if __name__ == "__main__":
    main()
