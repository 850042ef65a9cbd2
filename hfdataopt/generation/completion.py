"""One sampled answer to a prompt."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from hfdataopt.errors import DataError


@dataclass(frozen=True)
class Completion:
    """A completion as text, and as tokens where the source has them.

    Attributes:
        text: without special tokens, and without the stop string that ended it.
        token_ids: as sampled, with the end token where it was generated; None from a source of text.
        finished: whether it came to its end (end token or stop string), rather than to the limit of tokens.
        prompt_tokens, completion_tokens: as the server or the tokenizer counts them; None where nobody says.
    """

    text: str
    token_ids: list[int] | None = None
    finished: bool = True
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object that :meth:`from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "Completion":
        """Read what :meth:`to_json` wrote; ``DataError`` for anything else."""
        try:
            text, ids, finished = (document[name] for name in ("text", "token_ids", "finished"))
            usage = [document.get(name) for name in ("prompt_tokens", "completion_tokens")]
        except (KeyError, TypeError, AttributeError):
            raise DataError(f"a stored completion needs text, token_ids and finished; got {document!r}") from None
        texts = isinstance(text, str) and isinstance(finished, bool) and (ids is None or isinstance(ids, list))
        if not texts or not all(count is None or (isinstance(count, int) and count >= 0) for count in usage):
            raise DataError(f"a stored completion holds values of other types: {document!r}")
        return cls(text, None if ids is None else [int(token) for token in ids], finished, *usage)


def unfinished_share(completions: Iterable[Completion]) -> float:
    """Share of the completions that ran into the limit of tokens; 0 for none at all."""
    cut = [not completion.finished for completion in completions]
    return sum(cut) / len(cut) if cut else 0.0
