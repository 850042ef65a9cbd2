"""What every filter must keep to: the same scores and rows whatever the batches, the processes and the kind of dataset."""

import dataclasses
import pickle

from datasets.fingerprint import Hasher

from hfdataopt import top


def check_invariance(filter, data, target=None):
    """Fit on the dataset and on its stream, score and keep in several ways; ``data`` has ``row_id`` and no equal scores.

    Returns:
        The fitted filter, and ``[rows]`` scores.
    """
    filter = dataclasses.replace(filter, rule=top(fraction=0.3))
    f = filter.fit(data, target)
    streamed = filter.fit(data.to_iterable_dataset(), target)
    stream = data.to_iterable_dataset(num_shards=2)
    scores = [
        data.map(f, batched=True, batch_size=size, num_proc=processes)[f.score_column][:]
        for size, processes in ((7, 1), (1000, 1), (7, 4))
    ]
    scores += [[row[g.score_column] for row in stream.map(g, batched=True, batch_size=7)] for g in (f, streamed)]
    kept = [
        data.filter(f.keep, batched=True, input_columns=f.columns, batch_size=size, num_proc=processes)["row_id"][:]
        for size, processes in ((7, 1), (1000, 1), (7, 4))
    ]
    kept += [
        [row["row_id"] for row in stream.filter(g.keep, batched=True, input_columns=g.columns, batch_size=7)]
        for g in (f, streamed)
    ]
    assert len(set(scores[0])) == len(data)
    assert all(other == scores[0] for other in scores)
    assert len(kept[0]) == int(0.3 * len(data))
    assert all(other == kept[0] for other in kept)
    fingerprints = {Hasher.hash(g) for g in (f, pickle.loads(pickle.dumps(f)), filter.fit(data, target))}
    assert len(fingerprints) == 1, "datasets would not find a cached result again"
    return f, scores[0]
