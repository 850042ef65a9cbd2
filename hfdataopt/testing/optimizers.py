"""The promises of a prompt optimizer, checked by asking and telling in a scripted world, and in a :class:`PromptTrainer`."""

import dataclasses
import functools
import math
import random
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from transformers import TrainerCallback

from hfdataopt.errors import MissingDependencyError
from hfdataopt.prompting.budget import BudgetSpent
from hfdataopt.prompting.candidate import Candidate, Comparison, Duel, Query, Trial, Vote
from hfdataopt.prompting.config import PromptConfig
from hfdataopt.prompting.optimizer import PreferenceOptimizer
from hfdataopt.prompting.trainer import PromptTrainer
from hfdataopt.testing import search, tiny
from hfdataopt.testing.common import global_random_states, other_random_states
from hfdataopt.testing.kit import Case, CheckFailure, NotChecked, promise

CALLS = 70  # completions of a search
VOTES = 16
STEPS = 200  # of asking, at most
DECIMALS = 9  # to which two equal searches must agree


class Played(NamedTuple):
    """A search: what was asked, in order; what was told; and how it ended."""

    optimizer: Any
    asked: list[Any]
    told: list[Any]
    spent: bool

    def trace(self) -> list[Any]:
        """What two equal searches have in common."""
        return [_name(one) for one in self.asked]


def _name(asked: Any) -> Any:
    if isinstance(asked, Duel):
        return asked.first.key, asked.second.key, asked.item
    query = asked if isinstance(asked, Query) else Query(asked)
    return query.candidate.key, query.items


class OptimizerCase(Case):
    """An optimizer and a task in the scripted world of :mod:`hfdataopt.testing.search`."""

    kind = "optimizer"
    data = ("task",)

    def __init__(self, component: Any, task: Any = None) -> None:
        super().__init__(component)
        self.duels = isinstance(component, PreferenceOptimizer)
        self.task = task or search.scripted_task(calls=None if self.duels else CALLS)

    def play(
        self,
        optimizer: Any = None,
        *,
        n: int = 1,
        services: Any = None,
        late: bool = False,
        shuffled: bool = False,
        answer: Callable[[Any, int], Any] | None = None,
        watch: Callable[[Any, list[Any], list[Any]], None] | None = None,
        **changes: Any,
    ) -> Played:
        """A whole search, of a copy unless an optimizer is given.

        Args:
            late: some outcomes come later, when other things were asked.
            shuffled: and in any order.
            answer: the outcome of the i-th question in the place of :meth:`outcome`.
            watch: called with the optimizer, what was asked and what is pending, before it is told.
        """
        optimizer = self.fresh() if optimizer is None else optimizer
        of = dataclasses.replace(self.task, **changes)
        services, rng = services or search.ScriptedServices(), random.Random(7)
        asked: list[Any] = []
        told: list[Any] = []
        pending: list[Any] = []
        optimizer.start(of)
        for _ in range(STEPS):
            try:
                found = list(optimizer.ask(n, tuple(pending), services))
            except BudgetSpent:
                return Played(optimizer, asked, told, True)
            if watch is not None:
                watch(optimizer, found, pending)
            pending += found
            asked += found
            if not pending:
                break
            if shuffled:
                rng.shuffle(pending)
            cut = rng.randint(1, len(pending)) if (late or shuffled) and found else len(pending)
            outcomes = [(answer or self.outcome)(one, len(told) + place) for place, one in enumerate(pending[:cut])]
            optimizer.tell(outcomes)
            told += outcomes
            pending = pending[cut:]
            if len(told) >= VOTES and self.duels:
                break
            if not self.duels and of.calls is not None and self.cost(told) >= of.calls:
                break
        return Played(optimizer, asked, told, False)

    def outcome(self, asked: Any, place: int) -> Any:
        """What an honest world says."""
        if isinstance(asked, Duel):
            gap = search.quality_of(asked.first) - search.quality_of(asked.second)
            return search.vote(asked, 0.5 if gap == 0 else float(gap > 0))
        return search.trial(asked, self.task, search.scripted_reward)

    def cost(self, told: Sequence[Any]) -> int:
        """Completions: pairs of candidate and item."""
        return len({(one.candidate.key, item) for one in told for item in one.items})

    @functools.cached_property
    def baseline(self) -> Played:
        return self.play()

    @functools.cached_property
    def _state(self) -> str:
        try:
            trace = self.baseline.trace()
        except Exception:
            return "it cannot search, see asks-as-agreed"
        return "" if trace == self.play().trace() else "two equal searches differ, see deterministic"

    def needs_baseline(self, check: str = "") -> None:
        if self._state and self._state.rpartition(" ")[2] != check:
            raise NotChecked(self._state)


