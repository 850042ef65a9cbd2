"""Models that filters run: loaded once per process, and run so that a row's numbers do not depend on the rows beside it.

A keep rule compares scores with a limit that was found in another pass, with other batches. Matrix products round
differently for other shapes, and attention takes another path where nothing is padded; so every forward pass has one of few
shapes ``[batch_size, width]``, whose width follows from the length of the row alone, filled up with copies of a row. Rows that
fill their width, which need no mask, have passes of their own.
"""

import functools
import hashlib
import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from hfdataopt.attribution.prepare import longest_input
from hfdataopt.attribution.quiet import untouched
from hfdataopt.console import say
from hfdataopt.errors import MissingDependencyError, OptionError, first_line
from hfdataopt.gradients import weights_hash
from hfdataopt.hub import why_not_on_hub

Kind = Literal["encoder", "sentence-transformer", "causal-lm"]
Dtype = Literal["float32", "bfloat16", "float16"]

KEPT = 3  # loaded models per process
_LOADED: OrderedDict[tuple[Any, ...], "LocalModel"] = OrderedDict()
_HASHES: "weakref.WeakKeyDictionary[torch.nn.Module, tuple[Any, str]]" = weakref.WeakKeyDictionary()
_IMPORTED_IN = os.getpid()
_AT_ONCE: ContextVar[int] = ContextVar("forward passes at once", default=1)
Result = TypeVar("Result")
Pass = tuple[list[int], torch.Tensor, torch.Tensor]  # positions, input_ids, attention_mask


