"""INSTINCT: which row NeuralUCB takes, known instructions cost nothing, few items first; the papers' rule by brute force."""

import itertools

import numpy as np
import pytest
import torch

from hfdataopt.bandits import MLPSurrogate, NeuralTangentSurrogate
from hfdataopt.errors import DataError, OptionError
from hfdataopt.plugins import get_optimizer
from hfdataopt.prompting.budget import BudgetSpent
from hfdataopt.prompting.candidate import Candidate, Query
from hfdataopt.prompting.pool_optimizer import PoolOptimizer, comparable
from hfdataopt_plugins.optimizers.instinct import Instinct
from tests.optimizers.pools import DIM, SoftServices, quality, reward, text_services, vector
from tests.optimizers.search import PlainServices, run, task, trial


def small(pool="text", **options):
    return Instinct(**{"pool": pool, "pool_size": 60 if pool == "text" else 200, "intrinsic_dim": DIM, **options})


def services_of(pool):
    return text_services() if pool == "text" else SoftServices()


def asked_in(optimizer, services, steps, n=1, **changes):
    """All queries of a search, as they were asked."""
    of, asked = task(**changes), []
    optimizer.start(of)
    for _ in range(steps):
        queries = optimizer.ask(n, (), services)
        if not queries:
            break
        asked.append([(query.candidate.instruction, query.items) for query in queries])
        optimizer.tell([trial(query, of, reward) for query in reversed(queries)])
    return asked


@pytest.mark.parametrize("pool", ["text", "soft"])
@pytest.mark.parametrize("n", [1, 4])
def test_a_search_repeats_nothing_keeps_the_budget_and_is_reproducible(pool, n):
    first = asked_in(small(pool), services_of(pool), 100, n, calls=80)
    assert first == asked_in(small(pool), services_of(pool), 100, n, calls=80)
    assert first != asked_in(small(pool), services_of(pool), 100, n, calls=80, seed=1)
    met: dict[str, int] = {}
    for text, items in itertools.chain.from_iterable(first):
        assert items > met.get(text, 0)  # more items, or new
        met[text] = items
    assert sum(met.values()) == 80
    assert max(len(step) for step in first) == n
    assert max(met.values()) == 8


def test_it_finds_more_than_chance():
    found, pool = [], [quality(f"say {i}") for i in range(150)]
    for seed in range(5):
        optimizer = small(pool_size=150, initial=6)
        run(optimizer, task(seed=seed), lambda candidate, item: quality(candidate.instruction), text_services(), 16)
        found.append(quality(optimizer.best.instruction))
    random = [max(np.random.default_rng(i).choice(pool, 16, replace=False)) for i in range(400)]
    assert np.mean(found) > np.mean(random) + 0.02


def test_the_row_is_that_of_the_largest_bound_over_the_whole_pool():
    optimizer, of = small(initial=6, first_items=8, nu=1.5), task()
    optimizer.start(of)
    told = []
    for _ in range(10):
        (query,) = optimizer.ask(1, (), text_services())
        if len(told) >= 6:
            x = np.array([vector(one.candidate.instruction) for one in told], np.float32)
            pool = np.array([vector(f"say {i}") for i in range(60)], np.float32)
            order = np.argsort([int(one.candidate.instruction.split()[1]) for one in told])
            model = NeuralTangentSurrogate().fit(x[order], np.array([one.score for one in told])[order])
            mean, variance = model.predict(pool)
            bound = mean + 1.5 * variance.sqrt()
            bound[[int(one.candidate.instruction.split()[1]) for one in told]] = -np.inf
            assert query.candidate.instruction == f"say {int(bound.argmax())}"
        told.append(trial(query, of, reward))
        optimizer.tell(told[-1:])


def test_a_batch_is_chosen_by_downdates_and_pending_rows_are_left_alone():
    optimizer, of = small(initial=6, first_items=8), task()
    run(optimizer, of, reward, services := text_services(), 7)
    optimizer.start(of)
    for _ in range(7):
        optimizer.tell([trial(one, of, reward) for one in optimizer.ask(1, (), services)])
    (first,) = optimizer.ask(1, (), services)
    posterior = optimizer._fit().posterior(optimizer.features)
    row = optimizer._rows[first.candidate.key][0]
    posterior.add(row)
    bound = posterior.mean + posterior.variance().sqrt()
    tried = [optimizer._rows[key][0] for key in optimizer._asked]
    bound[tried] = -torch.inf
    (second,) = optimizer.ask(1, [first], services)
    assert optimizer._rows[second.candidate.key] == [int(bound.argmax())]