@promise("asks-as-agreed", "optimizer")
def asks_as_agreed(case: OptimizerCase) -> None:
    """It asks for at most n candidates or duels, of items that there are, and is told."""
    known = {item.id for item in (*case.task.items, *case.task.examples)}
    kind = Duel if case.duels else Candidate | Query

    def watch(optimizer: Any, asked: list[Any], pending: list[Any]) -> None:
        if len(asked) > 3:
            case.fail(f"was asked for at most 3 and gave {len(asked)}", "Return no more than n from ask(n, ...)")
        for one in asked:
            if not isinstance(one, kind):
                wanted = "hfdataopt.prompting.candidate.Duel" if case.duels else "Candidate, or Query(candidate, items)"
                case.fail(f"asked for {one!r:.80}", f"Return {wanted} from ask")
            items = (one.item,) if case.duels and one.item is not None else getattr(one, "items", None)
            if isinstance(items, tuple) and (strange := [item for item in items if item not in known]):
                case.fail(
                    f"asked for the item {strange[0]!r}, which the task has not",
                    "Take ids of task.items or task.examples",
                )
            if isinstance(items, int) and not 1 <= items <= len(case.task.items):
                case.fail(
                    f"asked for the first {items} of {len(case.task.items)} items",
                    "Query.items is from 1 to len(task.items)",
                )

    try:
        played = case.play(n=3, watch=watch)
        case.baseline  # noqa: B018 - one at a time
    except (CheckFailure, MissingDependencyError):
        raise
    except Exception as error:
        case.fail(
            f"a search raised {case.told(error)}",
            case.mend(
                error,
                "start(task) must call super().start(task); ask(n, pending, services) returns candidates; tell(trials) takes them back",
            ),
        )
    if not played.asked:
        case.fail("asked for nothing at all", "Return candidates from ask; an empty list ends the search")


@promise("deterministic", "optimizer")
def deterministic(case: OptimizerCase) -> None:
    """The same seed gives the same search, whatever the global random state is."""
    case.needs_baseline("deterministic")
    with other_random_states():
        one, other = case.baseline.trace(), case.play().trace()
    if one != other:
        place = next(
            (i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other))
        )
        case.fail(
            f"two searches with seed {case.task.seed} ask for other things from question {place + 1} on",
            "Draw from self.task.rng(self.name, ...) or self.task.numpy_rng(...), and do not iterate over sets",
        )


@promise("keeps-no-state", "optimizer")
def keeps_no_state(case: OptimizerCase) -> None:
    """An instance that has searched before searches as a new one does, and its options are as they were."""
    case.needs_baseline()
    used = case.fresh()
    before = repr(used)
    case.play(used, seed=5)
    if case.play(used).trace() != case.baseline.trace():
        case.fail(
            "an instance that ran another search before asks for other things than a new one",
            "Set all state anew in start(task)",
        )
    if repr(used) != before:
        case.fail(
            f"a search changed its options from {before} to {used!r}",
            "Keep what is computed from options in other attributes, set in start",
        )


@promise("untouched", "optimizer")
def untouched(case: OptimizerCase) -> None:
    """A search leaves the global random states as they were."""
    case.needs_baseline()
    with global_random_states(case):
        case.play()


@promise("nothing-twice", "optimizer")
def nothing_twice(case: OptimizerCase) -> None:
    """It does not ask for what is pending, nor for rewards that it was told."""
    case.needs_baseline()

    def watch(optimizer: Any, asked: list[Any], pending: list[Any]) -> None:
        waiting = [_pair(one) for one in pending]
        for place, one in enumerate(asked):
            if _pair(one) in waiting:
                case.fail(
                    f"asked for {_shown(one)} while it was under way",
                    "Leave out of ask whatever is in pending, and return nothing twice at once",
                )
            waiting.append(_pair(one))
            if not case.duels and _told(optimizer, case, one):
                case.fail(
                    f"asked for {_shown(one)} on items of which it was told the rewards (question {place + 1} of {len(asked)})",
                    "Remember candidate.key of what was asked; return another candidate, more items, or nothing to end the search",
                )

    case.play(n=3, late=True, watch=watch)


def _pair(asked: Any) -> Any:
    if isinstance(asked, Duel):
        return frozenset((asked.first.key, asked.second.key)), asked.item
    return _name(asked)[0]


def _shown(asked: Any) -> str:
    candidates = (asked.first, asked.second) if isinstance(asked, Duel) else (getattr(asked, "candidate", asked),)
    return " against ".join(repr(one.instruction or one.completion) for one in candidates)


def _told(optimizer: Any, case: OptimizerCase, asked: Any) -> bool:
    key, items = _name(asked)
    ids = (
        [item.id for item in case.task.items][: items if isinstance(items, int) else None]
        if not isinstance(items, tuple)
        else items
    )
    known = {item for trial in optimizer.trials if trial.candidate.key == key for item in trial.items}
    return set(ids) <= known


