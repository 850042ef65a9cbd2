"""A language model as a judge."""

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

from hfdataopt.prompting.budget import calls_of
from hfdataopt.prompting.candidate import Comparison
from hfdataopt.prompting.judges.judge import Judge, Question, texts_of
from hfdataopt.prompting.meta_prompts import compare
from hfdataopt.rewards.texts import transcript

Word = Literal["first", "second", "tie"]
LONGEST = 16  # tokens of a reply
_MARKS = re.compile(r"[*_`\"'“”‘’\[\](){}<>#|]")
_VERDICT = re.compile(
    r"""\s*(?:(?:the|my|it|s|i|is|better|best|preferred|final|answer|response|option|choice|winner|verdict|prefer|choose|pick)
        \b[\s:=]*)*
    (?P<word>a\s+tie|tie|tied|draw|equal|a|b)
    (?=\s*$ | \s*[.,:;!—–-] | \s+(?:because|since|wins|(?:is|was)\s+(?:much\s+|slightly\s+|clearly\s+)?(?:the\s+)?(?:better|best))\b)""",
    re.VERBOSE | re.IGNORECASE,
)


def read_verdict(reply: str) -> Word | None:
    """What the first line of a reply says, behind any reasoning in ``<think>`` tags; None where that is not plain."""
    lines = [line for line in reply.rpartition("</think>")[2].splitlines() if _MARKS.sub(" ", line).strip()]
    found = _VERDICT.match(_MARKS.sub(" ", lines[0])) if lines else None
    if found is None:
        return None
    words: dict[str, Word] = {"a": "first", "b": "second"}
    return words.get(found["word"].lower(), "tie")


class ModelJudge(Judge):
    """Asks a language model, greedily, which answer is better.

    Args:
        model: an id or folder, a ``PreTrainedModel``, a generator (an endpoint, say), or a function of a list of prompts.
        criterion: what makes an answer better, in a sentence.
        both_orders: ask twice, with the answers in either order, and count only agreement; anything else is a tie. It
            costs two calls per question and takes away the model's liking for a place.
        processing_class: the tokenizer of a ``PreTrainedModel``.
        options: of the generator that is made of ``model``; a model of transformers gets ``temperature=0`` and
            ``max_new_tokens=16``.

    Attributes:
        invalid: replies that could not be read; their questions are ``invalid``, never a win.
    """

    recorded = True

    def __init__(
        self,
        model: Any,
        criterion: str = "",
        *,
        both_orders: bool = True,
        processing_class: Any = None,
        **options: Any,
    ) -> None:
        import torch

        from hfdataopt.generation import as_generator

        if isinstance(model, str | torch.nn.Module):
            options = {"temperature": 0.0, "max_new_tokens": LONGEST} | options
        self.generator = as_generator(model, processing_class, **options)
        self.criterion, self.both_orders = criterion, both_orders
        self._orders = ("AB", "BA") if both_orders else ("AB",)
        self.calls_per_question = len(self._orders) * calls_of(self.generator)
        self.invalid = 0

    def begin(self, complete: Callable[..., list[str]], state: Callable[[], dict[str, Any]]) -> None:
        super().begin(complete, state)
        self._complete, self.invalid = complete, 0

    def decide(self, questions: Sequence[Question]) -> list[Comparison]:
        messages, keys = [], []
        for question in questions:
            prompt, pair = transcript(question.prompt), texts_of(question, "ModelJudge")
            for order in self._orders:
                messages.append(compare(prompt, *(pair if order == "AB" else pair[::-1]), self.criterion))
                keys.append(f"{question.id}/{order}")
        words = [read_verdict(reply) for reply in self._complete(self.generator, messages, keys)]
        self.invalid += words.count(None)
        if not self.both_orders:
            return [_comparison(word) for word in words]
        turned: dict[Word | None, Word | None] = {"first": "second", "second": "first"}
        found = []
        for one, other in zip(words[::2], words[1::2], strict=True):
            agreed = one == turned.get(other, other)
            found.append(_comparison(None if one is None or other is None else one if agreed else "tie"))
        return found

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "model",
            "model": self.generator.describe(),
            "criterion": self.criterion,
            "both_orders": self.both_orders,
        }


def _comparison(word: Word | None) -> Comparison:
    if word is None:
        return Comparison(None, "invalid")
    return Comparison.of({"first": 0, "second": 1}.get(word))
