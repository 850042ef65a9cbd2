"""Judges that are functions, as TRL had them."""

import inspect
from collections.abc import Sequence
from typing import Any

from hfdataopt.errors import DataError, OptionError
from hfdataopt.prompting.candidate import Comparison
from hfdataopt.prompting.judges.judge import Judge, Question, texts_of
from hfdataopt.rewards.texts import transcript


class CallableJudge(Judge):
    """A judge written for older TRL: ``judge(prompts, completions, shuffle_order=True) -> list[int]``, or an object with it.

    It gets texts and pairs of texts, and returns the index of the better one; -1 means that it could not say (``invalid``).
    It is told not to shuffle, if it takes ``shuffle_order``, for the loop has done so.
    """

    def __init__(self, judge: Any) -> None:
        self._judge = getattr(judge, "judge", judge)
        if isinstance(judge, type) or not callable(self._judge):
            raise OptionError(
                "PromptTrainer: a judge is a hfdataopt judge or judge(prompts, completions, shuffle_order=True) -> list[int]; "
                f"got {judge!r:.200}"
            )
        self._keywords: dict[str, Any] = {"shuffle_order": False}
        if not _takes(self._judge, self._keywords):
            self._keywords = {}
            if not _takes(self._judge, {}):
                raise OptionError(
                    f"PromptTrainer: the judge {getattr(self._judge, '__name__', self._judge)!r:.100} cannot be called as "
                    "judge(prompts, completions): prompts are texts, completions pairs of texts; it returns the index of the better "
                    "one for each"
                )

    def decide(self, questions: Sequence[Question]) -> list[Comparison]:
        prompts = [transcript(question.prompt) for question in questions]
        pairs = [list(texts_of(question, "judge")) for question in questions]
        words = self._judge(prompts, pairs, **self._keywords)
        words = words.tolist() if hasattr(words, "tolist") else words
        if not isinstance(words, list | tuple) or len(words) != len(questions):
            raise DataError(
                f"judge: returned {words!r:.100} for {len(questions)} pairs; it must return a list with 0, 1 or -1 for each"
            )
        found = []
        for word, question in zip(words, questions, strict=True):
            if isinstance(word, bool) or word not in (0, 1, -1):
                raise DataError(f"judge: returned {word!r} for item {question.item!r}; it must be 0, 1 or -1")
            found.append(Comparison.of(None if word == -1 else int(word), otherwise="invalid"))
        return found

    def describe(self) -> dict[str, Any]:
        from hfdataopt.attribution.identity import fingerprint

        return {"kind": "callable", "judge": fingerprint(self._judge)}


def _takes(judge: Any, keywords: dict[str, Any]) -> bool:
    try:
        inspect.signature(judge).bind([], [], **keywords)
    except TypeError:
        return False
    except ValueError:  # a built-in, which tells no signature
        return True
    return True


def as_judge(judge: Any) -> Judge:
    """A judge of ours as it is; anything callable as :class:`CallableJudge`."""
    return judge if isinstance(judge, Judge) else CallableJudge(judge)