def test_soft_prompts_that_decode_alike_are_one_trial_and_several_observations():
    services = SoftServices()
    optimizer = small("soft", first_items=8, initial=5)
    asked = asked_in(optimizer, services, 12)
    texts = [text for step in asked for text, _ in step]
    assert len(set(texts)) == len(texts) == 12
    scores = {one.row: one.score for one in optimizer.observed()}
    assert len(scores) > 15  # rows of the same instruction
    for rows in optimizer._rows.values():
        assert len({scores[row] for row in rows if row in scores}) <= 1
    # When all instructions that can be decoded are known, the search is over.
    every = [text for step in asked_in(optimizer, services, 80) for text, _ in step]
    assert set(every) == set(services.decode(optimizer.soft_prompts(optimizer.points), [{"content": ""}]))


def test_soft_prompts_are_a_projection_of_sobol_points_in_the_size_of_embeddings():
    services = SoftServices()
    optimizer = small("soft", tokens=3, pool_size=300)
    asked_in(optimizer, services, 1)
    assert [shape[1:] for shape in services.shapes] == [(3, 6), (3, 6)]
    assert sum(shape[0] for shape in services.shapes) == 300
    points = optimizer.points
    assert points.min() >= 0
    assert points.max() <= 1
    assert np.abs(points.mean(0) - 0.5).max() < 0.02  # more even than chance
    soft = optimizer.soft_prompts(points)
    assert np.sqrt((soft**2).mean()) == pytest.approx(0.5, rel=0.05)
    raw = small("soft", tokens=3, pool_size=300, scale="none")
    asked_in(raw, services, 1)
    assert np.abs(raw._projection).max() <= 1
    np.testing.assert_allclose(raw._projection / optimizer._projection, (raw._projection / optimizer._projection)[0, 0])
    assert len(set(services.messages)) == 1  # one meta-prompt for all


def test_new_candidates_meet_few_items_and_leaders_all():
    optimizer = small(first_items=2, initial=5, kept=0.5)
    asked = [one for step in asked_in(optimizer, text_services(), 100, calls=60) for one in step]
    new = {}
    for text, items in asked:
        new.setdefault(text, items)
    assert set(new.values()) == {2}
    assert len(new) >= 15
    best = optimizer.best
    assert optimizer._asked[best.key] == 8
    assert len(optimizer.leaders(3)) == 3


def test_scores_on_different_items_are_brought_to_one_scale():
    rng = np.random.default_rng(0)
    quality_, ease = rng.normal(size=30), rng.normal(size=12)
    full = quality_[:, None] + ease
    rewards = [dict(enumerate(row[: 4 if i % 3 else 12])) for i, row in enumerate(full)]
    scores, _ = comparable(rewards)
    raw = np.array([np.mean(list(one.values())) for one in rewards])
    truth = quality_ - quality_.mean()
    assert np.abs(scores - scores.mean() - truth).max() < 0.2 < np.abs(raw - raw.mean() - truth).max()
    same, noise = comparable([dict(enumerate(row)) for row in full])
    np.testing.assert_allclose(same - same.mean(), truth, atol=1e-9)
    assert noise == pytest.approx(0, abs=1e-3)
    noisy = comparable([dict(enumerate(row + rng.normal(0, 0.5, 12))) for row in full])
    assert noisy[1] == pytest.approx(0.25, rel=0.15)
    assert len(comparable([])[0]) == 0


def test_the_papers_rule_by_explicit_gradients():
    optimizer, of, services = small(preset="papers", pool_size=80, nu=2.0), task(), text_services()
    optimizer.start(of)
    told, stale = [], []
    pool = np.array([vector(f"say {i}") for i in range(80)], np.float32)

    def gradients(network, x):
        found = []
        for row in x:
            network.zero_grad()
            network(row[None]).sum().backward()
            found.append(torch.cat([p.grad.flatten() for p in network.parameters()]).double())
        return torch.stack(found)

    for step in range(43):
        (query,) = optimizer.ask(1, (), services)
        row = int(query.candidate.instruction.split()[1])
        assert query.items == 8
        if step >= 40:
            rows = sorted(int(one.candidate.instruction.split()[1]) for one in told)
            score = {int(one.candidate.instruction.split()[1]): one.score for one in told}
            model = MLPSurrogate(preset="papers").fit(pool[rows], [score[r] for r in rows])
            x = (pool - pool[rows].mean(0)) / pool[rows].std(0)
            g = gradients(model.network, torch.tensor(x))
            matrix = 0.1 + sum((one**2 for one in stale), torch.zeros(g.shape[1], dtype=torch.float64))
            with torch.no_grad():
                mean = model.network(torch.tensor(x))[:, 0].double()
            bound = mean + (2.0 * 0.1 * (g**2 / matrix).sum(1)).sqrt()
            bound[rows] = -torch.inf
            assert row == int(bound.argmax())
            stale.append(g[row])
        told.append(trial(query, of, reward))
        optimizer.tell(told[-1:])


