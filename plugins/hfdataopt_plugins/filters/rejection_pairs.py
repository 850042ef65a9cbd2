"""Preference rows from several completions per prompt and reward functions: RS-DPO and RSO."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from hfdataopt.attribution.rows import ROW_ID
from hfdataopt.console import say
from hfdataopt.errors import DataError, OptionError
from hfdataopt.generation.prompts import as_messages
from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt.rewards.texts import is_messages
from hfdataopt.selection.filter import Filter
from hfdataopt.selection.keys import keys_of, uniform
from hfdataopt.selection.preferences import reward_functions
from hfdataopt.selection.rejection_pairs import Pairs, all_pairs, best_worst, paired, rejection_sample
from hfdataopt.selection.source import Batch, check_columns

_NEW = ("chosen", "rejected", "chosen_reward", "rejected_reward")
_LEFT_OUT = "left_out"
_MARKS = (_LEFT_OUT, "without_reward", "repeated")  # of a prompt's completions, written to the first of its rows
_FEW, _TIE, _NEAR = "fewer than 2 different completions with a reward", "equal rewards", "rewards at most min_gap apart"


@dataclass(frozen=True)
class RejectionPairs(Filter):
    """Rows (prompt, chosen, rejected, chosen_reward, rejected_reward) from a column of completions.

    Unlike other filters, the map function changes the number of rows, so it takes the place of all columns::

        f = get_filter("rejection-pairs", reward_funcs=reward).fit(dataset)
        pairs = f.pairs(dataset)                                                            # says what gave no pair
        pairs = stream.map(f, batched=True, remove_columns=stream.column_names)             # the same, on a stream too

    Every other column is kept; ``row_id`` is that of the prompt, with ``/0``, ``/1``, ... behind it where a prompt may give several
    pairs. Completions of equal text count once. A prompt with fewer than two of them, with equal rewards, or with rewards too
    near to each other gives no pair; how many do is said. The score, by which ``keep`` chooses prompts, is the difference of the
    highest and lowest reward.

    Args:
        reward_funcs: one or several TRL reward functions or reward models, as :class:`hfdataopt.rewards.RewardFunctions` takes
            them; they get every other column. None of them for a completion: it takes no part.
        rewards: instead, a column of lists with a reward per completion.
        completions: a column of lists: text, or the messages of one answer each
            (:func:`hfdataopt.selection.rejection_pairs.with_completions` samples them).
        pairs_by: ``best-worst`` (a pair per prompt) or ``all-pairs`` whose rewards are more than ``min_gap`` apart (RS-DPO, Khaki
            et al. 2024: its threshold on sigmoid(gap / tau) is tau * logit of it); ``rejection-sampling`` accepts up to ``samples``
            completions by exp((r - r_max) / beta) and pairs them at random (RSO, Liu et al. 2023, algorithm 1).
        min_gap: rewards must be more than this apart; 0 leaves out only ties.
        samples: of rejection sampling, completions to accept per prompt.
        beta: of rejection sampling, in units of reward: near 0 accepts the best only at first, large ones accept all alike.
        seed: of rejection sampling; draws are a function of (seed, row id, completion).
        reward_weights, reward_processing_classes: as for TRL's trainers.
        batch_size: texts in one forward of a reward model; with more than 1, padding may change the last digits of a reward.
    """

    name: ClassVar[str] = "rejection-pairs"
    meaning: ClassVar[str] = "a larger gap between the best and the worst completion"

    reward_funcs: Any = None
    rewards: str | None = None
    completions: str = "completions"
    pairs_by: Literal["best-worst", "all-pairs", "rejection-sampling"] = "best-worst"
    min_gap: float = 0.0
    samples: int | None = None
    beta: float | None = None
    seed: int = 0
    reward_weights: list[float] | None = None
    reward_processing_classes: Any = None
    batch_size: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "min_gap", at_least=0)
        check_range(self, "samples", at_least=2)
        check_range(self, "beta", above=0)
        check_range(self, "batch_size", at_least=1)
        if (self.reward_funcs is None) == (self.rewards is None):
            raise OptionError(f"{self.name}: give either reward_funcs= or rewards=, a column; not both")
        if self.reward_funcs is None and (
            self.reward_weights is not None or self.reward_processing_classes is not None
        ):
            raise OptionError(f"{self.name}: reward_weights and reward_processing_classes go with reward_funcs")
        sampling = self.pairs_by == "rejection-sampling"
        if (self.samples is not None) != sampling or (self.beta is not None) != sampling:
            raise OptionError(
                f"{self.name}: samples= and beta= go with pairs_by='rejection-sampling', which needs both; got "
                f"pairs_by={self.pairs_by!r}, samples={self.samples}, beta={self.beta}"
            )

    def reads(self, columns: Sequence[str], what: str) -> tuple[str, ...]:
        needed = ("prompt", self.completions, *([self.rewards] if self.rewards else []))
        check_columns(needed, columns, self.name, what)
        taken = [name for name in columns if name in (*_NEW, *_MARKS)]
        if taken:
            raise DataError(f"{self.name}: {what} already has a column {taken[0]!r}; rename or remove it")
        return ("prompt", *(name for name in columns if name not in ("prompt", ROW_ID)))

    def scores(self, batch: Batch) -> np.ndarray:
        return super().scores(self._of_prompts(batch))

    def score(self, batch: Batch) -> np.ndarray:
        rewards = [rewards for _, rewards, _, _ in self._candidates(batch)]
        return np.array([np.ptp(values) if len(values) > 1 else np.nan for values in rewards])

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The pairs of a batch of columns, for ``map(..., batched=True, remove_columns=...)``."""
        self._check_fitted("the filter")
        rows = self._rows(self.batch(batch))
        self._tell(self._count(rows), len(next(iter(batch.values()))))
        why, *_ = [rows.pop(name) for name in _MARKS]
        return {
            name: [v for v, reason in zip(values, why, strict=True) if reason is None] for name, values in rows.items()
        }

    def pairs(self, dataset: Any, *, num_proc: int | None = None) -> Any:
        """The preference dataset of a map-style dataset, of the prompts that a keep rule keeps; says how many gave no pair, and why.

        Raises:
            DataError: no prompt gives a pair.
        """
        self._check_fitted("pairs")
        if self.rule is not None:
            dataset = dataset.filter(self.keep, batched=True, input_columns=self.columns)
        features = self._features(dataset.features)
        marked = dataset.map(
            self.marked, batched=True, remove_columns=dataset.column_names, num_proc=num_proc, features=features
        )
        count: Counter[str | None] = Counter()
        for rows in marked.select_columns(list(_MARKS)).with_format("arrow").iter(10_000):
            count += self._count({name: rows[name].to_pylist() for name in _MARKS})
        self._tell(count, len(dataset))
        if not count[None]:
            raise DataError(f"{self.name}: none of the {len(dataset)} prompts gives a pair")
        return marked.filter(_is_pair, batched=True, input_columns=[_LEFT_OUT]).remove_columns(list(_MARKS))

    def marked(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """As the map function, with a row also for a prompt without a pair, and why in the column ``left_out``."""
        return self._rows(self.batch(batch))

    def _of_prompts(self, batch: Batch) -> Batch:
        """The same rows, known by their prompt alone; other columns may hold None."""
        return Batch(batch.columns, ("prompt",), batch.with_ids, batch.who)

    def _rows(self, batch: Batch) -> dict[str, list[Any]]:
        batch = self._of_prompts(batch)
        if batch.missing.any() and self.on_nan == "error":
            super().scores(batch)  # names the row
        kept = [name for name in self.read or () if name not in ("prompt", self.completions, self.rewards)]
        names = ["prompt", *_NEW, *kept, *([ROW_ID] if self.with_ids else []), *_MARKS]
        rows: dict[str, list[Any]] = {name: [] for name in names}
        for place, (completions, rewards, without, repeated) in enumerate(self._candidates(batch)):
            pairs, why = self._pair(rewards, batch.keys[place])
            found: list[tuple[Any, ...]] = [
                (completions[i], completions[j], float(rewards[i]), float(rewards[j])) for i, j in pairs
            ]
            for number, pair in enumerate(found or [(None, None, None, None)]):
                values = dict(zip(_NEW, pair, strict=True)) | {"prompt": batch["prompt"][place]}
                values |= dict(zip(_MARKS, (why, without, repeated) if number == 0 else (why, 0, 0), strict=True))
                values |= {name: batch[name][place] for name in kept}
                if self.with_ids:
                    row = batch.ids[place]
                    values[ROW_ID] = row if self.pairs_by == "best-worst" else f"{row}/{number}"
                for name, value in values.items():
                    rows[name].append(value)
        return rows

    def _pair(self, rewards: np.ndarray, key: np.uint64) -> tuple[Pairs, str | None]:
        """The pairs of a prompt, or why there are none."""
        if len(rewards) < 2:
            return [], _FEW
        if np.ptp(rewards) == 0:
            return [], _TIE
        if self.pairs_by == "rejection-sampling":
            assert self.samples is not None
            assert self.beta is not None
            places = range(len(rewards))

            def draws(turn: int | str) -> np.ndarray:
                return uniform(self.seed, keys_of([f"{key}/{turn}/{place}" for place in places]))

            accepted = rejection_sample(rewards, self.samples, self.beta, draws)
            order = draws("order")
            pairs = paired(sorted(accepted, key=lambda place: order[place]), rewards, self.min_gap)
        else:
            pairs = (best_worst if self.pairs_by == "best-worst" else all_pairs)(rewards, self.min_gap)
        return pairs, None if pairs else _NEAR

    def _candidates(self, batch: Batch) -> list[tuple[list[Any], np.ndarray, int, int]]:
        """``[rows]`` of each prompt's different completions that have a reward, their rewards, and how many have none or repeat."""
        lists = [self._completions(batch, place) for place in range(len(batch))]
        if self.rewards is not None:
            values = [self._given(batch, place, len(found)) for place, found in enumerate(lists)]
        else:
            values = self._asked(batch, lists)
        candidates = []
        for completions, rewards in zip(lists, values, strict=True):
            first: dict[str, int] = {}
            for place, (completion, reward) in enumerate(zip(completions, rewards, strict=True)):
                if completion is not None and not np.isnan(reward):
                    first.setdefault(completion if isinstance(completion, str) else repr(completion), place)
            places = list(first.values())
            rewarded = sum(one is not None and not np.isnan(r) for one, r in zip(completions, rewards, strict=True))
            numbers = (len(completions) - rewarded, rewarded - len(places))
            candidates.append(([completions[i] for i in places], rewards[places], *numbers))
        return candidates

    def _completions(self, batch: Batch, place: int) -> list[Any]:
        """The completions of a row as TRL hands them to reward functions, None for one that is missing."""
        prompt, given = batch["prompt"][place], batch[self.completions][place]
        if prompt is None or given is None:
            return []
        if isinstance(given, str) or not hasattr(given, "__len__"):
            raise DataError(
                f"{self.name}: column {self.completions!r} must hold a list of completions; got {str(given)[:60]!r} in "
                f"{batch.name_of(place)}"
            )
        found = []
        for completion in given:
            if completion is not None and not isinstance(completion, str) and not is_messages(completion):
                raise DataError(
                    f"{self.name}: a completion of {batch.name_of(place)} is neither text nor messages; got "
                    f"{str(completion)[:60]!r}"
                )
            if isinstance(prompt, str) and completion is not None and not isinstance(completion, str):
                raise DataError(
                    f"{self.name}: {batch.name_of(place)} has text as its prompt but messages as a completion"
                )
            found.append(as_messages(completion, prompt) if isinstance(completion, str) else completion)
        return found

    def _given(self, batch: Batch, place: int, count: int) -> np.ndarray:
        values = batch[self.rewards or ""][place]
        values = [] if values is None else values
        if count and len(values) != count:
            raise DataError(f"{self.name}: {batch.name_of(place)} has {count} completions but {len(values)} rewards")
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)[:count]

    def _asked(self, batch: Batch, lists: list[list[Any]]) -> list[np.ndarray]:
        where = [(row, i) for row, found in enumerate(lists) for i, one in enumerate(found) if one is not None]
        values = [np.full(len(found), np.nan) for found in lists]
        if where:
            functions = reward_functions(self)
            others = [name for name in self.read or () if name not in ("prompt", self.completions)]
            others += [ROW_ID] if self.with_ids else []
            total = functions(
                [batch["prompt"][row] for row, _ in where],
                [lists[row][i] for row, i in where],
                None,
                {name: [batch[name][row] for row, _ in where] for name in others},
                row_ids=[batch.labels[row] for row, _ in where],
            ).total
            for (row, i), reward in zip(where, total, strict=True):
                values[row][i] = reward
        return values

    def _features(self, features: Any) -> Any:
        """The types of the columns of :meth:`marked`."""
        from datasets import Features, List, Value

        def answer(feature: Any) -> Any:
            inner = getattr(feature, "feature", None)
            if isinstance(features["prompt"], Value):
                return Value("string")
            if isinstance(inner, Value):
                return List({"role": Value("string"), "content": Value("string")})
            return inner

        kept = [name for name in features if name not in ("prompt", self.completions, self.rewards, ROW_ID)]
        row = {ROW_ID: features[ROW_ID] if self.pairs_by == "best-worst" else Value("string")} if self.with_ids else {}
        completion = answer(features[self.completions])
        return Features(
            {
                "prompt": features["prompt"],
                "chosen": completion,
                "rejected": completion,
                "chosen_reward": Value("float64"),
                "rejected_reward": Value("float64"),
                **{name: features[name] for name in kept},
                **row,
                **dict(zip(_MARKS, (Value("string"), Value("int64"), Value("int64")), strict=True)),
            }
        )

    def _count(self, rows: Mapping[str, list[Any]]) -> Counter[str | None]:
        """Rows by why they are left out (None for pairs), and completions without a reward and repeated ones."""
        count: Counter[str | None] = Counter(rows[_LEFT_OUT])
        return count + Counter({name: sum(rows[name]) for name in _MARKS[1:]})

    def _tell(self, count: Counter[str | None], prompts: int) -> None:
        reasons = [f"{count[reason]} with {reason}" for reason in (_FEW, _TIE, _NEAR) if count[reason]]
        told = []
        if reasons:
            total = sum(count[reason] for reason in (_FEW, _TIE, _NEAR))
            told.append(f"{total} of {prompts} prompts give no pair ({', '.join(reasons)})")
        if count["without_reward"]:
            told.append(f"{count['without_reward']} completions have no reward")
        if count["repeated"]:
            told.append(f"{count['repeated']} completions repeat another of their prompt")
        if told:
            say(f"{self.name}: {'; '.join(told)}")


def _is_pair(left_out: list[str | None]) -> list[bool]:
    return [reason is None for reason in left_out]


@hookimpl
def register_filters(register: Callable[..., None]) -> None:
    register(RejectionPairs)
