"""``PromptTrainer``: runs a prompt optimizer on a model, TRL reward functions or a judge, and a dataset, within a budget."""

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerControl, TrainerState

from hfdataopt.console import say
from hfdataopt.errors import DataError, OptionError
from hfdataopt.generation import as_messages
from hfdataopt.prompting.apply import ApplyPrompt
from hfdataopt.prompting.budget import Budget, BudgetSpent
from hfdataopt.prompting.candidate import Candidate, Comparison, Duel, Query, RowId, Trial, Vote
from hfdataopt.prompting.config import PromptConfig
from hfdataopt.prompting.items import Split, columns_of, read_items, split_items
from hfdataopt.prompting.judges import Decision, Judge, Question, as_judge
from hfdataopt.prompting.ledger import Ledger, key_of
from hfdataopt.prompting.optimizer import Item, PreferenceOptimizer, PromptOptimizer, Task, check_optimizer
from hfdataopt.prompting.result import Leader, PromptResult, describe
from hfdataopt.prompting.services import HostServices, Requests, changed, describe_encoder
from hfdataopt.prompting.tracking import open_trackers, write_table
from hfdataopt.rewards.texts import transcript
from hfdataopt.statistics import mean_interval

WHO = "PromptTrainer"
NO_PROMPT = Candidate()


