"""``ApplyPrompt``: a prompt put into a dataset, by the same code that put it in front of the items it was scored on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfdataopt.errors import DataError, StoreError
from hfdataopt.files import write_whole
from hfdataopt.prompting.candidate import Candidate, Exemplar
from hfdataopt.rewards.texts import is_messages

FILE = "prompt.json"


@dataclass(frozen=True)
class ApplyPrompt:
    """A map function: ``dataset.map(apply_prompt)``, also batched, with ``num_proc`` and on streams.

    Messages: the instruction is the system message (in front of one that is there already), exemplars are turns of user and
    assistant behind it. Text: instruction, exemplars and prompt follow each other with a blank line between. The column is
    ``prompt``; without it ``messages``, or ``chosen`` and ``rejected`` where these hold whole conversations. Other columns stay.

    Attributes:
        version: of this code, which enters the fingerprint by which ``datasets`` caches.
    """

    instruction: str = ""
    exemplars: tuple[Exemplar, ...] = ()
    version: int = 1

    @classmethod
    def of(cls, candidate: Candidate) -> "ApplyPrompt":
        """The map function of a candidate."""
        return cls(candidate.instruction, candidate.exemplars)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The changed columns of a row, or of a batch of rows."""
        columns = ["prompt"] if "prompt" in row else ["messages"] if "messages" in row else []
        if not columns and "chosen" in row and "rejected" in row:
            columns = ["chosen", "rejected"]
        if not columns:
            raise DataError(
                f"apply_prompt: the dataset has no column 'prompt', 'messages', or 'chosen' and 'rejected'; it has: {', '.join(row)}"
            )
        changed = {}
        for column in columns:
            value = row[column]
            batch = isinstance(value, list) and bool(value) and all(map(_conversation, value))
            if column != "prompt" and not _conversation(value) and not batch:
                raise DataError(
                    f"apply_prompt: without a column 'prompt', {column!r} must hold messages; got {str(value)[:80]!r}"
                )
            single = not isinstance(value, list) or _conversation(value)
            changed[column] = self.render(value) if single else [self.render(one) for one in value]
        return changed

    def render(self, prompt: Any) -> Any:
        """The prompt, text or messages, as the model gets it."""
        if isinstance(prompt, str):
            shown = [_joined(one.prompt, one.completion) for one in self.exemplars]
            return "\n\n".join([*([self.instruction] if self.instruction else []), *shown, prompt])
        if not _conversation(prompt):
            raise DataError(f"apply_prompt: a prompt must be text or a list of messages; got {str(prompt)[:80]!r}")
        system = [message for message in prompt[:1] if message.get("role") in ("system", "developer")]
        rest = prompt[len(system) :]
        head = list(system)
        if self.instruction:
            own = system[0] if system else {"role": "system", "content": ""}
            head = [{**own, "content": self._before(own["content"])}]
        turns = [
            {"role": role, "content": text}
            for one in self.exemplars
            for role, text in (("user", one.prompt), ("assistant", one.completion))
        ]
        return [*head, *turns, *rest]

    def _before(self, content: Any) -> Any:
        """The instruction and then the content of the system message that is there, text or parts."""
        if isinstance(content, list):
            return [{"type": "text", "text": f"{self.instruction}\n\n"}, *content]
        return f"{self.instruction}\n\n{content}" if content else self.instruction

    def save(self, folder: str | Path) -> Path:
        """Write ``prompt.json`` into the folder; returns its path."""
        path = Path(folder) / FILE
        content = {
            "instruction": self.instruction,
            "exemplars": [list(one) for one in self.exemplars],
            "version": self.version,
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(content, indent=1, ensure_ascii=False).encode())
        except OSError as error:
            raise StoreError(f"ApplyPrompt: {str(path)!r} cannot be written: {error}") from error
        return path

    @classmethod
    def load(cls, where: str | Path) -> "ApplyPrompt":
        """Read what :meth:`save` wrote; ``StoreError`` for anything else."""
        path = Path(where) / FILE if Path(where).is_dir() else Path(where)
        try:
            content = json.loads(path.read_text())
            shown = tuple(Exemplar(*one) for one in content["exemplars"])
            if not all(
                isinstance(text, str) for text in (content["instruction"], *(part for one in shown for part in one))
            ):
                raise TypeError("the instruction and the exemplars must be text")
            if type(content["version"]) is not int:
                raise TypeError("the version must be a whole number")
            return cls(content["instruction"], shown, content["version"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise StoreError(
                f"ApplyPrompt: {str(path)!r} is no saved prompt: {type(error).__name__}: {error}"
            ) from error


def _conversation(value: Any) -> bool:
    return isinstance(value, list) and is_messages(value)


def _joined(prompt: str, completion: str) -> str:
    space = "" if not prompt or prompt[-1].isspace() or completion[:1].isspace() else " "
    return f"{prompt}{space}{completion.rstrip()}"
