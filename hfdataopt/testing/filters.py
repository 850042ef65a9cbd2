"""The promises of a dataset filter, checked as a ``datasets`` map function."""

import copy
import functools
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
from datasets import Dataset
from datasets.fingerprint import Hasher

from hfdataopt.errors import DataError, MissingDependencyError
from hfdataopt.testing import tiny
from hfdataopt.testing.common import global_random_states, other_random_states
from hfdataopt.testing.kit import Case, NotChecked, promise

ROWS = 30
FLIPPED = (4, 9, 15, 22)
TOLERANCE = 1e-6  # of the largest score, where rows are computed in other batches by a model; else bits count


class FilterCase(Case):
    """A filter, a dataset of two topics of which some labels are wrong, and a target of one of them.

    Attributes:
        planted: whether the data are the kit's own.
    """

    kind = "filter"
    data = ("dataset", "target")

    def __init__(self, component: Any, dataset: Any = None, target: Any = None) -> None:
        super().__init__(component)
        self.planted = dataset is target is None
        self.dataset = tiny.rows(ROWS, 1, FLIPPED) if dataset is None else dataset
        if "row_id" not in self.dataset.column_names:
            self.dataset = self.dataset.add_column("row_id", [f"row {place}" for place in range(len(self.dataset))])
        self.target = tiny.rows(6, 2, topic=1) if target is None else target

    def fit(self, dataset: Any = None, target: Any = None, component: Any = None) -> Any:
        """A copy of the filter, fitted."""
        chosen = self.fresh() if component is None else component
        if not chosen.needs_target:
            return chosen.fit(self.dataset if dataset is None else dataset)
        return chosen.fit(self.dataset if dataset is None else dataset, self.target if target is None else target)

    def scores(self, fitted: Any = None, dataset: Any = None, **options: Any) -> np.ndarray:
        """``[rows]``: the score column that the filter adds by ``map``."""
        fitted = self.fit() if fitted is None else fitted
        data = self.dataset if dataset is None else dataset
        options = {"batched": True, "batch_size": 7, **options}
        if not isinstance(data, Dataset):
            return np.array([row[fitted.score_column] for row in data.map(fitted, **options)], float)
        return np.array(data.map(fitted, load_from_cache_file=False, **options)[fitted.score_column][:], float)

    @functools.cached_property
    def baseline(self) -> np.ndarray:
        return self.scores()

    @functools.cached_property
    def _state(self) -> str:
        try:
            values = self.baseline
        except Exception:
            return "it cannot score, see one-score-per-row"
        if values.shape != (len(self.dataset),):
            return "its scores are not one per row, see one-score-per-row"
        return (
            "" if np.array_equal(values, self.scores(), equal_nan=True) else "two equal fits differ, see deterministic"
        )

    def needs_baseline(self, check: str = "") -> None:
        if self._state and self._state.rpartition(" ")[2] != check:
            raise NotChecked(self._state)

    def same(self, other: np.ndarray, found: str, change: str) -> None:
        """Fail unless ``other`` are the scores of the baseline."""
        values = self.baseline
        if other.shape != values.shape:
            self.fail(f"{found}: {len(other)} scores for {len(values)} rows", change)
        scale = max(float(np.max(np.abs(values[np.isfinite(values)]), initial=0.0)), 1e-30)
        if not np.allclose(values, other, rtol=0, atol=TOLERANCE * scale, equal_nan=True):
            gaps = np.abs(values - other)
            worst = int(np.nanargmax(gaps)) if not np.isnan(gaps).all() else 0
            row = self.dataset["row_id"][worst]
            self.fail(f"{found}: row {row!r} got {values[worst]:.6g}, and {other[worst]:.6g}", change)


@promise("one-score-per-row", "filter")
def one_score_per_row(case: FilterCase) -> None:
    """It can be fitted, and adds one number to each row."""
    try:
        values = case.baseline
    except MissingDependencyError:
        raise
    except Exception as error:
        case.fail(
            f"cannot score {len(case.dataset)} rows: {case.told(error)}",
            case.mend(
                error,
                "Name the columns it reads in reads(columns, what), and return [rows] float64 from score(batch); if it reads columns "
                f"that {', '.join(case.dataset.column_names)} are not, hand over dataset= (and target=)",
            ),
        )
    if values.shape != (len(case.dataset),):
        case.fail(
            f"made {len(values)} scores of {len(case.dataset)} rows", "Return one number per row from score(batch)"
        )