@promise("any-order", "optimizer")
def any_order(case: OptimizerCase) -> None:
    """Outcomes may come in any order, late, and of candidates that it never asked for."""
    case.needs_baseline()
    try:
        played = case.play(n=4, shuffled=True)
        if not case.duels:
            played.optimizer.tell([search.trial(Candidate("aim 0.05 #told"), case.task, search.scripted_reward)])
        played.optimizer.leaders(3)
    except Exception as error:
        case.fail(
            f"raised {type(error).__name__} when outcomes came in another order: {case.told(error)}",
            "Find what a trial belongs to by trial.candidate.key, not by its place, and expect candidates you never asked for",
        )
    if not played.told:
        case.fail(
            "asked for nothing when several were to be asked at a time", "Return up to n from ask(n, pending, ...)"
        )


@promise("failed-trials", "optimizer")
def failed_trials(case: OptimizerCase) -> None:
    """Trials without a reward (NaN), and votes that are skipped, are taken; none of them becomes the best."""
    case.needs_baseline()
    for every in (3, 1):

        def answer(asked: Any, place: int, every: int = every) -> Any:
            if place % every:
                return case.outcome(asked, place)
            if isinstance(asked, Duel):
                return Vote(asked, Comparison(None, "skip" if place % 2 else "invalid"), ("one", "other"))
            trial = case.outcome(asked, place)
            return Trial(trial.candidate, trial.items, np.full(len(trial.items), math.nan), trial.answers)

        try:
            played = case.play(answer=answer)
            best, leaders = played.optimizer.best, played.optimizer.leaders(3)
        except Exception as error:
            some = "all trials" if every == 1 else "a third of the trials"
            case.fail(
                f"raised {type(error).__name__} when {some} had no reward: {case.told(error)}",
                "Expect NaN in trial.rewards and trial.score, and comparison.target None: leave such outcomes out of what is learnt",
            )
        if case.duels:
            continue
        good = {trial.candidate.key for trial in played.told if not math.isnan(trial.score)}
        for one in [*leaders, *([] if best is None else [best])]:
            if one.key not in good:
                case.fail(
                    f"{_shown(one)} is among the best, but has no reward",
                    "Leave trials out whose score is NaN (max() of a list with NaN is whatever comes first)",
                )


@promise("budget", "optimizer")
def budget(case: OptimizerCase) -> None:
    """It keeps within task.calls where it chooses items itself, and lets BudgetSpent of a service pass."""
    case.needs_baseline()
    asked = 0 if case.duels else case.cost(case.baseline.told)
    if case.component.chooses_items and case.task.calls is not None and asked > case.task.calls:
        case.fail(
            f"asked for {asked} completions where task.calls is {case.task.calls}",
            "Count candidate times items of what was asked, and ask no more than is left",
        )
    for proposals in (0, 3):
        services = search.ScriptedServices(proposals)
        try:
            played = case.play(services=services)
            played.optimizer.leaders(3)
        except Exception as error:
            case.fail(
                f"raised {type(error).__name__} when the proposer's budget was spent after {proposals} proposals: {case.told(error)}",
                "Let BudgetSpent pass through ask, and expect leaders(n) to be called after it",
            )
        if services.refused > STEPS // 2:
            case.fail(
                f"went on asking the proposer after its budget was spent, {services.refused} times",
                "Do not catch BudgetSpent in a loop: return what there is, or let it pass",
            )


@promise("best", "optimizer")
def best(case: OptimizerCase) -> None:
    """The best are candidates that it asked for, the first of them is `best`, and looking changes nothing."""
    case.needs_baseline()
    optimizer = case.baseline.optimizer
    leaders = optimizer.leaders(3)
    if len(leaders) > 3 or len({one.key for one in leaders}) != len(leaders):
        case.fail(
            f"leaders(3) gave {len(leaders)}, of which {len({one.key for one in leaders})} differ",
            "Return at most n different candidates",
        )
    if optimizer.best is None or not leaders or leaders[0].key != optimizer.best.key:
        first = None if not leaders else _shown(leaders[0])
        case.fail(
            f"best is {optimizer.best!r:.80}, and leaders(1) begins with {first}", "Let best be the first of leaders(1)"
        )
    told = case.baseline.told
    seen = _tried(case, told)
    if not case.duels and any(one.key not in seen for one in leaders):
        case.fail("a leader was never tried", "Rank candidates of self.trials alone")
    if [one.key for one in optimizer.leaders(3)] != [one.key for one in leaders]:
        case.fail("leaders(3) gave other candidates when it was called again", "Change no state in leaders and best")


