"""``PromptTrainer``: runs a prompt optimizer on a model, TRL reward functions or a judge, and a dataset, within a budget."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hfdataopt.console import say, warn
from hfdataopt.errors import DataError, OptionError
from hfdataopt.prompting.apply import ApplyPrompt
from hfdataopt.prompting.budget import Budget, BudgetSpent
from hfdataopt.prompting.candidate import Candidate
from hfdataopt.prompting.config import PromptConfig
from hfdataopt.prompting.items import Split, columns_of, content_of, read_items, split_items
from hfdataopt.prompting.judges import Judge, as_judge
from hfdataopt.prompting.ledger import Ledger
from hfdataopt.prompting.optimizer import PreferenceOptimizer, PromptOptimizer, check_optimizer
from hfdataopt.prompting.planning import plan, reserved, task_of
from hfdataopt.prompting.result import FILE as RESULT
from hfdataopt.prompting.result import Leader, PromptResult
from hfdataopt.prompting.rewards_loop import RewardsLoop
from hfdataopt.prompting.search import Search
from hfdataopt.prompting.services import HostServices, Requests, changed, describe_encoder
from hfdataopt.prompting.tracking import check_trackers, open_trackers
from hfdataopt.prompting.votes_loop import VotesLoop
from hfdataopt.rewards.functions import RewardFunctions

WHO = "PromptTrainer"


class PromptTrainer:
    """Searches for a better prompt.

    Args:
        optimizer: an instance, or a name, whose options are ``args.optimizer_options``.
        model: the scored model: a hub id or folder (with ``args.base_url`` a name at that server), a ``PreTrainedModel``, a
            generator (:mod:`hfdataopt.generation`), a function of a list of prompts, or a generator of images.
        args: budgets and everything else.
        reward_funcs: what ``GRPOTrainer(reward_funcs=...)`` takes; or
        judge: who compares two answers (:mod:`hfdataopt.prompting.judges`), or a judge written for older TRL.
        train_dataset: rows with ``prompt`` (text or messages), or of another of TRL's formats. For images a prompt may be empty:
            the instruction is then all of the text.
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
        self.callbacks = [one() if isinstance(one, type) else one for one in callbacks or ()]
        check_trackers(config)
        if config.resume_from_checkpoint and config.output_dir is None:
            raise OptionError(f"{WHO}: resume_from_checkpoint=True needs output_dir, where the search is kept")
        if (reward_funcs is None) == (judge is None):
            got = "neither" if judge is None else "both"
            raise OptionError(f"{WHO}: give reward_funcs or a judge; got {got}")
        if config.minibatch_size is not None and self.optimizer.chooses_items:
            raise OptionError(
                f"{WHO}: minibatch_size={config.minibatch_size} has no effect, since optimizer {self.optimizer.name!r} chooses the "
                "items of each candidate itself; leave it out, and see the optimizer's own options"
            )
        preferences = isinstance(self.optimizer, PreferenceOptimizer)
        if judge is not None and not preferences:
            raise OptionError(
                f"{WHO}: optimizer {self.optimizer.name!r} learns from rewards, not from a judge; give reward_funcs, or an "
                "optimizer of preferences such as 'apohf'"
            )
        self._rewards = self._reward_functions(reward_funcs, reward_processing_classes)
        self.judge: Judge | None = None
        if preferences:
            from hfdataopt.prompting.judges import RewardJudge

            self.judge = RewardJudge(self._rewards) if judge is None else as_judge(judge)
        needs = self.optimizer.needs
        self.images = callable(getattr(model, "draw", None)) and not callable(getattr(model, "generate", None))
        train = read_items(train_dataset, config, "train_dataset", blank=self.images)
        fresh = None if eval_dataset is None else read_items(eval_dataset, config, "eval_dataset", blank=self.images)
        self.split: Split = split_items(train, fresh, config, "examples" in needs, "rows" in needs)
        if self.images and self.judge is None:
            raise OptionError(
                f"{WHO}: the model draws images, and optimizer {self.optimizer.name!r} learns from rewards of texts; take an "
                "optimizer of preferences such as 'apohf'"
            )
        self.model = model if self.images else _generator(model, processing_class, config, "model")
        self._proposer = self._make_proposer(model, proposer, processing_class) if "proposer" in needs else None
        self._prices: dict[str, Any] = dict(self.args.prices or {})  # type: ignore[arg-type]
        if proposer is None and config.proposer is None and "model" in self._prices:
            self._prices.setdefault("proposer", self._prices["model"])  # the same model
        self._encoder = encoder if encoder is not None else config.encoder
        self._white_box = _white_box(white_box if white_box is not None else config.white_box, config.batch_size)
        for role, thing in (("encoder", self._encoder), ("white_box", self._white_box)):
            if role in needs and thing is None:
                raise OptionError(
                    f"{WHO}: optimizer {self.optimizer.name!r} needs {role}=: an id in PromptConfig, or an object here"
                )
        self._check_prompts()
        self._check_rewards()
        self._check_limits()
        roles = {"proposer": proposer, "encoder": encoder, "white_box": white_box}
        if idle := self._without_effect(model, roles):
            warn(f"{WHO}: without effect here: {'; '.join(idle)}")
        self.result: PromptResult | None = None

    # -- what users read

    @property
    def best_prompt(self) -> str:
        """The instruction that was found."""
        return self._found().prompt.instruction

    @property
    def apply_prompt(self) -> ApplyPrompt:
        """A map function that puts the prompt that was found into a dataset, with its exemplars."""
        return ApplyPrompt.of(self._found().prompt)

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

        With several processes all of them call this, as they do a trainer's: the first one searches, and each has the result.

        Raises:
            GenerationError: a provider failed; what arrived is kept, and calling it again goes on from there.
        """
        from hfdataopt.attribution.processes import Processes

        self.result = Processes.current().run_on_main(self._train)
        assert self.result is not None
        return self.result

    def _train(self) -> PromptResult:
        config = self.args
        folder = None if config.output_dir is None else Path(config.output_dir)
        ledger = Ledger(
            folder,
            self._settings(),
            fresh=config.resume_from_checkpoint is False,
            must_exist=config.resume_from_checkpoint is True,
        )
        search = None
        budget = self._budget(ledger)
        try:
            search = self._new_search(Requests(ledger, budget, config.seed))
            if ledger.kept:
                say(f"going on with the search in {config.output_dir!r}: {ledger.kept} answers are kept")
            for line in self.plan().splitlines():
                say(line)
            if folder is not None:
                (folder / RESULT).unlink(
                    missing_ok=True
                )  # of a run that ended earlier; it comes back with this one's end
            search.trackers = open_trackers(config)
            self.result = result = self._run(search)
        finally:
            ledger.time(budget.elapsed())
            for tracker in [] if search is None else search.trackers:
                tracker.finish()
            ledger.close()
        if folder is not None:
            result.save(folder)
            if result.best.completion is None:
                self.save_model()
        if config.logging_steps:
            for line in str(result).splitlines():
                say(line)
        return result

    def plan(self) -> str:
        """What the budget buys, in words."""
        return plan(self.args, self.optimizer, self.split, self.model, self.judge)

    def _budget(self, ledger: Ledger) -> Budget:
        config = self.args
        return Budget(
            config.max_calls,
            config.max_proposer_calls,
            config.max_judge_calls,
            config.max_tokens,
            config.max_seconds,
            config.max_cost,
            {role: (float(into), float(out)) for role, (into, out) in self._prices.items()},
            before=ledger.seconds,
        )

    def _new_search(self, requests: Requests) -> Search:
        items = {item.id: item for item in (*self.split.items, *self.split.examples, *self.split.fresh)}
        services = HostServices(requests, self.model, self._proposer, self._encoder, self._white_box, items)
        reserve = reserved(self.args, self.optimizer, self.split, self.model, self.judge)
        requests.budget.kept = {"model": reserve.calls, "judge": reserve.judge_calls}
        return Search(
            config=self.args,
            optimizer=self.optimizer,
            model=self.model,
            split=self.split,
            items=items,
            requests=requests,
            services=services,
            reserve=reserve,
            callbacks=self.callbacks,
            trainer=self,
        )

    def _run(self, search: Search) -> PromptResult:
        """The search from its first round to the last word on its leaders."""
        config, optimizer = self.args, self.optimizer
        optimizer.start(task_of(config, optimizer, self.split, self.model, self.judge))
        search.event("on_train_begin")
        loop: RewardsLoop | VotesLoop
        if isinstance(optimizer, PreferenceOptimizer):
            assert self.judge is not None
            loop = VotesLoop(search, self.judge, optimizer)
        else:
            loop = RewardsLoop(search, self._rewards)
        try:
            status, reason = loop.run()
        except BudgetSpent as spent:
            status, reason = "budget", str(spent)
        search.budget.kept = {}
        found = self._leaders(reason, len(search.trials))
        win_rate = None
        if isinstance(loop, VotesLoop):
            leaders = [Leader(candidate, float("nan"), 0) for candidate in found]
            win_rate = loop.finish(found[0])
        else:
            leaders = loop.finish(found)
        result = PromptResult(
            leaders[0].candidate,
            status,
            reason,
            leaders,
            win_rate,
            search.trials,
            search.votes,
            search.history,
            search.budget.spent.to_json(),
            search.budget.elapsed(),
            search.budget.prices,
            bool(config.start),
        )
        metrics = _metrics(result)
        search.log(metrics)
        search.event("on_evaluate", metrics=metrics)
        search.event("on_train_end")
        return result

    def _leaders(self, reason: str, search_trials: int) -> list[Candidate]:
        found = self.optimizer.leaders(max(self.args.leaders, 1))
        trials = self.optimizer.trials
        if not found and trials and all(math.isnan(trial.score) for trial in trials):
            raise DataError(
                f"{WHO}: none of the {len(trials)} trials has a reward ({reason}): the reward functions returned None for every "
                "answer, or no prompt could be read by the model"
            )
        if not found and isinstance(self.optimizer, PreferenceOptimizer) and self.optimizer.best is not None:
            found = [self.optimizer.best]
        if not found and search_trials and not trials:
            raise DataError(
                f"{WHO}: {type(self.optimizer).__name__} was told {search_trials} trials and remembers none: its tell() must call "
                "super().tell(trials), or it must define leaders()"
            )
        if not found:
            raise DataError(
                f"{WHO}: {self.optimizer.name} ended without a candidate ({reason}); the budget was too small for a first one, or "
                "the proposer gave no instruction that could be read"
            )
        return found

    def _settings(self) -> dict[str, Any]:
        """What a resumed search must have in common with the one that was begun."""
        from hfdataopt.attribution.identity import fingerprint

        config, split = self.args, self.split
        same = ("seed", "items", "minibatch_size", "examples", "input_column", "answer_column", "start", "parallel")
        return {
            **{name: getattr(config, name) for name in same},
            "optimizer": [self.optimizer.name, repr(self.optimizer)],
            "model": [self.model.describe(), _weights(self.model)],
            "proposer": None if self._proposer is None else [self._proposer.describe(), _weights(self._proposer)],
            "encoder": None if self._encoder is None else describe_encoder(self._encoder),
            "white_box": None if self._white_box is None else [self._white_box.describe(), _weights(self._white_box)],
            "rewards": None if self._rewards is None else fingerprint(self._rewards),
            "judge": None if self.judge is None else self.judge.describe(),
            "dataset": content_of([*split.items, *split.examples, *split.fresh]),
        }

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
            return changed(self.model, **options)
        if isinstance(given, tuple):
            given, processing_class = given
        elif proposer is not None:
            processing_class = None
        made = _generator(given, processing_class if given is model else None, config, "proposer")
        return made if made is given else changed(made, **options)

    def _reward_functions(self, reward_funcs: Any, processing_classes: Any) -> Any:
        weights = self.args.reward_weights
        if reward_funcs is not None:
            return RewardFunctions(
                reward_funcs, reward_weights=weights, reward_processing_classes=processing_classes, who=WHO
            )
        for name, given in (("reward_weights", weights), ("reward_processing_classes", processing_classes)):
            if given is not None:
                raise OptionError(f"{WHO}: {name} belong to reward_funcs")
        return None

    def _check_prompts(self) -> None:
        """Prompts that the scored model cannot read at all are an error now, not after the first proposals."""
        check = getattr(self.model, "check", None)
        everyone = (*self.split.items, *self.split.fresh)
        if callable(check):
            for text in ("", *self.args.start):
                put = ApplyPrompt(text)
                check([put.render(item.prompt) for item in everyone], [item.id for item in everyone])

    def _check_rewards(self) -> None:
        """Reward functions that cannot be called with the columns are an error now."""
        rewards = getattr(self.judge, "rewards", self._rewards)
        if isinstance(rewards, RewardFunctions):
            from hfdataopt.generation import CallableGenerator, EndpointGenerator

            texts = self.judge is not None or isinstance(self.model, CallableGenerator | EndpointGenerator)
            rewards.check_columns(columns_of(self.split.items), completion_ids=not texts)

    def _without_effect(self, model: Any, roles: dict[str, Any]) -> list[str]:
        """What was set, and nothing reads: names with the reason. ``roles``: the objects that were handed over."""
        import torch

        config, needs = self.args, self.optimizer.needs
        usual = PromptConfig()
        ours = isinstance(model, str | torch.nn.Module)  # else it comes with settings of its own
        asked = [thing for thing in (model, roles["proposer"] or config.proposer) if isinstance(thing, str)]
        made = [thing for thing in asked if thing is model or "proposer" in needs]
        found = {}
        if not ours:
            found["the model given has its own settings"] = ["max_new_tokens", "temperature"]
        if not (made and config.base_url):
            found["no model is asked at a URL"] = ["concurrency"] + ([] if made else ["base_url"])
        for role, names in (
            ("proposer", ["proposer", "proposer_max_new_tokens", "proposer_temperature", "max_proposer_calls"]),
            ("encoder", ["encoder"]),
            ("white_box", ["white_box"]),
        ):
            if role not in needs:
                found[f"optimizer {self.optimizer.name!r} needs no {role}"] = names
        idle = []
        for why, names in found.items():
            given = [
                name for name in names if getattr(config, name) != getattr(usual, name) or roles.get(name) is not None
            ]
            if given:
                idle.append(f"{', '.join(given)} ({why})")
        return idle

    def _check_limits(self) -> None:
        """Limits of tokens or money need generators that say how long their answers can be; of votes, a judge."""
        if self.args.max_judge_calls is not None and self.judge is None:
            raise OptionError(
                f"{WHO}: max_judge_calls={self.args.max_judge_calls} limits nothing, since optimizer {self.optimizer.name!r} learns "
                "from rewards; limit it with max_calls"
            )
        limit = next((name for name in ("max_tokens", "max_cost") if getattr(self.args, name) is not None), None)
        judge = getattr(self.judge, "generator", None)
        model = None if self.images else self.model
        for role, generator in (("model", model), ("proposer", self._proposer), ("judge", judge)):
            if limit and generator is not None and generator.max_new_tokens is None:
                raise OptionError(
                    f"{WHO}: {limit} needs to know the most tokens of an answer, and the {role} does not say; hand over "
                    "CallableGenerator(function, max_new_tokens=...)"
                )
            if self.args.max_cost is not None and generator is not None and role not in self._prices:
                raise OptionError(f"{WHO}: max_cost needs prices[{role!r}]; [0, 0] where the {role} costs nothing")


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


def _white_box(given: Any, batch_size: int) -> Any:
    if given is None:
        return None
    from hfdataopt.prompting.white_box import WhiteBox

    if isinstance(given, WhiteBox):
        return given
    if isinstance(given, str):
        given = (given, None)
    if isinstance(given, tuple) and len(given) == 2:
        return WhiteBox(given[0], given[1], batch_size=batch_size)
    raise OptionError(f"{WHO}: white_box is an id, a WhiteBox, or (model, tokenizer); got {type(given).__name__}")


def _weights(generator: Any) -> str:
    """What a description of a local model leaves out: its weights."""
    from hfdataopt.attribution.identity import fingerprint

    model = getattr(generator, "model", None)
    return "" if model is None or isinstance(model, str) else fingerprint(model)


def _metrics(result: PromptResult) -> dict[str, float]:
    found = {f"eval_{name}": value for name, value in result.spent.items()}
    if result.leaders[0].fresh is not None:
        found["eval_reward"] = result.leaders[0].fresh
    if result.win_rate is not None:
        found["eval_win_rate"] = result.win_rate[0]
    return found