def test_rephrasings_of_the_leader_join_the_pool():
    class Services(PlainServices):
        def propose(self, messages, n=1, temperature=None):
            assert spent or n in (1, 3)
            if spent and "Say this" in messages[-1]["content"]:
                raise BudgetSpent("no more proposals")
            return super().propose(messages, n)

    spent = False
    services = Services(lambda text, i: f"say {i}", vector)
    optimizer = small(pool_size=10, growth=3, first_items=8, initial=4)
    run(optimizer, task(), reward, services, 8)
    rephrased = [text for text in services.asked if text.startswith("Say this")]
    assert len(rephrased) == 12
    assert len(optimizer.features) == len(optimizer._candidates) == 22
    spent = True
    assert optimizer.ask(1, (), services)


def test_the_users_instructions_that_were_scored_before_are_not_asked_again():
    of, services = task(start=("say 7", "say 9")), text_services()
    optimizer = small(pool_size=20, first_items=8)
    optimizer.start(of)
    optimizer.tell([trial(Candidate(text), of, reward) for text in of.start])
    asked = []
    while queries := optimizer.ask(4, (), services):
        asked += [query.candidate.instruction for query in queries]
        optimizer.tell([trial(query, of, reward) for query in queries])
    assert len(asked) == 18
    assert not {"say 7", "say 9"} & set(asked)
    assert optimizer.ask(1, (), services) == []


def test_a_spent_budget_passes_and_the_search_can_go_on():
    class Services(PlainServices):
        def embed(self, texts):
            if spent:
                raise BudgetSpent("no time")
            return super().embed(texts)

    spent, services, optimizer = True, Services(lambda text, i: f"say {i}", vector), small(pool_size=8)
    optimizer.start(task())
    with pytest.raises(BudgetSpent):
        optimizer.ask(1, (), services)
    spent = False
    assert len(optimizer.ask(3, (), services)) == 3


def test_rewards_that_are_missing_do_not_stop_it():
    def partial(candidate, item):
        return float("nan") if item.id % 2 or candidate.instruction == "say 3" else reward(candidate, item)

    optimizer = small(pool_size=12, first_items=4)
    run(optimizer, task(), partial, text_services(), 40)
    assert optimizer.best is not None
    assert len(optimizer._asked) == 12


def test_options():
    assert small("soft").needs == ("white_box", "examples")
    assert small().needs == ("proposer", "encoder", "examples")
    assert small(demonstrations=0).needs == ("proposer", "encoder")
    assert isinstance(get_optimizer("instinct", nu=0.5), PoolOptimizer)
    with pytest.raises(OptionError, match="growth=2 is of pool='text'"):
        small("soft", growth=2)
    with pytest.raises(OptionError, match="preset='papers' sets initial=40, but initial=3 was given"):
        small(preset="papers", initial=3)
    optimizer = small(pool_size=10, initial=11)
    optimizer.start(task())
    with pytest.raises(OptionError, match="pool has 10 candidates, fewer than the initial design: lower initial=11"):
        optimizer.ask(1, (), text_services())
    with pytest.raises(OptionError, match="first_items=9, but there are only 8 items"):
        small(first_items=9).start(task())
    optimizer = small(demonstrations=0)
    optimizer.start(task())
    with pytest.raises(DataError, match="instinct: there is nothing to make instructions from"):
        optimizer.ask(1, (), text_services())


def test_queries_are_of_the_common_items_first():
    optimizer = small()
    optimizer.start(task(calls=50))
    assert optimizer.ask(1, (), text_services()) == [Query(optimizer._candidates[optimizer._order[0]], 2)]