@promise("finite", "filter")
def finite(case: FilterCase) -> None:
    """Every score of ordinary rows is a finite number."""
    case.needs_baseline()
    bad = ~np.isfinite(case.baseline)
    if bad.any():
        row = case.dataset["row_id"][int(bad.argmax())]
        case.fail(
            f"{bad.sum()} of {len(bad)} rows got NaN or infinity, for example row {row!r}",
            "Look for a division by zero or the logarithm of zero; a row that cannot have a score gets NaN, and no_score says why",
        )


@promise("deterministic", "filter")
def deterministic(case: FilterCase) -> None:
    """The same fit gives the same scores, bit by bit, whatever the global random state is."""
    case.needs_baseline("deterministic")
    with other_random_states():
        found = case.scores()
    if not np.array_equal(case.baseline, found, equal_nan=True):
        case.fail(
            "two equal fits gave other scores",
            "Draw as a function of a seed and the row, for example hfdataopt.selection.keys.uniform(self.seed, batch.keys)",
        )


@promise("batch-size", "filter")
def batch_size(case: FilterCase) -> None:
    """A row's score does not depend on the batch it comes in."""
    case.needs_baseline()
    fitted = case.fit()
    for size in (1, len(case.dataset)):
        case.same(
            case.scores(fitted, batch_size=size),
            f"scores with batch_size={size} are not those with batch_size=7",
            "Let score(batch) look at each row alone; what depends on other rows belongs into learn(pool, target)",
        )


@promise("row-order", "filter")
def row_order(case: FilterCase) -> None:
    """A row's score does not depend on where it stands in the dataset."""
    case.needs_baseline()
    order = np.random.default_rng(3).permutation(len(case.dataset))
    shuffled = case.dataset.select(order.tolist())
    case.same(
        case.scores(case.fit(shuffled), shuffled)[np.argsort(order)],
        "fitted and run on the rows in another order, scores differ",
        "Draw and break ties by batch.keys, never by position or by how many rows came before",
    )


