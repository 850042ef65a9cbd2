"""``AttributionCallback``: a scorer inside ``transformers.Trainer`` or TRL's ``SFTTrainer`` and ``RewardTrainer``, without touching the training."""

import os
import sys
import weakref
from typing import Any

from transformers import Trainer, TrainerCallback

from hfdataopt.attribution.dropped import is_of_trl, rows_dropped
from hfdataopt.attribution.moment import Moment
from hfdataopt.attribution.prepare import prepare_dataset, query_rows
from hfdataopt.attribution.rows import ROW_ID, Rows, check_map_style
from hfdataopt.attribution.run import Aggregate, ScoringRun
from hfdataopt.attribution.scorer import Scorer, When
from hfdataopt.attribution.scores import Scores
from hfdataopt.console import say
from hfdataopt.errors import DataError, OptionError, StoreError
from hfdataopt.files import JsonLines
from hfdataopt.gradients import weights_hash
from hfdataopt.plugins import get_scorer
from hfdataopt.sharded import refuse_sharded

_FOLDERS: "weakref.WeakValueDictionary[str, AttributionCallback]" = weakref.WeakValueDictionary()
WHEN = ("train_begin", "epoch", "save", "train_end")
EDITED = (
    "text",
    "completion",
    "messages",
    "conversations",
    "chosen",
    "rejected",
)  # columns that trainers of TRL change while they prepare rows


