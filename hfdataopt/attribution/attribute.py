"""``attribute``: a scorer on a model in memory, or on saved checkpoints, with no trainer."""

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hfdataopt.attribution.callback import resolve_scorer
from hfdataopt.attribution.checkpoint import Checkpoint
from hfdataopt.attribution.moment import Moment
from hfdataopt.attribution.prepare import model_columns, prepare_dataset, query_rows
from hfdataopt.attribution.rows import Rows
from hfdataopt.attribution.run import Aggregate, ScoringRun
from hfdataopt.attribution.scores import Scores
from hfdataopt.console import say
from hfdataopt.errors import DataError, OptionError, first_line
from hfdataopt.gradients import unpeft, weights_hash
from hfdataopt.hub import why_not_on_hub
from hfdataopt.sharded import refuse_sharded


def attribute(
    model: Any,
    pool: Any,
    queries: Any,
    scorer: Any,
    *,
    checkpoints: Sequence[Any] | None = None,
    processing_class: Any = None,
    data_collator: Callable[[list[Any]], Any] | None = None,
    batch_size: int = 16,
    output_dir: str | os.PathLike[str] | None = None,
    query_group: str | None = None,
    aggregate: Aggregate = "mean",
    **options: Any,
) -> Scores:
    """Score the rows of ``pool`` by how they help ``model`` on ``queries``.

    Args:
        model: a ``PreTrainedModel`` (or a PEFT model), whose weights are not changed; or a folder or hub id, loaded as the class
            that its config names, with its tokenizer where no ``processing_class`` is given.
        pool: the training rows, tokenized as for the Trainer, or raw text that ``processing_class`` can read.
        queries: validation rows in the same form; None for a scorer that needs none.
        scorer: a name, or a scorer (then options are an error).
        checkpoints: folders, or :class:`Checkpoint`, whose weights are scored one after another and combined as the scorer
            says (``tracin`` sums them with their learning rates). They are ordered by the steps in their
            ``trainer_state.json``, or as listed where one of them has none. None scores the model as it is.
        processing_class: the tokenizer; needed for raw text, and for texts in explanations.
        data_collator: default: padding on the right.
        batch_size: rows per forward pass.
        output_dir: where results and shards are kept; a killed call with the same arguments resumes there.
        query_group, aggregate: a column of the queries; scores are averaged over the queries of a group, then the ``mean`` or
            ``max`` over groups is taken.
        options: hyperparameters of the scorer, when it is given by name.

    Returns:
        Scores, higher = more helpful.
    """
    chosen = resolve_scorer(scorer, options)
    if isinstance(model, str | os.PathLike):
        model, processing_class = open_model(os.fspath(model), processing_class)
    if not hasattr(model, "forward"):
        raise OptionError(f"attribute: model={model!r} is no model; pass a PreTrainedModel, a folder or a hub id")
    refuse_sharded("attribute", model)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise OptionError(f"attribute: batch_size={batch_size!r} must be a whole number of at least 1")
    if chosen.needs_queries and queries is None:
        raise DataError(f"scorer {chosen.name!r} needs queries (validation data); got None")
    prepared, collate = prepare_dataset(pool, model, processing_class, data_collator, "pool")
    pool_rows = Rows(prepared, collate, side="pool", keep=model_columns(prepared, model))
    asked = None
    if chosen.needs_queries:
        asked = query_rows(chosen, queries, model, processing_class, data_collator)
    identity: dict[str, Any] = {"model": type(model).__name__}
    if output_dir is not None and checkpoints is None:
        identity["weights"] = weights_hash(model)
    run = ScoringRun(
        chosen,
        pool_rows,
        asked,
        folder=output_dir,
        batch_size=batch_size,
        processing_class=processing_class,
        query_group=query_group,
        aggregate=aggregate,
        identity=identity,
    )
    if checkpoints is None:
        run.check(model, [None])
        run.open()
        run.prepare(model)
        run.observe(model, Moment(0))
        return run.finish()
    if not isinstance(checkpoints, Sequence) or isinstance(checkpoints, str | bytes):
        raise OptionError(f"attribute: checkpoints={checkpoints!r:.200} must be a list of folders; wrap it in [...]")
    found = [Checkpoint.of(value) for value in checkpoints]
    if not found:
        raise OptionError("attribute: checkpoints= is empty; pass at least one folder, or None for the model as it is")
    weigh = chosen.combine == "learning-rate-sum"
    steps = [checkpoint.step for checkpoint in found]
    known = [step for step in steps if step is not None]
    if len(set(known)) != len(known):
        raise OptionError(f"attribute: two checkpoints are of the same step ({known})")
    in_list_order = len(known) < len(found)  # where one does not tell its step, steps and places must not be mixed
    moments = []
    for index, (checkpoint, step) in enumerate(zip(found, steps, strict=True)):
        previous = max((other for other in known if step is not None and other < step), default=0)
        rate = checkpoint.mean_learning_rate(previous) if weigh else 1.0
        moments.append(Moment(index if in_list_order or step is None else step, rate))
    if chosen.combine == "last":
        latest = max(range(len(found)), key=lambda i: moments[i].step)
        if len(found) > 1 and run.processes.is_main:
            order = "last in the list" if in_list_order else f"of the last step, {moments[latest].step}"
            say(
                f"{chosen.name}: scores one checkpoint, {found[latest].path!r} ({order}); the other {len(found) - 1} are not used"
            )
        found, moments = [found[latest]], [moments[latest]]
    run.check(model, found)
    run.open()  # finished moments are found by the hash of their weights
    run.prepare(model)
    for checkpoint, moment in zip(found, moments, strict=True):
        run.observe(load_weights(model, checkpoint), moment, checkpoint)
    return run.finish()


def open_model(name: str, processing_class: Any = None) -> tuple[Any, Any]:
    """Model and tokenizer of a folder or hub id; the tokenizer is None where there is none.

    Raises:
        OptionError: it cannot be loaded, or its config names no class of transformers that it could be loaded as.
    """
    import transformers

    if (why := why_not_on_hub(name)) is not None:
        raise OptionError(f"attribute: the folder model={name!r} {why}")
    if (Path(name) / "adapter_config.json").is_file() and not (Path(name) / "config.json").is_file():
        raise OptionError(
            f"attribute: model={name!r} holds an adapter only; load it on its model with peft and pass that"
        )
    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        kind = getattr(transformers, (config.architectures or [""])[0], None)
        if kind is None:
            raise OptionError(
                f"attribute: model={name!r} names no class of transformers to load it as (architectures: {config.architectures}); "
                "load it yourself and pass the model"
            )
        model = kind.from_pretrained(name, trust_remote_code=False).eval()
    except OptionError:
        raise
    except Exception as error:  # a broken file, no network: anything, from several libraries
        raise OptionError(
            f"attribute: cannot load model={name!r}: {type(error).__name__}: {first_line(error)}; a local folder can be given too"
        ) from error
    if processing_class is None:
        with contextlib.suppress(Exception):  # no tokenizer, which is missed only where there is raw text
            processing_class = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    return model, processing_class


def load_weights(model: Any, checkpoint: Checkpoint) -> Any:
    """A fresh model of the same class with the checkpoint's weights, on the same device; the model given stays as it is."""
    if unpeft(model) is not model:
        import copy

        from peft import load_peft_weights, set_peft_model_state_dict

        loaded = copy.deepcopy(model)
        set_peft_model_state_dict(loaded, load_peft_weights(checkpoint.path, device="cpu"))
        return loaded
    device = next(model.parameters()).device
    return type(model).from_pretrained(checkpoint.path, dtype=next(model.parameters()).dtype).to(device)
