"""CPU seconds of pieces of work that take turns, and their ratios."""

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


def cpu_seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call in this process, and what it returned."""
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def in_turn(
    runs: dict[str, Callable[[], Any]],
    repeats: int,
    *,
    warm: bool = True,
    clock: Callable[[Callable[[], Any]], tuple[float, Any]] = cpu_seconds,
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """``repeats`` seconds of each, and what each returned last.

    Args:
        runs: by name.
        repeats: rounds; in each every piece runs once, in an order of its own: who runs after whom decides whose memory is
            still mapped, which is worth several per cent.
        warm: run each once before the clock starts.
        clock: seconds and result of a call.
    """
    for run in runs.values() if warm else ():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    results: dict[str, Any] = {}
    shuffle = random.Random(0)
    for _ in range(repeats):
        for name in shuffle.sample(sorted(runs), len(runs)):
            spent, results[name] = clock(runs[name])
            times[name].append(spent)
    return times, results


def median(values: Sequence[float]) -> list[float]:
    """``[median, low, high]``: the 95 % interval by order statistics; below six values, which have none, all of them lie in it."""
    ordered = sorted(values)
    count = len(ordered)
    cut = 0
    # P(the median is below the value at place `cut` from 0) = P(Binomial(count, 1/2) <= cut)
    while 2 * sum(math.comb(count, k) for k in range(cut + 2)) <= 0.05 * 2**count:
        cut += 1
    return [statistics.median(ordered), ordered[cut], ordered[-1 - cut]]


def ratio(taken: Sequence[float], of: Sequence[float]) -> list[float] | float:
    """``median`` of the ratios, round by round; 1 for the same ones."""
    return 1.0 if taken is of else median([a / b for a, b in zip(taken, of, strict=True)])
