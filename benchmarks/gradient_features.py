"""Speed and fidelity of gradient features on a small Llama: one run, one thread, CPU seconds, ratios printed.

    python benchmarks/gradient_features.py [--part speed|fidelity|adam|all] [--rows 512] [--repeats 5] [--device cpu]

Speed: rows per second of each kind of feature over rows per second of a plain forward and backward with frozen block
weights (the graph is kept alive by the embeddings; no weight gradient of a linear layer is computed). Runs are
interleaved and medians taken, since other processes may share the machine.

Fidelity: mean over queries of the Spearman rank correlation with exact dot products of the same linear layers, over pool
rows that the basis was not fitted on, before and after 120 steps of AdamW on text with topics (each topic is a Markov
chain over its own words, mixed with common ones).

Adam: both after training, with the moments of its AdamW. Time of features of Adam's steps on the training gradients over
that of plain features, at three lengths of the rows; and rank correlations of inner products and of cosines of these
steps with plain query gradients, from a basis fitted on both kinds, with exact ones. The cosines divide by the norms of the
features, or by the exact norms that come with the features of the pool.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from hfdataopt.gradients import (
    AdamMoments,
    Basis,
    Source,
    find_blocks,
    fit_basis,
    gram,
    kept_share,
    per_example_gradients,
)

VOCABULARY, COMMON, LENGTH, BATCH, TOPICS = 1000, 100, 128, 16, 16
LENGTHS = (32, 128, 512)
Batches = list[dict[str, Any]]


def make_text(rows: int, seed: int, length: int = LENGTH) -> Tensor:
    """Token ids ``[rows, length]``: every row follows the bigram chain of one topic, with common words between."""
    chains = torch.Generator().manual_seed(12345)
    words = (VOCABULARY - COMMON) // TOPICS  # each topic has words of its own, each with four successors
    successors = torch.randint(0, words, (TOPICS, words, 4), generator=chains)
    generator = torch.Generator().manual_seed(seed)
    topic = torch.randint(0, TOPICS, (rows,), generator=generator)
    word = torch.randint(0, words, (rows,), generator=generator)
    ids = torch.empty(rows, length, dtype=torch.long)
    for position in range(length):
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
        max_position_embeddings=max(LENGTHS),
        use_cache=False,
    )
    return LlamaForCausalLM(config).to(device)


def train(model: LlamaForCausalLM, steps: int, seed: int, device: str) -> tuple[float, torch.optim.AdamW]:
    """AdamW on fresh text; returns the last loss and the optimizer."""
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
    return loss, optimizer


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


def features(model: LlamaForCausalLM, batches: Batches, basis: Basis, precondition: Any = None) -> Tensor:
    """Features of all rows ``[rows, d]``."""
    results = per_example_gradients(model, batches, basis=basis, precondition=precondition)
    return torch.cat([result.features for result in results])


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
    print(f"\nspeed, {rows} rows of {LENGTH} tokens, {repeats} interleaved repeats; basis fit on 128 rows {fit:.2f} s")
    compare(tasks, rows, repeats, device)


def compare(tasks: dict[str, Callable[[], Any]], rows: int, repeats: int, device: str) -> dict[str, list[float]]:
    """Run the tasks in turn, print rows per second of each and its ratio to the first, return the times."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for task in tasks.values():
        task()  # the first call of each pays for set-up
    for _ in range(repeats):
        for name, task in tasks.items():
            times[name].append(seconds(task, device))
    floor = next(iter(times.values()))
    for name, taken in times.items():
        ratio = statistics.median(a / b for a, b in zip(floor, taken, strict=True))
        print(f"  {name:40s} {rows / statistics.median(taken):8.1f} rows/s   {ratio:.3f} x the floor")
    return times


def mean_loss(batches: Batches) -> Batches:
    """The batches with each row weighed by 1 / tokens: the gradient of its mean loss, whose scale matters to Adam."""
    return [dict(batch, weights=[1 / (x.shape[0] - 1) for x in batch["labels"]]) for batch in batches]


