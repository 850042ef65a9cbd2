"""What a filter that must see the whole dataset keeps to: the same scores and rows whatever the batches and the order of rows."""

import pickle

import numpy as np
import pytest
from datasets.fingerprint import Hasher

from hfdataopt.errors import DataError


def check_whole(filter, data, target=None):
    """Fit a filter with a keep rule, score and keep in several ways; ``data`` has ``row_id``, a permutation of their order too.

    Returns:
        The fitted filter, and ``[rows]`` scores.
    """
    f = filter.fit(data, target)
    ways = ((7, None), (1000, None), (7, 4))
    stream = data.to_iterable_dataset(num_shards=2)
    scores = [data.map(f, batched=True, batch_size=n, num_proc=p)[f.score_column][:] for n, p in ways]
    scores.append([row[f.score_column] for row in stream.map(f, batched=True, batch_size=7)])
    shuffled = data.shuffle(seed=1)
    other = dict(
        zip(shuffled["row_id"], shuffled.map(filter.fit(shuffled, target), batched=True)[f.score_column], strict=True)
    )
    np.testing.assert_allclose([other[row] for row in data["row_id"]], scores[0], rtol=1e-9)
    assert len(set(scores[0])) > 1
    assert all(found == scores[0] for found in scores[1:])
    columns = {"input_columns": f.columns, "batched": True}
    kept = [data.filter(f.keep, batch_size=n, num_proc=p, **columns)["row_id"][:] for n, p in ways]
    kept.append([row["row_id"] for row in stream.filter(f.keep, batch_size=7, **columns)])
    assert 0 < len(kept[0]) < len(data)
    assert all(found == kept[0] for found in kept[1:])
    same = {Hasher.hash(g) for g in (f, pickle.loads(pickle.dumps(f)), filter.fit(data, target))}
    assert len(same) == 1, "datasets would not find a cached result again"
    with pytest.raises(DataError, match="must see the whole dataset"):
        filter.fit(stream, target)
    return f, np.array(scores[0])
