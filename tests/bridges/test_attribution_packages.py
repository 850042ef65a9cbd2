"""kronfluence and bergson, as scorers, against our own methods of the same name."""

import copy
import sys

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from hfdataopt import attribute
from hfdataopt.errors import MissingDependencyError, OptionError
from tests.tiny import bert, encoded, gpt2, llama, loss_gradients, plain_texts

SKIP = "the package {} is not installed: tests/bridges/run.py makes an environment with it"


@pytest.fixture
def kronfluence():
    pytest.importorskip("kronfluence", reason=SKIP.format("kronfluence"))


@pytest.fixture
def bergson():
    pytest.importorskip("bergson", reason=SKIP.format("bergson"))


def classifier():
    return bert().eval(), encoded(40, seed=1, flipped=(3, 8)), encoded(7, seed=2)


def language_model():
    return llama().eval(), plain_texts(40, 1), plain_texts(6, 2)


@pytest.mark.parametrize("name", ["kronfluence", "bergson"])
def test_without_the_package_the_message_has_the_pip_lines(name, monkeypatch):
    for module in [one for one in sys.modules if one.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match="pip install --no-deps"):
        attribute(*language_model(), name)


@pytest.mark.parametrize("build", [classifier, language_model])
def test_kronfluence_without_curvature_is_the_gradients_inner_product(build, kronfluence):
    model, pool, queries = build()
    scores = attribute(model, pool, queries, "kronfluence", strategy="identity", batch_size=8)
    exact = loss_gradients(model, pool) @ loss_gradients(model, queries).T
    np.testing.assert_allclose(scores.matrix, exact, rtol=1e-3, atol=1e-4 * float(exact.abs().max()))


@pytest.mark.parametrize("build", [classifier, language_model])
def test_kronfluence_agrees_with_our_ekfac(build, kronfluence):
    model, pool, queries = build()
    theirs = attribute(model, pool, queries, "kronfluence", batch_size=8)
    ours = attribute(model, pool, queries, "influence", batch_size=8)
    for query in range(theirs.matrix.shape[1]):
        assert spearmanr(theirs.matrix[:, query], ours.matrix[:, query])[0] > 0.95
    assert spearmanr(theirs.values, ours.values)[0] > 0.9


def test_kronfluence_depends_on_damping_and_not_on_the_batch_size(kronfluence):
    parts = classifier()
    one = attribute(*parts, "kronfluence", batch_size=4)
    np.testing.assert_allclose(attribute(*parts, "kronfluence", batch_size=13).matrix, one.matrix, rtol=1e-3, atol=1e-6)
    assert not np.allclose(attribute(*parts, "kronfluence", batch_size=4, damping=1.0).matrix, one.matrix, rtol=0.1)


@pytest.mark.parametrize("build", [language_model, lambda: (gpt2().eval(), plain_texts(9, 1), plain_texts(3, 2))])
def test_bergson_on_whole_gradients_is_tracin(build, bergson):
    model, pool, queries = build()
    if build is not language_model:
        with pytest.raises(OptionError, match="linear layers"):
            attribute(model, pool, queries, "bergson", projection=0)
        return
    scores = attribute(model, pool, queries, "bergson", projection=0, batch_size=8)
    ours = attribute(model, pool, queries, "tracin", basis="exact", batch_size=8)
    np.testing.assert_allclose(scores.matrix, ours.matrix, rtol=1e-3, atol=1e-4 * np.abs(ours.matrix).max())
    cosines = attribute(model, pool, queries, "bergson", projection=0, normalize=True)
    ours = attribute(model, pool, queries, "tracin", basis="exact", normalize=True)
    np.testing.assert_allclose(cosines.matrix, ours.matrix, rtol=1e-3, atol=1e-4)


def test_bergson_projected_is_close_and_has_a_seed(bergson):
    parts = language_model()
    exact = attribute(*parts, "tracin", basis="exact").matrix
    found = [attribute(*parts, "bergson", projection=16, seed=seed).matrix for seed in (0, 0, 1)]
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    assert spearmanr(found[0].ravel(), exact.ravel())[0] > 0.8


def test_bergson_refuses_what_it_would_read_wrongly(bergson):
    with pytest.raises(OptionError, match="causal language models"):
        attribute(*classifier(), "bergson")


@pytest.mark.parametrize("name", ["kronfluence", "bergson"])
def test_the_model_and_the_random_state_are_left_alone(name, request):
    request.getfixturevalue(name)
    model, pool, queries = language_model()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    grads = [parameter.requires_grad for parameter in model.parameters()]
    attribute(model, pool, queries, name)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == grads
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
