"""The implicit reward margin of DPO: how much better than its reference the policy tells chosen from rejected."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, ClassVar, Literal

import numpy as np

from hfdataopt.errors import DataError, OptionError
from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt.selection.language_models import open_language_model
from hfdataopt.selection.local_models import Dtype, LocalModel
from hfdataopt.selection.log_ratios import PairTokens, answer_logps, pair_tokens
from hfdataopt.selection.preferences import MarginFilter, pair_columns, pairs_of
from hfdataopt.selection.source import Batch, Source

Role = Literal["model", "reference"]


@dataclass(frozen=True)
class LogRatio(MarginFilter):
    """``beta * [(log pi(chosen) - log ref(chosen)) - (log pi(rejected) - log ref(rejected))]`` (Rafailov et al. 2023).

    Large margins are pairs that the policy has learnt, small ones are hard: the order of a curriculum
    (:func:`hfdataopt.selection.curriculum.curriculum`). Without a reference it is beta times the plain margin of
    log-likelihoods. Answers are tokenized as TRL's ``DPOTrainer`` does and log-probabilities are sums over tokens.

    Args:
        model: the policy, a causal LM: hub id, folder, or a live model (which is left as it was).
        logps: instead, two columns that hold its log-probabilities of chosen and rejected.
        reference: the reference model, given like ``model``; it reads the tokens of the policy's tokenizer.
        ref_logps: instead, two columns, such as TRL's ``("ref_chosen_logps", "ref_rejected_logps")``.
        beta: of DPO; it scales all margins alike.
        best, value: which margins score highest; see :class:`~hfdataopt.selection.preferences.MarginFilter`.
        processing_class: the tokenizer of a live model, or another one than that of the id.
        max_length: tokens of prompt and answer that are read; None for as many as the model can.
        batch_size: answers of one forward pass.
        device: of models that are loaded; None takes the GPU where there is one. With ``num_proc`` it must be ``cpu``.
        dtype: of models that are loaded; None for float32.
    """

    name: ClassVar[str] = "log-ratio"
    meaning: ClassVar[str] = "an implicit reward margin nearer to what best= asks for"
    no_score: ClassVar[str] = "no answer, or a prompt that leaves no room for it in what the model reads"

    model: Any = field(default=None, repr=False)
    logps: tuple[str, str] | None = None
    reference: Any = field(default=None, repr=False)
    ref_logps: tuple[str, str] | None = None
    beta: float = 0.1
    processing_class: Any = field(default=None, kw_only=True, repr=False)
    max_length: int | None = field(default=None, kw_only=True)
    batch_size: int = field(default=8, kw_only=True)
    device: str | None = field(default=None, kw_only=True)
    dtype: Dtype | None = field(default=None, kw_only=True)
    weights: dict[str, str] | None = field(default=None, init=False, repr=False, compare=False)
    places: dict[str, str | None] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "beta", above=0)
        check_range(self, "max_length", at_least=1)
        check_range(self, "batch_size", at_least=1)
        if (self.model is None) == (self.logps is None):
            raise OptionError(f"{self.name}: give either model=, the policy, or logps=, two columns; not both")
        if self.reference is not None and self.ref_logps is not None:
            raise OptionError(f"{self.name}: give reference= or ref_logps=, two columns; not both")

        if (self.device is not None or self.dtype is not None) and not self._loaded:
            raise OptionError(f"{self.name}: device= and dtype= are for models that are loaded, and there is none")

    @property
    def _roles(self) -> list[Role]:
        """Which models are run."""
        roles: tuple[Role, Role] = ("model", "reference")
        return [role for role in roles if getattr(self, role) is not None]

    @property
    def _loaded(self) -> list[Role]:
        """Which of them are loaded from an id or a folder."""
        return [role for role in self._roles if isinstance(getattr(self, role), str | PathLike)]

    def reads(self, columns: Sequence[str], what: str) -> tuple[str, ...]:
        numbers = self.reads_numbers([*(self.logps or ()), *(self.ref_logps or ())], columns, what)
        if not self._roles:
            return numbers
        pair = pair_columns(columns, self.name, what)
        return (*pair, *(name for name in numbers if name not in pair))

    def learn(self, pool: Source, target: Source | None) -> None:
        opened = {role: self._open(role, self.device) for role in self._roles}
        self.set(
            weights={role: lm.weights for role, lm in opened.items()},
            places={role: None if lm.live else str(lm.device) for role, lm in opened.items()},
        )

    def margins(self, batch: Batch) -> np.ndarray:
        margin = self._margin("model", self.logps, batch)
        if self.reference is not None or self.ref_logps is not None:
            margin = margin - self._margin("reference", self.ref_logps, batch)
        return self.beta * margin

    def _margin(self, role: Role, columns: tuple[str, str] | None, batch: Batch) -> np.ndarray:
        """``[rows]``: log-probability of chosen less that of rejected."""
        if columns is not None:
            return batch.numbers(columns[0]) - batch.numbers(columns[1])
        lm = self._fitted(role)
        tokens, there = self._tokens(batch)
        margin = np.full(len(batch), np.nan)
        chosen, rejected = answer_logps(lm, tokens, batch_size=self.batch_size, max_length=self.max_length)
        margin[there] = chosen - rejected
        return margin

    def _tokens(self, batch: Batch) -> tuple[list[PairTokens], list[int]]:
        """Tokens of the rows that hold a pair, and where these rows are."""
        tokenizer = self._fitted(self._roles[0]).tokenizer
        pairs = [(place, pair) for place, pair in enumerate(pairs_of(batch)) if pair is not None]
        tokens = [pair_tokens(pair, tokenizer, self.name, batch.name_of(place)) for place, pair in pairs]
        return tokens, [place for place, _ in pairs]

    def _open(self, role: Role, device: str | None) -> LocalModel:
        loaded: dict[str, Any] = {"device": device, "dtype": self.dtype} if role in self._loaded else {}
        return open_language_model(getattr(self, role), processing_class=self.processing_class, who=self.name, **loaded)

    def _fitted(self, role: Role) -> LocalModel:
        """The model that the filter was fitted with."""
        assert self.weights is not None
        assert self.places is not None
        lm = self._open(role, self.places[role])
        if lm.weights != self.weights[role]:
            raise DataError(f"{self.name}: the weights of {role}= have changed since fit; fit the filter again")
        return lm


@hookimpl
def register_filters(register: Callable[..., None]) -> None:
    register(LogRatio)
