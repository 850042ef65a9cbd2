"""The loop with reward functions: candidates are answered, rewarded and told, and the leaders scored again at the end."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hfdataopt.console import say
from hfdataopt.generation import as_messages
from hfdataopt.prompting.apply import ApplyPrompt
from hfdataopt.prompting.budget import BudgetSpent
from hfdataopt.prompting.candidate import Candidate, Query, RowId, Trial
from hfdataopt.prompting.items import columns_of
from hfdataopt.prompting.ledger import key_of
from hfdataopt.prompting.optimizer import Item
from hfdataopt.prompting.result import Leader
from hfdataopt.prompting.search import Ended, Search
from hfdataopt.statistics import reward_interval

WHO = "PromptTrainer"
Known = dict[str, dict[RowId, tuple[float, str]]]  # key of a candidate -> id of an item -> reward and answer


class RewardsLoop:
    """Runs an optimizer that learns from rewards (:class:`~hfdataopt.rewards.functions.RewardFunctions`)."""

    def __init__(self, search: Search, rewards: Any) -> None:
        self.search, self.rewards = search, rewards
        self.known: Known = {}

    def run(self) -> Ended:
        """The search; how it ended."""
        start = self.search.config.start
        if start:
            self._tell([Query(Candidate(text, origin="start")) for text in start])
        return self.search.rounds(self._round)

    def _round(self) -> bool:
        asked = self.search.optimizer.ask(self.search.config.parallel, (), self.search.services)
        queries = [one if isinstance(one, Query) else Query(one) for one in asked]
        if queries:
            self._tell(queries)
        return bool(queries)

    def _tell(self, queries: Sequence[Query]) -> None:
        """Score as many as the budget allows, in their order, and tell; ``BudgetSpent`` where not all could be."""
        size = self.search.config.minibatch_size
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
            if not self.search.trials and all(math.isnan(reward) for trial in trials for reward in trial.rewards):
                say(f"{WHO}: the reward functions had no opinion (None) on any of the first answers")
            self.search.optimizer.tell(trials)
            self.search.trials.extend(trials)
            self._step(trials)
        if spent:
            raise BudgetSpent(spent)

    def _promising(self, trial: Trial) -> bool:
        """Whether a candidate is at least as good on its minibatch as the best is there."""
        best = self._best_so_far()
        if best is None or math.isnan(best[1]):
            return True
        known = self.known[best[0].key]
        same = [known[item][0] for item in trial.items if item in known]
        return not same or trial.score >= float(np.nanmean(same))

    def _best_so_far(self) -> tuple[Candidate, float] | None:
        best = self.search.optimizer.best
        if best is None:
            return None
        rewards = [reward for reward, _ in self.known.get(best.key, {}).values() if not math.isnan(reward)]
        return best, float(np.mean(rewards)) if rewards else math.nan

    def _score(self, queries: Sequence[Query]) -> tuple[list[Trial], str]:
        """Trials of the first queries that the budget allows, and what it ran out of."""
        search = self.search
        left = search.budget.left("model")
        jobs: list[tuple[Candidate, Item]] = []
        taken: list[tuple[Query, list[Item], bool]] = []
        used: set[str] = set()
        short = ""
        for query in queries:
            items = self._items_of(query)
            if not search.fits(query.candidate, items):
                taken.append((query, items, False))
                continue
            prompts = [ApplyPrompt.of(query.candidate).render(item.prompt) for item in items]
            keys = search.requests.keys("model", search.model, prompts, [""] * len(prompts))
            cost = search.requests.cost(search.model, [key for key in keys if key not in used])
            if cost > left:
                short = f"the next candidate needs {cost} calls, and {max(left, 0):g} are left"
                break
            left -= cost
            used.update(keys)
            taken.append((query, items, True))
            jobs += [(query.candidate, item) for item in items]
        try:
            rewarded = self._answer_and_reward(jobs)
        except BudgetSpent:  # tokens, money or time: what was paid for in full is told all the same
            rewarded = {}
            for place, (query, items, fits) in enumerate(taken):
                try:
                    rewarded |= self._answer_and_reward([(query.candidate, item) for item in items] if fits else [])
                except BudgetSpent as spent:
                    taken, short = taken[:place], str(spent)
                    break
        trials = []
        for query, items, fits in taken:
            found = [rewarded[query.candidate.key, item.id] if fits else (math.nan, "") for item in items]
            trials.append(
                Trial(
                    query.candidate,
                    tuple(item.id for item in items),
                    np.array([reward for reward, _ in found], dtype=float),
                    tuple(answer for _, answer in found),
                )
            )
            self.known.setdefault(query.candidate.key, {}).update(
                {item.id: pair for item, pair in zip(items, found, strict=True)}
            )
        return trials, short

    def _items_of(self, query: Query) -> list[Item]:
        if not isinstance(query.items, tuple):
            return list(self.search.split.items[: query.items])
        return [self.search.items[item] for item in query.items]

    def _answer_and_reward(self, jobs: Sequence[tuple[Candidate, Item]]) -> dict[tuple[str, RowId], tuple[float, str]]:
        search = self.search
        prompts = [ApplyPrompt.of(candidate).render(item.prompt) for candidate, item in jobs]
        answers = search.requests.complete("model", search.model, prompts, [""] * len(prompts)) if jobs else []
        ledger = search.ledger
        keys = [
            key_of("reward", prompt, answer.text, item.id)
            for prompt, answer, (_, item) in zip(prompts, answers, jobs, strict=True)
        ]
        missing = {key: place for place, key in enumerate(keys) if key not in ledger.answers}
        if missing:
            places = list(missing.values())
            ids = [answers[place].token_ids for place in places]
            rewards = self.rewards(
                [prompts[place] for place in places],
                [as_messages(answers[place], prompts[place]) for place in places],
                None if any(one is None for one in ids) else ids,
                columns_of([jobs[place][1] for place in places]),
                row_ids=[jobs[place][1].id for place in places],
                trainer_state=search.state,
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

    def _step(self, trials: Sequence[Trial]) -> None:
        from hfdataopt.plugins import host

        for trial in trials:
            host().hook.after_trial(trial=trial)
        rows = [
            {
                "instruction": trial.candidate.instruction,
                "exemplars": json.dumps(trial.candidate.exemplars),
                "origin": trial.candidate.origin,
                "items": len(trial.items),
                "score": trial.score,
                "key": trial.candidate.key,
            }
            for trial in trials
        ]
        scores = [trial.score for trial in trials if not math.isnan(trial.score)]
        self.search.step(
            self._best_so_far(),
            rows,
            {"trials": trials},
            score=max(scores) if scores else math.nan,
            candidates=len(self.known),
        )

    # -- the end

    def finish(self, leaders: Sequence[Candidate]) -> list[Leader]:
        """The leaders on fresh items, as many as are left for each; ranked by all their items."""
        search = self.search
        config, fresh = search.config, search.split.fresh
        if not config.leaders:
            return [self._leader(leaders[0], {})]
        each = len(leaders) * search.each
        left = search.budget.left("model")
        most = len(fresh) if math.isinf(left) else int(left // each)
        if config.final_items is not None:
            most = min(most, config.final_items)
        elif math.isinf(left):
            most = min(most, 5 * config.items)
        else:
            most = min(most, max(search.reserve.calls // each, 1) if search.reserve.calls else 0)
        items = tuple(item.id for item in fresh[:most])
        again: Known = {}
        if items:
            known, self.known = self.known, {}
            _, short = self._score([Query(candidate, items) for candidate in leaders])
            again, self.known = self.known, known
            if short:
                say(f"{WHO}: {len(again)} of {len(leaders)} leaders were scored again on fresh items: {short}")
        found = [self._leader(candidate, again.get(candidate.key, {})) for candidate in leaders]

        def pooled(leader: Leader) -> float:
            total = leader.score * leader.items + (leader.fresh or 0.0) * leader.fresh_items
            return total / max(leader.items + leader.fresh_items, 1)

        widest = max(leader.items for leader in found)
        # One that was not scored again has only the score that flatters it.
        return sorted(found, key=lambda leader: (leader.items < widest, not leader.fresh_items, -pooled(leader)))

    def _leader(self, candidate: Candidate, fresh: dict[RowId, tuple[float, str]]) -> Leader:
        common = {item.id for item in self.search.split.items}
        known = self.known.get(candidate.key, {})
        rewards = [reward for item, (reward, _) in known.items() if item in common and not math.isnan(reward)]
        score = float(np.mean(rewards)) if rewards else math.nan
        again = [reward for reward, _ in fresh.values() if not math.isnan(reward)]
        if not again:
            return Leader(candidate, score, len(rewards))
        mean, low, high = reward_interval(again)
        return Leader(candidate, score, len(rewards), mean, low, high, len(again))
