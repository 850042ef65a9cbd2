"""Completions sampled from a model in memory, left exactly as it was."""

import hashlib
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from hfdataopt.attribution.quiet import untouched
from hfdataopt.console import say
from hfdataopt.errors import DataError, OptionError, first_line
from hfdataopt.generation.batches import Prefixes, plan
from hfdataopt.generation.completion import Completion, unfinished_share
from hfdataopt.generation.draws import Draw, stream_of
from hfdataopt.generation.generator import (
    Admit,
    Allowed,
    Generator,
    Have,
    Job,
    OnDone,
    RowId,
    check_refused,
    open_jobs,
    table,
)
from hfdataopt.generation.prompts import prompt_ids, tokenizer_of
from hfdataopt.gradients import MemoryLimit, name_rows, unpeft
from hfdataopt.gradients.blocks import unwrap
from hfdataopt.hub import why_not_on_hub
from hfdataopt.options import check_options, check_range
from hfdataopt.sharded import refuse_sharded

WHO = "generation"
UNFINISHED_TOLD = 0.5


@dataclass
class LocalGenerator(Generator):
    """Samples from a live causal LM with ``model.generate`` and its key-value cache, in eval mode.

    A draw depends on (seed, key of the prompt, sample, step) and on the model's distribution there: not on batch size,
    order, padding, the other prompts, or the global random state. Rounding in the logits is not the same in every batch;
    it changes a draw where two candidates nearly tie, about one in a million in float32. The model's generation config
    counts only for its end tokens.

    Attributes:
        model: a causal LM; also in training mode, with LoRA, or wrapped by ``DistributedDataParallel``. Or a hub id or
            folder, which is loaded, in the precision it has there, to the GPU where there is one.
        processing_class: its tokenizer, or a processor that holds it; None = the one beside the model's weights.
        max_new_tokens: the most tokens of a completion, the end token among them.
        temperature: 0 = the most probable token. top_k: 0 = all. top_p: 1 = all.
        stop: a completion ends where one of these strings is complete; the text ends before it, the tokens with it.
        batch_size: sequences at a time; fewer from when memory ran out.
        share_prefix: tokens that all prompts of a batch begin with are read once, where there are enough of them.
    """

    name: ClassVar[str] = "transformers"

    model: Any = field(repr=False)
    processing_class: Any = field(default=None, repr=False)
    max_new_tokens: int = field(default=256, kw_only=True)
    temperature: float = field(default=1.0, kw_only=True)
    top_k: int = field(default=0, kw_only=True)
    top_p: float = field(default=1.0, kw_only=True)
    stop: list[str] | None = field(default=None, kw_only=True)
    batch_size: int = field(default=16, kw_only=True)
    share_prefix: bool = field(default=True, kw_only=True)
    memory: MemoryLimit = field(default_factory=MemoryLimit, init=False, repr=False)
    _told: bool = field(default=False, init=False, repr=False)  # that completions do not end

    def __post_init__(self) -> None:
        check_options(self)
        for option, least in (("max_new_tokens", 1), ("batch_size", 1), ("temperature", 0), ("top_k", 0)):
            check_range(self, option, at_least=least)
        check_range(self, "top_p", above=0, at_most=1)
        if self.stop is not None and not all(self.stop):
            raise OptionError(f"{WHO}: stop={self.stop!r} holds an empty string, which every text ends with")
        if isinstance(self.model, str):
            self.model = _load(self.model, "AutoModelForCausalLM", dtype="auto").eval()
            if torch.cuda.is_available():
                self.model.to("cuda")
        if self.processing_class is None:
            where = getattr(getattr(self._inner(), "config", None), "name_or_path", "")
            if not where:
                raise OptionError(
                    f"{WHO}: processing_class= is needed: nothing says where the tokenizer of this "
                    f"{type(self._inner()).__name__} is"
                )
            self.processing_class = _load(where, "AutoTokenizer")
        self._tokenizer = tokenizer_of(self.processing_class, WHO)
        refuse_sharded(WHO, self.model)
        inner = self._inner()
        if not callable(getattr(inner, "generate", None)) or getattr(inner.config, "is_encoder_decoder", False):
            raise OptionError(f"{WHO}: {type(inner).__name__} is not a causal language model; nothing can be completed")
        if any(
            getattr(x, "is_prompt_learning", False) for x in getattr(unwrap(self.model), "peft_config", {}).values()
        ):
            raise OptionError(f"{WHO}: adapters that learn a prompt are not supported; use LoRA, or merge the adapter")

    @property
    def on_policy(self) -> bool:
        """Whether completions are draws from the model's own distribution."""
        return self.temperature == 1 and self.top_k == 0 and self.top_p == 1 and not self.stop

    def describe(self) -> dict[str, Any]:
        """A JSON object of everything that changes the output, apart from the weights."""
        template = getattr(self._tokenizer, "chat_template", None)
        return {
            "kind": "local",
            "draws": "splitmix64-gumbel",
            "max_new_tokens": self.max_new_tokens,
            "temperature": float(self.temperature),
            "top_k": self.top_k,
            "top_p": float(self.top_p),
            "stop": list(self.stop or []),
            "end_tokens": self._ends(),
            "chat_template": template and hashlib.sha256(str(template).encode()).hexdigest()[:16],
        }

    def generate(
        self,
        prompts: Sequence[Any],
        n: int,
        *,
        keys: Sequence[RowId],
        seed: int = 0,
        have: Have | None = None,
        on_done: OnDone | None = None,
        admit: Admit | None = None,
        allowed: Allowed | None = None,
    ) -> list[list[Completion]]:
        """``[prompts][n]`` completions; see :class:`~hfdataopt.generation.generator.Generator`.

        Nothing is sent that may have to be tried again, so ``allowed`` is never asked.

        Raises:
            OptionError: ``temperature=0`` and ``n > 1``.
            Refused: ``admit`` left some out.
            DataError: a prompt that is missing or too long, or logits that are not numbers; the row is named.
        """
        jobs = open_jobs(WHO, prompts, n, keys, self.temperature, have)
        wanted = sorted({index for index, _ in jobs})
        read = self.check([prompts[index] for index in wanted], [keys[index] for index in wanted])
        ids = dict(zip(wanted, read, strict=True))
        made: dict[Job, Completion] = {}
        refused = 0
        ends = self._ends()
        with self._ready() as (model, accepts):
            # Without position_ids a model would count positions from the left edge of the padding.
            padded = "position_ids" in accepts
            prefixes = Prefixes(model, accepts) if self.share_prefix and padded else None
            for planned in plan(jobs, ids, self.batch_size, padded):
                left = planned
                admitted: set[Job] = set()  # asked once, also where memory runs out and the batch is run in parts
                while left:
                    batch = left[: self.memory.rows or self.batch_size]
                    if admit is not None:
                        admitted |= {job for job in batch if job not in admitted and admit(*job)}
                        kept = [job for job in batch if job in admitted]
                        refused += len(batch) - len(kept)
                        left = kept + left[len(batch) :]
                        batch = kept
                    if not batch:
                        continue
                    try:
                        found = self._sample(model, prefixes, [ids[x] for x, _ in batch], batch, keys, seed, ends)
                    except torch.OutOfMemoryError:
                        found = None  # the tensors that the error holds are freed after this block
                    if found is None:
                        self.memory.shrink(len(batch), [keys[index] for index, _ in batch], WHO)
                        continue
                    left = left[len(batch) :]
                    for job, completion in zip(batch, found, strict=True):
                        made[job] = completion
                        if on_done is not None:
                            on_done(*job, completion)
        self._tell_unfinished(list(made.values()))
        check_refused(WHO, refused, len(made))
        return table(prompts, n, have, made)

    def check(self, prompts: Sequence[Any], keys: Sequence[RowId]) -> list[list[int]]:
        """Token ids of the prompts; ``DataError`` for one that is missing or too long, which names the row."""
        ids = [prompt_ids(prompt, self._tokenizer, WHO, key) for prompt, key in zip(prompts, keys, strict=True)]
        self._check_lengths({key: len(tokens) for key, tokens in zip(keys, ids, strict=True)})
        return ids

    def count_tokens(self, prompt: Any) -> int:
        """Tokens of a prompt, as the model reads it."""
        return len(prompt_ids(prompt, self._tokenizer, WHO, "?"))

    def _inner(self) -> Any:
        return unpeft(unwrap(self.model))

    def _ends(self) -> list[int]:
        """End tokens of the model and of its tokenizer; they need not be the same."""
        inner = self._inner()
        found: set[int] = set()
        for source in (getattr(inner, "generation_config", None), inner.config, self._tokenizer):
            ids = getattr(source, "eos_token_id", None)
            found |= set(ids if isinstance(ids, list | tuple) else [] if ids is None else [ids])
        return sorted(found)

    def _check_lengths(self, tokens: dict[RowId, int]) -> None:
        inner = self._inner()
        limit = getattr(inner.config.get_text_config(), "max_position_embeddings", None)
        long = [key for key, count in tokens.items() if limit and count + self.max_new_tokens > limit]
        if long:
            raise DataError(
                f"{WHO}: the prompt of row {long[0]!r} has {tokens[long[0]]} tokens; with max_new_tokens="
                f"{self.max_new_tokens} that is more than the {limit} positions of {type(inner).__name__} (rows: "
                f"{name_rows(long)}); shorten the prompts, or lower max_new_tokens"
            )

    @contextmanager
    def _ready(self) -> Iterator[tuple[Any, frozenset[str]]]:
        """The model to call, without a generation config of its own, and the arguments of its ``forward``."""
        from transformers import GenerationConfig

        model = self._inner()
        outer = unwrap(self.model)
        given = model.generation_config
        # What our config leaves open, transformers fills in from the model's.
        with untouched(outer), torch.no_grad():
            try:
                model.generation_config = GenerationConfig()
                yield model, frozenset(inspect.signature(model.forward).parameters)
            finally:
                model.generation_config = given

    def _sample(
        self,
        model: Any,
        prefixes: Prefixes | None,
        prompts: list[list[int]],
        jobs: list[Job],
        keys: Sequence[RowId],
        seed: int,
        ends: list[int],
    ) -> list[Completion]:
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        device = model.get_input_embeddings().weight.device
        pad = self._tokenizer.pad_token_id
        pad = pad if pad is not None else ends[0] if ends else 0
        width = max(map(len, prompts))
        shared, cache = prefixes.of(prompts) if prefixes is not None else (0, None)
        # Padding stands left of what each prompt has for itself, and so behind what is read already.
        gaps = [width - len(x) for x in prompts]
        input_ids = [x[:shared] + [pad] * gap + x[shared:] for x, gap in zip(prompts, gaps, strict=True)]
        mask = [[1] * shared + [0] * gap + [1] * (width - shared - gap) for gap in gaps]
        finite = _Finite()
        processors: list[Any] = [finite, *self._warpers()]
        if self.temperature > 0:
            streams = [stream_of(seed, keys[index], sample) for index, sample in jobs]
            processors.append(Draw(streams, width, device))
        stopped = _Stopped(self.stop, self._tokenizer, width, len(jobs)) if self.stop else None
        output = model.generate(
            input_ids=torch.tensor(input_ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            **({} if cache is None else {"past_key_values": cache}),
            generation_config=GenerationConfig(
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                use_cache=True,
                eos_token_id=ends or None,
                pad_token_id=pad,
            ),
            logits_processor=LogitsProcessorList(processors),
            stopping_criteria=StoppingCriteriaList([stopped] if stopped else []),
        )
        if broken := finite.broken():
            raise DataError(
                f"{WHO}: the model's logits are not numbers (NaN or infinite) for row {keys[jobs[broken[0]][0]]!r}; look "
                "at the weights, and at the precision"
            )
        rows = output[:, width:].tolist()
        cuts = stopped.lengths if stopped else [None] * len(rows)
        return [self._completion(*one, set(ends)) for one in zip(prompts, rows, cuts, strict=True)]

    def _warpers(self) -> list[Any]:
        from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        warpers: list[Any] = []
        if self.temperature not in (0, 1):
            warpers.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k > 0:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            warpers.append(TopPLogitsWarper(float(self.top_p)))
        return warpers if self.temperature > 0 else []

    def _completion(self, prompt: list[int], row: list[int], cut: int | None, ends: set[int]) -> Completion:
        end = next((place + 1 for place, token in enumerate(row[:cut]) if token in ends), None)
        ids = row[: end or cut]
        text = self._tokenizer.decode(ids if end is None else ids[:-1], skip_special_tokens=True)
        places = [place for string in self.stop or [] if (place := text.find(string)) >= 0]
        finished = end is not None or cut is not None
        return Completion(text[: min(places)] if places else text, ids, finished, len(prompt), len(ids))

    def _tell_unfinished(self, made: list[Completion]) -> None:
        share = unfinished_share(made)
        if share > UNFINISHED_TOLD and not self._told:
            self._told = True
            say(
                f"{share:.0%} of {len(made)} completions did not end within max_new_tokens={self.max_new_tokens}; "
                + ("the model has no end token" if not self._ends() else "give them more")
            )


def _load(where: str, kind: str, **options: Any) -> Any:
    """What transformers' class ``kind`` finds at a hub id or in a folder."""
    import transformers

    if (why := why_not_on_hub(where)) is not None:
        raise OptionError(f"{WHO}: the model folder {where!r} {why}")
    try:
        return getattr(transformers, kind).from_pretrained(where, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        raise OptionError(f"{WHO}: {kind} cannot load {where!r}: {first_line(error)}") from error


class _Finite:
    """A logits processor that changes nothing and remembers rows whose logits allow no draw."""

    def __init__(self) -> None:
        self._broken: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        broken = ~scores.amax(dim=-1).isfinite()
        self._broken = broken if self._broken is None else self._broken | broken
        return scores

    def broken(self) -> list[int]:
        return [] if self._broken is None else self._broken.nonzero().flatten().tolist()


class _Stopped:
    """A stopping criterion per row: a stop string is complete in what was generated (the prompt does not count)."""

    def __init__(self, stop: list[str], tokenizer: Any, prompt_tokens: int, rows: int):
        self._stop, self._tokenizer, self._prompt_tokens = stop, tokenizer, prompt_tokens
        self._window = max(len(string.encode()) for string in stop) + 8  # a token is a byte or more
        self.lengths: list[int | None] = [None] * rows

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        length = input_ids.shape[1] - self._prompt_tokens
        tails = input_ids[:, self._prompt_tokens :][:, -self._window :].tolist()
        for row, tail in enumerate(tails):
            if self.lengths[row] is None:
                text = self._tokenizer.decode(tail)
                if any(string in text for string in self._stop):
                    self.lengths[row] = length
        return torch.tensor([length is not None for length in self.lengths], device=input_ids.device)
