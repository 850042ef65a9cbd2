"""The layer-wise variances against the plain formula with a P x P inverse."""

import pytest
import torch
from torch import nn

from hfdataopt.bandits import DiagonalPosterior, Posterior, layer_gradients, neural_variance
from hfdataopt.errors import DataError, OptionError

D, RIDGE = 6, 0.1


def network(
    seed: int = 0, *, bias: bool = True, activation: type[nn.Module] = nn.ReLU, dtype=torch.float64
) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Linear(D, 9, bias=bias),
            activation(),
            nn.Sequential(nn.Linear(9, 7, bias=bias), activation()),
            nn.Linear(7, 1),
        )
        return net.to(dtype)


def points(n: int, seed: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def gradients(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """[n, P], one backward pass per row."""
    rows = []
    for point in x:
        net.zero_grad()
        net(point[None]).sum().backward()
        rows.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    return torch.stack(rows)


def plain(g: torch.Tensor, history: torch.Tensor, *, diagonal: bool = False, ridge: float = RIDGE) -> torch.Tensor:
    matrix = ridge * torch.eye(g.shape[1], dtype=g.dtype) + history.T @ history
    if diagonal:
        matrix = torch.diag(torch.diag(matrix))
    return ridge * torch.einsum("np,pq,nq->n", g, torch.linalg.inv(matrix), g)


def assert_equal(ours: torch.Tensor, reference: torch.Tensor, relative: float = 1e-9) -> None:
    assert ours.shape == reference.shape
    torch.testing.assert_close(ours, reference.to(ours), rtol=relative, atol=0.0)


POOL, SEEN = points(40, 1), points(15, 2)
PAIRS = torch.tensor([[0, 1], [2, 3], [4, 0], [7, 9], [14, 13], [0, 1]])


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_the_plain_formula(bias: bool, activation: type[nn.Module], diagonal: bool):
    net = network(bias=bias, activation=activation)
    ours = neural_variance(net, POOL, SEEN, ridge=RIDGE, diagonal=diagonal)
    assert_equal(ours, plain(gradients(net, POOL), gradients(net, SEEN), diagonal=diagonal))


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("referred", [False, True])
def test_dueling(referred: bool, diagonal: bool):
    net, arm = network(), points(1, 3)[0]
    seen = gradients(net, SEEN)
    g = gradients(net, POOL) - (gradients(net, arm[None]) if referred else 0)
    ours = neural_variance(
        net, POOL, SEEN, ridge=RIDGE, pairs=PAIRS, reference=arm if referred else None, diagonal=diagonal
    )
    assert_equal(ours, plain(g, seen[PAIRS[:, 0]] - seen[PAIRS[:, 1]], diagonal=diagonal))


@pytest.mark.parametrize("diagonal", [False, True])
def test_stale_gradients_are_those_of_their_own_parameters(diagonal: bool):
    nets = [network(seed) for seed in range(3)]
    parts = [SEEN[:5], SEEN[5:6], SEEN[6:]]
    history = layer_gradients(nets[0], parts[0])
    for net, part in zip(nets[1:], parts[1:], strict=True):
        history = history.append(layer_gradients(net, part))
    explicit = torch.cat([gradients(net, part) for net, part in zip(nets, parts, strict=True)])
    ours = neural_variance(nets[0], POOL, history, ridge=RIDGE, diagonal=diagonal)
    assert_equal(ours, plain(gradients(nets[0], POOL), explicit, diagonal=diagonal))
    fresh = neural_variance(nets[0], POOL, SEEN, ridge=RIDGE, diagonal=diagonal)
    assert not torch.allclose(ours, fresh, rtol=1e-3)


@pytest.mark.parametrize("kind", [Posterior, DiagonalPosterior])
def test_batch_downdates(kind: type):
    net = network()
    g, seen = gradients(net, POOL), gradients(net, SEEN)
    posterior = kind(torch.zeros(len(POOL)), layer_gradients(net, POOL), layer_gradients(net, SEEN), RIDGE)
    diagonal = kind is DiagonalPosterior
    for row in (3, 17, 3):
        posterior.add(row)
        seen = torch.cat([seen, g[[row]]])
        assert_equal(posterior.variance(), plain(g, seen, diagonal=diagonal))
    posterior.add(5, against=8)
    seen = torch.cat([seen, g[[5]] - g[[8]]])
    assert_equal(posterior.variance(), plain(g, seen, diagonal=diagonal))
    others = [row for row in range(len(POOL)) if row != 11]
    assert_equal(posterior.variance(11)[others], plain((g - g[11])[others], seen, diagonal=diagonal))
    assert posterior.variance(11)[11] == 0


@pytest.mark.parametrize("diagonal", [False, True])
def test_float32(diagonal: bool):
    net = network()
    exact = neural_variance(net, POOL, SEEN, ridge=RIDGE, diagonal=diagonal)
    ours = neural_variance(net.float(), POOL, SEEN, ridge=RIDGE, diagonal=diagonal)
    assert ours.dtype == torch.float32
    assert_equal(ours, exact, relative=1e-3)


def test_no_observations_give_the_squared_norms():
    net = network()
    for diagonal in (False, True):
        assert_equal(
            neural_variance(net, POOL, POOL[:0], ridge=RIDGE, diagonal=diagonal), (gradients(net, POOL) ** 2).sum(1)
        )


def test_leaves_network_and_random_state_alone():
    net = network()
    net[1] = nn.ReLU(inplace=True)
    before, state, pool = [p.clone() for p in net.parameters()], torch.get_rng_state(), POOL.clone()
    assert_equal(
        neural_variance(net, pool, SEEN, ridge=RIDGE), neural_variance(network(), POOL, SEEN, ridge=RIDGE), 1e-12
    )
    assert torch.equal(pool, POOL)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(p, q) and p.grad is None for p, q in zip(net.parameters(), before, strict=True))


def shared() -> nn.Module:
    layer = nn.Linear(D, D)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(D, 1))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: nn.Sequential(nn.Conv1d(D, 1, 1)), "Conv1d"),
        (lambda: nn.Sequential(nn.Linear(D, 4), nn.PReLU(), nn.Linear(4, 1)), "PReLU"),
        (lambda: nn.Sequential(nn.Linear(D, 4), nn.LayerNorm(4), nn.Linear(4, 1)), "LayerNorm"),
        (lambda: nn.Sequential(nn.ReLU()), "no nn.Linear"),
        (lambda: nn.Linear(D, 2), "2 outputs"),
        (shared, "twice"),
        (lambda: nn.Linear(D, 1).half(), "float16"),
    ],
)
def test_networks_it_does_not_know(build, words: str):
    with pytest.raises(OptionError, match=words):
        neural_variance(build(), POOL, SEEN, ridge=RIDGE)


