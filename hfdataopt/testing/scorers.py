"""The promises of an attribution scorer, checked with :func:`hfdataopt.attribute` and inside a ``Trainer``."""

import copy
import functools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hfdataopt.attribution import reader
from hfdataopt.attribution.attribute import attribute
from hfdataopt.attribution.callback import AttributionCallback
from hfdataopt.attribution.rows import pad_batch
from hfdataopt.attribution.scorer import Scorer
from hfdataopt.attribution.scores import Scores
from hfdataopt.console import quiet
from hfdataopt.errors import MissingDependencyError
from hfdataopt.testing import tiny
from hfdataopt.testing.common import global_random_states, other_random_states
from hfdataopt.testing.kit import Case, NotChecked, promise

POOL, QUERIES = 14, 6
FLIPPED = (3, 8, 12)
BATCH = 5  # does not divide the pool
TOLERANCE = 1e-4  # of the largest score: what float32 forward passes of other shapes may differ by


class ScorerCase(Case):
    """A scorer with a model, a pool in which some labels are wrong, and clean queries.

    Attributes:
        planted: whether the data are the kit's own, whose good and bad rows are known.
    """

    kind = "scorer"
    data = ("model", "pool", "queries", "processing_class", "checkpoints")

    def __init__(
        self,
        component: Any,
        model: Any = None,
        pool: Any = None,
        queries: Any = None,
        processing_class: Any = None,
        checkpoints: Any = None,
    ) -> None:
        super().__init__(component)
        prompts = component.query_form == "prompts"
        self.planted = model is pool is queries is None and not prompts
        if model is None:
            model = tiny.speaker() if prompts else tiny.trained()
            processing_class = processing_class or (tiny.reader() if prompts else tiny.tokenizer())
        if pool is None:
            pool = tiny.questions(POOL, 1) if prompts else tiny.encoded(POOL, 1, FLIPPED)
        if queries is None:
            queries = tiny.prompts(QUERIES, 2) if prompts else tiny.encoded(QUERIES, 2)
        if "row_id" not in pool.column_names:
            pool = pool.add_column("row_id", [f"row {place}" for place in range(len(pool))])
        self.model, self.pool, self.queries, self.processing_class = model, pool, queries, processing_class
        self.checkpoints = checkpoints
        if checkpoints is None and type(component).check_optimizer is not Scorer.check_optimizer:
            self.checkpoints = [self._checkpoint()]  # it may need the optimizer's moments

    def scores(self, component: Any = None, **changes: Any) -> Scores:
        """Scores of a copy of the scorer, on a copy of the model, unless others are given."""
        given = {
            "model": copy.deepcopy(self.model) if "model" not in changes else None,
            "pool": self.pool,
            "batch_size": BATCH,
        }
        given |= {
            "processing_class": self.processing_class,
            "queries": self.queries,
            "checkpoints": self.checkpoints,
            **changes,
        }
        chosen = self.fresh() if component is None else component
        if not chosen.needs_queries:
            given["queries"] = None
        return attribute(given.pop("model"), given.pop("pool"), given.pop("queries"), chosen, **given)

    def _checkpoint(self) -> str:
        """The folder of a checkpoint with an optimizer, as a ``Trainer`` saves it."""
        self._folder = tempfile.TemporaryDirectory()
        with quiet():
            _train(self, self._folder.name, save_strategy="epoch")
        (folder,) = Path(self._folder.name).glob("checkpoint-*")
        return str(folder)

    @functools.cached_property
    def baseline(self) -> Scores:
        return self.scores()

    @functools.cached_property
    def _state(self) -> str:
        """Why there is nothing to compare with; empty where there is."""
        try:
            values = self.baseline.values
        except Exception:
            return "it cannot score, see one-score-per-row"
        return (
            ""
            if np.array_equal(values, self.scores().values, equal_nan=True)
            else "two equal runs differ, see deterministic"
        )

    def needs_baseline(self, check: str = "") -> None:
        if self._state and self._state.rpartition(" ")[2] != check:
            raise NotChecked(self._state)

    def same(self, check: str, other: np.ndarray, found: str, change: str, tolerance: float = TOLERANCE) -> None:
        """Fail unless ``other`` are the scores of the baseline."""
        values = self.baseline.values
        scale = max(float(np.max(np.abs(values[np.isfinite(values)]), initial=0.0)), 1e-30)
        if not np.allclose(values, other, rtol=0, atol=tolerance * scale, equal_nan=True):
            worst = int(np.nanargmax(np.abs(values - other))) if not np.isnan(values - other).all() else 0
            row = self.baseline.row_ids[worst]
            self.fail(f"{found}: row {row!r} got {values[worst]:.6g}, and {other[worst]:.6g}", change)


