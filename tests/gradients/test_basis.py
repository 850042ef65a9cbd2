"""Bases: what they keep, that they do not depend on padding, saving and loading."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hfdataopt.errors import DataError, OptionError, StoreError
from hfdataopt.gradients import (
    AdamMoments,
    Basis,
    Runner,
    Source,
    choose_rows,
    find_blocks,
    fit_basis,
    gram,
    kept_share,
    per_example_gradients,
    second_moments,
    take_rows,
)
from hfdataopt.gradients import basis as basis_module
from hfdataopt.gradients.capture import Captured


def many_rows(tools: Any, name: str, count: int = 60) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(9)
    return tools.make_rows(name, torch.randint(4, 20, (count,), generator=generator).tolist())


def spearman(one: torch.Tensor, other: torch.Tensor) -> float:
    ranks = [x.argsort(0).argsort(0).double() for x in (one, other)]
    ranks = [x - x.mean(0) for x in ranks]
    return float(((ranks[0] * ranks[1]).sum(0) / (ranks[0].norm(dim=0) * ranks[1].norm(dim=0))).mean())


def test_eigen_keeps_the_ranking_of_a_trained_model_and_random_does_not(tools: Any, stories: Any) -> None:
    model = stories()
    generator = torch.Generator().manual_seed(0)
    # Text of the model's own, so that gradients are those of a model that fits its data.
    start = torch.randint(3, 500, (72, 4), generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ids = model.generate(start, max_new_tokens=40, do_sample=True, pad_token_id=2)
    rows = [{"row_id": f"r{i}", "input_ids": x, "labels": x} for i, x in enumerate(ids)]
    pool, queries = tools.batches_of(rows[:56], 14), tools.batches_of(rows[56:], 16)
    wanted = gram(model, pool, queries)
    rho, bases = {}, {}
    for kind in ("eigen", "random"):
        basis = fit_basis(model, pool + queries, kind=kind, floats_per_row=8192, rows=32)  # type: ignore[arg-type]
        assert basis.size <= 8192
        sides = [tools.features(per_example_gradients(model, side, basis=basis)) for side in (pool, queries)]
        assert (sides[0] != 0).any(dim=0).float().mean() > 0.99  # no column is dead
        fresh = [place for place, row in enumerate(rows[:56]) if row["row_id"] not in basis.sample]
        rho[kind], bases[kind] = spearman((sides[0] @ sides[1].T)[fresh], wanted[fresh]), basis
    assert rho["eigen"] >= 0.85
    assert rho["eigen"] > rho["random"] + 0.05
    share = kept_share(model, bases["eigen"], queries)
    assert 0.3 < share < 1


def test_kept_share_is_the_ratio_of_norms(tools: Any) -> None:
    model, rows = tools.build("llama"), many_rows(tools, "llama")
    batches = tools.batches_of(rows, 16)
    basis = fit_basis(model, batches, floats_per_row=500, rows=30)
    fresh = choose_rows([row["row_id"] for row in rows], 20, exclude=basis.sample)
    picked = list(take_rows(batches, fresh))
    kept, whole = (
        tools.features(per_example_gradients(model, picked, basis=b)).square().sum() for b in (basis, "exact")
    )
    assert kept_share(model, basis, batches, rows=20) == pytest.approx(float(kept / whole), rel=1e-4)
    assert kept_share(model, Basis.exact(find_blocks(model)), batches) == 1.0


def test_a_basis_that_keeps_little_warns_and_names_the_side(tools: Any) -> None:
    model, rows = tools.build("llama"), many_rows(tools, "llama")
    basis = fit_basis(model, tools.batches_of(rows, 16), floats_per_row=16)
    with pytest.warns(UserWarning, match="of the queries"):
        assert kept_share(model, basis, tools.batches_of(rows, 16), name="queries") < 0.5


def test_random_features_keep_norms_and_products_in_expectation(tools: Any) -> None:
    model, rows = tools.build("llama"), many_rows(tools, "llama", 8)
    batches = tools.batches_of(rows, 8)
    exact = tools.features(per_example_gradients(model, batches, basis="exact"))
    products = []
    for seed in range(60):
        found = tools.features(per_example_gradients(model, batches, basis="random", floats_per_row=1000, seed=seed))
        assert (found != 0).any(dim=0).all()
        products.append(found @ found.T)
    mean, error = torch.stack(products).mean(0), torch.stack(products).std(0) / len(products) ** 0.5
    assert ((mean - exact @ exact.T).abs() < 5 * error).all()
    assert (error / (exact @ exact.T).diagonal().mean() < 0.2).all()


def test_random_is_seeded_and_draws_nothing(tools: Any) -> None:
    blocks = find_blocks(tools.build("bert-cls"))
    before = torch.get_rng_state()
    one, same, other = (Basis.random(blocks, 300, seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert one.hash == same.hash != other.hash
    assert len({float(part.left[0, 0]) for part in one.parts if part.left is not None}) > 5


@pytest.mark.parametrize("name", ["bert-cls", "bert-mlm", "gpt2", "llama"])
def test_more_padding_gives_the_same_moments(tools: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = tools.build(name), tools.make_rows(name)
    seen: list[torch.Tensor] = []
    real = second_moments.leading
    monkeypatch.setattr(second_moments, "leading", lambda moment, cap: seen.append(moment) or real(moment, cap))
    fit_basis(model, tools.batches_of(rows, 6), floats_per_row=300)
    first = list(seen)
    seen.clear()
    fit_basis(model, tools.batches_of(rows, 2, length=50), floats_per_row=300)
    assert len(first) == len(seen) > 0
    for one, other in zip(first, seen, strict=True):
        assert one.dtype == torch.float64
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6 * float(one.diagonal().max()))


def test_moments_are_those_of_the_positions_with_a_gradient(tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a plain computation, for one layer with a bias."""
    model, rows = tools.build("llama"), tools.make_rows("llama")
    seen: list[torch.Tensor] = []
    real = second_moments.leading
    monkeypatch.setattr(second_moments, "leading", lambda moment, cap: seen.append(moment) or real(moment, cap))
    layer = "model.layers.1.self_attn.q_proj"
    fit_basis(model, tools.batches_of(rows, 4), floats_per_row=20, layers=layer)
    model.eval()
    left, right = torch.zeros(16, 16, dtype=torch.float64), torch.zeros(17, 17, dtype=torch.float64)
    module = dict(model.named_modules())[layer]
    for row in rows:
        kept: dict[str, torch.Tensor] = {}

        def hook(m: nn.Module, args: Any, output: torch.Tensor, kept: dict[str, torch.Tensor] = kept) -> None:
            kept["a"], kept["out"] = args[0], output
            output.retain_grad()

        handle = module.register_forward_hook(hook)
        batch = tools.collate([row])
        del batch["row_id"]
        output = model(**batch)
        (output.loss * (batch["labels"][:, 1:] != -100).sum()).backward()
        handle.remove()
        gradient = kept["out"].grad[0].double()
        used = gradient.abs().amax(1) > 1e-6 * gradient.abs().max()  # the first position only attends to itself
        activation = torch.cat([kept["a"][0].detach().double(), torch.ones(len(gradient), 1).double()], 1)[used]
        left += gradient.T @ gradient
        right += activation.T @ activation
    assert torch.allclose(seen[0], left, rtol=1e-4, atol=1e-6)
    assert torch.allclose(seen[1], right, rtol=1e-4, atol=1e-6)


