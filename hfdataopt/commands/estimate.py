"""``--dry-run``: what a command would compute, and about what it costs.

Rows are counted, a sample of them is read, and one batch of it is run and timed; all else is arithmetic. What cannot be
known so cheaply is not guessed but named.
"""

import contextlib
import copy
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from hfdataopt.console import quiet
from hfdataopt.errors import DataError

SAMPLE = 64  # rows that are looked at
SECONDS = 5.0  # after which nothing is repeated


@dataclass(frozen=True)
class Speed:
    """Seconds per row of a batch of ``rows``; ``gradient`` is forward and backward, None where rows have no loss."""

    rows: int
    forward: float
    gradient: float | None

    def __str__(self) -> str:
        whole = "" if self.gradient is None else f", {duration(self.gradient * self.rows)} with gradients"
        return f"measured: {self.rows} rows take {duration(self.forward * self.rows)} forward{whole}"


def show(title: str, lines: Iterable[str]) -> None:
    print(f"dry run, nothing is written: {title}")
    for line in lines:
        print(f"  {line}")


def sample_of(dataset: Any) -> Any:
    """At most ``SAMPLE`` rows of a dataset, spread over it."""
    step = max(1, len(dataset) // SAMPLE)
    return dataset.select(range(0, len(dataset), step)[:SAMPLE])


def rows_line(name: str, dataset: Any, lengths: list[int] | None) -> str:
    """How many rows, and how long those are that were looked at, in tokens."""
    if not lengths:
        return f"{name}: {len(dataset):,} rows"
    mean = sum(lengths) / len(lengths)
    return (
        f"{name}: {len(dataset):,} rows, about {mean * len(dataset):,.0f} tokens ({mean:.0f} each, longest {max(lengths)}, "
        f"of {len(lengths)} looked at)"
    )


def model_line(model: Any) -> str:
    parameters = list(model.parameters())
    bytes_ = sum(p.numel() * p.element_size() for p in parameters)
    first = parameters[0]
    return (
        f"model: {type(model).__name__}, {sum(p.numel() for p in parameters):,} parameters, {size(bytes_)} in "
        f"{str(first.dtype).removeprefix('torch.')} on {first.device}"
    )


def memory_line() -> str:
    """The most memory that this process took until now."""
    import resource

    import torch

    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    gpu = ""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        gpu = f", and {size(torch.cuda.max_memory_allocated())} on the GPU"
    return f"memory: {size(peak)} at most while this was measured{gpu}"


def measure(model: Any, rows: Any, batch_size: int) -> Speed:
    """Time one batch of ``rows`` (:class:`~hfdataopt.attribution.rows.Rows`) of average length."""
    import torch

    from hfdataopt.attribution.quiet import untouched
    from hfdataopt.attribution.reader import custom_loss
    from hfdataopt.gradients import per_example_loss

    positions = list(range(min(batch_size, len(rows))))
    device = next(model.parameters()).device
    given = rows.batch(positions)
    batch = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in given.items()}
    inputs = {name: value for name, value in batch.items() if name != "labels"}

    def forward() -> None:
        with torch.no_grad():
            model(**inputs).logits.sum().item()  # waits for the device

    def gradient() -> None:
        loss, _ = per_example_loss(model, batch, custom_loss=custom_loss)
        weights = [p for p in model.parameters() if p.requires_grad]
        next(g for g in torch.autograd.grad(loss.sum(), weights, allow_unused=True) if g is not None).sum().item()

    with untouched(model), torch.enable_grad():
        plain = seconds_of(forward) / len(positions)
        whole = seconds_of(gradient) / len(positions) if "labels" in batch else None
    return Speed(len(positions), plain, whole)


def seconds_of(function: Callable[[], Any]) -> float:
    """The least of three times, after one that warms up; fewer where they take long."""
    started = time.perf_counter()
    function()
    times = [time.perf_counter() - started]
    while len(times) < 4 and time.perf_counter() - started < SECONDS:
        before = time.perf_counter()
        function()
        times.append(time.perf_counter() - before)
    return min(times)


