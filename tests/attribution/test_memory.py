"""Out of memory: the batch is halved and this is said once; a row that does not fit alone is named."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from hfdataopt import attribute
from hfdataopt.attribution import reader
from hfdataopt.errors import DataError
from hfdataopt.gradients import runner

from ..tiny import bert, encoded

CASES: list[Any] = [
    ("loss", {}),
    ("freeshap", {"kernel": "hidden", "head": "model", "permutations": 3}),
    ("representer", {}),
    ("cv-confidence", {}),
]


class Small:
    """A model that has memory for ``rows`` rows."""

    def __init__(self, rows: int) -> None:
        self.model, self.rows, self.sizes = bert().eval(), rows, []
        self.model.bert.register_forward_pre_hook(self.check, with_kwargs=True)

    def check(self, module: Any, args: Any, kwargs: Any) -> None:
        size = len(kwargs.get("input_ids", args[0] if args else None))
        self.sizes.append(size)
        if size > self.rows:
            raise torch.OutOfMemoryError("injected")


@pytest.fixture(autouse=True)
def _many_shards(monkeypatch: Any) -> None:
    monkeypatch.setattr(reader, "ROWS_PER_SHARD", 8)


@pytest.fixture
def said() -> Iterator[list[Any]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


@pytest.mark.parametrize(("name", "options"), CASES)
def test_forward_passes(name: str, options: dict[str, Any], said: list[Any]) -> None:
    pool, queries, small = encoded(24), encoded(6, seed=7), Small(3)
    scores = attribute(small.model, pool, queries, name, batch_size=8, **options)
    plain = attribute(bert().eval(), pool, queries, name, batch_size=8, **options)
    np.testing.assert_allclose(scores.values, plain.values, rtol=1e-3, atol=1e-5)
    messages = [str(x.message) for x in said if "out of memory" in str(x.message)]
    assert messages == [f"{name}: a batch of 8 rows did not run (out of memory); going on with smaller ones"]
    assert [size for size in small.sizes if size > 3] == [8, 4]


def test_gradient_shards_keep_the_size_that_fits(monkeypatch: Any, said: list[Any]) -> None:
    real, sizes = runner.forward_backward, []

    def short(capture: Any, target: Any, inputs: Any, *rest: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("injected")
        return real(capture, target, inputs, *rest)

    pool, queries = encoded(24), encoded(6, seed=7)
    plain = attribute(bert().eval(), pool, queries, "tracin", batch_size=8, floats_per_row=300)
    monkeypatch.setattr(runner, "forward_backward", short)
    scores = attribute(bert().eval(), pool, queries, "tracin", batch_size=8, floats_per_row=300)
    np.testing.assert_allclose(scores.values, plain.values, rtol=1e-3, atol=1e-5)
    assert len([x for x in said if "out of memory" in str(x.message)]) == 1
    assert [size for size in sizes if size > 3] == [8, 4]


@pytest.mark.parametrize(("name", "options"), [*CASES, ("tracin", {}), ("grad-norm", {})])
@pytest.mark.filterwarnings("ignore")
def test_a_row_that_does_not_fit_alone_is_named(name: str, options: dict[str, Any]) -> None:
    pool = encoded(6, ids=True)
    with pytest.raises(DataError, match=r"row '(pool:)?r\d' alone does not fit into memory; shorten the rows"):
        attribute(Small(0).model, pool, pool, name, batch_size=4, **options)
