"""Prompts for GRPO chosen as training goes on: those whose success rate is likely near one half (MoPPS, Qu et al. 2025)."""

import functools
import itertools
import json
import math
import typing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from hfdataopt.attribution.rows import ROW_ID, as_list, check_map_style, row_ids
from hfdataopt.console import say
from hfdataopt.errors import DataError, OptionError, StoreError
from hfdataopt.files import no_link, write_whole
from hfdataopt.options import check_range, check_value
from hfdataopt.rewards import RewardFunctions, background
from hfdataopt.selection.keys import keys_of, uniform
from hfdataopt.selection.success_rates import LEAST_PRIOR, MOST_PRIOR, beta_draws, count, stream, update

WHO = "PromptSampler"
OPTIONS = (*("prompts", "repeat", "turns", "rate", "estimate", "candidates", "success", "prior", "discount", "seed"),)


class PromptSampler(Sampler[int]):
    """A ``torch`` sampler whose next prompts depend on the rewards so far.

    Each round takes the ``prompts`` rows whose success rate, drawn from its Beta posterior, is nearest to ``rate``::

        sampler = PromptSampler(dataset, path="out/prompts.jsonl")
        trainer = GRPOTrainer(model, reward_funcs=[sampler.watch(correct), style], train_dataset=dataset, args=args)
        sampler.attach(trainer)
        trainer.train()

    ``watch`` wraps the reward that tells success from failure and hears of every group; ``attach`` takes the sizes from the
    trainer's arguments and makes the trainer read its prompts here (it replaces ``trainer.get_train_dataloader``, the public place
    for that; no private part of TRL is touched). Each index is repeated as TRL's own sampler does. A loader reads one batch ahead,
    so a round is chosen before the rewards of the round before it are known.

    An epoch has as many rounds as there are prompts for; the same prompt may come more than once in it. Draws are a function of
    (seed, round, row id), and equal prompts without a column ``row_id`` are one prompt. Under several processes the rewards are
    gathered, so that all choose alike.

    Args:
        dataset: the training data, map-style.
        prompts: prompts per round; None: from the trainer.
        repeat: how often each index comes in a row (TRL's ``num_generations``).
        turns: how often a round is repeated (TRL's ``steps_per_generation * num_iterations``).
        rate: the success rate that is asked for.
        estimate: ``sampled`` from the posterior (Thompson sampling), or its ``mean``, which never looks at some prompts again.
        candidates: how many rows, drawn anew each round, are chosen from; None for all.
        success: a reward of at least this is a success; None: rewards lie in [0, 1] and are successes in parts.
        prior: alpha and beta before any reward.
        discount: how much of what was known of a prompt lasts from a group to the next; below 1 for a model that changes.
        path: a file (JSON lines) that rounds and rewards are written to as they come; a training that is resumed from a checkpoint
            goes on as it would have. Without it nothing is kept. Save where a batch of generations ends (TRL generates anew when
            it is resumed within one, and its rewards would count twice).
    """

    def __init__(
        self,
        dataset: Any,
        *,
        prompts: int | None = None,
        repeat: int = 1,
        turns: int = 1,
        rate: float = 0.5,
        estimate: Literal["sampled", "mean"] = "sampled",
        candidates: int | None = None,
        success: float | None = None,
        prior: tuple[float, float] = (1.0, 1.0),
        discount: float = 1.0,
        seed: int = 0,
        path: str | Path | None = None,
    ) -> None:
        check_map_style(dataset, f"{WHO}: the dataset")
        self.dataset = dataset
        self.prompts, self.repeat, self.turns = prompts, repeat, turns
        self.rate, self.estimate, self.candidates, self.success = rate, estimate, candidates, success
        self.prior, self.discount, self.seed = prior, discount, seed
        for option, hint in typing.get_type_hints(PromptSampler.__init__).items():
            if option in OPTIONS:
                check_value(WHO, option, hint, getattr(self, option))
        for option, least in (("prompts", 1), ("repeat", 1), ("turns", 1), ("candidates", 1)):
            check_range(self, option, at_least=least)
        check_range(self, "rate", at_least=0, at_most=1)
        check_range(self, "prior", at_least=LEAST_PRIOR, at_most=MOST_PRIOR)
        check_range(self, "discount", above=0, at_most=1)
        self.prior = (float(prior[0]), float(prior[1]))
        if estimate not in ("sampled", "mean"):
            raise OptionError(f"{WHO}: estimate={estimate!r} is unknown; it is 'sampled' or 'mean'")
        self._names = _names(dataset)
        self._slot = {name: slot for slot, name in enumerate(dict.fromkeys(self._names))}
        self._slots = np.array([self._slot[name] for name in self._names])
        self._keys = keys_of(list(self._slot))
        seen: Counter[str] = Counter()
        copies = np.zeros(len(self._names), dtype=np.uint64)  # how many equal prompts stand before
        for place, name in enumerate(self._names):
            copies[place] = seen[name]
            seen[name] += 1
        self._row_keys = self._keys[self._slots] ^ copies
        self._trainer: Any = None
        self._asked = self._watching = self._told = False
        self.epoch = 0
        self._forget()
        self._path = Path(path) if path is not None else None
        if self._path is not None and self._path.exists():
            self._replay(self._read())

    # -- what is known

    @property
    def rates(self) -> np.ndarray:
        """``[rows]``: the posterior mean of each row's success rate."""
        return (self._alpha / (self._alpha + self._beta))[self._slots]

    def counts(self, dataset: Any = None) -> Any:
        """The dataset with columns ``successes`` and ``trials`` (discounted), for the filter ``prompt-difficulty``."""
        given = self.dataset if dataset is None else dataset
        places = [self._slot.get(name, -1) for name in _names(given)]
        if -1 in places:
            raise DataError(f"{WHO}: row {places.index(-1)} of the dataset is not among the sampler's prompts")
        successes, failures = (values[places] for values in (self._alpha - self.prior[0], self._beta - self.prior[1]))
        # what rounding leaves below nothing
        successes, failures = np.maximum(successes, 0.0), np.maximum(failures, 0.0)
        return given.add_column("successes", successes.tolist()).add_column("trials", (successes + failures).tolist())

    def record(self, rows: Sequence[Any], rewards: Sequence[float | None], *, step: int = 0) -> None:
        """Take in the rewards of a batch of completions; those of one row are a group.

        Args:
            rows: row ids, or prompts of a dataset without them, one per completion.
            step: of the training, by which a resumed one knows what came after its checkpoint.
        """
        groups: dict[str, list[float | None]] = {}
        for name, reward in _gathered(
            [(_name(row), _number(reward)) for row, reward in zip(rows, rewards, strict=True)]
        ):
            groups.setdefault(name, []).append(reward)
        strange = [name for name in groups if name not in self._slot]
        if strange:
            raise DataError(f"{WHO}: rewards came for {strange[0][:80]!r}, which is not in the dataset")
        counts = {name: count(values, self.success, WHO, f"row {name[:60]}") for name, values in groups.items()}
        event = {"step": int(step), "groups": [[name, *counts[name]] for name in groups if counts[name][1]]}
        if event["groups"]:
            self._take(event)
            self._write(event)

    # -- the sampler

    def __len__(self) -> int:
        size = self._size()
        return self._rounds() * size * self.repeat * self.turns

    def __iter__(self) -> Iterator[int]:
        self._asked = True
        if self._trainer is not None:
            state = self._trainer.state
            self.epoch = math.floor((state.epoch or 0) + 1e-6)
            self._rewind(state.global_step)
        first = self.epoch * self._rounds()
        for turn in range(first, first + self._rounds()):
            chosen = self._chosen.get(turn)
            if chosen is None:
                chosen = self.choose(turn)
                self._chosen[turn] = chosen
                self._write({"round": turn, "rows": chosen})
            for _ in range(self.turns):
                for row in chosen:
                    yield from itertools.repeat(row, self.repeat)

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next pass is; a trainer says so by itself."""
        self.epoch = epoch

    def choose(self, turn: int) -> list[int]:
        """Positions of the rows of a round, by what is known now; the nearest to ``rate`` first."""
        size = self._size()
        order = uniform(stream(self.seed, f"order/{turn}"), self._row_keys)
        pool = np.arange(len(self._slots))
        if self.candidates is not None and self.candidates < len(pool):
            pool = np.sort(np.argpartition(order, self.candidates - 1)[: self.candidates])
        slots = np.unique(self._slots[pool])
        rates = np.empty(len(self._keys))
        rates[slots] = (
            beta_draws(stream(self.seed, f"rate/{turn}"), self._keys[slots], self._alpha[slots], self._beta[slots])
            if self.estimate == "sampled"
            else self._alpha[slots] / (self._alpha[slots] + self._beta[slots])
        )
        away = np.abs(rates[self._slots[pool]] - self.rate)
        return pool[np.lexsort((order[pool], away))[:size]].tolist()

    def _size(self) -> int:
        if self.prompts is None:
            raise OptionError(f"{WHO}: prompts= per round is not known; give it, or call attach(trainer)")
        most = min(len(self._slots), self.candidates or len(self._slots))
        if self.prompts > most:
            raise OptionError(f"{WHO}: a round of {self.prompts} prompts cannot be chosen from {most} rows")
        return self.prompts

    def _rounds(self) -> int:
        return len(self._slots) // self._size()

    # -- the trainer

    def watch(self, reward: Callable[..., Any]) -> Callable[..., Any]:
        """The reward function as it is, of which the sampler hears every group; sync or async, for ``GRPOTrainer(reward_funcs=...)``."""
        if isinstance(reward, str | torch.nn.Module):
            raise OptionError(f"{WHO}: watch takes a reward function; a reward model's number is no success or failure")
        name = RewardFunctions(reward, who=WHO).names[0]
        self._watching = True

        async def watched_async(**keywords: Any) -> Any:
            rewards = await reward(**keywords)
            self._hear(keywords, rewards)
            return rewards

        def watched(**keywords: Any) -> Any:
            rewards = reward(**keywords)
            self._hear(keywords, rewards)
            return rewards

        function: Callable[..., Any] = watched_async if background.is_async(reward) else watched
        function.__name__ = name
        return function

    def attach(self, trainer: Any) -> None:
        """Make a ``GRPOTrainer`` (or RLOO) read its prompts from here.

        Raises:
            OptionError: its rows are others than the sampler's, or its arguments leave no room for a sampler.
        """
        arguments = trainer.args
        missing = [name for name in ("num_generations", "generation_batch_size") if not hasattr(arguments, name)]
        if missing:
            raise OptionError(
                f"{WHO}: {type(trainer).__name__} has no {missing[0]}; attach takes GRPOTrainer or RLOOTrainer"
            )
        if arguments.remove_unused_columns:
            raise OptionError(
                f"{WHO}: remove_unused_columns=True would drop the row ids; leave it at False, TRL's default"
            )
        check_map_style(trainer.train_dataset, f"{WHO}: the trainer's dataset")
        if _names(trainer.train_dataset) != self._names:
            raise OptionError(
                f"{WHO}: the trainer's train_dataset has other rows than the sampler's dataset; pass the same"
            )
        self.repeat = arguments.num_generations
        self.prompts = arguments.generation_batch_size // arguments.num_generations
        self.turns = arguments.steps_per_generation * getattr(arguments, "num_iterations", 1)
        self._size()
        if not self._watching:
            say(
                f"{WHO}: no reward is watched; pass sampler.watch(reward) in reward_funcs, or call record, else nothing is learnt of prompts"
            )
        self._trainer = trainer
        trainer.get_train_dataloader = functools.partial(self._loader, trainer)

    def _loader(self, trainer: Any) -> Any:
        arguments = trainer.args
        loader = DataLoader(
            trainer.train_dataset,
            batch_size=arguments.train_batch_size * arguments.steps_per_generation,
            sampler=self,
            collate_fn=trainer.data_collator,
            num_workers=arguments.dataloader_num_workers,
            pin_memory=arguments.dataloader_pin_memory,
            persistent_workers=arguments.dataloader_persistent_workers,
            prefetch_factor=arguments.dataloader_prefetch_factor,
        )
        return trainer.accelerator.prepare(loader)

    def _hear(self, keywords: dict[str, Any], rewards: Any) -> None:
        if self._trainer is not None and not self._trainer.model.training:  # an evaluation
            return
        if not self._asked and not self._told:
            say(f"{WHO}: rewards arrive, but nobody asks for prompts here; call sampler.attach(trainer) before train()")
            self._told = True
        rows = keywords.get(ROW_ID, keywords["prompts"])
        state = keywords.get("trainer_state")
        self.record(rows, rewards, step=getattr(state, "global_step", 0))

    # -- the file

    def _forget(self) -> None:
        self._alpha, self._beta = (np.full(len(self._slot), value) for value in self.prior)
        self._chosen: dict[int, list[int]] = {}
        self._events: list[dict[str, Any]] = []

    def _take(self, event: dict[str, Any]) -> None:
        if "round" in event:
            self._chosen[event["round"]] = event["rows"]
            return
        slots = [self._slot[name] for name, _, _ in event["groups"]]
        successes, trials = np.array([numbers for _, *numbers in event["groups"]], dtype=np.float64).T
        self._alpha[slots], self._beta[slots] = update(
            self._alpha[slots], self._beta[slots], successes, trials, self.prior, self.discount
        )

    def _replay(self, events: list[dict[str, Any]]) -> None:
        self._forget()
        for event in events:
            self._take(event)
        self._events = events

    def _rewind(self, step: int) -> None:
        """Back to what was known at a step of the training, which is resumed from there."""
        after = [place for place, event in enumerate(self._events) if event.get("step", -1) >= step]
        if not after:
            return
        say(f"{WHO}: training goes on from step {step}; the rewards of {len(after)} later batches are dropped")
        kept = self._events[: after[0]]
        self._replay(kept)
        if self._path is not None and _first_process():
            lines = [json.dumps(event) for event in [self._settings(), *kept]]
            write_whole(self._path, ("\n".join(lines) + "\n").encode())

    def _settings(self) -> dict[str, Any]:
        return {
            "rate": self.rate,
            "estimate": self.estimate,
            "candidates": self.candidates,
            "success": self.success,
            "prior": list(self.prior),
            "discount": self.discount,
            "seed": self.seed,
            "rows": len(self._slots),
        }

    def _write(self, event: dict[str, Any]) -> None:
        self._events.append(event)
        if self._path is None or not _first_process():
            return
        if not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, (json.dumps(self._settings()) + "\n").encode())
        with open(self._path, "a", opener=no_link) as file:
            file.write(json.dumps(event) + "\n")

    def _read(self) -> list[dict[str, Any]]:
        """The events in the file; a last line that a killed run left unfinished is dropped.

        Raises:
            StoreError: it is of another sampler, or damaged.
        """
        assert self._path is not None
        content = self._path.read_text()
        lines = content.split("\n")
        try:
            found = [json.loads(line) for line in lines[:-1]]
        except json.JSONDecodeError as error:
            raise StoreError(f"{WHO}: {self._path} is damaged ({error}); delete it to start anew") from error
        if not found or found[0] != self._settings():
            raise StoreError(
                f"{WHO}: {self._path} belongs to a sampler with other settings or rows ({str(found[:1])[:200]}); give another path"
            )
        if lines[-1] and _first_process():
            write_whole(self._path, content[: len(content) - len(lines[-1])].encode())
        return found[1:]


def _name(row: Any) -> str:
    """A row id or a prompt as text, the same in every process."""
    return json.dumps(row, sort_keys=True)


def _names(dataset: Any) -> list[str]:
    if not hasattr(dataset, "column_names"):
        raise DataError(f"{WHO}: the dataset is a {type(dataset).__name__}; it must be a datasets.Dataset")
    if ROW_ID in dataset.column_names:
        return list(map(_name, row_ids(dataset, f"{WHO}: the dataset")))
    if "prompt" not in dataset.column_names:
        raise DataError(f"{WHO}: the dataset has no column 'prompt'; it has: {', '.join(dataset.column_names)}")
    return list(map(_name, as_list(dataset["prompt"])))


def _number(reward: Any) -> float | None:
    return None if reward is None else float(reward)


def _first_process() -> bool:
    return not _distributed() or torch.distributed.get_rank() == 0


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _gathered(pairs: list[tuple[str, float | None]]) -> list[tuple[str, float | None]]:
    """The pairs of all processes, in the order of processes."""
    if not _distributed():
        return pairs
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, pairs)
    return [pair for part in parts for pair in part]