class PromptTrainer:
    """Searches for a better prompt.

    Args:
        optimizer: an instance, or a name, whose options are ``args.optimizer_options``.
        model: the scored model: a hub id or folder (with ``args.base_url`` a name at that server), a ``PreTrainedModel``, a
            generator (:mod:`hfdataopt.generation`), a function of a list of prompts, or a generator of images.
        args: budgets and everything else.
        reward_funcs: what ``GRPOTrainer(reward_funcs=...)`` takes; or
        judge: who compares two answers (:mod:`hfdataopt.prompting.judges`), or a judge written for older TRL.
        train_dataset: rows with ``prompt`` (text or messages), or of another of TRL's formats.
        eval_dataset: fresh rows for the leaders; by default rows of ``train_dataset`` that nothing else was done with.
        processing_class: tokenizer of a ``PreTrainedModel``.
        callbacks: ``transformers.TrainerCallback`` objects; they get ``trial`` or ``votes`` and ``best_prompt`` as keywords.
        proposer, encoder, white_box: objects in the place of ids in ``args``: the model that writes prompts (by default
            ``model``), what turns texts into features, and the local model of soft prompts (``(model, tokenizer)``).
        reward_processing_classes: a tokenizer per reward model, as in TRL.

    Raises:
        OptionError, DataError: all that can be known to be wrong before anything is spent.
    """

    def __init__(
        self,
        optimizer: PromptOptimizer | str,
        *,
        model: Any,
        args: PromptConfig | None = None,
        reward_funcs: Any = None,
        judge: Any = None,
        train_dataset: Any,
        eval_dataset: Any = None,
        processing_class: Any = None,
        callbacks: Sequence[Any] | None = None,
        proposer: Any = None,
        encoder: Any = None,
        white_box: Any = None,
        reward_processing_classes: Any = None,
    ) -> None:
        self.args = config = PromptConfig() if args is None else args
        self.optimizer = _optimizer(optimizer, config)
        self.callbacks = list(callbacks or [])
        self._preferences = isinstance(self.optimizer, PreferenceOptimizer)
        if (reward_funcs is None) == (judge is None):
            got = "neither" if judge is None else "both"
            raise OptionError(f"{WHO}: give reward_funcs or a judge; got {got}")
        if self._preferences and judge is None:
            from hfdataopt.prompting.judges import RewardJudge

            judge, reward_funcs = RewardJudge(reward_funcs, reward_weights=config.reward_weights), None
        elif not self._preferences and judge is not None:
            raise OptionError(
                f"{WHO}: optimizer {self.optimizer.name!r} learns from rewards, not from a judge; give reward_funcs, or an "
                "optimizer of preferences such as 'apohf'"
            )
        self._rewards: Any = None
        if reward_funcs is not None:
            from hfdataopt.rewards.functions import RewardFunctions

            self._rewards = RewardFunctions(
                reward_funcs,
                reward_weights=config.reward_weights,
                reward_processing_classes=reward_processing_classes,
                who=WHO,
            )
        elif config.reward_weights is not None and not self._preferences:
            raise OptionError(f"{WHO}: reward_weights belong to reward_funcs")
        self.judge: Judge | None = None if judge is None else as_judge(judge)
        needs = self.optimizer.needs
        train = read_items(train_dataset, config, "train_dataset")
        fresh = None if eval_dataset is None else read_items(eval_dataset, config, "eval_dataset")
        self.split: Split = split_items(train, fresh, config, "examples" in needs)
        self.images = callable(getattr(model, "draw", None)) and not callable(getattr(model, "generate", None))
        self.model = model if self.images else _generator(model, processing_class, config, "model")
        self._proposer = self._make_proposer(model, proposer, processing_class) if "proposer" in needs else None
        self._encoder = encoder if encoder is not None else config.encoder
        self._white_box = _white_box(white_box if white_box is not None else config.white_box)
        for role, thing in (("encoder", self._encoder), ("white_box", self._white_box)):
            if role in needs and thing is None:
                raise OptionError(
                    f"{WHO}: optimizer {self.optimizer.name!r} needs {role}=: an id in PromptConfig, or an object here"
                )
        self._check_prompts()
        self.result: PromptResult | None = None
        self._budget = Budget()
        self._trials: dict[str, dict[RowId, tuple[float, str]]] = {}

    # -- what users read

    @property
    def best_prompt(self) -> str:
        """The instruction that was found."""
        return self._found().best.instruction

    @property
    def apply_prompt(self) -> ApplyPrompt:
        """A map function that puts the prompt that was found into a dataset, with its exemplars."""
        return ApplyPrompt.of(self._found().best)

    def save_model(self, output_dir: str | None = None) -> Path:
        """Write the prompt to ``prompt.json`` in ``output_dir`` (by default that of ``args``); ``ApplyPrompt.load`` reads it."""
        folder = output_dir or self.args.output_dir
        if folder is None:
            raise OptionError(f"{WHO}: save_model() needs a folder, here or as PromptConfig.output_dir")
        return self.apply_prompt.save(folder)

    def preferences(self) -> Any:
        """The votes of the search as a TRL preference dataset (``prompt, chosen, rejected``)."""
        from hfdataopt.prompting.preferences import preference_dataset

        return preference_dataset(self._found().votes, (*self.split.items, *self.split.examples, *self.split.fresh))

    def _found(self) -> PromptResult:
        if self.result is None:
            raise OptionError(f"{WHO}: there is no result yet; call train() first")
        return self.result

    # -- the search

    def train(self) -> PromptResult:
        """Run the search, or go on with the one in ``output_dir``, to its end.

        Raises:
            GenerationError: a provider failed; what arrived is kept, and calling it again goes on from there.
        """
        config = self.args
        prices = {role: (float(a), float(b)) for role, (a, b) in dict(config.prices or {}).items()}  # type: ignore[arg-type]
        folder = None if config.output_dir is None else Path(config.output_dir)
        ledger = Ledger(
            folder,
            self._settings(),
            fresh=config.resume_from_checkpoint is False,
            must_exist=config.resume_from_checkpoint is True,
        )
        self._budget = Budget(
            config.max_calls,
            config.max_proposer_calls,
            config.max_judge_calls,
            config.max_tokens,
            config.max_seconds,
            config.max_cost,
            prices,
            before=ledger.seconds,
        )
        self._requests = Requests(ledger, self._budget, config.seed)
        everyone = (*self.split.items, *self.split.examples, *self.split.fresh)
        self._items = {item.id: item for item in everyone}
        self._services = HostServices(
            self._requests, self.model, self._proposer, self._encoder, self._white_box, self._items
        )
        self._trials = {}
        self._all_trials: list[Trial] = []
        self._votes: list[Vote] = []
        self._history: list[dict[str, Any]] = []
        self._turn = 0
        self._trackers = open_trackers(config)
        self._state = TrainerState(max_steps=config.max_steps or 0)
        self._control = TrainerControl()
        try:
            self._reserve = self._reserved()
            if ledger.kept:
                say(f"going on with the search in {config.output_dir!r}: {ledger.kept} answers are kept")
            for line in self.plan().splitlines():
                say(line)
            self._event("on_train_begin")
            self._start()
            status, reason = self._search()
            self.result = self._finish(status, reason)
            self._event("on_evaluate", metrics=self._metrics())
            self._event("on_train_end")
        finally:
            ledger.time(self._budget.elapsed())
            for tracker in self._trackers:
                tracker.finish()
            ledger.close()
        if folder is not None:
            self.result.save(folder)
            self.save_model()
        if config.logging_steps:
            for line in str(self.result).splitlines():
                say(line)
        return self.result

    def plan(self) -> str:
        """What the budget buys, in words."""
        config, lines = self.args, []
        each = getattr(self.model, "calls_per_completion", 1)
        if self._preferences:
            assert self.judge is not None
            if config.max_judge_calls is not None:
                votes = int((config.max_judge_calls - self._reserved()) // self.judge.calls_per_question)
                lines.append(f"max_judge_calls={config.max_judge_calls} buys {votes} votes of the search")
            if config.max_calls is not None:
                lines.append(
                    f"max_calls={config.max_calls} buys the answers of at least {config.max_calls // (2 * each)} duels"
                )
        elif config.max_calls is not None:
            search = config.max_calls - self._reserved()
            lines.append(
                f"max_calls={config.max_calls} buys {search // (config.items * each)} candidates on all {config.items} items"
                + (f", {config.max_calls - search} calls are kept for the leaders" if search < config.max_calls else "")
            )
        for name in ("max_proposer_calls", "max_tokens", "max_seconds", "max_cost"):
            if getattr(config, name) is not None:
                lines.append(f"{name}={getattr(config, name):g}")
        shape = (
            f"{len(self.split.items)} items, {len(self.split.examples)} examples, {len(self.split.fresh)} fresh rows"
        )
        budget = "; ".join(lines) or "no limit is set: the search ends when the optimizer has nothing more to ask"
        return f"{self.optimizer.name}: {shape}\n{budget}"

    def _settings(self) -> dict[str, Any]:
        """What a resumed search must have in common with the one that was begun."""
        from hfdataopt.attribution.identity import fingerprint

        config = self.args
        same = ("seed", "items", "minibatch_size", "examples", "input_column", "answer_column", "start", "parallel")
        return {
            "optimizer": [self.optimizer.name, repr(self.optimizer)],
            "model": "images" if self.images else [self.model.describe(), _weights(self.model)],
            "proposer": None if self._proposer is None else [self._proposer.describe(), _weights(self._proposer)],
            "encoder": None if self._encoder is None else describe_encoder(self._encoder),
            "white_box": None if self._white_box is None else self._white_box.describe(),
            "rewards": None if self._rewards is None else fingerprint(self._rewards),
            "judge": None if self.judge is None else self.judge.describe(),
            "dataset": key_of([[one.id, one.prompt, one.output] for one in (*self.split.items, *self.split.fresh)]),
            **{name: getattr(config, name) for name in same},
        }

    def _reserved(self) -> int:
        """Calls (with a judge: votes) that are kept for the end."""
        config = self.args
        if not config.leaders or not self.split.fresh:
            return 0
        if self._preferences:
            assert self.judge is not None
            if self.judge.interactive or config.max_judge_calls is None:
                return 0
            each = self.judge.calls_per_question
            wanted = config.final_items or int(config.max_judge_calls * config.final_share / each)
            return each * min(wanted, len(self.split.fresh))
        if config.max_calls is None:
            return 0
        each = config.leaders * getattr(self.model, "calls_per_completion", 1)
        wanted = config.final_items or int(config.max_calls * config.final_share / each)
        return each * min(wanted, len(self.split.fresh))

    def _start(self) -> None:
        config = self.args
        each = getattr(self.model, "calls_per_completion", 1)
        calls = config.max_calls
        if self._preferences:
            assert self.judge is not None
            calls = config.max_judge_calls
            each = self.judge.calls_per_question
            self.judge.begin(self._services.judge, self._shown)
        else:
            smallest = each * (config.minibatch_size or min(config.items, 1))
            if calls is not None and calls - self._reserve < smallest:
                raise OptionError(
                    f"{WHO}: max_calls={calls} is too small: {self._reserve} are kept for the leaders, and one candidate needs at "
                    f"least {smallest}"
                )
        left = None if calls is None else (calls - self._reserve) // each
        self.optimizer.start(
            Task(self.split.items, self.split.examples, tuple(config.start), config.seed, left, config.parallel)
        )

    def _search(self) -> tuple[Any, str]:
        """Ask and tell until nothing is left to ask or to spend; how it ended."""
        try:
            if not self._preferences:
                if self.args.start:
                    asked = [Candidate(text, origin="start") for text in self.args.start]
                    self._tell_rewards([Query(candidate) for candidate in asked])
                return self._rounds(self._round_of_rewards)
            return (
                self._people()
                if self.judge is not None and self.judge.interactive
                else self._rounds(self._round_of_votes)
            )
        except BudgetSpent as spent:
            return "budget", str(spent)

    def _rounds(self, one_round: Callable[[], bool]) -> tuple[Any, str]:
        while True:
            if self.args.max_steps is not None and self._state.global_step >= self.args.max_steps:
                return "finished", f"max_steps={self.args.max_steps}"
            if self._control.should_training_stop:
                return "finished", "a callback stopped it"
            if out := self._budget.out_of():
                return "budget", out
            if not one_round():
                return "finished", "the optimizer has nothing more to ask"

    def _step(self, **logs: Any) -> None:
        self._state.global_step += 1
        step = self._state.global_step
        spent = self._budget.spent
        best = self._best_so_far()
        entry = {"step": step, "calls": spent.calls, "judge_calls": spent.judge_calls, **logs}
        if best is not None and not math.isnan(best[1]):
            entry["best_score"] = best[1]
        self._history.append(entry)
        every = self.args.logging_steps
        if every and step % every == 0:
            shown = ", ".join(f"{name} {value:.4g}" for name, value in entry.items() if isinstance(value, int | float))
            say(f"{shown}" + (f"; best {describe(best[0])}" if best else ""))
            numbers = {name: value for name, value in entry.items() if isinstance(value, int | float)}
            numbers |= {"tokens": spent.tokens, "proposer_calls": spent.proposer_calls, "cost": spent.cost}
            for tracker in self._trackers:
                tracker.log(numbers, step=step)
            self._event("on_log", logs=numbers)
        self._event("on_step_end")

    def _event(self, name: str, **more: Any) -> None:
        for callback in self.callbacks:
            keywords = {"model": getattr(self.model, "model", self.model), "prompt_trainer": self, **more}
            found = getattr(callback, name)(self.args, self._state, self._control, **keywords)
            self._control = self._control if found is None else found

    def _best_so_far(self) -> tuple[Candidate, float] | None:
        best = self.optimizer.best
        if best is None:
            return None
        rewards = [r for r, _ in self._trials.get(best.key, {}).values() if not math.isnan(r)]
        return best, float(np.mean(rewards)) if rewards else math.nan

    def _metrics(self) -> dict[str, float]:
        assert self.result is not None
        found = {f"eval_{name}": value for name, value in self.result.spent.items()}
        if self.result.leaders and self.result.leaders[0].fresh is not None:
            found["eval_reward"] = self.result.leaders[0].fresh
        if self.result.win_rate is not None:
            found["eval_win_rate"] = self.result.win_rate[0]
        return found

    # -- rewards

    def _round_of_rewards(self) -> bool:
        asked = self.optimizer.ask(self.args.parallel, (), self._services)
        queries = [one if isinstance(one, Query) else Query(one) for one in asked]
        if queries:
            self._tell_rewards(queries)
        return bool(queries)

    def _tell_rewards(self, queries: Sequence[Query]) -> None:
        """Score as many as the budget allows, in their order, and tell; ``BudgetSpent`` where not all could be."""
        size = self.args.minibatch_size
        first = [
            query if query.items is not None or size is None else Query(query.candidate, size) for query in queries
        ]
        trials, spent = self._score(first)
        again = []
        for query, trial in zip(queries, trials, strict=False):
            if query.items is None and size is not None and self._promising(trial):
                again.append(query)
        if again and not spent:
            whole, spent = self._score(again)
            by_key = {trial.candidate.key: trial for trial in whole}
            trials = [by_key.get(trial.candidate.key, trial) for trial in trials]
        if trials:
            self.optimizer.tell(trials)
            self._all_trials.extend(trials)
            self._note(trials)
        if spent:
            raise BudgetSpent(spent)

    def _promising(self, trial: Trial) -> bool:
        """Whether a candidate is at least as good on its minibatch as the best is there."""
        best = self._best_so_far()
        if best is None or math.isnan(best[1]):
            return True
        known = self._trials[best[0].key]
        same = [known[item][0] for item in trial.items if item in known]
        return not same or trial.score >= float(np.nanmean(same))

    def _score(self, queries: Sequence[Query], keep: int | None = None) -> tuple[list[Trial], str]:
        """Trials of the first queries that the budget allows, and what it ran out of."""
        keep = self._reserve if keep is None else keep
        each = getattr(self.model, "calls_per_completion", 1)
        left = self._budget.left("model") - keep
        jobs: list[tuple[Candidate, Item]] = []
        taken: list[tuple[Query, list[Item]]] = []
        used: set[str] = set()
        short = ""
        for query in queries:
            items = self._items_of(query)
            prompts = [ApplyPrompt.of(query.candidate).render(item.prompt) for item in items]
            keys = self._requests.keys("model", self.model, prompts, [""] * len(prompts))
            cost = each * self._requests.new([key for key in keys if key not in used])
            if cost > left:
                short = f"the next candidate needs {cost} calls, and {max(left, 0):g} are left"
                break
            left -= cost
            used.update(keys)
            taken.append((query, items))
            jobs += [(query.candidate, item) for item in items]
        rewarded = self._answer_and_reward(jobs)
        trials = []
        for query, items in taken:
            found = [rewarded[query.candidate.key, item.id] for item in items]
            trials.append(
                Trial(
                    query.candidate,
                    tuple(item.id for item in items),
                    np.array([reward for reward, _ in found], dtype=float),
                    tuple(answer for _, answer in found),
                )
            )
            self._trials.setdefault(query.candidate.key, {}).update(
                {item.id: pair for item, pair in zip(items, found, strict=True)}
            )
        return trials, short

    def _items_of(self, query: Query) -> list[Item]:
        if not isinstance(query.items, tuple):
            return list(self.split.items[: query.items])
        return [self._items[item] for item in query.items]

    def _answer_and_reward(self, jobs: Sequence[tuple[Candidate, Item]]) -> dict[tuple[str, RowId], tuple[float, str]]:
        prompts = [ApplyPrompt.of(candidate).render(item.prompt) for candidate, item in jobs]
        answers = self._requests.complete("model", self.model, prompts, [""] * len(prompts)) if jobs else []
        ledger = self._requests.ledger
        keys = [
            key_of("reward", prompt, answer.text, item.id)
            for prompt, answer, (_, item) in zip(prompts, answers, jobs, strict=True)
        ]
        missing = {key: place for place, key in enumerate(keys) if key not in ledger.answers}
        if missing:
            places = list(missing.values())
            ids = [answers[place].token_ids for place in places]
            rewards = self._rewards(
                [prompts[place] for place in places],
                [as_messages(answers[place], prompts[place]) for place in places],
                None if any(one is None for one in ids) else ids,
                columns_of([jobs[place][1] for place in places]),
                row_ids=[jobs[place][1].id for place in places],
                trainer_state=self._state,
            )
            for number, key in enumerate(missing):
                value, parts = float(rewards.total[number]), rewards.per_function[number].tolist()
                ledger.answer(
                    key,
                    "reward",
                    reward=None if math.isnan(value) else value,
                    parts=[None if math.isnan(part) else part for part in parts],
                )
        found = {}
        for key, answer, (candidate, item) in zip(keys, answers, jobs, strict=True):
            reward = ledger.answers[key]["reward"]
            found[candidate.key, item.id] = (math.nan if reward is None else float(reward), answer.text)
        return found

    def _note(self, trials: Sequence[Trial]) -> None:
        from hfdataopt.plugins import host

        for trial in trials:
            host().hook.after_trial(trial=trial)
        if self.args.output_dir is not None:
            rows = [
                {
                    "step": self._state.global_step + 1,
                    "instruction": trial.candidate.instruction,
                    "exemplars": json.dumps(trial.candidate.exemplars),
                    "origin": trial.candidate.origin,
                    "items": len(trial.items),
                    "score": trial.score,
                    "key": trial.candidate.key,
                }
                for trial in trials
            ]
            write_table(Path(self.args.output_dir), self._state.global_step + 1, rows)
        scores = [trial.score for trial in trials if not math.isnan(trial.score)]
        self._step(score=max(scores) if scores else math.nan, candidates=len(self._trials))

    # -- votes

    def _round_of_votes(self) -> bool:
        assert self.judge is not None and isinstance(self.optimizer, PreferenceOptimizer)
        each = self.judge.calls_per_question
        allowed = (self._budget.left("judge") - self._reserve) // each
        if allowed < 1:
            raise BudgetSpent(f"max_judge_calls={self.args.max_judge_calls}")
        wanted = int(min(self.args.parallel, allowed))
        duels = [self._placed(duel) for duel in self.optimizer.ask(wanted, (), self._services)]
        if duels:
            votes = self._vote(duels, [f"{len(self._votes) + place}" for place in range(len(duels))])
            self.optimizer.tell(votes)
            self._votes.extend(votes)
            self._tell_votes(votes)
        return bool(duels)

    def _vote(self, duels: Sequence[Duel], names: Sequence[str]) -> list[Vote]:
        """Votes on duels by a judge that answers at once, in their order."""
        assert self.judge is not None
        answers = self._answers(duels)
        known = {event["question"]: event for event in self._requests.ledger.events}
        questions = [self._question(*one) for one in zip(duels, answers, names, strict=True)]
        self.judge.submit([question for question, _ in questions if question.id not in known])
        if any(question.id not in known for question, _ in questions):
            flips = {question.id: flip for question, flip in questions}
            for decision in self.judge.collect():
                self._keep(decision, flips[decision.question])
            known = {event["question"]: event for event in self._requests.ledger.events}
        votes = []
        for duel, pair, (question, _) in zip(duels, answers, questions, strict=True):
            event = known[question.id]
            word = Comparison(event["winner"], event["outcome"])
            votes.append(Vote(duel, word, (_shown(pair[0]), _shown(pair[1])), event["by"]))
            self._budget.book("judge", 0, 0, self.judge.calls_per_question)
        return votes

    def _people(self) -> tuple[Any, str]:
        """The loop with a judge that answers in an order of its own; on a restart kept decisions are played again first."""
        assert self.judge is not None and isinstance(self.optimizer, PreferenceOptimizer)
        events = list(self._requests.ledger.events)
        outstanding: dict[str, tuple[Duel, bool, tuple[Any, Any]]] = {}
        standing: dict[str, Vote] = {}
        waiting: list[Question] = []
        numbers = iter(range(10**9))
        over = False
        while True:
            left = self._budget.left("judge") - len(outstanding)
            wanted = int(min(self.args.parallel - len(outstanding), left))
            if self.args.max_steps is not None:
                wanted = min(wanted, self.args.max_steps - len(standing) - len(outstanding))
            if wanted > 0 and not over:
                pending = [duel for duel, _, _ in outstanding.values()]
                duels = [self._placed(one) for one in self.optimizer.ask(wanted, pending, self._services)]
                over = not duels
                for duel, pair in zip(duels, self._answers(duels), strict=True):
                    question, flip = self._question(duel, pair, str(next(numbers)))
                    outstanding[question.id] = (duel, flip, pair)
                    waiting.append(question)
            if not outstanding:
                return (
                    ("finished", "the optimizer has nothing more to ask")
                    if over
                    else ("budget", f"{len(standing)} votes")
                )
            if events:
                decisions = [events.pop(0)]
            else:
                self.judge.submit([question for question in waiting if question.id in outstanding])
                waiting = []
                arrived = self.judge.collect()
                if not arrived:
                    return "finished", "the judge stopped"
                decisions = []
                for decision in arrived:
                    if decision.undo == (decision.question in standing) and (
                        decision.undo or decision.question in outstanding
                    ):
                        decisions.append(self._keep(decision, outstanding.get(decision.question, (None, False))[1]))
            for event in decisions:
                name = event["question"]
                if event["undo"]:
                    vote = standing.pop(name)
                    self.optimizer.forget(vote)
                    self._votes.remove(vote)
                    self._budget.spent.judge_calls -= self.judge.calls_per_question
                    duel = vote.duel
                    pair = self._answers([duel])[0]
                    question, flip = self._question(duel, pair, "", name)
                    outstanding[name] = (duel, flip, pair)
                    waiting.append(question)
                    continue
                duel, _, pair = outstanding.pop(name)
                word = Comparison(event["winner"], event["outcome"])
                vote = Vote(duel, word, (_shown(pair[0]), _shown(pair[1])), event["by"])
                standing[name] = vote
                self._votes.append(vote)
                self._budget.book("judge", 0, 0, self.judge.calls_per_question)
                self.optimizer.tell([vote])
                self._tell_votes([vote])
            if self._control.should_training_stop:
                return "finished", "a callback stopped it"
            if out := self._budget.out_of():
                return "budget", out

    def _keep(self, decision: Decision, flip: bool) -> dict[str, Any]:
        """Write a decision down, in the duel's own order, before anything is made of it."""
        assert self.judge is not None
        word = decision.comparison.flipped() if flip else decision.comparison
        event = {
            "question": decision.question,
            "winner": word.winner,
            "outcome": word.outcome,
            "by": decision.by,
            "undo": decision.undo,
        }
        self._requests.ledger.event(**event)
        self.judge.kept(decision)
        return event

    def _placed(self, duel: Duel) -> Duel:
        """The duel on an item: its own, or the next in turn."""
        if duel.item is not None:
            return duel
        item = self.split.items[self._turn % len(self.split.items)]
        self._turn += 1
        return Duel(duel.first, duel.second, item.id)

    def _question(self, duel: Duel, pair: tuple[Any, Any], name: str, id_: str = "") -> tuple[Question, bool]:
        """The question with its answers in the order in which they are shown, and whether that is the other one."""
        id_ = id_ or key_of("question", name, duel.first.key, duel.second.key, duel.item)
        item = self._items[duel.item]  # type: ignore[index]
        flip = int(id_, 16) % 2 == 1
        shown = (pair[1], pair[0]) if flip else pair
        return Question(id_, item.prompt, shown, item.id, dict(item.columns)), flip

    def _answers(self, duels: Sequence[Duel]) -> list[tuple[Any, Any]]:
        """Answers of both candidates of each duel on its item."""
        sides = [(candidate, self._items[duel.item]) for duel in duels for candidate in (duel.first, duel.second)]  # type: ignore[index]
        found: list[Any] = [candidate.completion for candidate, _ in sides]
        places = [place for place, answer in enumerate(found) if answer is None]
        prompts = [ApplyPrompt.of(sides[place][0]).render(sides[place][1].prompt) for place in places]
        if prompts and self.images:
            made = self._draw(prompts)
        elif prompts:
            completions = self._requests.complete("model", self.model, prompts, [""] * len(prompts))
            made = [as_messages(one, prompt) for one, prompt in zip(completions, prompts, strict=True)]
        else:
            made = []
        for place, answer in zip(places, made, strict=True):
            found[place] = answer
        return [(found[2 * place], found[2 * place + 1]) for place in range(len(duels))]

    def _draw(self, prompts: Sequence[Any]) -> list[Any]:
        """Images of texts, each drawn once and kept as PNG."""
        from hfdataopt.prompting.drawings import draw

        folder = Path(self.args.output_dir) if self.args.output_dir else self._scratch()
        return draw(self.model, [transcript(prompt).strip() for prompt in prompts], self._requests, folder / "images")

    def _scratch(self) -> Path:
        if not hasattr(self, "_temporary"):
            self._temporary = tempfile.TemporaryDirectory()
        return Path(self._temporary.name)

    def _tell_votes(self, votes: Sequence[Vote]) -> None:
        from hfdataopt.plugins import host

        for vote in votes:
            host().hook.after_trial(trial=vote)
        best = self.optimizer.best
        if self.args.output_dir is not None and best is not None:
            row = {"step": self._state.global_step + 1, "instruction": best.instruction, "key": best.key}
            write_table(Path(self.args.output_dir), self._state.global_step + 1, [row])
        self._step(votes=len(self._votes))

    def _shown(self) -> dict[str, Any]:
        """The search as a person may see it."""
        best = self.optimizer.best if self._votes else None
        return {
            "votes": len(self._votes),
            "of": self.args.max_judge_calls,
            "best_prompt": None if best is None else (best.completion or best.instruction),
        }

    # -- the end

    def _finish(self, status: Any, reason: str) -> PromptResult:
        config = self.args
        leaders = self.optimizer.leaders(max(config.leaders, 1))
        if not leaders and self._preferences:
            leaders = [candidate for candidate in [self.optimizer.best] if candidate is not None]
        if not leaders:
            raise DataError(
                f"{WHO}: {self.optimizer.name} ended without a candidate ({reason}); the budget was too small for a first one, or "
                "the proposer gave no instruction that could be read"
            )
        win_rate = None
        if self._preferences:
            scored = [Leader(candidate, math.nan, 0) for candidate in leaders]
            win_rate = self._beats_before(leaders[0])
            self.judge.end(self._shown())  # type: ignore[union-attr]
        else:
            scored = self._score_again(leaders) if config.leaders else [self._leader(leaders[0], {})]
        return PromptResult(
            scored[0].candidate,
            status,
            reason,
            scored,
            win_rate,
            self._all_trials,
            self._votes,
            self._history,
            self._budget.spent.to_json(),
            self._budget.elapsed(),
        )

    def _score_again(self, leaders: Sequence[Candidate]) -> list[Leader]:
        """The leaders on fresh items, as many as are left for each; ranked by all their items."""
        fresh = self.split.fresh
        each = len(leaders) * getattr(self.model, "calls_per_completion", 1)
        left = self._budget.left("model")
        most = len(fresh) if math.isinf(left) else int(left // each)
        if self.args.final_items is not None:
            most = min(most, self.args.final_items)
        elif math.isinf(left):
            most = min(most, 5 * self.args.items)
        elif self._reserve:
            most = min(most, max(self._reserve // each, 1))
        elif self.args.max_calls is not None:
            most = 0
        items = tuple(item.id for item in fresh[:most])
        again: dict[str, dict[RowId, tuple[float, str]]] = {}
        if items:
            before = {key: dict(known) for key, known in self._trials.items()}
            try:
                trials, _ = self._score([Query(candidate, items) for candidate in leaders], keep=0)
            except BudgetSpent as spent:
                say(f"{WHO}: the leaders were not scored again: {spent}")
                trials = []
            self._trials = before
            for trial in trials:
                pairs = zip(trial.rewards.tolist(), trial.answers, strict=True)
                again[trial.candidate.key] = dict(zip(trial.items, pairs, strict=True))
        found = [self._leader(candidate, again.get(candidate.key, {})) for candidate in leaders]

        def pooled(leader: Leader) -> float:
            total = leader.score * leader.items + (leader.fresh or 0.0) * leader.fresh_items
            return total / max(leader.items + leader.fresh_items, 1)

        widest = max(leader.items for leader in found)
        return sorted(found, key=lambda leader: (leader.items < widest, -pooled(leader)))

    def _leader(self, candidate: Candidate, fresh: dict[RowId, tuple[float, str]]) -> Leader:
        common = {item.id for item in self.split.items}
        known = self._trials.get(candidate.key, {})
        rewards = [r for item, (r, _) in known.items() if item in common and not math.isnan(r)]
        score = float(np.mean(rewards)) if rewards else math.nan
        again = [reward for reward, _ in fresh.values() if not math.isnan(reward)]
        if not again:
            return Leader(candidate, score, len(rewards))
        mean, low, high = mean_interval(again)
        return Leader(candidate, score, len(rewards), mean, low, high, len(again))

    def _beats_before(self, best: Candidate) -> tuple[float, float, float, int] | None:
        """How often the best wins against the prompt of before on fresh items; None where nothing was kept for it."""
        assert self.judge is not None
        each = self.judge.calls_per_question
        before = Candidate(self.args.start[0]) if self.args.start else NO_PROMPT
        count = min(self._reserve // each, len(self.split.fresh))
        if not count or best.completion is not None or best.key == before.key:
            return None
        duels = [Duel(best, before, item.id) for item in self.split.fresh[:count]]
        try:
            votes = self._vote(duels, [f"final {place}" for place in range(count)])
        except BudgetSpent as spent:
            say(f"{WHO}: the best was not compared with the prompt of before: {spent}")
            return None
        targets = [target for vote in votes if (target := vote.comparison.target) is not None]
        return (*mean_interval(targets), len(targets)) if targets else None

    # -- models

    def _make_proposer(self, model: Any, proposer: Any, processing_class: Any) -> Any:
        config = self.args
        given = proposer if proposer is not None else config.proposer
        options = {"max_new_tokens": config.proposer_max_new_tokens, "temperature": config.proposer_temperature}
        if given is None:
            if self.images:
                raise OptionError(
                    f"{WHO}: optimizer {self.optimizer.name!r} needs proposer=: the model draws images and cannot write prompts"
                )
            return changed(self.model, "proposer", **options)
        if isinstance(given, tuple):
            given, processing_class = given
        elif proposer is not None:
            processing_class = None
        made = _generator(given, processing_class if given is model else None, config, "proposer")
        return made if made is given else changed(made, "proposer", **options)

    def _check_prompts(self) -> None:
        """Prompts that the scored model cannot read at all are an error now, not after the first proposals."""
        check = getattr(self.model, "check", None)
        everyone = (*self.split.items, *self.split.fresh)
        if callable(check):
            check([item.prompt for item in everyone], [item.id for item in everyone])


def _optimizer(given: Any, config: PromptConfig) -> PromptOptimizer:
    if isinstance(given, str):
        from hfdataopt.plugins import get_optimizer

        return get_optimizer(given, **dict(config.optimizer_options or {}))  # type: ignore[arg-type]
    if config.optimizer_options:
        raise OptionError(f"{WHO}: optimizer_options are for an optimizer that is given by name; this one has its own")
    return check_optimizer(given)


def _generator(model: Any, processing_class: Any, config: PromptConfig, role: str) -> Any:
    import torch

    from hfdataopt.generation import EndpointGenerator, as_generator

    if model is None:
        raise OptionError(f"{WHO}: {role} is missing; give an id, a model, a generator or a function")
    options: dict[str, Any] = {"max_new_tokens": config.max_new_tokens, "temperature": config.temperature}
    if isinstance(model, str) and config.base_url is not None:
        return EndpointGenerator(model, base_url=config.base_url, concurrency=config.concurrency, **options)
    if isinstance(model, str | torch.nn.Module):
        return as_generator(model, processing_class, batch_size=config.batch_size, **options)
    return as_generator(model, processing_class)


def _white_box(given: Any) -> Any:
    if given is None:
        return None
    from hfdataopt.prompting.white_box import WhiteBox

    if isinstance(given, WhiteBox):
        return given
    if isinstance(given, str):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        return WhiteBox(AutoModelForCausalLM.from_pretrained(given), AutoTokenizer.from_pretrained(given))
    if isinstance(given, tuple) and len(given) == 2:
        return WhiteBox(*given)
    raise OptionError(f"{WHO}: white_box is an id, a WhiteBox, or (model, tokenizer); got {type(given).__name__}")


def _weights(generator: Any) -> str:
    """What a description of a local model leaves out: its weights."""
    from hfdataopt.attribution.identity import fingerprint

    model = getattr(generator, "model", None)
    return "" if model is None or isinstance(model, str) else fingerprint(model)


def _shown(answer: Any) -> str:
    """An answer as text: of messages the text of the last one, of an image where it is kept."""
    from hfdataopt.rewards.texts import is_messages, text_of

    if isinstance(answer, str) or is_messages(answer):
        return text_of(answer)
    return str(getattr(answer, "filename", "") or answer)
