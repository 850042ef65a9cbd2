"""Filters in the workers of ``map`` and ``filter``: two of them do as one, with rows that two does not divide."""

import numpy as np
import pytest

from hfdataopt import top
from hfdataopt.plugins import get_filter
from hfdataopt.testing import tiny

from ..testing.test_own_filters import FLIPPED, NAMES, options_of
from ..testing.test_own_filters import ROWS as GIVEN

ROWS = 29


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("llama")
    tiny.llama().save_pretrained(folder)
    tiny.reader().save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_workers_do_as_one(name: str, model: str) -> None:
    options = options_of(name, model)
    if name == "rejection-pairs":  # its map function makes pairs
        data = tiny.rows(ROWS, 1).select_columns(["row_id", "prompt", "completions", "completion_rewards"])
        one, two = (get_filter(name, **options).fit(data).pairs(data, num_proc=count).to_list() for count in (None, 2))
        assert one == two
        assert one
        return
    data = tiny.rows(GIVEN, 1, FLIPPED) if name == "scores" else tiny.rows(ROWS, 1)
    fitted = get_filter(name, keep=top(fraction=0.4), **options)
    fitted = fitted.fit(data, tiny.rows(6, 2, topic=1)) if fitted.needs_target else fitted.fit(data)
    shared = {"batched": True, "batch_size": 5, "load_from_cache_file": False}
    one, two = (
        np.array(data.map(fitted, num_proc=count, **shared)[fitted.score_column][:], float) for count in (None, 2)
    )
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-6 * np.nanmax(np.abs(one)))
    columns = {"input_columns": fitted.columns} if fitted.columns else {}
    kept = [data.filter(fitted.keep, num_proc=count, **shared, **columns)["row_id"][:] for count in (None, 2)]
    assert kept[0] == kept[1]
    assert 0 < len(kept[0]) < len(data)
