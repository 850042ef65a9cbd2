"""Speed and fidelity of gradient features on a small Llama: one run, one thread, CPU seconds.

    python benchmarks/gradient_features.py [--part speed fidelity adam] [--rows 512] [--repeats 7]

Speed: each kind of feature over a plain forward and backward with frozen block weights (the graph is kept alive by the
embeddings; no weight gradient of a linear layer is computed). Runs take turns and medians are taken, since other processes
may share the machine.

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
from collections.abc import Callable
from typing import Any, Literal

import torch
from quiet import quiet_and_single_threaded
from results import Results
from timing import cpu_seconds, in_turn, ratio
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
from hfdataopt.statistics import mean_interval

VOCABULARY, COMMON, LENGTH, BATCH, TOPICS = 1000, 100, 128, 16, 16
LENGTHS = (32, 128, 512)
FORMS: tuple[Literal["less", "adamw"], ...] = ("less", "adamw")
KINDS: tuple[Literal["eigen", "random"], ...] = ("eigen", "random")
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


def rank_correlation(found: Tensor, wanted: Tensor) -> list[float]:
    """Of ``[rows, queries]``: the mean over columns of the Spearman correlation, and its 95 % interval."""

    def ranks(x: Tensor) -> Tensor:
        order = x.argsort(0).argsort(0).double()
        return order - order.mean(0)

    one, other = ranks(found), ranks(wanted)
    return list(mean_interval(((one * other).sum(0) / (one.norm(dim=0) * other.norm(dim=0))).tolist()))


def speed(results: Results, model: LlamaForCausalLM, batches: Batches, repeats: int) -> None:
    """A table of each kind over the floor."""
    rows = sum(len(batch["labels"]) for batch in batches)
    fit, eigen = cpu_seconds(lambda: fit_basis(model, batches, floats_per_row=8192, rows=rows))
    random = Basis.random(find_blocks(model), 8192, 0)
    tasks: dict[str, Callable[[], Any]] = {
        "plain forward+backward, frozen": lambda: plain(model, batches),
        f"eigen, {eigen.size:,} floats": lambda: features(model, batches, eigen),
        f"random, {random.size:,} floats": lambda: features(model, batches, random),
        f"exact dot products with {BATCH} rows": lambda: gram(model, batches, batches[:1]),
    }
    times, _ = in_turn(tasks, repeats)
    floor = next(iter(times.values()))
    results.table(
        f"{rows} rows of {batches[0]['input_ids'].shape[1]} tokens, medians of {repeats}",
        ["", "rows a CPU s", "x floor"],
        [[name, rows / statistics.median(taken), ratio(taken, floor)] for name, taken in times.items()],
        f"The fit of the eigen basis on these rows, apart: {fit:.2f} s.",
    )


def mean_loss(batches: Batches) -> Batches:
    """The batches with each row weighed by 1 / tokens: the gradient of its mean loss, whose scale matters to Adam."""
    return [dict(batch, weights=[1 / (x.shape[0] - 1) for x in batch["labels"]]) for batch in batches]


def adam_speed(
    results: Results, model: LlamaForCausalLM, moments: AdamMoments, rows: int, repeats: int, seed: int
) -> None:
    """A table of the time of features of Adam's steps over that of plain features, at several lengths."""
    lines: list[list[Any]] = []
    for length in LENGTHS:
        batches = mean_loss(as_batches(make_text(rows, seed + 1, length), "p"))
        sample = batches[: 64 // BATCH]
        tasks: dict[str, Callable[[], Any]] = {"floor": lambda batches=batches: plain(model, batches)}
        fits = []
        for form in ("plain", *FORMS):
            step = None if form == "plain" else moments.precondition(form)
            sources = [Source(sample, precondition=step), Source(sample)] if step else sample
            spent, basis = cpu_seconds(lambda sources=sources: fit_basis(model, sources, floats_per_row=8192))
            fits.append(spent)
            tasks[form] = lambda batches=batches, basis=basis, step=step: features(model, batches, basis, step)
        times, _ = in_turn(tasks, repeats)
        over_floor, *over_plain = (
            ratio(times[form], times["floor" if form == "plain" else "plain"]) for form in ("plain", *FORMS)
        )
        lines.append([length, statistics.median(times["floor"]), over_floor, *over_plain, fits[0], sum(fits[1:]) / 2])
    results.table(
        f"Features of {rows} rows in batches of {BATCH}, medians of {repeats}; bases fitted on 64 rows",
        [
            "tokens",
            "floor, CPU s",
            "plain x floor",
            *(f"`{form}` x plain" for form in FORMS),
            "fit s, plain",
            "fit s, Adam and plain sources",
        ],
        lines,
    )


def adam_fidelity(
    results: Results, model: LlamaForCausalLM, moments: AdamMoments, pool: Batches, asked: Batches, steps: int
) -> None:
    """A table of rank correlations of products and cosines of Adam's steps with plain query gradients. The basis is fitted
    on the last third of both."""
    seen = [part[-len(part) // 3 :] for part in (pool, asked)]
    pool, asked = pool[: -len(pool) // 3], asked[: -len(asked) // 3]
    plain_rows = torch.cat([x.features for x in per_example_gradients(model, asked, basis="exact")])
    lines: list[list[Any]] = []
    for form in FORMS:
        step = moments.precondition(form)
        exact = list(per_example_gradients(model, pool, basis="exact", precondition=step))
        wanted = torch.cat([x.features @ plain_rows.T for x in exact])
        norms = torch.cat([x.features.norm(dim=1) for x in exact])[:, None]
        del exact
        for kind in KINDS:
            for floats in (1792, 8192):
                basis = fit_basis(
                    model,
                    [Source(seen[0], precondition=step), Source(seen[1])],
                    kind=kind,
                    floats_per_row=floats,
                    rows=None,
                )
                found_rows = list(per_example_gradients(model, pool, basis=basis, precondition=step))
                mine = torch.cat([x.features for x in found_rows])
                whole = torch.cat([x.squared_norm for x in found_rows if x.squared_norm is not None]).sqrt()[:, None]
                found = mine @ features(model, asked, basis).T
                lines.append(
                    [
                        f"`{form}`, {kind}",
                        basis.size,
                        rank_correlation(found, wanted),
                        rank_correlation(found / mine.norm(dim=1, keepdim=True), wanted / norms),
                        rank_correlation(found / whole, wanted / norms),
                        float(mine.square().sum() / whole.square().sum()),
                    ]
                )
    results.table(
        f"Rank correlation with exact ones, {len(wanted)} rows and {wanted.shape[1]} plain queries, after {steps} steps of AdamW",
        ["", "floats", "inner products", "cosines", "cosines by exact norms", "share of the norm"],
        lines,
    )


def fidelity(results: Results, model: LlamaForCausalLM, label: str, rows: int, queries: int, seed: int) -> None:
    """A table of the rank correlation with exact dot products for each basis."""
    pool, asked = as_batches(make_text(rows, seed + 1), "p"), as_batches(make_text(queries, seed + 2), "q")
    wanted = gram(model, pool, asked)
    lines: list[list[Any]] = []
    for kind in KINDS:
        for floats in (1792, 7168, 8192):
            basis = fit_basis(model, pool + asked, kind=kind, floats_per_row=floats, rows=128)
            found = features(model, pool, basis) @ features(model, asked, basis).T
            fitted = set(basis.sample)
            ids = [row for batch in pool for row in batch["row_id"]]
            fresh = [place for place, row in enumerate(ids) if row not in fitted]
            share = kept_share(model, basis, pool) if kind == "eigen" else None
            lines.append([kind, basis.size, rank_correlation(found[fresh], wanted[fresh]), share])
    results.table(
        f"Rank correlation with exact inner products, {rows} rows and {queries} queries, {label}",
        ["basis", "floats", "rank correlation", "share of the norm"],
        lines,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parts = ("speed", "fidelity", "adam")
    parser.add_argument("--part", choices=parts, nargs="+", default=list(parts))
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    quiet_and_single_threaded()

    def kept(part: str) -> Results:
        more = f"--rows {options.rows}" + (f" --repeats {options.repeats}" if part != "fidelity" else "")
        return Results(f"gradient_features_{part}", f"python benchmarks/gradient_features.py --part {part} {more}")

    model = make_model(options.seed, "cpu")
    if "speed" in options.part:
        speed(kept("speed"), model, as_batches(make_text(options.rows // 4, options.seed + 1), "p"), options.repeats)
    if "fidelity" in options.part:
        results = kept("fidelity")
        fidelity(results, model, "random weights", options.rows, options.queries, options.seed)
    if options.part == ["speed"]:
        return
    loss, optimizer = train(model, options.steps, options.seed, "cpu")
    if "fidelity" in options.part:
        label = f"after {options.steps} steps of AdamW (loss {loss:.2f})"
        fidelity(results, model, label, options.rows, options.queries, options.seed)
    if "adam" in options.part:
        results = kept("adam")
        moments = AdamMoments.of(optimizer, model)
        adam_speed(results, model, moments, options.rows // 8, options.repeats, options.seed)
        texts = (make_text(rows, options.seed + place) for place, rows in ((1, options.rows), (2, 96)))
        pool, asked = (mean_loss(as_batches(ids, name)) for ids, name in zip(texts, "pq", strict=True))
        adam_fidelity(results, model, moments, pool, asked, options.steps)


if __name__ == "__main__":
    main()