def adam_speed(model: LlamaForCausalLM, moments: AdamMoments, rows: int, repeats: int, seed: int, device: str) -> None:
    """Print the time of features of Adam's steps over that of plain features, at several lengths."""
    for length in LENGTHS:
        batches = mean_loss(as_batches(make_text(rows, seed + 1, length).to(device), "p"))
        sample = batches[: 64 // BATCH]
        start = time.process_time()
        eigen = fit_basis(model, sample, floats_per_row=8192)
        between = time.process_time()
        bases = {
            form: fit_basis(model, [Source(sample, precondition=moments.precondition(form)), Source(sample)])
            for form in ("less", "adamw")
        }
        fits = between - start, (time.process_time() - between) / 2
        tasks: dict[str, Callable[[], Any]] = {
            "plain forward+backward, frozen": lambda batches=batches: plain(model, batches),
            f"eigen, {eigen.size} floats": lambda batches=batches, eigen=eigen: features(model, batches, eigen),
        }
        for form, basis in bases.items():
            tasks[f"Adam ({form}), {basis.size} floats"] = lambda batches=batches, form=form, basis=basis: features(
                model, batches, basis, moments.precondition(form)
            )
        print(
            f"\nspeed with Adam, {rows} rows of {length} tokens, {repeats} interleaved repeats; basis fit on 64 rows "
            f"{fits[0]:.2f} s plain, {fits[1]:.2f} s with Adam and plain sources"
        )
        _, usual, *adam = compare(tasks, rows, repeats, device).values()
        for form, taken in zip(bases, adam, strict=True):
            ratio = statistics.median(a / b for a, b in zip(taken, usual, strict=True))
            print(f"  Adam ({form}) features take {ratio:.2f} x the time of plain ones")


def adam_fidelity(model: LlamaForCausalLM, moments: AdamMoments, pool: Batches, asked: Batches) -> None:
    """Print rank correlations of products and cosines of Adam's steps with plain query gradients. The basis is fitted on
    the last third of both."""
    seen = [part[-len(part) // 3 :] for part in (pool, asked)]
    pool, asked = pool[: -len(pool) // 3], asked[: -len(asked) // 3]
    plain_rows = torch.cat([x.features for x in per_example_gradients(model, asked, basis="exact")])
    for form in ("less", "adamw"):
        step = moments.precondition(form)
        exact = list(per_example_gradients(model, pool, basis="exact", precondition=step))
        wanted = torch.cat([x.features @ plain_rows.T for x in exact])
        norms = torch.cat([x.features.norm(dim=1) for x in exact])[:, None]
        del exact
        print(
            f"\nrank correlation with exact products and cosines, Adam ({form}), {len(wanted)} rows x {wanted.shape[1]}"
        )
        for kind in ("eigen", "random"):
            for floats in (1792, 8192):
                basis = fit_basis(
                    model,
                    [Source(seen[0], precondition=step), Source(seen[1])],
                    kind=kind,  # type: ignore[arg-type]
                    floats_per_row=floats,
                    rows=None,
                )
                results = list(per_example_gradients(model, pool, basis=basis, precondition=step))
                mine = torch.cat([x.features for x in results])
                whole = torch.cat([x.squared_norm for x in results if x.squared_norm is not None]).sqrt()[:, None]
                found = mine @ features(model, asked, basis).T
                rho = [
                    rank_correlation(found, wanted),
                    rank_correlation(found / mine.norm(dim=1, keepdim=True), wanted / norms),
                    rank_correlation(found / whole, wanted / norms),
                ]
                share = float(mine.square().sum() / whole.square().sum())
                print(
                    f"  {kind:7s} {basis.size:5d} floats   products {rho[0]:.3f}   cosines {rho[1]:.3f}, by exact norms "
                    f"{rho[2]:.3f}   keeps {share:.2f} of the norm"
                )


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
    parser.add_argument("--part", choices=["speed", "fidelity", "adam", "all"], default="all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = make_model(options.seed, options.device)
    if options.part in ("speed", "all"):
        batches = as_batches(make_text(options.rows // 4, options.seed + 1).to(options.device), "p")
        speed(model, batches, options.repeats, options.device)
    if options.part in ("fidelity", "all"):
        fidelity(model, "random weights", options.rows, options.queries, options.seed, options.device)
    if options.part == "speed":
        return
    loss, optimizer = train(model, options.steps, options.seed, options.device)
    label = f"after {options.steps} steps of AdamW (loss {loss:.2f})"
    if options.part in ("fidelity", "all"):
        fidelity(model, label, options.rows, options.queries, options.seed, options.device)
    if options.part in ("adam", "all"):
        print(f"\n{label}")
        moments = AdamMoments.of(optimizer, model)
        adam_speed(model, moments, options.rows // 8, options.repeats, options.seed, options.device)
        texts = (
            make_text(rows, options.seed + place).to(options.device) for place, rows in ((1, options.rows), (2, 96))
        )
        pool, asked = (mean_loss(as_batches(ids, name)) for ids, name in zip(texts, "pq", strict=True))
        adam_fidelity(model, moments, pool, asked)


if __name__ == "__main__":
    main()