def test_inputs_it_cannot_use():
    net = network()
    for ridge in (0, -1.0, float("nan"), True, "0.1"):
        with pytest.raises(OptionError, match="ridge="):
            neural_variance(net, POOL, SEEN, ridge=ridge)
    with pytest.raises(DataError, match=r"pool has shape \(40, 5\).*rows, 6"):
        neural_variance(net, POOL[:, :5], SEEN, ridge=RIDGE)
    with pytest.raises(DataError, match="observed has shape"):
        neural_variance(net, POOL, SEEN[0], ridge=RIDGE)
    with pytest.raises(DataError, match="rows 0 to 15 of 15"):
        neural_variance(net, POOL, SEEN, ridge=RIDGE, pairs=[[0, 15]])
    with pytest.raises(DataError, match="whole numbers"):
        neural_variance(net, POOL, SEEN, ridge=RIDGE, pairs=[[0.0, 1.0]])
    bad = POOL.clone()
    bad[4, 0] = float("nan")
    with pytest.raises(DataError, match="first row 4"):
        neural_variance(net, bad, SEEN, ridge=RIDGE)
    with pytest.raises(OptionError, match="different shapes"):
        neural_variance(net, POOL, layer_gradients(network(bias=False), SEEN), ridge=RIDGE)
    with pytest.raises(OptionError, match="float32"):
        neural_variance(net, POOL, layer_gradients(network(dtype=torch.float32), SEEN), ridge=RIDGE)
