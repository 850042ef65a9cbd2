"""``win_rate``: whether a judge prefers the completion to the dataset's own, as a reward function of TRL's signature."""

import functools
import hashlib
import inspect
import math
from collections.abc import Sequence
from typing import Any

from hfdataopt.errors import DataError, OptionError
from hfdataopt.rewards.background import is_async, run
from hfdataopt.rewards.texts import is_messages, needed_column, text_of, transcript


def win_rate(
    baseline_column: str,
    judge: Any,
    *,
    ties: float = 0.5,
    both_orders: bool = False,
    seed: int = 0,
    name: str | None = None,
) -> "WinRate":
    """A reward function: 1 where the judge prefers the completion to the dataset's baseline, 0 where it does not.

    Args:
        baseline_column: the dataset's column of completions to beat, strings or messages; None makes the row abstain.
        judge: ``judge(prompts, completions, shuffle_order=True) -> list[int]``, or an object with such a method ``judge`` (as
            TRL had until its judges were removed). It gets texts: prompts (several messages as ``role: content``)
            and pairs of completions, and returns the index of the winner, or -1 if it could not decide, which makes the row
            abstain. Anything else is what :class:`~hfdataopt.rewards.RewardFunctions` takes, or one of these itself, when a
            reward model needs its tokenizer or formatting; of the two, the higher reward wins. Such functions get no
            ``completion_ids``, which a baseline does not have.
        ties: the reward of a tie, in [0, 1]: the same text (the judge is not asked), equal rewards, or ``both_orders`` with
            another winner in each.
        both_orders: ask a pairwise judge twice, with the pair in either order, and count only agreement.
        seed: otherwise the order of a pair is a function of (seed, prompt, completion, baseline), the same in every batch;
            the judge itself is asked not to shuffle.
        name: under which the reward is reported; ``win_rate`` by default.
    """
    return WinRate(baseline_column, judge, ties, both_orders, seed, name or "win_rate")


class WinRate:
    """What :func:`win_rate` returns; can be pickled if the judge can."""

    def __init__(self, baseline_column: str, judge: Any, ties: float, both_orders: bool, seed: int, name: str) -> None:
        self.__name__ = name
        if not 0 <= ties <= 1:
            raise OptionError(f"{name}: ties={ties!r} must be between 0 and 1")
        self.baseline_column, self.ties, self.both_orders, self.seed = baseline_column, float(ties), both_orders, seed
        self._judge = getattr(judge, "judge", judge)
        self._pairwise = _is_pairwise(self._judge)
        if both_orders and not self._pairwise:
            raise OptionError(f"{name}: both_orders is for judges of pairs; rewards do not depend on an order")
        self._rewards: Any = None
        if not self._pairwise:
            from hfdataopt.rewards.functions import RewardFunctions

            self._rewards = judge if isinstance(judge, RewardFunctions) else RewardFunctions(judge, who=name)

    @property
    def settings(self) -> tuple[Any, ...]:
        """What tells it from others (:mod:`hfdataopt.attribution.identity`)."""
        judge = self._judge if self._pairwise else self._rewards
        return self.baseline_column, judge, self.ties, self.both_orders, self.seed

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        baselines = needed_column(columns, self.baseline_column, self.__name__)
        rewards: list[float | None] = [None] * len(baselines)
        rows = []
        for row, baseline in enumerate(baselines):
            if baseline is not None and text_of(baseline) == text_of(completions[row]):
                rewards[row] = self.ties
            elif baseline is not None:
                rows.append(row)
        if rows:
            prompts, completions, baselines = (
                [values[row] for row in rows] for values in (prompts, completions, baselines)
            )
            others = {name: [values[row] for row in rows] for name, values in _lists(columns).items()}
            ids = others.get("row_id") or [f"completion {row}" for row in rows]
            if self._pairwise:
                found = self._ask(prompts, completions, baselines, ids)
            else:
                state = columns.get("trainer_state")
                found = self._compare(prompts, completions, baselines, ids, others, state)
            for row, reward in zip(rows, found, strict=True):
                rewards[row] = reward
        return rewards

    def _ask(
        self, prompts: list[Any], completions: list[Any], baselines: list[Any], ids: list[Any]
    ) -> list[float | None]:
        prompts = [transcript(prompt) for prompt in prompts]
        pairs = [[text_of(one), text_of(other)] for one, other in zip(completions, baselines, strict=True)]
        swapped = [
            not self.both_orders and _coin(self.seed, prompt, *pair)
            for prompt, pair in zip(prompts, pairs, strict=True)
        ]
        wins = self._verdicts(prompts, pairs, swapped, ids)
        if not self.both_orders:
            return wins
        again = self._verdicts(prompts, pairs, [True] * len(pairs), ids)
        return [
            None if one is None or other is None else one if one == other else self.ties
            for one, other in zip(wins, again, strict=True)
        ]

    def _verdicts(
        self, prompts: list[str], pairs: list[list[str]], swapped: list[bool], ids: list[Any]
    ) -> list[float | None]:
        """1.0 where the first of a pair wins, 0.0 where the second does, None where the judge does not know."""
        shown = [pair[::-1] if swap else list(pair) for pair, swap in zip(pairs, swapped, strict=True)]
        call = functools.partial(self._judge, prompts, shown, shuffle_order=False)
        winners = run(call) if is_async(call) else call()
        if not hasattr(winners, "__len__") or len(winners) != len(pairs):
            raise DataError(
                f"{self.__name__}: the judge must return one index for each of {len(pairs)} pairs, got {winners!r:.200}"
            )
        for winner, row in zip(winners, ids, strict=True):
            if winner not in (-1, 0, 1):
                raise DataError(
                    f"{self.__name__}: the judge must return 0, 1, or -1 for undecided, got {winner!r} for row {row!r}"
                )
        return [
            None if winner == -1 else float(bool(winner) == swap) for winner, swap in zip(winners, swapped, strict=True)
        ]

    def _compare(
        self,
        prompts: list[Any],
        completions: list[Any],
        baselines: list[Any],
        ids: list[Any],
        columns: dict[str, list[Any]],
        state: Any,
    ) -> list[float | None]:
        texts: list[Any] = [text_of(baseline) for baseline in baselines]
        if is_messages(completions[0]):
            texts = [[{"role": "assistant", "content": text}] for text in texts]
        one, other = (
            self._rewards(prompts, side, None, columns, row_ids=ids, trainer_state=state).total.tolist()
            for side in (completions, texts)
        )
        return [
            None if math.isnan(mine) or math.isnan(its) else self.ties if mine == its else float(mine > its)
            for mine, its in zip(one, other, strict=True)
        ]


def _lists(columns: dict[str, Any]) -> dict[str, list[Any]]:
    """The dataset's columns among the keywords of a reward function."""
    return {name: values for name, values in columns.items() if isinstance(values, list) and name != "completion_ids"}


def _is_pairwise(judge: Any) -> bool:
    try:
        return callable(judge) and "shuffle_order" in inspect.signature(judge).parameters
    except ValueError:
        return False


def _coin(seed: int, *texts: str) -> bool:
    return hashlib.sha256("\0".join([str(seed), *texts]).encode()).digest()[0] % 2 == 1