@promise("keeps-no-state", "filter")
def keeps_no_state(case: FilterCase) -> None:
    """fit returns a fitted copy: neither the filter nor an earlier copy is changed by it."""
    case.needs_baseline()
    component = case.fresh()
    before = _state_of(component)
    first = case.fit(component=component)
    if first is component or component.fitted or _state_of(component) != before:
        case.fail(
            "fit changed the filter itself",
            "Set state in learn with self.set(name=value), which is called on a copy; never otherwise",
        )
    case.fit(case.dataset.select(range(len(case.dataset) // 2)), component=component)
    case.same(
        case.scores(first),
        "after the same filter was fitted to other rows, the copy that was fitted before scores differently",
        "Set new objects in learn (self.set(table={...})); do not fill a list or dict that all instances share",
    )


def _state_of(component: Any) -> str:
    return repr(
        {
            name: value
            for name, value in vars(component).items()
            if isinstance(value, bool | int | float | str | list | dict | type(None))
        }
    )


@promise("untouched", "filter")
def untouched(case: FilterCase) -> None:
    """The rows it gets and the global random states stay as they were."""
    case.needs_baseline()
    batch = case.dataset[:]
    before = copy.deepcopy(batch)
    with global_random_states(case):
        fitted = case.fit()
        found = fitted(batch)
    if batch != before:
        name = next((name for name in before if batch.get(name) != before[name]), "a column")
        case.fail(
            f"changed the column {name!r} of the batch it was given",
            "Work on copies: list(batch['text']), not .sort() or item assignment",
        )
    if list(found) != [fitted.score_column]:
        case.fail(
            f"the map function returned the columns {list(found)}",
            f"Return the scores alone; the host names them {fitted.score_column}",
        )


@promise("pickles", "filter")
def pickles(case: FilterCase) -> None:
    """Fitted, it can be sent to another process and scores the same there."""
    case.needs_baseline()
    try:
        again = ForkingPickler.loads(bytes(ForkingPickler.dumps(case.fit())))  # what a worker process does
        found = case.scores(again)
    except Exception as error:
        case.fail(
            f"a fitted copy cannot be sent to another process: {case.told(error)}",
            "Keep arrays, numbers, texts and dicts in the fitted state; make open files, clients and compiled things when they are needed",
        )
    case.same(
        found,
        "a fitted copy scores differently after pickling",
        "Let __getstate__ and __reduce__ keep the fitted state, or leave them out",
    )


@promise("version-in-fingerprint", "filter")
def version_in_fingerprint(case: FilterCase) -> None:
    """A new version is another transform to the cache of datasets; the same fit again is the same one."""
    case.needs_baseline()
    one, other = case.fit(), case.fit()
    if Hasher.hash(one) != Hasher.hash(other):
        case.fail(
            "two equal fits have other fingerprints, so datasets never finds a cached result again",
            "Keep nothing in it that differs from time to time: ids of objects, times, unseeded draws, sets of texts",
        )
    other.set(version=other.version + 1)
    if Hasher.hash(one) == Hasher.hash(other):
        case.fail(
            "a higher version has the same fingerprint, so datasets would serve results of the code of before",
            "Let __getstate__ and __reduce__ keep `version` and `code`, or leave them out",
        )


@promise("same-on-a-stream", "filter")
def same_on_a_stream(case: FilterCase) -> None:
    """A stream of the same rows gets the same scores; a filter with streams = False says so at fit."""
    case.needs_baseline()
    stream = case.dataset.to_iterable_dataset(num_shards=2)
    if type(case.component).streams:
        fitted = case.fit(stream)
    else:
        try:
            case.fit(stream)
        except DataError:
            fitted = case.fit()
        else:
            case.fail(
                "says streams = False, but can be fitted on a stream", "Leave out `streams: ClassVar[bool] = False`"
            )
    case.same(
        case.scores(fitted, stream),
        "on a stream of the same rows, scores differ",
        "Read the dataset by pool.batches() in learn, and the rows in score(batch); where it must see all rows at once, "
        "set `streams: ClassVar[bool] = False` (or inherit from WholeFilter)",
    )


@promise("same-with-num-proc", "filter")
def same_with_num_proc(case: FilterCase) -> None:
    """Several processes give the same scores as one."""
    case.needs_baseline()
    case.same(
        case.scores(num_proc=2),
        "with num_proc=2, scores differ",
        "Count or remember nothing from batch to batch: each process sees other rows, in its own copy of the filter",
    )


@promise("reads-target", "filter")
def reads_target(case: FilterCase) -> None:
    """Another target gives other scores, for a filter that says it needs one."""
    case.needs_baseline()
    if not case.component.needs_target:
        raise NotChecked("it needs no target")
    other = tiny.rows(6, 5, topic=0) if case.planted else case.target.select([0])
    if np.array_equal(case.scores(case.fit(target=other)), case.baseline, equal_nan=True):
        case.fail(
            "another target gives the very same scores",
            "Use target in learn(pool, target), or set `needs_target: ClassVar[bool] = False`",
        )


@promise("higher-is-helpful", "filter")
def higher_is_helpful(case: FilterCase) -> None:
    """Rows like the target score higher on average; rows with wrong labels lower where the meaning is suspicion."""
    case.needs_baseline()
    if not case.planted:
        raise NotChecked("only the kit's own rows are known to be good or bad")
    labels, wrong = np.array(case.dataset["label"]), np.isin(np.arange(len(case.dataset)), FLIPPED)
    if case.component.needs_target:
        good, what = (labels == 1) ^ wrong, "rows on the target's topic"
    elif case.component.meaning == "suspicion":
        good, what = ~wrong, "rows with right labels"
    else:
        raise NotChecked(f"its meaning is {case.component.meaning!r}")
    high, low = np.nanmean(case.baseline[good]), np.nanmean(case.baseline[~good])
    if not high > low:
        case.fail(
            f"{what} score {high:.4g} on average, the others {low:.4g}",
            "Scores are higher = more helpful: return minus a distance or a suspicion",
        )
