"""A prompt that may be tried, and what came of trying it."""

import functools
import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

RowId = str | int
Outcome = Literal["preferred", "tie", "skip", "invalid"]


class Exemplar(NamedTuple):
    """A prompt as the dataset has it, as text, and an answer to it, shown to the model before the real prompt."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Candidate:
    """An instruction with exemplars, or one fixed answer to one item.

    Attributes:
        instruction: the system prompt; empty = none.
        exemplars: turns, or text, between the instruction and the prompt.
        item, completion: an answer that is there already (choosing among a model's responses); None for a prompt.
        latent: the vector it was decoded from.
        parents: keys of the candidates it was made from.
        origin: how it was made, such as ``"induce"``.
    """

    instruction: str = ""
    exemplars: tuple[Exemplar, ...] = ()
    item: RowId | None = None
    completion: str | None = None
    latent: tuple[float, ...] | None = field(default=None, compare=False, repr=False)
    parents: tuple[str, ...] = field(default=(), compare=False, repr=False)
    origin: str = field(default="", compare=False)

    @functools.cached_property
    def key(self) -> str:
        """A name that is the same for all candidates that would be sent alike."""
        content = [self.instruction, [list(one) for one in self.exemplars], self.item, self.completion]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """A JSON object that :meth:`from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "Candidate":
        """Read what :meth:`to_json` wrote."""
        values = dict(document)
        values["exemplars"] = tuple(Exemplar(*one) for one in values.get("exemplars", ()))
        values["parents"] = tuple(values.get("parents", ()))
        latent = values.get("latent")
        values["latent"] = None if latent is None else tuple(latent)
        return cls(**values)


@dataclass(frozen=True)
class Query:
    """Ask for a candidate's rewards.

    Attributes:
        items: how many of the common validation items, counted from the first; None = all of them; or ids of items, also of
            examples.
    """

    candidate: Candidate
    items: int | tuple[RowId, ...] | None = None


@dataclass(frozen=True)
class Duel:
    """Ask which of two candidates has the better answer.

    Attributes:
        item: on which item; None = the loop takes the next one.
    """

    first: Candidate
    second: Candidate
    item: RowId | None = None


@dataclass(frozen=True)
class Trial:
    """What a candidate was worth.

    Attributes:
        items: ids ``[k]``.
        rewards: ``[k]`` float64; NaN where no reward function had an opinion.
        answers: ``[k]`` completions as text.
    """

    candidate: Candidate
    items: tuple[RowId, ...]
    rewards: np.ndarray
    answers: tuple[str, ...]

    @property
    def score(self) -> float:
        """Mean reward of the items that have one; NaN where none has."""
        known = self.rewards[~np.isnan(self.rewards)]
        return float(known.mean()) if len(known) else float("nan")


@dataclass(frozen=True)
class Comparison:
    """A judge's word on two answers.

    Attributes:
        winner: 0 or 1 where ``outcome`` is ``preferred``, else None.
        outcome: ``tie`` trains as half a win for each; ``skip`` (would not say) and ``invalid`` (could not be read) not at all.
    """

    winner: Literal[0, 1] | None
    outcome: Outcome

    def __post_init__(self) -> None:
        if (self.outcome == "preferred") != (self.winner in (0, 1)):
            raise ValueError(f"a comparison of outcome {self.outcome!r} cannot have winner {self.winner!r}")

    @classmethod
    def of(cls, winner: int | None, otherwise: Outcome = "tie") -> "Comparison":
        """``preferred`` for 0 and 1, ``otherwise`` for None."""
        return cls(None, otherwise) if winner is None else cls(0 if winner == 0 else 1, "preferred")

    def flipped(self) -> "Comparison":
        """The same word on the two answers in the other order."""
        return self if self.winner is None else Comparison(1 if self.winner == 0 else 0, self.outcome)

    @property
    def target(self) -> float | None:
        """What a surrogate learns: 1 first, 0 second, 0.5 tie; None for skip and invalid."""
        if self.outcome in ("skip", "invalid"):
            return None
        return 0.5 if self.winner is None else float(self.winner == 0)


@dataclass(frozen=True)
class Vote:
    """A duel and its outcome, in the order of the duel (``winner=0`` is ``duel.first``).

    Attributes:
        answers: of first and second, as text; of images their paths; both empty where one is too long for the model.
        by: who judged, where there are several people.
    """

    duel: Duel
    comparison: Comparison
    answers: tuple[str, str]
    by: str = ""

    @property
    def unread(self) -> bool:
        """Whether nobody was asked, since a candidate is too long for the model; ``invalid``, and free."""
        return self.comparison.outcome == "invalid" and not any(self.answers)