class AttributionCallback(TrainerCallback):
    """Scores the training rows while a model is trained; ``.scores`` holds the result afterwards.

    Args:
        scorer: a name, or a scorer (then options are an error).
        queries: validation data that helpfulness is measured on, tokenized as the training data is. Default: the
            trainer's eval_dataset, where ``trainer=`` is given.
        pool: the rows to score. Default: what the trainer trains on.
        trainer: gives access to the prepared dataset with its ``row_id`` column, to the eval dataset and to the trackers:
            ``trainer.add_callback(AttributionCallback(..., trainer=trainer))``.
        when: ``train_begin``, ``epoch``, ``save`` or ``train_end``; None is the scorer's own moment.
        output_dir: where scores and shards are kept as they are made. Default: ``attribution/<scorer>`` in the trainer's
            output_dir; an earlier run there is replaced, with a line that says so.
        batch_size: rows per forward pass; default: the trainer's eval batch size.
        query_group, aggregate: a column of the queries; scores are averaged over the queries of a group, then the ``mean`` or
            ``max`` over groups is taken.
        scorer_options: hyperparameters of the scorer, when it is given by name.

    Training ends with bit-identical weights with and without the callback.
    """

    def __init__(
        self,
        scorer: Any,
        *,
        queries: Any = None,
        pool: Any = None,
        trainer: Any = None,
        when: When | None = None,
        output_dir: str | os.PathLike[str] | None = None,
        batch_size: int | None = None,
        query_group: str | None = None,
        aggregate: Aggregate = "mean",
        **scorer_options: Any,
    ):
        self.scorer = resolve_scorer(scorer, scorer_options)
        if self.scorer.retrains:
            name = self.scorer.name
            raise OptionError(
                f"AttributionCallback: scorer {name!r} trains the model many times itself; call attribute(model, pool, queries, {name!r}) "
                "with the model as it is before training"
            )
        if when is not None and when not in WHEN:
            raise OptionError(f"AttributionCallback: when={when!r} is unknown; it is one of {', '.join(WHEN)}, or None")
        if batch_size is not None and (
            isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1
        ):
            raise OptionError(f"AttributionCallback: batch_size={batch_size!r} must be a whole number of at least 1")
        self.when: When = when or self.scorer.default_when
        self.trainer = trainer
        self._scores: Scores | None = None
        self._trained = False
        self._queries, self._pool, self._output_dir, self._batch_size = queries, pool, output_dir, batch_size
        self._query_group, self._aggregate = query_group, aggregate
        self._run: ScoringRun | None = None
        self._state: Any = None
        self._rates: _LearningRates | None = None

    @property
    def scores(self) -> Scores:
        """The scores of the last training.

        Raises:
            DataError: there are none, since training has not come to the moment that is scored.
        """
        if self._scores is not None:
            return self._scores
        who = f"AttributionCallback({self.scorer.name!r})"
        if self._trained:
            raise DataError(f"{who}: training ended before the first moment ({self.when}); there are no scores")
        raise DataError(
            f"{who} has no scores yet: they are made while the trainer that it was added to trains ({self.when}); call trainer.train() "
            f"first, or score without a trainer: attribute(model, pool, queries, {self.scorer.name!r})"
        )

    # -- events

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model, loader = kwargs["model"], kwargs["train_dataloader"]
        self._scores, self._trained = None, False
        self._refuse_unsupported(args, loader, model)
        collate, keep = loader.collate_fn, getattr(loader.dataset, "column_names", None)
        keep = keep and [*keep, "label", "labels"]
        processing_class = kwargs.get("processing_class")
        pool = self._make_pool(args, loader, collate, keep, model, processing_class)
        if self._pool is None:
            pool.dropped = rows_dropped(loader.dataset, args)
        queries = self._make_queries(collate, keep, model, processing_class)
        folder = os.path.abspath(self._output_dir or os.path.join(args.output_dir, "attribution", self.scorer.name))
        self._claim(folder, state)
        run = ScoringRun(
            self.scorer,
            pool,
            queries,
            folder=folder,
            batch_size=self._batch_size or args.per_device_eval_batch_size,
            processing_class=processing_class,
            autocast="bfloat16" if args.bf16 else "float16" if args.fp16 else None,
            replace=self._output_dir is None,
            at_start=self.when == "train_begin",
            query_group=self._query_group,
            aggregate=self._aggregate,
            identity={"model": type(model).__name__},
            initial_weights=weights_hash(model) if state.global_step == 0 else None,
        )
        if run.processes.is_main:
            self._tell_of_dropped_rows(pool)
        run.check(model, [kwargs.get("optimizer")])
        run.open(resumed_step=state.global_step)
        run.prepare(model)
        self._run = run
        assert run.folder is not None
        self._rates = _LearningRates(run, 0 if self.when == "train_begin" else state.global_step)
        if self.when == "train_begin":
            if state.global_step == 0 or not run.results:
                if state.global_step > 0 and run.processes.is_main:
                    say(
                        f"{self.scorer.name}: training resumes at step {state.global_step} and no scores from its beginning "
                        f"are in {run.folder}; scoring the weights as they are now"
                    )
                self._observe(args, state, kwargs)
            self._finish(args, state)
        elif self._missed(run, state):
            self._observe(args, state, kwargs)
        elif state.global_step > 0 and not run.results and self.when in ("epoch", "save") and run.processes.is_main:
            say(
                f"{self.scorer.name}: training resumes at step {state.global_step}, but {run.folder} holds no earlier moment; "
                "earlier moments are left out"
            )

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._rates is not None and self.when != "train_begin":
            self._rates.add(state.global_step + 1, kwargs["optimizer"].param_groups[0]["lr"])

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.when == "epoch":
            self._observe(args, state, kwargs)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.when == "save":
            self._observe(args, state, kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trained = True
        if self.when == "train_end":
            self._observe(args, state, kwargs)
        if self.when != "train_begin" and self._run is not None:
            if self._run.results:
                self._finish(args, state)
            elif self._run.processes.is_main:
                say(f"{self.scorer.name}: training ended before the first moment ({self.when}); there are no scores")

    # -- what the events do

    def _missed(self, run: ScoringRun, state: Any) -> bool:
        """Whether training resumes from a checkpoint that was to be scored, and the process was stopped before that was done:
        while scoring it, or while another callback worked. Its event does not come again."""
        if state.global_step == 0 or any(moment.step == state.global_step for moment, _, _ in run.results):
            return False
        if self.when == "save":
            return run.taken_up
        return self.when == "epoch" and (run.pending is not None or (run.taken_up and float(state.epoch).is_integer()))

    def _observe(self, args: Any, state: Any, kwargs: dict[str, Any]) -> None:
        assert self._run is not None and self._rates is not None
        since = max((moment.step for moment, _, _ in self._run.results if moment.step < state.global_step), default=0)
        rate = self._rates.mean(since, state.global_step)
        fresh = self.when == "train_begin" and state.global_step == 0
        moment = Moment(state.global_step, 1.0 if rate is None else rate, state.epoch, fresh)
        self._run.observe(kwargs["model"], moment, kwargs.get("optimizer"))

    def _finish(self, args: Any, state: Any) -> None:
        assert self._run is not None
        self._scores = self._run.finish()
        values = self._scores.values
        report = {f"attribution/{self.scorer.name}/{name}": float(value) for name, value in _summary(values).items()}
        report[f"attribution/{self.scorer.name}/seconds"] = round(self._run.seconds, 3)
        if self.trainer is not None:
            # The base class's own method: SFTTrainer.log would add and reset the metrics of the training under way.
            Trainer.log(self.trainer, report)
        elif state.is_world_process_zero:
            state.log_history.append({**report, "step": state.global_step})
            for tracker in ("wandb", "trackio"):
                if tracker in (args.report_to or []) and tracker in sys.modules:
                    sys.modules[tracker].log(report)
        self._run = None

    def _claim(self, folder: str, state: Any) -> None:
        """Refuse a folder that another callback of the same training writes to."""
        other = _FOLDERS.get(folder)
        if other is not None and other is not self and other._state is state:
            raise OptionError(
                f"two callbacks with the scorer {self.scorer.name!r} would keep their scores in {folder!r}; give each its own output_dir="
            )
        self._state = state
        _FOLDERS[folder] = self

    # -- data

    def _refuse_unsupported(self, args: Any, loader: Any, model: Any) -> None:
        who = f"AttributionCallback({self.scorer.name!r})"
        for option in ("packing", "padding_free"):
            if getattr(args, option, False) and self._pool is None:
                raise OptionError(
                    f"{who}: {option}=True puts several rows into one, so a batch row is no training row; set {option}=False, "
                    "or pass pool= the unpacked tokenized dataset (trainer= does not help: the ids are lost)"
                )
        refuse_sharded(who, model, args)
        if self.when == "save" and str(getattr(args.save_strategy, "value", args.save_strategy)) == "no":
            raise OptionError(
                f"{who}: when='save', but save_strategy='no' never saves; use when='epoch', or save_strategy='epoch'"
            )
        if self._pool is None:
            dataset = loader.dataset if self.trainer is None else self.trainer.train_dataset
            check_map_style(dataset, f"{who}: the training dataset")
            if getattr(args, "shuffle_dataset", False) and ROW_ID not in (getattr(dataset, "column_names", None) or []):
                raise OptionError(
                    f"{who}: shuffle_dataset=True reorders the rows while they are prepared, so positions are no identity. "
                    "Train on train_dataset=with_row_ids(dataset) and use trainer.add_callback(AttributionCallback(..., "
                    "trainer=trainer)), or pass pool= the dataset as it was prepared"
                )

    def _tell_of_dropped_rows(self, pool: Rows) -> None:
        """Say it where rows are known by position, and positions are not those of the dataset that was handed over."""
        if pool.dropped == 0 or ROW_ID in (getattr(pool.source, "column_names", None) or []):
            return
        what = (
            f"the trainer dropped {pool.dropped} row(s) while it prepared the data (nothing to learn within max_length)"
            if pool.dropped
            else "whether the trainer dropped rows while it prepared the data cannot be seen"
        )
        given = (
            "" if self.trainer is not None else " and trainer.add_callback(AttributionCallback(..., trainer=trainer))"
        )
        say(
            f"{self.scorer.name}: {what}, so row ids of these scores are positions among the {len(pool)} rows that are left, not in your "
            f"dataset, which select refuses then; to keep ids: train_dataset=with_row_ids(dataset){given}"
        )

    def _make_pool(self, args: Any, loader: Any, collate: Any, keep: Any, model: Any, processing_class: Any) -> Rows:
        if self._pool is not None:
            return Rows(*prepare_dataset(self._pool, model, processing_class, collate, "pool"), side="pool", keep=keep)
        if self.trainer is not None:
            dataset = self.trainer.train_dataset
            if keep and is_of_trl(args):  # it adds an end to texts, by which the user's rows would not be recognised
                dataset = dataset.remove_columns([c for c in EDITED if c in dataset.column_names and c not in keep])
            return Rows(dataset, collate, side="pool", keep=keep)
        return Rows(loader.dataset, collate, side="pool")

    def _make_queries(self, collate: Any, keep: Any, model: Any, processing_class: Any) -> Rows | None:
        if not self.scorer.needs_queries:
            return None
        queries = self._queries
        if queries is None and self.trainer is not None:
            queries = self.trainer.eval_dataset
        if queries is None:
            name = self.scorer.name
            raise DataError(
                f"scorer {name!r} needs queries (validation data), and a callback cannot see the eval dataset. Pass them: "
                f"AttributionCallback({name!r}, queries=val_dataset), or give the trainer: "
                f"trainer.add_callback(AttributionCallback({name!r}, trainer=trainer)) with an eval_dataset"
            )
        if isinstance(queries, dict) and not hasattr(queries, "column_names"):
            raise DataError(f"queries= is a dict of datasets ({', '.join(map(str, queries))}); pass one of them")
        return query_rows(self.scorer, queries, model, processing_class, collate, keep)


def resolve_scorer(scorer: Any, options: dict[str, Any]) -> Scorer:
    """A scorer from its name and options, or the instance given, for which options are an error."""
    if isinstance(scorer, str):
        return get_scorer(scorer, **options)
    if isinstance(scorer, type):
        raise OptionError(f"scorer={scorer.__name__} is a class; pass an instance, {scorer.__name__}(...)")
    if not isinstance(scorer, Scorer):
        raise OptionError(f"scorer={scorer!r} is neither a name nor a Scorer")
    if options:
        raise OptionError(
            f"scorer {scorer.name!r} was given as an instance, so options cannot be passed beside it; got {', '.join(options)}"
        )
    return scorer


def _summary(values: Any) -> dict[str, float]:
    import numpy as np

    scored = values[~np.isnan(values)]
    if not len(scored):
        return {"rows": 0}
    return {"rows": len(scored), "mean": scored.mean(), "min": scored.min(), "max": scored.max()}


class _LearningRates:
    """The learning rate of each optimizer step, on disk so that a resumed run has those from before.

    The first line tells after which step they begin, so that lost ones are noticed.
    """

    def __init__(self, run: ScoringRun, resumed_step: int):
        assert run.folder is not None
        self.lines = JsonLines(run.folder / "learning_rates.jsonl", run.scorer.name)
        self.write = run.processes.is_main
        begun = run.taken_up and resumed_step > 0
        self.weigh = run.scorer.combine == "learning-rate-sum"
        self.rates: dict[int, float] = run.processes.run_on_main(lambda: self._take_up(resumed_step, begun))

    def _take_up(self, resumed_step: int, begun: bool) -> dict[int, float]:
        """The rates up to the resumed step; later ones, of steps that will be taken again, are dropped from the file."""
        found = list(self.lines.read()) if resumed_step > 0 else []
        since = next((line["since"] for line in found if "since" in line), None)
        rates = {line["step"]: line["rate"] for line in found if line.get("step", resumed_step + 1) <= resumed_step}
        begin = resumed_step if since is None else since
        if self.weigh and ((begun and since is None) or len(rates) != resumed_step - begin):
            raise StoreError(
                f"{self.lines.who}: learning rates of steps before {resumed_step} are damaged or gone in {str(self.lines.file)!r}, and "
                "they weigh the moments; remove the folder and train again, or score saved checkpoints: "
                "attribute(..., checkpoints=[...])"
            )
        self.lines.replace([{"since": begin}, *({"step": step, "rate": rate} for step, rate in rates.items())])
        return rates

    def add(self, step: int, rate: Any) -> None:
        self.rates[step] = float(rate)
        if self.write:
            self.lines.append({"step": step, "rate": float(rate)})

    def mean(self, since: int, until: int) -> float | None:
        """Mean rate of the steps after ``since`` up to ``until``; None where no step was taken."""
        rates = [rate for step, rate in self.rates.items() if since < step <= until]
        return sum(rates) / len(rates) if rates else None