def scoring(
    scorer: Any, model: Any, tokenizer: Any, pool: Any, queries: Any, batch_size: int, checkpoints: list[str] | None
) -> list[str]:
    """What ``score`` would do."""
    from hfdataopt.attribution.prepare import query_rows
    from hfdataopt.attribution.scorer import GradientScorer
    from hfdataopt.retraining import read_rows
    from hfdataopt.trainings import RetrainingScorer

    some = read_rows(sample_of(pool), model, tokenizer)
    lines = [rows_line("pool", pool, some.lengths)]
    if queries is not None and scorer.needs_queries:
        asked = query_rows(scorer, sample_of(queries), model, tokenizer, None)
        lines.append(rows_line("queries", queries, None if asked.prompts else asked.lengths))
    moments = len(checkpoints or [0]) if scorer.combine != "last" else 1
    count = len(queries) if queries is not None and scorer.needs_queries else 0
    speed = measure(model, some, batch_size)
    lines += [model_line(model), str(speed)]
    reads = len(pool) + (count if scorer.query_form == "examples" else 0)
    at = f" at {moments} checkpoints" if moments > 1 else ""
    if isinstance(scorer, RetrainingScorer):
        lines += trainings_lines(scorer.workload(len(pool)), model, some, speed, count, scorer)
    elif isinstance(scorer, GradientScorer) and speed.gradient is not None:
        lines.append(
            f"time: about {duration(reads * moments * speed.gradient)} to read {reads:,} rows with gradients once{at}"
        )
    else:
        lines.append(f"time: about {duration(reads * moments * speed.forward)} to read {reads:,} rows once{at}")
    if scorer.query_form == "prompts":
        lines += _completions(scorer, model, tokenizer, queries, count, moments)
    if isinstance(scorer, GradientScorer):
        lines.append(
            "not in it: what the method does beside (fitting a basis, kernels, solvers, permutations); it may read rows again"
        )
    bytes_ = 8 * len(pool) * (1 + (count if scorer.scores_each_query else 0)) * (moments + 1)
    stored = ""
    if isinstance(scorer, GradientScorer) and scorer.basis not in ("exact", None):
        features = 4 * scorer.floats_per_row * reads * moments
        stored = f"; up to {size(features)} of features ({scorer.floats_per_row} floats per row)"
    lines.append(f"disk: {size(bytes_)} of scores{stored}")
    return [*lines, memory_line()]


def trainings_lines(
    work: tuple[int, int] | None, model: Any, rows: Any, speed: Speed, queries: int, recipe: Any
) -> list[str]:
    """Trainings, of which a short one is run. ``work``: how many at most, and on how many rows in all; None: not known."""
    from hfdataopt.retraining import fine_tune

    batch = getattr(recipe, "train_batch_size", None) or recipe.batch_size
    few = list(range(min(len(rows), 2 * batch)))
    each = seconds_of(lambda: fine_tune(model, rows, few, epochs=1, batch_size=batch)) / len(few)
    said = f"measured: {len(few)} rows take {duration(each * len(few))} to train on, in batches of {batch}"
    if work is None:
        return [said, "trainings: how many is not said by this method"]
    trainings, in_all = work
    seconds = in_all * recipe.epochs * each + trainings * queries * speed.forward
    return [
        said,
        f"trainings: at most {trainings:,}, on {in_all / trainings:,.0f} rows each on average, {recipe.epochs} epochs",
        f"time: at most about {duration(seconds)}, less what is on disk already",
    ]


def _completions(scorer: Any, model: Any, tokenizer: Any, queries: Any, count: int, moments: int) -> list[str]:
    """Completions that a scorer of rewards draws, of which a few short ones are run."""
    if getattr(scorer, "column", None) is not None:
        return [f"calls: no completion is drawn; those in column {scorer.column!r} are rewarded"]
    number = count * scorer.samples
    if getattr(scorer, "endpoint", None) is not None:
        return [
            f"calls: {number:,} requests to {scorer.endpoint}, of at most {scorer.max_new_tokens} tokens; none is sent now"
        ]
    live = getattr(scorer, "live", True)
    number *= moments if live else 1
    lines = [f"calls: {number:,} completions of at most {scorer.max_new_tokens} tokens, each rewarded once"]
    if not live:
        return [*lines, "their time is not measured: they come from another model"]
    prompts = sample_of(queries)
    prompts = prompts["prompt"][:4] if "prompt" in prompts.column_names else []
    return lines + generation_lines(model, tokenizer, prompts, number, scorer.max_new_tokens)