def _tried(case: OptimizerCase, told: Sequence[Any]) -> dict[str, Candidate]:
    """The candidates of outcomes, by key."""
    if case.duels:
        return {one.key: one for vote in told for one in (vote.duel.first, vote.duel.second)}
    return {trial.candidate.key: trial.candidate for trial in told}


@promise("higher-is-helpful", "optimizer")
def higher_is_helpful(case: OptimizerCase) -> None:
    """What it calls the best is better than the average of what it tried."""
    case.needs_baseline()
    told = case.baseline.told
    tried = _tried(case, told)
    mean = float(np.mean([search.quality_of(one) for one in tried.values()]))
    if len(tried) > 1 and not search.quality_of(case.baseline.optimizer.best) >= mean:
        case.fail(
            f"its best candidate {_shown(case.baseline.optimizer.best)} is worse than the average of the {len(tried)} it tried ({mean:.2f})",
            "Rewards are higher = better, and Comparison.winner 0 is duel.first: look for a sign",
        )


@promise("resumable", "optimizer")
def resumable(case: OptimizerCase) -> None:
    """In a PromptTrainer, a search that is interrupted and begun again ends with the same result, and asks nothing twice."""
    case.needs_baseline()
    with tempfile.TemporaryDirectory() as folder:
        whole = _Interrupting()
        expected = _search(case, f"{folder}/whole", whole)
        if whole.steps < 2:
            raise NotChecked("the search ends after one round")
        with suppress(KeyboardInterrupt):
            _search(case, f"{folder}/killed", _Interrupting(at=max(1, whole.steps // 2)))
        found = _search(case, f"{folder}/killed")
    if found != expected:
        names = [name for name in expected if found[name] != expected[name]]
        case.fail(
            f"after an interruption the search ends with other {' and '.join(names)}",
            "Depend on nothing but options, the task, the services and what is told: no clock, no unseeded draw, no file of your own",
        )


class _Interrupting(TrainerCallback):
    """Interrupts a search after a round of asking and telling."""

    def __init__(self, at: int | None = None):
        self.steps, self.at = 0, at

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 1
        if self.steps == self.at:
            raise KeyboardInterrupt


def _reward(completions: Any, **_: Any) -> list[float]:
    """A reward of texts, as TRL calls it."""
    return [search.quality(_text(one)) or len(_text(one)) % 7 / 20 for one in completions]


def _judge(prompts: Any, completions: Any, shuffle_order: bool = True) -> list[int]:
    """A judge, as older TRL called it."""
    return [int(_reward([two])[0] > _reward([one])[0]) for one, two in completions]


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def _search(case: OptimizerCase, folder: str, *callbacks: Any) -> dict[str, Any]:
    """What a search by ``PromptTrainer`` comes to."""
    needs = case.component.needs
    local = "likelihood" in needs
    rows = [
        {"prompt": item.input, "answer": item.output, **item.columns}
        for item in (*case.task.items, *case.task.examples)
    ]
    rows += [{**row, "prompt": f"again {row['prompt']}"} for row in rows]
    judged = {"judge": _judge} if case.duels else {"reward_funcs": _reward}
    limits: dict[str, Any] = {"max_judge_calls": 12} if case.duels else {"max_calls": 40}
    trainer = PromptTrainer(
        case.fresh(),
        model=tiny.speaker(positions=256) if local else _answer,
        processing_class=tiny.reader(256) if local else None,
        proposer=_Proposing() if "proposer" in needs else None,
        encoder=search.ScriptedServices().embed if "encoder" in needs else None,
        white_box=(tiny.speaker(positions=256), tiny.reader(256)) if "white_box" in needs else None,
        train_dataset=rows,
        callbacks=list(callbacks),
        args=PromptConfig(
            output_dir=folder,
            items=4,
            examples=8,
            logging_steps=0,
            max_new_tokens=4,
            leaders=2,
            start=["aim 0.150 #0"],
            **limits,
        ),
        **judged,
    )
    result = trainer.train()
    return {
        "best": result.best.key,
        "leaders": [(one.candidate.key, one.fresh) for one in result.leaders],
        "outcomes": [repr(one) for one in (*result.trials, *result.votes)],
        "calls": [result.spent[name] for name in ("calls", "proposer_calls", "judge_calls")],
    }


def _answer(prompts: list[Any]) -> list[str]:
    """The scored model: it repeats what its instruction aims at."""
    return [f"aim {search.quality(str(one)):.3f}" for one in prompts]


class _Proposing:
    """The proposer of a real search: the same questions in the same order get the same answers."""

    def __call__(self, prompts: list[Any]) -> list[str]:
        return [search.scripted_proposal(str(one), place) for place, one in enumerate(prompts)]