def test_moments_in_bf16_are_accumulated_in_float64(tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adding up in bf16 stops growing after 256 equal terms; the sums here must not depend on how rows are batched."""
    model, rows = tools.build("llama"), many_rows(tools, "llama")
    seen: list[torch.Tensor] = []
    real = second_moments.leading
    monkeypatch.setattr(second_moments, "leading", lambda moment, cap: seen.append(moment) or real(moment, cap))
    sums = []
    for repeat in (1, 20):
        seen.clear()
        batches = [
            dict(batch, row_id=[f"{turn}/{row}" for row in batch["row_id"]])
            for turn in range(repeat)
            for batch in tools.batches_of(rows, 20)
        ]
        fit_basis(model, batches, floats_per_row=300, rows=None, dtype="bfloat16")
        sums.append([moment.clone() for moment in seen])
    for one, other in zip(*sums, strict=True):
        assert one.dtype == torch.float64
        assert torch.allclose(20 * one, other, rtol=1e-12)


def test_leading_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
    values = torch.tensor([9.0, 5, 3, 1, 0, 0], dtype=torch.float64)
    found = second_moments.leading(basis @ torch.diag(values) @ basis.T, 3)
    assert torch.allclose((basis[:, :3].T.float() @ found).abs(), torch.eye(3), atol=1e-5)
    assert (found.gather(0, found.abs().argmax(0, keepdim=True)) > 0).all()
    assert second_moments.leading(basis @ torch.diag(values) @ basis.T, 6).shape == (
        6,
        4,
    )  # nothing varies in the others
    coordinates = second_moments.leading(values.flip(0), 2)
    assert torch.equal(coordinates, torch.eye(6)[:, [5, 4]])


def test_the_entries_kept_are_those_with_most_energy(tools: Any) -> None:
    model, rows = tools.build("llama"), tools.make_rows("llama")
    batches = tools.batches_of(rows, 6)
    large, small = (fit_basis(model, batches, floats_per_row=floats) for floats in (2000, 200))
    assert small.size == 200
    norms = [tools.features(per_example_gradients(model, batches, basis=b)).square().sum() for b in (small, large)]
    assert norms[0] > 0.5 * norms[1]
    assert min(part.size for part in small.parts) >= 1
    assert max(part.size for part in small.parts) > 2 * min(part.size for part in small.parts)


def test_a_basis_as_large_as_the_gradient_is_exact(tools: Any) -> None:
    model, rows = tools.build("bert-cls"), tools.make_rows("bert-cls")
    for kind in ("eigen", "random", "sketch"):
        assert fit_basis(model, tools.batches_of(rows, 4), kind=kind, floats_per_row=10**6).kind == "exact"  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["exact", "eigen", "random", "sketch"])
def test_saved_and_loaded(tools: Any, kind: Any, tmp_path: Any) -> None:
    model, rows = tools.build("llama"), tools.make_rows("llama")
    batches = tools.batches_of(rows, 4)
    basis = fit_basis(model, batches, kind=kind, floats_per_row=300)
    basis.metadata["checkpoint"] = "step 3"
    basis.save(tmp_path / "basis")
    loaded = Basis.load(tmp_path / "basis")
    assert loaded.hash == basis.hash
    assert loaded.metadata == basis.metadata
    assert loaded.sample == basis.sample
    one, other = (tools.features(per_example_gradients(model, batches, basis=b)) for b in (basis, loaded))
    assert torch.equal(one, other)
    assert [part.right is loaded.parts[0].right for part in loaded.parts] == [
        part.right is basis.parts[0].right for part in basis.parts
    ]


def test_a_basis_of_another_model_or_layers_is_refused(tools: Any, tmp_path: Any) -> None:
    rows = tools.make_rows("llama")
    basis = Basis.random(find_blocks(tools.build("llama")), 300, 0)
    for model, layers in ((tools.build("gpt2"), None), (tools.build("llama"), "last:1")):
        with pytest.raises(OptionError, match="only in the basis"):
            per_example_gradients(model, tools.batches_of(rows, 4), basis=basis, layers=layers)
    with pytest.raises(StoreError, match="no readable basis"):
        Basis.load(tmp_path)
    basis.save(tmp_path)
    text = (tmp_path / "basis.json").read_text()
    (tmp_path / "basis.json").write_text(text.replace(basis.hash, "0" * 64))
    with pytest.raises(StoreError, match="do not belong together"):
        Basis.load(tmp_path)


def test_fit_needs_rows_and_gradients(tools: Any) -> None:
    model, rows = tools.build("llama"), tools.make_rows("llama")
    with pytest.raises(DataError, match="no rows"):
        fit_basis(model, [], floats_per_row=300)
    batch = tools.collate(rows)
    batch["labels"][:] = -100
    with pytest.raises(DataError, match="zero"):
        fit_basis(model, [batch], floats_per_row=300)
    with pytest.raises(OptionError, match="twice"):
        fit_basis(model, iter([batch]), floats_per_row=300)


def test_rows_are_chosen_by_seed_and_id_only() -> None:
    ids: list[str | int] = [f"r{i}" for i in range(100)]
    chosen = choose_rows(ids, 10, seed=3)
    shuffled = [ids[i] for i in np.random.default_rng(0).permutation(100)]
    assert set(choose_rows(shuffled, 10, seed=3)) == set(chosen)
    assert set(choose_rows(ids, 10, seed=4)) != set(chosen)
    assert not set(choose_rows(ids, 50, seed=3, exclude=chosen)) & set(chosen)
    assert choose_rows(ids[:5], 10) == ids[:5]
    batches = [{"input_ids": torch.arange(6).view(3, 2), "row_id": ["a", "b", "c"]}, {"input_ids": torch.ones(1, 2)}]
    taken = list(take_rows(batches, ["c", 3]))
    assert [batch["row_id"] for batch in taken] == [["c"], [3]]
    assert taken[0]["input_ids"].tolist() == [[4, 5]]


def test_moments_divided_over_several_passes_give_the_same_basis(tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = tools.build("llama"), tools.make_rows("llama")
    batches = tools.batches_of(rows, 4)
    whole = fit_basis(model, batches, floats_per_row=300, layers="all")
    monkeypatch.setattr(second_moments, "MOMENT_BYTES", 10_000)
    assert len(second_moments._groups(find_blocks(model, "all"))) > 3
    parts = fit_basis(model, batches, floats_per_row=300, layers="all")
    one, other = (tools.features(per_example_gradients(model, batches, basis=b, layers="all")) for b in (whole, parts))
    assert torch.allclose(one @ one.T, other @ other.T, rtol=1e-4, atol=1e-5)


def test_a_long_side_gets_coordinates(tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = tools.build("gpt2"), tools.make_rows("gpt2")
    batches = tools.batches_of(rows, 4)
    monkeypatch.setattr(second_moments, "LONGEST_SIDE", 30)  # less than the vocabulary
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        basis = fit_basis(model, batches, floats_per_row=600, layers=["embeddings", "head"])
    left = basis.parts[0].left
    assert left is not None
    assert set(left.unique().tolist()) == {0.0, 1.0}
    assert kept_share(model, basis, batches, layers=["embeddings", "head"], rows=None) > 0.4


def trained_by_adam(tools: Any, model: nn.Module, rows: list[dict[str, Any]]) -> AdamMoments:
    """Moments after a few steps of AdamW on the rows."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for batch in tools.batches_of(rows, 8):
        optimizer.zero_grad()
        model(**{key: x for key, x in batch.items() if key != "row_id"}).loss.backward()
        optimizer.step()
    return AdamMoments.of(optimizer, model)


def test_a_single_source_is_the_simple_call(tools: Any) -> None:
    model, rows = tools.build("llama"), many_rows(tools, "llama")
    batches = tools.batches_of(rows, 16)
    wanted = fit_basis(model, batches, floats_per_row=300, rows=30)
    for sources in (Source(batches), [Source(batches)]):
        found = fit_basis(model, sources, floats_per_row=300, rows=30)
        assert found.hash == wanted.hash
        assert found.sample == wanted.sample


def test_sources_count_alike_whatever_their_scale_and_size(tools: Any) -> None:
    model, rows = tools.build("llama"), many_rows(tools, "llama")
    pool, queries = tools.batches_of(rows[:40], 8), tools.batches_of(rows[40:], 5)
    weights = {row["row_id"]: 2.0**16 for row in rows}
    wanted = fit_basis(model, [Source(pool), Source(queries)], floats_per_row=300, rows=24)
    scaled = fit_basis(model, [Source(pool), Source(queries, weights=weights)], floats_per_row=300, rows=24)
    assert scaled.hash == wanted.hash  # powers of two: the same to the last bit
    assert {row in {x["row_id"] for x in rows[:40]} for row in wanted.sample[:12]} == {True}
    assert len(wanted.sample) == 24
    assert {row in {x["row_id"] for x in rows[40:]} for row in wanted.sample[12:]} == {True}
    assert fit_basis(model, pool + queries, floats_per_row=300, rows=24).hash != wanted.hash


def test_each_source_has_its_target_and_its_share(tools: Any) -> None:
    model, rows = tools.build("bert-cls"), many_rows(tools, "bert-cls")
    pool, queries = Source(tools.batches_of(rows[:40], 8)), Source(tools.batches_of(rows[40:], 5), of="logit")
    alone = fit_basis(model, pool, floats_per_row=200, rows=None)
    both = fit_basis(model, [pool, queries], floats_per_row=200, rows=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert kept_share(model, both, queries) > kept_share(model, alone, queries)
        assert kept_share(model, both, queries) == kept_share(model, both, queries.batches, of="logit")


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_moments_of_a_preconditioned_source(tools: Any, name: str) -> None:
    """Half the second moments of the whole gradients, half those of their deviations from the mean, each by its trace."""
    model, rows = tools.build(name), many_rows(tools, name, 20)
    step = trained_by_adam(tools, model, rows).precondition("less")
    whole = tools.features(
        per_example_gradients(model, tools.batches_of(rows, 7), basis="exact", precondition=step, layers=None)
    ).double()
    runner = Runner(model)
    moments = second_moments._Moments(range(len(runner.blocks)), step)
    assert second_moments._sweep(runner, tools.batches_of(rows, 7), moments) == []
    start = 0
    for index, block in enumerate(runner.blocks):
        matrices = whole[:, start : start + block.size].view(len(rows), block.rows, block.columns)
        start += block.size
        wanted: list[Any] = [0, 0]
        for part in (matrices, matrices - matrices.mean(0)):
            left, right = (part @ part.transpose(1, 2)).sum(0), (part.transpose(1, 2) @ part).sum(0)
            wanted = [wanted[0] + left / left.trace() / 2, wanted[1] + right / right.trace() / 2]
        for found, expected in zip(moments.take(index), wanted, strict=True):
            assert found.dtype == torch.float64
            assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5)
    assert moments.left == {}


def test_a_single_preconditioned_row(tools: Any) -> None:
    """Nothing differs between rows: what is left of the moments without the mean is rounding."""
    model, rows = tools.build("llama"), many_rows(tools, "llama", 20)
    step = trained_by_adam(tools, model, rows).precondition("less")
    one = tools.batches_of(rows[:1], 1)
    basis = fit_basis(model, Source(one, precondition=step), floats_per_row=500)
    assert kept_share(model, basis, Source(one, precondition=step)) > 0.5


@pytest.mark.parametrize("form", ["less", "adamw"])
def test_eigen_keeps_the_ranking_of_adam_steps_and_random_does_not(tools: Any, stories: Any, form: Any) -> None:
    model = stories()
    start = torch.randint(3, 500, (136, 4), generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ids = model.generate(start, max_new_tokens=40, do_sample=True, pad_token_id=2)
    rows = [{"row_id": f"r{i}", "input_ids": x, "labels": x} for i, x in enumerate(ids)]
    step = trained_by_adam(tools, model, rows[:32]).precondition(form)
    length = len(ids[0]) - 1
    weights = {row["row_id"]: 1 / length for row in rows}
    seen, pool, queries = (tools.batches_of(part, 16) for part in (rows[32:72], rows[72:120], rows[120:]))
    exact = [
        tools.features(per_example_gradients(model, side, basis="exact", weights=weights, precondition=change))
        for side, change in ((pool, step), (queries, None))
    ]
    wanted = exact[0] @ exact[1].T
    rho = {}
    for kind in ("eigen", "random"):
        sources = [Source(seen, weights=weights, precondition=step), Source(queries, weights=weights)]
        basis = fit_basis(model, sources, kind=kind, floats_per_row=8192, rows=None)  # type: ignore[arg-type]
        results = list(per_example_gradients(model, pool, basis=basis, weights=weights, precondition=step))
        found = (
            tools.features(results)
            @ tools.features(per_example_gradients(model, queries, basis=basis, weights=weights)).T
        )
        norms = torch.cat([result.squared_norm for result in results]).sqrt()[:, None]
        assert torch.allclose(norms, exact[0].norm(dim=1, keepdim=True).double(), rtol=1e-4)
        rho[kind] = spearman(found, wanted), spearman(found / norms, wanted / norms)
    assert min(rho["eigen"]) >= 0.8
    assert min(rho["eigen"]) > max(rho["random"]) + 0.1


def test_sources_that_cannot_be_used(tools: Any) -> None:
    model, rows = tools.build("llama"), tools.make_rows("llama")
    batches = tools.batches_of(rows, 4)
    for options in ({"weights": {"r0": 1.0}}, {"precondition": {}}):
        with pytest.raises(OptionError, match="its own weights and precondition"):
            fit_basis(model, [Source(batches)], floats_per_row=300, **options)
    with pytest.raises(OptionError, match="not mixed with batches"):
        fit_basis(model, [Source(batches), *batches], floats_per_row=300)
    with pytest.raises(OptionError, match="twice"):
        fit_basis(model, [Source(iter(batches))], floats_per_row=300)
    with pytest.raises(OptionError, match="by row id"):
        fit_basis(model, [Source(batches, weights=[1.0] * 6)], floats_per_row=300)
    nothing = {row["row_id"]: 0.0 for row in rows}
    alone = fit_basis(model, Source(batches), floats_per_row=300, rows=None)
    assert alone.size == fit_basis(model, [Source(batches), Source(batches, weights=nothing)], floats_per_row=300).size
    with pytest.raises(DataError, match="zero"):
        fit_basis(model, [Source(batches, weights=nothing)] * 2, floats_per_row=300)


SHAPES = [
    ("bert-cls", None),
    ("gpt2", None),
    ("llama", ["linear", "norms", "head"]),
    ("bert-mlm", ["embeddings", "head"]),
]


@pytest.mark.parametrize(("name", "layers"), SHAPES)
@pytest.mark.parametrize(
    "buckets", [30, 7]
)  # of each block; the smaller one leaves nothing to chance: collisions abound
def test_a_sketch_adds_signed_entries_into_buckets(
    tools: Any, monkeypatch: Any, name: str, layers: Any, buckets: int
) -> None:
    model, rows = tools.build(name), tools.make_rows(name)
    batches = tools.batches_of(rows, 3)
    blocks = find_blocks(model, layers)
    basis = Basis.sketch(blocks, buckets * len(blocks), 3, [1.0 + i % 2 for i in range(len(blocks))])
    exact = tools.features(per_example_gradients(model, batches, basis="exact", layers=layers))
    wanted = torch.zeros(len(rows), basis.size)
    start = 0
    for block, part, offset in zip(blocks, basis.parts, basis.offsets, strict=False):
        gradient = exact[:, start : start + block.size].view(-1, block.rows, block.columns)
        start += block.size
        if part.left is None:
            wanted[:, offset : offset + part.size] = gradient.flatten(1)
            continue
        for i, row in enumerate(part.left.tolist()):
            for j, column in enumerate(part.right.tolist()):
                place = (abs(row) - 1 + abs(column) - 1) % part.size
                wanted[:, offset + place] += (1 if row * column > 0 else -1) * gradient[:, i, j]
    from_gradients = basis_module._sketch_matrix
    for factors in (False, True):  # both ways, whatever the sizes
        if factors:
            monkeypatch.setattr(basis_module, "FACTOR_COSTS", (0, 0))
            monkeypatch.setattr(basis_module, "_sketch_matrix", None)
        found = tools.features(per_example_gradients(model, batches, basis=basis, layers=layers))
        assert tools.close(found, wanted)
    monkeypatch.setattr(basis_module, "_sketch_matrix", from_gradients)
    unchanged = per_example_gradients(model, batches, basis=basis, layers=layers, precondition=lambda name, x: x)
    assert tools.close(tools.features(unchanged), wanted)


def test_a_sketch_is_right_in_expectation_and_varies_less_than_two_projections() -> None:
    block = find_blocks(torch.nn.ModuleDict({"one": torch.nn.Linear(40, 30, bias=False)}))
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(1, 5, size, generator=generator) for size in (30, 40)]
    others = [
        rows[0] + torch.randn(1, 5, 30, generator=generator),
        rows[1] + torch.randn(1, 5, 40, generator=generator),
    ]
    one, other = (Captured(*side, None) for side in (rows, others))
    whole = [(x.left.transpose(1, 2) @ x.right).flatten() for x in (one, other)]
    exact = float(whole[0] @ whole[1])
    found = {}
    for kind in ("sketch", "random"):
        values = []
        for seed in range(400):
            basis = Basis.random(block, 100, seed) if kind == "random" else Basis.sketch(block, 100, seed, [1.0])
            values.append(float(basis.project(0, block[0], [one]) @ basis.project(0, block[0], [other]).T))
        found[kind] = torch.tensor(values)
        error = found[kind].std() / 400**0.5
        assert abs(found[kind].mean() - exact) < 4 * error
    assert found["sketch"].var() < 0.5 * found["random"].var()


def test_buckets_go_where_the_gradient_is(tools: Any) -> None:
    model, rows = tools.build("llama"), many_rows(tools, "llama")
    batches, blocks = tools.batches_of(rows, 16), find_blocks(model)
    basis = fit_basis(model, batches, kind="sketch", floats_per_row=600, rows=20)
    assert basis.kind == "sketch"
    assert 540 <= basis.size <= 600
    assert len(basis.sample) == 20
    picked = list(take_rows(batches, basis.sample))
    exact = tools.features(per_example_gradients(model, picked, basis="exact"))
    ends = np.cumsum([block.size for block in blocks])[:-1].tolist()
    norms = np.array([float(part.norm()) for part in torch.tensor_split(exact, ends, dim=1)])
    wanted = 600 * norms / norms.sum()
    sizes = np.array([part.size for part in basis.parts])
    assert (sizes <= wanted + 2).all()
    assert (sizes >= 0.8 * wanted - 2).all()


@pytest.mark.parametrize(
    ("sizes", "norms", "total", "shares"),
    [
        ([100, 100], [1, 3], 42, [10, 30]),
        ([4, 100], [1, 1], 42, [4, 36]),  # what a small block does not need goes to the others
        ([100, 100, 100], [0, 1, 1], 41, [1, 20, 20]),
        ([100, 100], [0, 0], 42, [20, 20]),  # 21 has the factor 7
        ([2, 3, 100], [5, 5, 1], 50, [2, 3, 45]),
    ],
)
def test_the_shares_of_a_sketch(sizes: list[int], norms: list[float], total: int, shares: list[int]) -> None:
    assert basis_module._shares(sizes, norms, total) == shares


@pytest.mark.parametrize("bucket", [0, 31, -31])
def test_buckets_of_others_are_looked_at(tools: Any, tmp_path: Any, bucket: int) -> None:
    blocks = find_blocks(tools.build("llama"))
    basis = Basis.sketch(blocks, 30 * len(blocks), 0, [1.0] * len(blocks))
    basis.parts[0].left[0] = bucket
    basis.save(tmp_path)  # with a hash that fits
    with pytest.raises(StoreError, match="out of range"):
        Basis.load(tmp_path)


def test_a_sketch_needs_a_gradient(tools: Any) -> None:
    model, rows = tools.build("llama"), tools.make_rows("llama")
    blind = [{**row, "labels": torch.full_like(torch.as_tensor(row["labels"]), -100)} for row in rows]
    for kind in ("eigen", "sketch"):
        with pytest.raises(DataError, match="sampled rows is zero"):
            fit_basis(model, tools.batches_of(blind, 4), kind=kind, floats_per_row=300)  # type: ignore[arg-type]