@promise("one-score-per-row", "scorer")
def one_score_per_row(case: ScorerCase) -> None:
    """It scores: one number for each row of the pool, [rows] or [rows, queries]."""
    try:
        scores = case.baseline
    except MissingDependencyError:
        raise
    except Exception as error:
        case.fail(
            f"cannot score {len(case.pool)} rows: {case.told(error)}",
            case.mend(
                error,
                "Return one number per row of the pool from score(view), or [batch] from score_batch(model, batch)",
            ),
        )
    if scores.row_ids != list(case.pool["row_id"]):
        case.fail("the row ids of the scores are not those of the pool", "Return scores in the order of view.pool")


@promise("finite", "scorer")
def finite(case: ScorerCase) -> None:
    """Every score of ordinary rows is a finite number."""
    case.needs_baseline()
    bad = ~np.isfinite(case.baseline.values)
    if bad.any():
        row = case.baseline.row_ids[int(bad.argmax())]
        case.fail(
            f"{bad.sum()} of {len(bad)} rows got NaN or infinity, for example row {row!r}",
            "Look for a division by zero or the logarithm of zero; a row that has no score is for rows without labels only",
        )


@promise("deterministic", "scorer")
def deterministic(case: ScorerCase) -> None:
    """The same call gives the same scores, bit by bit, whatever the global random state is."""
    case.needs_baseline("deterministic")
    with other_random_states():
        found = case.scores().values
    if not np.array_equal(case.baseline.values, found, equal_nan=True):
        case.fail(
            "two equal runs gave other scores",
            "Draw from numpy.random.default_rng(self.seed) with an option `seed: int = 0`, and not from the time or an unseeded generator",
        )


@promise("batch-size", "scorer")
def batch_size(case: ScorerCase) -> None:
    """A row's score does not depend on the batch size."""
    case.needs_baseline()
    for size in (1, len(case.pool)):
        case.same(
            "batch-size",
            case.scores(batch_size=size).values,
            f"scores with batch_size={size} are not those with batch_size={BATCH}",
            "Compute each row from that row alone: no mean over the batch, and sums over tokens where the mask is 1",
        )


@promise("row-order", "scorer")
def row_order(case: ScorerCase) -> None:
    """A row's score does not depend on where it stands in the pool."""
    case.needs_baseline()
    order = np.random.default_rng(3).permutation(len(case.pool))
    found = case.scores(pool=case.pool.select(order.tolist())).values
    case.same(
        "row-order",
        found[np.argsort(order)],
        "with the pool in another order, scores differ",
        "Draw and break ties by row id (hfdataopt.attribution.rows.shuffled(ids, seed)), never by position",
    )


class Padded:
    """A collator that pads further than it must."""

    def __init__(self, more: int, pad: int = 0):
        self.more, self.pad = more, pad

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        batch = pad_batch(rows, self.pad)
        fill = {"labels": -100, "attention_mask": 0, "token_type_ids": 0}
        for name, value in batch.items():
            if value.ndim == 2:
                batch[name] = torch.nn.functional.pad(value, (0, self.more), value=fill.get(name, self.pad))
        return batch


@promise("padding", "scorer")
def padding(case: ScorerCase) -> None:
    """A row's score does not depend on how far it is padded."""
    case.needs_baseline()
    case.same(
        "padding",
        case.scores(data_collator=Padded(7)).values,
        "with seven more pad tokens in each batch, scores differ",
        "Use batch['attention_mask'], and labels other than -100: padding must not enter sums, means or lengths",
    )


@promise("untouched", "scorer")
def untouched(case: ScorerCase) -> None:
    """Scoring leaves the model and the random states as they were, bit by bit."""
    case.needs_baseline()
    model = copy.deepcopy(case.model).train()
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = _hooks(model)
    with global_random_states(case):
        case.scores(model=model)
    for name, value in model.state_dict().items():
        if not torch.equal(value, before[name]):
            case.fail(
                f"the weights {name} are others after scoring",
                "Work on a copy.deepcopy(view.model), or under torch.no_grad() without writing",
            )
    if left := [name for name, value in model.named_parameters() if value.grad is not None]:
        case.fail(
            f"left a gradient in {left[0]}, which the next training step would add",
            "Take gradients with torch.autograd.grad, or view.gradients(...), and not with loss.backward()",
        )
    if frozen.requires_grad or not model.training:
        case.fail("changed requires_grad or the train mode", "Leave both; the host has put the model in eval mode")
    if _hooks(model) != hooks:
        case.fail("left hooks on the model", "Remove every hook in a finally block: handle.remove()")


def _hooks(model: Any) -> list[int]:
    return [
        len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
        for module in model.modules()
    ]