def generation_lines(model: Any, tokenizer: Any, prompts: list[Any], number: int | None, most: int) -> list[str]:
    """About how long completions take, from a few that end after eight tokens."""
    from hfdataopt.generation.local import LocalGenerator

    if not prompts:
        return []
    tokens = min(8, most)
    generator = LocalGenerator(model, tokenizer, max_new_tokens=tokens, batch_size=len(prompts) * 4)
    keys = list(range(len(prompts)))
    with quiet():  # that completions of eight tokens do not end
        seconds = seconds_of(lambda: generator.generate(prompts, 4, keys=keys)) / (4 * len(prompts))
    said = f"measured: {4 * len(prompts)} completions of {tokens} tokens take {duration(seconds * 4 * len(prompts))}"
    if number is None:
        return [said]
    return [
        said,
        f"time: at most about {duration(number * seconds * most / tokens)} for completions that use all their tokens",
    ]


def selecting(filter_: Any, dataset: Any, target: Any, kept: int | None) -> list[str]:
    """What ``select`` would do; a stream is not read."""
    import datasets

    if isinstance(dataset, datasets.IterableDataset):
        return [
            f"dataset: a stream, whose rows are not counted; {filter_.name} is fitted on the first {filter_.fit_rows:,}",
            "time: not measured, since its rows would have to be fetched",
        ]
    some = sample_of(dataset)
    filter_.reads(tuple(dataset.column_names), "the dataset")
    lines = [f"dataset: {len(dataset):,} rows"]
    if target is not None:
        lines.append(f"target: {len(target):,} rows")
    lines += _fits(filter_, some, target, len(dataset))
    each = sum(len(json.dumps(row, default=str)) for row in some) / max(1, len(some))
    number = len(dataset) if kept is None else kept
    about = "" if kept is None else "at most " if kept == len(dataset) else "about "
    lines.append(f"output: {about}{number:,} rows, {size(each * number)} as JSON lines")
    return [*lines, memory_line()]


