"""What a budget buys, before anything of it is spent."""

from typing import Any

from hfdataopt.errors import OptionError
from hfdataopt.prompting.budget import calls_of
from hfdataopt.prompting.config import PromptConfig
from hfdataopt.prompting.items import Split
from hfdataopt.prompting.judges import Judge
from hfdataopt.prompting.optimizer import PromptOptimizer

WHO = "PromptTrainer"


def reserved(config: PromptConfig, split: Split, model: Any, judge: Judge | None) -> int:
    """Calls (with a judge: votes) that are kept for the end."""
    limit = config.max_calls if judge is None else config.max_judge_calls
    if not config.leaders or not split.fresh or limit is None or (judge is not None and judge.interactive):
        return 0
    each = judge.calls_per_question if judge is not None else config.leaders * calls_of(model)
    wanted = config.final_items
    if wanted is None:
        two = 2 * config.items * calls_of(model) if judge is None else 2 * each  # the search itself comes first
        wanted = max(min(int(limit * config.final_share), limit - two) // each, 0)
    return each * min(wanted, len(split.fresh))


def plan(config: PromptConfig, optimizer: PromptOptimizer, split: Split, model: Any, judge: Judge | None) -> str:
    """What the budget buys, in words."""
    lines = []
    kept, each = reserved(config, split, model, judge), calls_of(model)
    if judge is not None:
        if config.max_judge_calls is not None:
            votes = (config.max_judge_calls - kept) // judge.calls_per_question
            lines.append(f"max_judge_calls={config.max_judge_calls} buys {votes} votes of the search{_kept(kept)}")
        if config.max_calls is not None:
            lines.append(
                f"max_calls={config.max_calls} buys the answers of at least {config.max_calls // (2 * each)} duels"
            )
    elif config.max_calls is not None:
        whole = (config.max_calls - kept) // (len(split.items) * each)
        lines.append(
            f"max_calls={config.max_calls} buys {whole} candidates on all {len(split.items)} items{_kept(kept)}"
        )
    for name in ("max_proposer_calls", "max_tokens", "max_seconds", "max_cost"):
        if getattr(config, name) is not None:
            lines.append(f"{name}={getattr(config, name):g}")
    shape = f"{len(split.items)} items, {len(split.examples)} examples, {len(split.fresh)} fresh rows"
    budget = "; ".join(lines) or "no limit is set: the search ends when the optimizer has nothing more to ask"
    return f"{optimizer.name or type(optimizer).__name__}: {shape}\n{budget}"


def calls_of_search(config: PromptConfig, model: Any, judge: Judge | None, kept: int) -> int | None:
    """Completions (with a judge: votes) that the search may spend; None = no limit.

    Raises:
        OptionError: they do not pay for one candidate, or one vote.
    """
    if judge is not None:
        name, limit, each, need = "max_judge_calls", config.max_judge_calls, judge.calls_per_question, "one vote"
        least = each
    else:
        name, limit, each, need = "max_calls", config.max_calls, calls_of(model), "one candidate"
        whole = config.items if config.start else 1
        least = each * (config.minibatch_size or whole)
    if limit is None:
        return None
    if limit - kept < least:
        raise OptionError(
            f"{WHO}: {name}={limit} is too small for one round: {kept} are kept for the leaders at the end, and {need} needs at "
            f"least {least}"
        )
    return (limit - kept) // each


def _kept(kept: int) -> str:
    return f", {kept} calls are kept for the leaders" if kept else ""
