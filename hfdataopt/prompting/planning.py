"""What a budget buys, before anything of it is spent."""

from typing import Any, NamedTuple

from hfdataopt.errors import OptionError
from hfdataopt.prompting.budget import calls_of
from hfdataopt.prompting.config import PromptConfig
from hfdataopt.prompting.items import Split
from hfdataopt.prompting.judges import Judge
from hfdataopt.prompting.optimizer import PromptOptimizer, Task

WHO = "PromptTrainer"
LIMITS = ("max_calls", "max_proposer_calls", "max_judge_calls", "max_tokens", "max_seconds", "max_cost")


class Reserve(NamedTuple):
    """What is kept for the end: fresh items, and the calls of the scored model and of the judge that they take."""

    items: int = 0
    calls: int = 0
    judge_calls: int = 0


def reserved(
    config: PromptConfig, optimizer: PromptOptimizer, split: Split, model: Any, judge: Judge | None
) -> Reserve:
    """For the leaders, or with a judge for the best against the prompt of before; only limits that are set are kept from."""
    if not config.leaders or not split.fresh or optimizer.sampled_calls(len(split.items)):
        return Reserve()
    if judge is not None and judge.interactive:
        return Reserve()
    each = calls_of(model) * (config.leaders if judge is None else 2)
    two = 2 * (config.items * calls_of(model) if judge is None else each)  # the search itself comes first
    question = 0 if judge is None else judge.calls_per_question
    limits = [(config.max_calls, each, two), (config.max_judge_calls if judge else None, question, 2 * question)]
    pays = [
        max(min(int(limit * config.final_share), limit - first) // price, 0)
        for limit, price, first in limits
        if limit is not None
    ]
    if not pays and (judge is None or config.final_items is None):
        return Reserve()
    items = min(min(pays) if config.final_items is None else config.final_items, len(split.fresh))
    return Reserve(items, items * each, items * question)


def task_of(config: PromptConfig, optimizer: PromptOptimizer, split: Split, model: Any, judge: Judge | None) -> Task:
    """What the optimizer knows before it begins.

    Raises:
        OptionError: the budget does not pay for one candidate, or one vote.
    """
    kept = reserved(config, optimizer, split, model, judge)
    calls = calls_of_search(config, optimizer.sampled_calls(len(split.items)), model, judge, kept)
    return Task(
        items=split.items,
        examples=split.examples,
        start=tuple(config.start),
        seed=config.seed,
        calls=calls,
        parallel=config.parallel,
    )


def plan(config: PromptConfig, optimizer: PromptOptimizer, split: Split, model: Any, judge: Judge | None) -> str:
    """What the budget buys, in words.

    Raises:
        OptionError: not even one candidate, or one vote.
    """
    lines = []
    kept, each = reserved(config, optimizer, split, model, judge), calls_of(model)
    own = optimizer.plan(task_of(config, optimizer, split, model, judge))
    sampled = each * optimizer.sampled_calls(len(split.items))
    if judge is not None:
        if config.max_judge_calls is not None:
            votes = (config.max_judge_calls - kept.judge_calls) // judge.calls_per_question
            lines.append(
                f"max_judge_calls={config.max_judge_calls} buys {votes} votes of the search{_kept(kept.judge_calls)}"
            )
        if sampled:
            lines.append(f"{sampled} calls sample the answers to choose among")
        elif config.max_calls is not None:
            lines.append(
                f"max_calls={config.max_calls} buys the answers of at least {(config.max_calls - kept.calls) // (2 * each)} "
                f"duels{_kept(kept.calls)}"
            )
    elif config.max_calls is not None:
        whole = (config.max_calls - kept.calls) // (len(split.items) * each)
        lines.append(
            f"max_calls={config.max_calls} buys {whole} candidates on all {len(split.items)} items{_kept(kept.calls)}"
        )
    if not any(getattr(config, name) is not None for name in LIMITS):
        lines.append("no limit is set: the search ends when the optimizer has nothing more to ask")
    if "proposer" in optimizer.needs:
        most = config.max_proposer_calls
        lines.append("no limit of proposals" if most is None else f"max_proposer_calls={most} buys {most} proposals")
    for name in ("max_tokens", "max_seconds", "max_cost"):
        if getattr(config, name) is not None:
            lines.append(f"{name}={getattr(config, name):g}")
    shape = f"{len(split.items)} items, {len(split.examples)} examples, {len(split.fresh)} fresh rows"
    if not split.fresh and config.leaders:
        lines.append("no row is left to score the leaders on again: lower items or examples, or give eval_dataset")
    first = f"{optimizer.name or type(optimizer).__name__}: {shape}"
    return "\n".join([first, "; ".join(lines), *([own] if own else [])])


def calls_of_search(config: PromptConfig, sampled: int, model: Any, judge: Judge | None, kept: Reserve) -> int | None:
    """Completions (with a judge: votes) that the search may spend; None = no limit.

    Raises:
        OptionError: they do not pay for one candidate, or one vote.
    """
    if judge is not None:
        if sampled:
            _left("max_calls", config.max_calls, 0, sampled * calls_of(model), "the sample of answers to choose among")
        if kept.calls:
            _left("max_calls", config.max_calls, kept.calls, 2 * calls_of(model), "the answers of one duel")
        each = judge.calls_per_question
        left = _left("max_judge_calls", config.max_judge_calls, kept.judge_calls, each, "one vote")
    else:
        each = calls_of(model)
        least = each * (config.minibatch_size or (config.items if config.start else 1))
        left = _left("max_calls", config.max_calls, kept.calls, least, "one candidate")
    return None if left is None else left // each


def _left(name: str, limit: int | None, kept: int, least: int, need: str) -> int | None:
    if limit is not None and limit - kept < least:
        raise OptionError(
            f"{WHO}: {name}={limit} is too small for one round: {kept} are kept for the leaders at the end, and {need} needs at "
            f"least {least}"
        )
    return None if limit is None else limit - kept


def _kept(kept: int) -> str:
    return f", {kept} calls are kept for the leaders" if kept else ""