@dataclass(frozen=True)
class LocalModel:
    """A model in memory and its tokenizer.

    Attributes:
        name: for messages.
        live: whether it is the user's own object, which must be left as it was.
        weights: a hash of all weights; of a loaded model also of its configuration and tokenizer.
    """

    name: str
    kind: Kind
    model: Any
    tokenizer: Any
    live: bool
    weights: str

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def limit(self, max_length: int | None) -> int | None:
        """Tokens of a row that are read: ``max_length``, or what the model can read if that is less."""
        own = getattr(self.model, "max_seq_length", None)
        known = [own or longest_input(self.model, self.tokenizer), max_length]
        return min((number for number in known if number is not None), default=None)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the model inside; model, tokenizer, random states and number of threads are as before afterwards."""
        _check_process(self.device, self.name)
        threads = torch.get_num_threads()
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        before = (backend.truncation, backend.padding) if backend is not None else (None, None)
        forked = (
            os.getpid() != _IMPORTED_IN
        )  # where a pool of OpenMP threads would hang, and the workers share the cores
        token = _AT_ONCE.set(1 if forked or self.device.type != "cpu" else max(threads, _AT_ONCE.get()))
        try:
            if forked or self.device.type == "cpu":
                torch.set_num_threads(1)
            with untouched(self.model):
                yield
        finally:
            _AT_ONCE.reset(token)
            torch.set_num_threads(threads)
            if backend is not None:
                _restore(backend, *before)

    def each(self, run: Callable[[Pass], Result], passes: Iterable[Pass]) -> Iterator[Result]:
        """``run`` of each forward pass, in order, without gradients; inside ``running()``.

        On a CPU a pass has one thread, since how a product is shared among threads changes its last bits; as many passes as
        ``torch`` has threads go at once.
        """

        def alone(one: Pass) -> Result:
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                return run(one)

        at_once = _AT_ONCE.get()
        if at_once == 1:
            yield from map(alone, passes)
            return
        with ThreadPoolExecutor(at_once) as pool:
            yield from pool.map(alone, passes)


def _check_process(device: Any, who: str) -> None:
    if torch.device(device).type != "cpu" and _in_fork_of_gpu_process():
        raise OptionError(
            f"{who}: a model on {device} cannot run in forked worker processes; pass device='cpu' (move a live model), or leave "
            "num_proc and num_workers out"
        )


def _in_fork_of_gpu_process() -> bool:
    return torch.cuda._is_in_bad_fork()  # what torch itself asks before it refuses


def _restore(backend: Any, truncation: dict[str, Any] | None, padding: dict[str, Any] | None) -> None:
    backend.enable_truncation(**truncation) if truncation else backend.no_truncation()
    backend.enable_padding(**padding) if padding else backend.no_padding()


def open_model(
    model: Any,
    kind: Kind,
    *,
    processing_class: Any = None,
    device: str | None = None,
    dtype: Dtype | None = None,
    who: str,
) -> LocalModel:
    """The model that an option names.

    Args:
        model: a hub id or a folder, loaded once per process (again when its files change), or a live model.
        kind: for an id, whether the body or the language model is read. A live ``SentenceTransformer`` is known as such.
        processing_class: the tokenizer of a live model, or another one than that of the id.
        device: of a loaded model; None takes the GPU where there is one.
        dtype: of a loaded model; None for float32.

    Raises:
        OptionError: it cannot be loaded, or options that do not fit a live model.
        MissingDependencyError: sentence-transformers is needed.
    """
    if isinstance(model, torch.nn.Module):
        _check_process(next(model.parameters()).device, who)
        if device is not None or dtype is not None:
            raise OptionError(f"{who}: device= and dtype= are for models that are loaded; move the live model itself")
        if _is_sentence_transformer(model):
            return LocalModel(who, "sentence-transformer", model, model.tokenizer, True, _live_hash(model))
        if processing_class is None:
            raise OptionError(f"{who}: a live model needs processing_class=, its tokenizer")
        tokenizer = getattr(processing_class, "tokenizer", processing_class)
        return LocalModel(
            who, "encoder" if kind == "sentence-transformer" else kind, model, tokenizer, True, _live_hash(model)
        )
    _check_named(model, who)
    if device is not None:
        _check_process(device, who)
    key = (str(model), kind, device, dtype, id(processing_class), _stamp(Path(model)))
    if key not in _LOADED:
        while len(_LOADED) >= KEPT:
            _LOADED.popitem(last=False)
        _LOADED[key] = _load(str(model), kind, processing_class, device, dtype, who)
    _LOADED.move_to_end(key)
    return _LOADED[key]


def _check_named(model: Any, who: str) -> None:
    if not isinstance(model, str | Path):
        raise OptionError(f"{who}: model must be a hub id, a folder or a live model; got {type(model).__name__}")


def has_sentence_transformer(model: Any, who: str) -> bool:
    """Whether an id, a folder or a live model is one of sentence-transformers (it has ``modules.json``)."""
    if isinstance(model, torch.nn.Module):
        return _is_sentence_transformer(model)
    _check_named(model, who)
    if Path(model).is_dir():
        return (Path(model) / "modules.json").is_file()
    return _hub_has_modules(str(model))


@functools.cache
def _hub_has_modules(name: str) -> bool:
    from transformers.utils import cached_file

    try:
        return (
            cached_file(
                name,
                "modules.json",
                _raise_exceptions_for_gated_repo=False,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
            is not None
        )
    except (OSError, ValueError):  # no such model, which loading it will say
        return False


def _is_sentence_transformer(model: Any) -> bool:
    return any(base.__name__ == "SentenceTransformer" for base in type(model).__mro__)


def _load(
    name: str, kind: Kind, processing_class: Any, device: str | None, dtype: Dtype | None, who: str
) -> LocalModel:
    if (why := why_not_on_hub(name)) is not None:
        raise OptionError(f"{who}: the folder model={name!r} {why}")
    place = device or ("cuda" if torch.cuda.is_available() and not _in_fork_of_gpu_process() else "cpu")
    precision = getattr(torch, dtype or "float32")
    try:
        with torch.random.fork_rng(
            devices=[]
        ):  # a layer without saved weights, such as a pooler, starts alike each time
            torch.manual_seed(0)
            if kind == "sentence-transformer":
                model = _sentence_transformer(name, place, precision, who)
                tokenizer = model.tokenizer
            else:
                import transformers

                loader: Any = transformers.AutoModelForCausalLM if kind == "causal-lm" else transformers.AutoModel
                model = loader.from_pretrained(name, dtype=precision, trust_remote_code=False).to(place)
                if kind == "encoder" and getattr(model.config, "is_encoder_decoder", False):
                    model = model.get_encoder()
                read = transformers.AutoTokenizer.from_pretrained
                tokenizer = processing_class or read(name, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:
        hint = "" if Path(name).is_dir() else "; without the network give model= a folder that holds the model"
        raise OptionError(f"{who}: cannot load model={name!r}: {first_line(error).rstrip('.')}{hint}") from error
    parts = weights_hash(model), str(model), str(getattr(model, "config", "")), _describe_tokenizer(tokenizer)
    identity = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return LocalModel(f"{who}: {name}", kind, model.eval(), tokenizer, False, identity)


def _describe_tokenizer(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else str(getattr(tokenizer, "get_vocab", dict)())
    return f"{words}{getattr(tokenizer, 'chat_template', None)}"


def _sentence_transformer(name: str, place: str, precision: torch.dtype, who: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingDependencyError(
            f"{who}: model={name!r} is of sentence-transformers: pip install 'hfdataopt[sentence-transformers]', or give "
            "pooling='mean' or 'last' to read its transformer alone"
        ) from error
    return SentenceTransformer(name, device=place, model_kwargs={"dtype": precision}, trust_remote_code=False)


def _stamp(folder: Path) -> str:
    """Changes when a file of the folder does."""
    if not folder.is_dir():
        return ""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stamps = [f"{path.relative_to(folder)}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in files]
    return hashlib.sha256("\n".join(stamps).encode()).hexdigest()


def _live_hash(model: torch.nn.Module) -> str:
    """:func:`weights_hash`, computed again when a weight was written since."""
    tensors = [*model.parameters(), *model.buffers()]
    versions = [(tensor.data_ptr(), tensor._version) for tensor in tensors]
    known = _HASHES.get(model)
    if known is None or known[0] != versions:
        known = versions, weights_hash(model)
        _HASHES[model] = known
    return known[1]


# -- fixed shapes


def width_of(length: int, limit: int | None) -> int:
    """Tokens of the pass that a row of this length goes into: more than it has, at most a quarter or 8 more; up to ``limit``."""
    step = max(8, 1 << max(length.bit_length() - 3, 0))
    width = (length // step + 1) * step
    return width if limit is None else min(width, limit)


def fixed_batches(rows: Sequence[Sequence[int]], batch_size: int, limit: int | None, pad: int) -> Iterator[Pass]:
    """``(positions, input_ids, attention_mask)`` of passes over all rows that have tokens.

    ``input_ids`` and ``attention_mask`` are ``[batch_size, width]`` long, padded on the right; the first ``len(positions)`` rows
    count and the others are copies. Rows are at most ``limit`` long.
    """
    groups: dict[tuple[int, bool], list[int]] = {}
    for position, row in enumerate(rows):
        if len(row):
            width = width_of(len(row), limit)
            groups.setdefault((width, len(row) == width), []).append(position)
    for (width, _), members in sorted(groups.items()):
        for start in range(0, len(members), batch_size):
            positions = members[start : start + batch_size]
            ids = np.full((batch_size, width), pad, dtype=np.int64)
            mask = np.zeros((batch_size, width), dtype=np.int64)
            for place in range(batch_size):
                row = rows[positions[place if place < len(positions) else 0]]
                ids[place, : len(row)] = row
                mask[place, : len(row)] = 1
            yield positions, torch.from_numpy(ids), torch.from_numpy(mask)


@functools.cache
def say_once_that_rows_are_cut(name: str, limit: int) -> None:
    say(f"{name}: longer rows are cut to {limit} tokens")
