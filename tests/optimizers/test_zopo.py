"""ZOPO: it moves along the surrogate's gradient to the nearest untried candidate, explores where it is unsure, and restarts."""

import numpy as np
import pytest
import torch

from hfdataopt_plugins.optimizers.zopo import Zopo, nearest, spacing
from tests.optimizers.pools import SoftServices, quality, reward, text_services
from tests.optimizers.search import PlainServices, run, task, trial


def begun(told=6, pool_size=60, **options):
    """A search after its random candidates, before its first step."""
    optimizer, of, services = Zopo(pool_size=pool_size, initial=told, first_items=8, **options), task(), text_services()
    optimizer.start(of)
    for _ in range(told):
        optimizer.tell([trial(one, of, reward) for one in optimizer.ask(1, (), services)])
    return optimizer, services


def uphill(optimizer, row):
    """The gradient of the surrogate's mean at a row, by differences."""
    model, place = optimizer._fit(), optimizer._places()[row]
    steps = 1e-4 * np.eye(len(place))
    return np.array([float(model.predict((place + s)[None])[0] - model.predict((place - s)[None])[0]) for s in steps])


def test_it_steps_along_the_gradient_to_the_nearest_untried():
    optimizer, services = begun(patience=10**6, tolerance=10**6)
    places = optimizer._places()
    best = max(optimizer.observed(), key=lambda one: one.score)
    # Adam's parameter by torch's own, uphill, with the moments kept from step to step.
    size = optimizer.learning_rate * spacing(places) / np.sqrt(places.shape[1])
    parameter = torch.zeros(places.shape[1], dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([parameter], lr=size)
    at = best.row
    for _ in range(4):
        slope = uphill(optimizer, at)
        before = parameter.detach().clone()
        parameter.grad = torch.tensor(-slope / np.linalg.norm(slope))
        adam.step()
        goal = places[at] + (parameter.detach() - before).numpy()
        assert (goal - places[at]) @ slope > 0
        untried = [row for row in range(60) if optimizer._candidates[row].key not in optimizer._asked]
        at = min(untried, key=lambda row: np.linalg.norm(places[row] - goal))
        queries = optimizer.ask(1, (), services)
        assert queries[0].candidate.instruction == optimizer._candidates[at].instruction
        optimizer.tell([trial(queries[0], optimizer.task, reward)])


def test_a_long_step_goes_where_the_mean_is_higher():
    gains = []
    for seed in range(8):
        optimizer = Zopo(pool_size=150, initial=12, first_items=8, learning_rate=3.0, patience=10**6)
        run(optimizer, task(seed=seed), lambda c, item: quality(c.instruction), text_services(), 12)
        start = max(optimizer.observed(), key=lambda one: one.score).row
        rows = optimizer.choose(1, np.array([optimizer._free(row) for row in range(150)]), [])
        mean = optimizer._fit().predict(optimizer._places())[0].numpy()
        gains.append(mean[rows[0]] - mean[start])
    assert np.mean(gains) > 0


def test_where_it_is_unsure_it_explores_the_neighbourhood():
    optimizer, services = begun(threshold=1e-9, patience=1, neighbours=3)
    at = max(optimizer.observed(), key=lambda one: one.score).row
    places = optimizer._places()
    free = [row for row in range(60) if optimizer._free(row)]
    around = sorted(free, key=lambda row: np.linalg.norm(places[row] - places[at]))[:3]
    queries = optimizer.ask(3, (), services)
    assert [optimizer._rows[query.candidate.key][0] for query in queries] == around
    assert optimizer._at == at  # it stays where it is
    certain, services = begun(threshold=1e9, patience=1)
    certain.ask(1, (), services)
    assert certain._at != at


def test_without_an_improvement_it_starts_again_at_the_best():
    optimizer, services = begun(patience=10**6, tolerance=2)
    best = max(optimizer.observed(), key=lambda one: one.score).row
    places = []
    for _ in range(4):
        (query,) = optimizer.ask(1, (), services)
        places.append((optimizer._steps, optimizer._at))
        optimizer.tell([trial(query, optimizer.task, lambda candidate, item: 0.0)])
    assert [steps for steps, _ in places][:4] == [1, 2, 1, 2]  # at rest again
    assert best not in [at for _, at in places]


def test_nearest_and_spacing():
    places = np.array([[0.0], [1.0], [1.0], [3.0], [7.0]])
    available = np.array([True, True, True, False, True])
    assert nearest(places, np.array([2.2]), available, 2) == [1, 2]
    assert nearest(places, np.array([9.0]), available, 9) == [4, 1, 2, 0]
    assert spacing(places) == 1.0
    assert spacing(2 * places[[0, 1, 3, 4]]) == 3.0
    assert spacing(np.zeros((3, 2))) == 1.0


@pytest.mark.parametrize("pool", ["text", "soft"])
@pytest.mark.parametrize("n", [1, 4])
def test_a_search_is_reproducible_and_repeats_nothing(pool, n):
    def asked(seed):
        optimizer, of, found = Zopo(pool=pool, pool_size=60, intrinsic_dim=4), task(calls=48, seed=seed), []
        services = text_services() if pool == "text" else SoftServices()
        optimizer.start(of)
        while queries := optimizer.ask(n, (), services):
            found += [(query.candidate.instruction, query.items) for query in queries]
            optimizer.tell([trial(query, of, reward) for query in reversed(queries)])
        assert optimizer._spent() <= 48
        return found

    first = asked(0)
    assert first == asked(0) != asked(1)
    assert len(set(first)) == len(first)


def test_a_pool_that_is_used_up_ends_the_search():
    optimizer, services = Zopo(pool_size=9), PlainServices(lambda text, i: f"say {i}", lambda text: [1.0, 1.0])
    run(optimizer, task(), reward, services, 30)
    assert len(optimizer.trials) == 9
    assert optimizer.ask(1, (), services) == []