def _fits(filter_: Any, some: Any, target: Any, rows: int) -> list[str]:
    few = some.select(range(max(1, len(some) // 4)))
    queries = None if target is None else sample_of(target)
    lenient = copy.copy(filter_)
    lenient.set(on_nan="drop")  # a row without a score is told, and the others are timed
    scores: list[Any] = []

    def run(part: Any) -> float:
        def work() -> None:
            with quiet() if scores else contextlib.nullcontext():  # what it has to say is said once
                fitted = lenient.fit(part, queries)
                scores[:] = fitted(part[:])[fitted.score_column]

        return seconds_of(work)

    try:
        whole, without = run(some), sum(value != value for value in scores)
        short = run(few)
    except DataError as error:  # of the sample, which may lack what the whole has
        return [f"time: not measured, since the sample of {len(some)} rows alone does not do: {error}"]
    slope = max(whole - short, 0.0) / max(1, len(some) - len(few)) or whole / len(some)
    against = "" if queries is None else f", against {len(queries)} of the target"
    stops = []
    if without and filter_.on_nan == "error":
        why = f" ({filter_.no_score})" if filter_.no_score else ""
        stops = [
            f"it would stop with an error: {without} of the {len(some)} rows looked at have no score{why}; --on_nan drop leaves "
            "such rows out"
        ]
    return [
        *stops,
        f"measured: fitting and scoring {len(few)} and {len(some)} rows{against}: {duration(short)} and {duration(whole)}",
        f"time: about {duration(whole + slope * (rows - len(some)))} if it grows with the rows; more for a method that compares all "
        "with all",
    ]


def searching(trainer: Any) -> list[str]:
    """What ``optimize`` would do."""
    from hfdataopt.generation.local import LocalGenerator

    lines = trainer.plan().splitlines()
    model, config = trainer.model, trainer.args
    prompts = [item.prompt for item in trainer.split.items[:4]]
    limits = [
        name for name in ("max_calls", "max_tokens", "max_seconds", "max_cost") if getattr(config, name) is not None
    ]
    lines.append(
        f"calls: {', '.join(f'{name}={getattr(config, name):g}' for name in limits) or 'no limit'}; none is made now"
    )
    if isinstance(model, LocalGenerator):
        lengths = [model.count_tokens(prompt) for prompt in prompts]
        lines.append(
            f"prompts: {sum(lengths) / len(lengths):.0f} tokens each, of {len(lengths)} looked at, without an instruction"
        )
        lines.append(model_line(model.model))
        lines += generation_lines(model.model, model.processing_class, prompts, config.max_calls, config.max_new_tokens)
        lines.append("not in it: proposals, likelihoods, rewards and judges")
    else:
        lines.append("time: not measured, since each answer costs a call")
    lines.append("disk: a few kilobytes for each call")
    return [*lines, memory_line()]


def evaluating(arguments: Any, data: Any, scores: dict[str, Any], pool: Any) -> list[str]:
    """What ``evaluate`` would do; ``data`` is None where no model is trained."""
    from hfdataopt.retraining import read_rows

    lines = [f"pool: {len(pool):,} rows", f"scores: {', '.join(scores)}"]
    if arguments.flipped:
        lines.append(f"label noise: no training; AUC of {len(scores)} rankings")
    if data is None:
        return lines
    rows = read_rows(sample_of(data.splits["pool"]), data.model, data.tokenizer)
    speed = measure(data.model, rows, arguments.batch_size)
    lines += [model_line(data.model), str(speed)]
    size_of = lambda fraction: round(fraction * len(pool))  # noqa: E731
    if arguments.lds:
        trainings = arguments.subsets * arguments.seeds
        work = trainings, trainings * size_of(arguments.fraction)
        lines.append("linear datamodeling score:")
        lines += _measured_trainings(work, data, rows, speed, "queries")
    if arguments.curves:
        rankings = sum(one.metadata.get("meaning") != "chance" for one in scores.values()) + 1  # and random rows
        points = len(arguments.fractions) * rankings * arguments.seeds
        work = 2 * points + arguments.seeds, (points + arguments.seeds) * len(pool)
        lines.append("curves:")
        lines += _measured_trainings(work, data, rows, speed, "test")
    lines.append(f"recipe: {', '.join(f'{name}={value}' for name, value in asdict(data.recipe).items())}")
    return [*lines, memory_line()]


def _measured_trainings(work: tuple[int, int], data: Any, rows: Any, speed: Speed, split: str) -> list[str]:
    """Trainings, and what each model is measured by: a pass over the split, or completions that are rewarded."""
    from hfdataopt.evaluation.reward_utility import RewardUtility, prompts_of

    reward, measured = data.utility, data.splits[split]
    if not isinstance(reward, RewardUtility):
        return trainings_lines(work, data.model, rows, speed, len(measured), data.recipe)
    number = work[0] * len(measured) * reward.samples
    prompts = prompts_of(reward.read(measured, data.model, split))
    return [
        *trainings_lines(work, data.model, rows, speed, 0, data.recipe),
        f"calls: {number:,} completions of at most {reward.max_new_tokens} tokens, each rewarded once",
        *generation_lines(data.model, data.tokenizer, list(prompts[:4]), number, reward.max_new_tokens),
        "not in it: rewards",
    ]


def size(count: float) -> str:
    """Bytes in words."""
    for unit, amount in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= amount:
            return f"{count / amount:,.1f} {unit}"
    return f"{count:.0f} bytes"


def duration(seconds: float) -> str:
    """Seconds in words."""
    for unit, amount in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * amount:
            return f"{seconds / amount:,.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
