"""What the filters that run a local model have in common: its options, and knowing it again."""

from dataclasses import dataclass, field
from typing import Any

from hfdataopt.errors import DataError
from hfdataopt.options import check_range
from hfdataopt.selection.filter import TextFilter
from hfdataopt.selection.language_models import open_language_model
from hfdataopt.selection.local_models import Dtype, LocalModel
from hfdataopt.selection.source import Source


@dataclass(frozen=True)
class ModelFilter(TextFilter):
    """A filter that runs a model on this machine.

    To implement: ``open_model``. A subclass that has a ``learn`` of its own calls this one first.

    Args:
        model: hub id or folder, or a live model. A live one is left as it was, and goes to worker processes with the filter;
            ``datasets`` hashes all of it, in which a generation config differs from process to process, so that a cached result
            is found again in the same process only.
        processing_class: tokenizer of a live model.
        batch_size: rows of one forward pass. Scores do not depend on which rows come together, but a part of a pass costs as
            much as a whole: with ``map(batch_size=)`` of 1,000 little is lost.
        max_length: tokens of a row that are read; None for as many as the model can.
        device: of a model that is loaded; None takes the GPU where there is one. With ``num_proc`` it must be ``cpu``.
        dtype: of a model that is loaded; None for float32.
    """

    model: Any = field(default=None, kw_only=True, repr=False)
    processing_class: Any = field(default=None, kw_only=True, repr=False)
    batch_size: int = field(default=8, kw_only=True)
    max_length: int | None = field(default=None, kw_only=True)
    device: str | None = field(default=None, kw_only=True)
    dtype: Dtype | None = field(default=None, kw_only=True)
    weights: str | None = field(default=None, init=False, repr=False, compare=False)
    place: str | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "batch_size", at_least=1)
        check_range(self, "max_length", at_least=1)

    def open_model(self, device: str | None) -> LocalModel:
        """The model, loaded to this device where it is not live."""
        raise NotImplementedError(f"{type(self).__name__} must implement open_model(device)")

    def learn(self, pool: Source, target: Source | None) -> None:
        opened = self.open_model(self.device)
        self.set(weights=opened.weights, place=None if opened.live else str(opened.device))

    def local_model(self) -> LocalModel:
        """The model that the filter was fitted with.

        Raises:
            DataError: its weights have changed since.
        """
        opened = self.open_model(self.place)
        if opened.weights != self.weights:
            raise DataError(f"{self.name}: the weights of the model have changed since fit; fit the filter again")
        return opened


@dataclass(frozen=True)
class LanguageModelFilter(ModelFilter):
    """A filter that asks a causal language model how likely a row is."""

    def open_model(self, device: str | None) -> LocalModel:
        return open_language_model(
            self.model, processing_class=self.processing_class, device=device, dtype=self.dtype, who=self.name
        )
