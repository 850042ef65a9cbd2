"""APOHF: its pair by the formula, its three uses, and what it gains over random pairs."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from hfdataopt.bandits import MLPSurrogate
from hfdataopt.bandits.arms import ArmSurrogate
from hfdataopt.errors import DataError, OptionError
from hfdataopt.generation import LocalGenerator
from hfdataopt.plugins import host
from hfdataopt.prompting.candidate import Candidate, Comparison, Vote
from hfdataopt.prompting.config import PromptConfig
from hfdataopt.prompting.trainer import PromptTrainer
from hfdataopt_plugins.optimizers.apohf import Apohf
from tests import tiny
from tests.optimizers.search import PlainServices, duel, task, vote

TEXTS = [f"instruction {i}" for i in range(12)]
VECTORS = np.random.default_rng(0).normal(size=(len(TEXTS), 4)).astype(np.float32)


def embed(text: str) -> list[float]:
    return VECTORS[TEXTS.index(text)].tolist()


def quality(candidate: Candidate) -> float:
    return float(VECTORS[TEXTS.index(candidate.instruction)] @ [2.0, -1.0, 0.5, 0.0])


def better(first: Candidate, second: Candidate) -> float:
    return float(quality(first) > quality(second))


def searched(votes: int, prefers=better, of=None, **options) -> Apohf:
    optimizer = Apohf(pool=TEXTS, **options)
    duel(optimizer, of or task(), prefers, PlainServices(embed=embed), votes)
    return optimizer


def indices(duels) -> list[tuple[int, int]]:
    return [(TEXTS.index(one.first.instruction), TEXTS.index(one.second.instruction)) for one in duels]


# -- the step that makes it this method


def test_the_pair_of_the_published_network_is_the_formula_over_all_parameters():
    optimizer = searched(9, preset="papers")
    pairs = indices(one.duel for one in optimizer.votes)
    targets = [one.comparison.target for one in optimizer.votes]
    rows = sorted({arm for pair in pairs for arm in pair})
    x = torch.tensor(VECTORS, dtype=torch.float64)
    surrogate = MLPSurrogate(widths=(32, 32), preset="papers").fit_pairs(
        x[rows], [[rows.index(i), rows.index(j)] for i, j in pairs], targets
    )
    network = surrogate.network.double()
    inputs = (x - x[rows].mean(0)) / x[rows].std(0, correction=0)
    gradients = []
    for row in inputs:
        network.zero_grad()
        network(row[None]).sum().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in network.parameters()]))
    g = torch.stack(gradients)
    scores = network(inputs)[:, 0].detach()
    history = torch.stack([g[i] - g[j] for i, j in pairs])
    diagonal = (history**2).sum(0) + 0.1
    first = int(scores.argmax())
    bound = scores + (1.0 * (g - g[first]) ** 2 / diagonal).sum(1).sqrt()
    bound[first] = -math.inf
    assert indices(optimizer.ask(1, (), PlainServices(embed=embed))) == [(first, int(bound.argmax()))]
    asked = {arm for pair in pairs for arm in pair}
    assert TEXTS.index(optimizer.best.instruction) == max(asked, key=lambda arm: float(scores[arm]))


def test_the_pair_by_default_is_best_mean_against_the_bound_of_the_difference():
    optimizer = searched(9, nu=1.5)
    pairs = indices(one.duel for one in optimizer.votes)
    posterior = ArmSurrogate().fit_pairs(VECTORS, pairs, [one.comparison.target for one in optimizer.votes])
    posterior = posterior.posterior(VECTORS)
    covariance, mean = posterior._covariance, posterior.mean
    closed = {tuple(sorted(pair)) for pair in pairs}
    first = int(mean.argmax())
    bound = {
        arm: float(mean[arm])
        + 1.5 * math.sqrt(covariance[arm, arm] - 2 * covariance[arm, first] + covariance[first, first])
        for arm in range(len(TEXTS))
        if arm != first and tuple(sorted((arm, first))) not in closed
    }
    assert indices(optimizer.ask(1, (), PlainServices(embed=embed))) == [(first, max(bound, key=bound.__getitem__))]


# -- what votes do


def test_skips_and_invalid_votes_train_nothing_and_ties_train_half():
    optimizer = searched(6)
    before, known = optimizer.ranking(), optimizer.trained()
    asked = optimizer.ask(2, (), PlainServices(embed=embed))
    optimizer.tell([vote(asked[0], None), Vote(asked[1], Comparison(None, "invalid"), ("", ""))])
    assert optimizer.trained() == known
    assert optimizer.ranking() == before
    optimizer.tell([vote(optimizer.ask(1, (), PlainServices(embed=embed))[0], 0.5)])
    assert optimizer.trained()[1] == [*known[1], 0.5]


@pytest.mark.parametrize("repeats", ["no", "later", "free"])
def test_a_skipped_pair_never_comes_again(repeats):
    optimizer, services = Apohf(pool=TEXTS[:4], repeats=repeats), PlainServices(embed=embed)
    optimizer.start(task())
    skipped = optimizer.ask(1, (), services)
    optimizer.tell([vote(skipped[0], None)])
    later = []
    for _ in range(20):
        asked = optimizer.ask(1, (), services)
        if not asked:
            break
        later += indices(asked)
        optimizer.tell([vote(asked[0], better(asked[0].first, asked[0].second))])
    assert set(indices(skipped)[0]) not in [set(pair) for pair in later]
    assert len(later) == (5 if repeats == "no" else 20)


def test_pairs_come_again_only_when_all_were_asked_as_often():
    optimizer = Apohf(pool=TEXTS[:5])
    duel(optimizer, task(), better, PlainServices(embed=embed), 2 * math.comb(5, 2))
    pairs = [frozenset(pair) for pair in indices(one.duel for one in optimizer.votes)]
    assert len(set(pairs[:10])) == len(set(pairs[10:])) == 10


def test_all_skipped_is_the_end():
    optimizer = Apohf(pool=TEXTS[:3])
    duel(optimizer, task(), lambda first, second: None, PlainServices(embed=embed), 50)
    assert len(optimizer.votes) == 3
    assert optimizer.best.instruction == TEXTS[0]


def test_a_batch_differs_from_what_is_pending_and_counts_it():
    optimizer, services = searched(8), PlainServices(embed=embed)
    batch = optimizer.ask(6, (), services)
    assert len({frozenset(pair) for pair in indices(batch)}) == 6
    more = optimizer.ask(6, batch, services)
    assert not {frozenset(pair) for pair in indices(batch)} & {frozenset(pair) for pair in indices(more)}
    assert list(optimizer.ask(6, batch[:3], services))[:3] == list(batch[3:])  # one by one is the same as together


def test_the_order_of_telling_and_the_judges_order_do_not_matter():
    together, apart = searched(8), searched(8)
    asked = together.ask(4, (), PlainServices(embed=embed))
    assert list(apart.ask(4, (), PlainServices(embed=embed))) == list(asked)
    votes = [vote(one, better(one.first, one.second)) for one in asked]
    together.tell(votes)
    for one in reversed(votes):
        apart.tell([one])
    assert np.allclose(together.ranking(), apart.ranking(), atol=1e-6)
    turned = searched(8)
    turned.ask(4, (), PlainServices(embed=embed))
    turned.tell(
        [
            Vote(replace(v.duel, first=v.duel.second, second=v.duel.first), v.comparison.flipped(), v.answers)
            for v in votes
        ]
    )
    assert np.allclose(together.ranking(), turned.ranking(), atol=1e-6)


def test_a_vote_taken_back_leaves_no_trace():
    optimizer, other = searched(10), searched(10)
    asked = optimizer.ask(1, (), PlainServices(embed=embed))
    wrong = vote(asked[0], 1.0 - better(asked[0].first, asked[0].second))
    optimizer.tell([wrong])
    optimizer.forget(wrong)
    assert optimizer.ranking() == other.ranking()
    assert optimizer.best == other.best
    assert list(optimizer.ask(1, (), PlainServices(embed=embed))) == list(asked)


def test_a_seed_gives_one_search_and_another_seed_another():
    one, again = searched(12), searched(12)
    assert [v.duel for v in one.votes] == [v.duel for v in again.votes]
    assert [v.duel for v in one.votes] != [v.duel for v in searched(12, of=task(seed=1)).votes]
    services = PlainServices(embed=embed)
    duel(one, task(), better, services, 12)  # an instance can search again
    assert [v.duel for v in one.votes] == [v.duel for v in again.votes]


@pytest.mark.parametrize("surrogate", ["arms", "linear", "rbf", "mlp"])
def test_every_surrogate_finds_a_good_arm(surrogate):
    best = searched(25, surrogate=surrogate).best
    assert quality(best) >= sorted(map(quality, map(Candidate, TEXTS)))[-2]


def test_the_best_may_be_one_that_was_never_asked_about_or_not():
    anywhere, asked = searched(3, initial=2), searched(3, initial=2, best_among="asked")
    shown = {text for one in asked.votes for text in (one.duel.first.instruction, one.duel.second.instruction)}
    assert {one.instruction for one in asked.leaders(99)} == shown
    assert len(anywhere.leaders(99)) == len(TEXTS)
    assert anywhere.leaders(3)[0] == anywhere.best


# -- where arms come from


def test_without_a_pool_the_proposer_makes_one():
    services = PlainServices(lambda text, number: TEXTS[number % len(TEXTS)], embed)
    optimizer = Apohf(pool_size=6)
    duel(optimizer, task(start=(TEXTS[7],)), better, services, 3)
    assert [one.instruction for one in optimizer.candidates] == [TEXTS[7], *TEXTS[:5]]
    assert set(optimizer.needs) == {"proposer", "examples", "encoder"}
    assert set(Apohf(rephrase=1.0).needs) == {"proposer", "encoder"}
    assert optimizer.leaders(1) == [optimizer.best]


def test_before_any_vote_the_users_own_is_the_best():
    optimizer = Apohf(pool=TEXTS)
    optimizer.start(task(start=(TEXTS[4],)))
    assert optimizer.best is None
    optimizer.ask(1, (), PlainServices(embed=embed))
    assert optimizer.best.instruction == TEXTS[4]
    assert optimizer.needs == ("encoder",)


# -- images


def test_features_of_images_are_those_that_votes_have_shown(tmp_path):
    from PIL import Image

    shades, seen = dict(zip(TEXTS[:6], (10, 60, 110, 160, 210, 250), strict=True)), []

    def draw(text: str) -> str:
        path = tmp_path / f"{shades[text]}.png"
        Image.new("RGB", (4, 4), (shades[text], 0, 0)).save(path)
        return str(path)

    class Images(PlainServices):
        def embed(self, images):
            seen.extend(image.getpixel((0, 0))[0] for image in images)
            return np.array([[image.getpixel((0, 0))[0] / 255.0, 1.0] for image in images], np.float32)

    optimizer, services = Apohf(pool=TEXTS[:6], features="image"), Images()
    optimizer.start(task())
    for _ in range(12):
        asked = optimizer.ask(1, (), services)[0]
        first, second = asked.first.instruction, asked.second.instruction
        word = Comparison.of(int(shades[second] > shades[first]))
        optimizer.tell([Vote(asked, word, (draw(first), draw(second)))])
    assert optimizer.best.instruction == TEXTS[5]
    assert len(seen) == len(set(seen))  # each image once
    optimizer.prepare(services)
    drawn = optimizer.matrix()
    for arm, text in enumerate(TEXTS[:6]):
        if any(text in (v.duel.first.instruction, v.duel.second.instruction) for v in optimizer.votes):
            assert drawn[arm][0] == pytest.approx(shades[text] / 255)


def test_an_image_that_is_none_is_said():
    optimizer, services = Apohf(pool=TEXTS[:3], features="image"), PlainServices(embed=embed)
    optimizer.start(task())
    optimizer.tell([vote(optimizer.ask(1, (), services)[0], 1.0)])
    with pytest.raises(DataError, match="'one' is no image file"):
        optimizer.ask(1, (), services)


# -- responses


class Sampler(PlainServices):
    """Answers 0..n-1 to each item; features the item and the number."""

    def sample(self, item, n: int) -> list[str]:
        return [f"{item}:{k % 5}" for k in range(n)]

    def embed(self, texts):
        rows = []
        for text in texts:
            item, _, number = text.rpartition("\n\n")[2].partition(":")
            assert text.startswith(f"Input: {item}\n")
            rows.append([float(number), float(number) ** 2, float(item)])
        return np.array(rows, np.float32)


def of_response(candidate: Candidate) -> float:
    return -abs(int(candidate.completion.partition(":")[2]) - 3)


def test_responses_of_each_item_take_turns_and_share_one_surrogate():
    optimizer, services = Apohf(arms="responses", samples=8), Sampler()
    of = task(items=4)
    optimizer.start(of)
    for _ in range(16):
        asked = optimizer.ask(1, (), services)[0]
        assert asked.item == asked.first.item == asked.second.item
        target = of_response(asked.first) - of_response(asked.second)
        optimizer.tell([vote(asked, 0.5 if target == 0 else float(target > 0))])
    items = [one.duel.item for one in optimizer.votes]
    assert all(items[i : i + 4] == items[:4] for i in range(0, 16, 4))
    assert len(optimizer.candidates) == 4 * 5  # the same answer is one arm
    assert [one.item for one in optimizer.best_per_item] == [item.id for item in of.items]
    assert sum(of_response(one) == 0 for one in optimizer.best_per_item) >= 3
    assert optimizer.best == optimizer.best_per_item[0]
    assert optimizer.leaders(2) == optimizer.best_per_item[:2]
    assert optimizer.needs == ("encoder",)
    assert len(optimizer.trained()[0]) == 16  # all votes count, not only the first pairs


def test_one_items_votes_teach_about_the_others():
    optimizer, services = Apohf(arms="responses"), Sampler()
    optimizer.start(task(items=6))
    optimizer.ask(1, (), services)
    arms = {(one.item, one.completion): one for one in optimizer.candidates}
    for item, (i, j) in itertools.product(range(3), itertools.combinations(range(5), 2)):
        pair = arms[item, f"{item}:{i}"], arms[item, f"{item}:{j}"]
        asked = replace(optimizer.ask(1, (), services)[0], first=pair[0], second=pair[1], item=item)
        gap = of_response(pair[0]) - of_response(pair[1])
        optimizer.tell([vote(asked, 0.5 if gap == 0 else float(gap > 0))])
    assert [of_response(one) for one in optimizer.best_per_item[3:]] == [0, 0, 0]


def test_pairs_of_responses_come_once_and_then_the_search_is_over():
    optimizer = Apohf(arms="responses", samples=3)
    duel(optimizer, task(items=2), lambda one, other: 0.5, Sampler(), 50)
    assert len(optimizer.votes) == 2 * 3
    assert len({v.duel for v in optimizer.votes}) == 6


def test_a_model_that_does_not_sample_is_said():
    class Same(Sampler):
        def sample(self, item, n: int) -> list[str]:
            return ["0"] * n

    optimizer = Apohf(arms="responses")
    optimizer.start(task(items=2))
    with pytest.raises(DataError, match="the same text"):
        optimizer.ask(1, (), Same())


def test_chosen_answers_are_no_prompt(tmp_path, capsys):
    model = LocalGenerator(tiny.llama(), tiny.tokenizer(special=False), max_new_tokens=3)
    trainer = PromptTrainer(
        Apohf(arms="responses", samples=4),
        model=model,
        judge=lambda prompts, pairs, shuffle_order: [0] * len(prompts),
        encoder=lambda texts: np.array([[len(text), text.count("a")] for text in texts], float),
        train_dataset=[{"prompt": f"the film {word}"} for word in ("was", "is", "and", "plot")],
        args=PromptConfig(output_dir=str(tmp_path), items=3, max_judge_calls=6, leaders=0, logging_steps=0),
    )
    trainer.train()
    for name in ("best_prompt", "apply_prompt"):
        with pytest.raises(OptionError, match=r"trainer.optimizer.best_per_item .* trainer.preferences\(\)"):
            getattr(trainer, name)
    assert not (tmp_path / "prompt.json").exists()
    assert (tmp_path / "result.json").exists()
    assert [one.item for one in trainer.optimizer.best_per_item] == [item.id for item in trainer.split.items]
    assert trainer.preferences().column_names == ["prompt", "chosen", "rejected"]
    assert capsys.readouterr().err.count("did not end") == 1


# -- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": ["one", "one"]}, "at least two"),
        ({"nu": -1.0}, "nu"),
        ({"arms": "responses", "pool": TEXTS}, "drop pool"),
        ({"arms": "responses", "features": "image"}, "drop features"),
        ({"arms": "responses", "pool_size": 9}, "drop pool_size"),
        ({"arms": "responses", "rephrase": 0.5}, "drop rephrase"),
        ({"arms": "responses", "demonstrations": 0}, "drop demonstrations"),
        ({"samples": 4}, "drop samples"),
        ({"preset": "papers", "surrogate": "rbf"}, "drop one"),
        ({"surrogate": "tree"}, "surrogate"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(OptionError, match=message):
        Apohf(**options)


def test_it_is_found_by_name():
    assert host().components["optimizer"]["apohf"].create(nu=2.0) == Apohf(nu=2.0)


# -- what it is for


def test_it_beats_random_pairs_in_worlds_of_bradley_terry_votes():
    def regret(acquisition: str, seed: int) -> float:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(40, 8))
        scores = x @ rng.normal(size=8) / math.sqrt(8) + 0.5 * rng.normal(size=40)
        names = [str(i) for i in range(40)]
        draws = np.random.default_rng(1000 + seed)

        def prefers(first: Candidate, second: Candidate) -> float:
            gap = scores[int(first.instruction)] - scores[int(second.instruction)]
            return float(draws.random() < 1 / (1 + math.exp(-2 * gap)))

        optimizer = Apohf(pool=names, acquisition=acquisition)
        services = PlainServices(embed=lambda text: x[int(text)].tolist())
        duel(optimizer, task(seed=seed), prefers, services, 36)
        return float(scores.max() - scores[int(optimizer.best.instruction)])

    gains = np.array([regret("random", seed) - regret("ucb", seed) for seed in range(12)])
    assert gains.mean() - 1.8 * gains.std(ddof=1) / math.sqrt(len(gains)) > 0  # one-sided, 95 %
