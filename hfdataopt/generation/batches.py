"""Which sequences are sampled together, and the tokens that they all begin with.

Prompts with one instruction in front of many items share it: it is read once, and its keys and values are copied to the
other sequences of the batch. There are never more batches for it, since a batch that is not full costs more than is saved.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hfdataopt.generation.generator import Job

LEAST_SHARED = 32  # tokens; fewer do not pay for a forward pass of their own
READ_AGAIN = 0.9  # a shorter prefix from before is good enough when it is at least this share of the one at hand
OWN_POSITIONS = ("dynamic", "longrope")  # position embeddings that depend on the length of what is read

Ids = list[int]


def common(prompts: Sequence[Ids]) -> int:
    """How many tokens all prompts begin with."""
    first, last = min(prompts), max(prompts)
    differ = (place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return next(differ, min(len(first), len(last)))


def plan(jobs: Sequence[Job], ids: Mapping[int, Ids], batch_size: int, padded: bool) -> list[list[Job]]:
    """Batches of about one length each, and of one beginning each where that takes no more batches.

    Args:
        ids: the token ids of each prompt.
        padded: whether prompts of other lengths may be in one batch.
    """
    if not padded:
        lengths = sorted({len(ids[index]) for index, _ in jobs})
        return [batch for x in lengths for batch in _chunks([job for job in jobs if len(ids[job[0]]) == x], batch_size)]
    batches: list[list[Job]] = []
    rest: list[list[Job]] = []
    for run in _runs(jobs, ids):
        full = len(run) // batch_size * batch_size
        batches += _chunks(run[:full], batch_size)
        rest += [run[full:]] if run[full:] else []
    rest.sort(key=lambda run: len(ids[run[-1][0]]))
    if len(rest) * batch_size < sum(map(len, rest)) + batch_size:
        batches += rest
    else:
        batches += _chunks([job for run in rest for job in run], batch_size)
    return sorted(batches, key=lambda batch: max(len(ids[index]) for index, _ in batch))


def _runs(jobs: Sequence[Job], ids: Mapping[int, Ids]) -> list[list[Job]]:
    """Sequences that share at least half of their tokens, by length; those that share with none are a run each."""
    runs: list[list[int]] = []
    for index in sorted({index for index, _ in jobs}, key=lambda index: ids[index]):
        if runs:
            one, two = ids[runs[-1][-1]], ids[index]
            if common([one, two]) >= max(LEAST_SHARED, len(one) / 2, len(two) / 2):
                runs[-1].append(index)
                continue
        runs.append([index])
    samples: dict[int, list[Job]] = {}
    for job in jobs:
        samples.setdefault(job[0], []).append(job)
    return [[job for index in sorted(run, key=lambda x: (len(ids[x]), x)) for job in samples[index]] for run in runs]


def _chunks(jobs: Sequence[Job], size: int) -> list[list[Job]]:
    return [list(jobs[start : start + size]) for start in range(0, len(jobs), size)]


class Prefixes:
    """Keys and values of what a batch begins with; those of the last batch are kept for the next one."""

    def __init__(self, model: Any, accepts: frozenset[str]):
        """``accepts``: the arguments of the model's ``forward``."""
        self._model, self._accepts = model, accepts
        self._tokens: Ids = []
        self._cache: Any = None
        self.usable = "past_key_values" in accepts and self._plain()

    def _plain(self) -> bool:
        """Whether keys and values of a token depend on what stands before it alone, and padding in between does not count."""
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        config = self._model.config.get_text_config(decoder=True)
        rope = getattr(config, "rope_parameters", None) or {}
        if any(kind in str(rope) for kind in OWN_POSITIONS):
            return False
        try:
            layers = DynamicCache(config=self._model.config).layers
        except (KeyError, ValueError, AttributeError):  # layers that this cache does not know
            return False
        return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)

    def of(self, prompts: Sequence[Ids]) -> tuple[int, Any]:
        """How many leading tokens ``[b]`` prompts share, and a cache of them for all; (0, None) where it does not pay."""
        shared = min(common(prompts), min(map(len, prompts)) - 1)  # a token is left to be read
        if not self.usable or len(prompts) < 2 or shared < LEAST_SHARED:
            return 0, None
        tokens = list(prompts[0][:shared])
        kept = len(self._tokens)
        if kept < READ_AGAIN * shared or tokens[:kept] != self._tokens:
            self._cache = None  # freed before the next one is made
            self._cache, self._tokens = self._read(tokens), tokens
        cache = copy.deepcopy(self._cache)
        cache.batch_repeat_interleave(len(prompts))
        return len(self._tokens), cache

    def _read(self, tokens: Ids) -> Any:
        from transformers import DynamicCache

        cache = DynamicCache(config=self._model.config)
        device = self._model.get_input_embeddings().weight.device
        options = {"logits_to_keep": 1} if "logits_to_keep" in self._accepts else {}
        self._model(input_ids=torch.tensor([tokens], device=device), past_key_values=cache, use_cache=True, **options)
        return cache