@promise("keeps-no-state", "scorer")
def keeps_no_state(case: ScorerCase) -> None:
    """An instance that has scored other rows scores these as a new one does, and its options are as they were."""
    case.needs_baseline()
    used = case.fresh()
    before = repr(used)
    case.scores(used, pool=case.pool.select(range(len(case.pool) // 2)))
    case.same(
        "keeps-no-state",
        case.scores(used).values,
        "an instance that had scored half of the pool before gives other scores than a new one",
        "Keep nothing on self in score(view): what may be kept between moments belongs into view.folder or view.shared",
        tolerance=0,
    )
    if repr(used) != before:
        case.fail(f"scoring changed its options from {before} to {used!r}", "Never assign to an option in score(view)")


class Interrupting:
    """The kit's collator, which is interrupted in a call."""

    def __init__(self, at: int | None = None):
        self.at, self.calls = at, 0

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return pad_batch(rows)


@contextmanager
def small_shards() -> Iterator[None]:
    """Results go to disk every few rows, so that there are some when a run is interrupted."""
    before, reader.ROWS_PER_SHARD = reader.ROWS_PER_SHARD, 4
    try:
        yield
    finally:
        reader.ROWS_PER_SHARD = before


@promise("resumable", "scorer")
def resumable(case: ScorerCase) -> None:
    """A run that is interrupted and begun again in the same folder ends with the same scores."""
    case.needs_baseline()
    with tempfile.TemporaryDirectory() as folder, small_shards():
        whole = Interrupting()
        expected = case.scores(data_collator=whole).values
        at = max(1, whole.calls // 2)
        with suppress(KeyboardInterrupt):
            case.scores(data_collator=Interrupting(at), output_dir=f"{folder}/run")
        for what in ("begun again", "looked up"):
            found = case.scores(data_collator=Interrupting(), output_dir=f"{folder}/run").values
            if not np.array_equal(found, expected, equal_nan=True):
                case.fail(
                    f"a run that was interrupted at batch {at} of {whole.calls} and {what} gave other scores than one that was not",
                    "Put into the name or manifest of what you keep in view.folder everything it depends on, write it whole "
                    "(view.per_row and view.sharded do), and draw by row id and seed instead of going on with a generator",
                )


@promise("reads-target", "scorer")
def reads_target(case: ScorerCase) -> None:
    """Other queries give other scores, for a scorer that says it needs them."""
    case.needs_baseline()
    if not case.component.needs_queries:
        raise NotChecked("it needs no queries")
    if np.array_equal(case.scores(queries=case.queries.select([0])).values, case.baseline.values, equal_nan=True):
        case.fail(
            "one query gives the very scores that all of them give",
            "Use view.queries, or set `needs_queries: ClassVar[bool] = False`",
        )


@promise("higher-is-helpful", "scorer")
def higher_is_helpful(case: ScorerCase) -> None:
    """Rows with wrong labels score lower than the others on average, where the meaning is helpfulness or suspicion."""
    case.needs_baseline()
    if not case.planted:
        raise NotChecked("only the kit's own classifier has rows that are known to be bad")
    if case.component.meaning not in ("helpfulness", "suspicion"):
        raise NotChecked(f"its meaning is {case.component.meaning!r}")
    values = case.baseline.values
    wrong, right = values[list(FLIPPED)], np.delete(values, FLIPPED)
    if not np.nanmean(wrong) < np.nanmean(right):
        case.fail(
            f"rows with wrong labels score {np.nanmean(wrong):.4g} on average, the others {np.nanmean(right):.4g}",
            "Scores are higher = more helpful: return minus a measure of suspicion, such as a loss; if it measures something else, "
            "say so in `meaning`",
        )


@promise("in-a-trainer", "scorer")
def in_a_trainer(case: ScorerCase) -> None:
    """As a callback it leaves a training bit by bit as it was, and gives one score per row."""
    case.needs_baseline()
    if case.component.retrains:
        raise NotChecked("it trains models of its own, so it runs by attribute alone")
    callback = AttributionCallback(
        case.fresh(), queries=case.queries if case.component.needs_queries else None, batch_size=BATCH
    )
    with tempfile.TemporaryDirectory() as folder:
        alone, beside = _train(case, folder), _train(case, folder, callback)
    if any(not torch.equal(alone[name], beside[name]) for name in alone):
        case.fail(
            "a training with it as a callback ends with other weights than one without",
            "Draw from generators of your own, and leave the model, its gradients and its mode alone",
        )
    assert callback.scores is not None
    if len(callback.scores) != len(case.pool):
        case.fail(
            f"gave {len(callback.scores)} scores for {len(case.pool)} rows in a Trainer", "Score all of view.pool"
        )


def _train(case: ScorerCase, folder: str, *callbacks: Any, save_strategy: str = "no") -> dict[str, torch.Tensor]:
    """The weights after a few steps."""
    from transformers import Trainer, TrainingArguments

    args = TrainingArguments(
        folder,
        num_train_epochs=1,
        per_device_train_batch_size=7,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy=save_strategy,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=3,
    )
    trainer = Trainer(
        copy.deepcopy(case.model),
        args,
        train_dataset=case.pool,
        data_collator=pad_batch,
        processing_class=case.processing_class,
        callbacks=list(callbacks),
    )
    for one in list(trainer.callback_handler.callbacks):
        if type(one).__name__ == "PrinterCallback":
            trainer.remove_callback(one)
    trainer.train()
    assert trainer.model is not None
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}
