"""The ledger: every request before it is sent, every answer before it is used; cache, resume and cost report in one.

One JSON object per line in ``ledger.jsonl``. A resumed run plays the search again from its beginning and finds every
answer here, so no state of an optimizer is ever stored.
"""

import base64
import contextlib
import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from hfdataopt.errors import StoreError
from hfdataopt.files import JsonLines, no_link

FILE = "ledger.jsonl"
OF_A_SEARCH = (FILE, "result.json", "prompt.json", "prompts", "images")
VERSION = 1
# Kind of line -> what is read of it, and its type.
_READ: dict[str, tuple[str, Any]] = {
    "search": ("settings", dict),
    "request": ("key", str),
    "answer": ("key", str),
    "unanswered": ("requests", int),
    "seconds": ("seconds", int | float),
    "event": ("kind", str),
}
_ANSWERS: dict[str, Any] = {
    "completion": dict,
    "reward": int | float | None,
    "text": str,
    "value": int | float,
    "vector": str,
    "image": dict,
}


def key_of(*parts: Any) -> str:
    """A short name of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


class Ledger:
    """What a search asked and what it was answered, on disk (``folder``), or in memory only (None).

    Raises:
        StoreError: the folder holds another search, or another process is writing there.
    """

    def __init__(self, folder: Path | None, settings: dict[str, Any], *, fresh: bool = False, must_exist: bool = False):
        self.folder = folder
        self.answers: dict[str, dict[str, Any]] = {}
        self.sent: set[str] = set()  # requests without an answer
        self.uncertain = 0  # requests that were sent again, since no whole answer to them had come
        self.seconds = 0.0
        self.events: list[dict[str, Any]] = []  # of judges that answer in an order of their own
        self.kept = 0
        self._lock: Any = None
        self._lines = None if folder is None else JsonLines(folder / FILE, "PromptTrainer")
        if self._lines is None or folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._take_lock(folder)
        if must_exist and not self._lines.file.is_file():
            self.close()
            raise StoreError(f"PromptTrainer: there is nothing to resume from in {str(folder)!r} (no {FILE})")
        if fresh and self._lines.file.is_file():
            number = 1
            while (older := folder / f"search-{number}").exists():
                number += 1
            older.mkdir()
            for name in OF_A_SEARCH:
                if (folder / name).exists():
                    os.replace(folder / name, older / name)
        self._read(settings)

    def _take_lock(self, folder: Path) -> None:
        with contextlib.suppress(ImportError):
            import fcntl

            try:
                self._lock = open(folder / ".lock", "w", opener=no_link)  # noqa: SIM115 - held until the end
            except OSError as error:
                raise StoreError(f"PromptTrainer: {str(folder / '.lock')!r} cannot be written: {error}") from error
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._lock.close()
                raise StoreError(
                    f"PromptTrainer: another search is running in {str(folder)!r}; give this one its own output_dir"
                ) from None

    def _read(self, settings: dict[str, Any]) -> None:
        assert self._lines is not None
        settings = json.loads(json.dumps({"version": VERSION, **settings}, default=str))
        found = None
        for line in filter(_is_ours, self._lines.read()):
            kind = line["kind"]
            if kind == "search":
                found = line["settings"]
            elif kind == "request":
                self._sent(line["key"])
            elif kind == "answer":
                self.answers[line["key"]] = line
                self.sent.discard(line["key"])
                self.seconds = max(self.seconds, line.get("seconds", 0.0))  # a killed run tells no end
            elif kind == "unanswered":
                self.uncertain += line["requests"]
            elif kind == "seconds":
                self.seconds = line["seconds"]
            elif kind == "event":
                self.events.append(line)
        self.kept = len(self.answers)
        if found is not None and found != settings and not self.answers and not self.events:
            self._lines.file.unlink()  # of another search that was never answered
            self.sent.clear()
            found, self.seconds = None, 0.0
        if found is None and (self.answers or self.events):
            self.close()
            raise StoreError(
                f"PromptTrainer: {str(self._lines.file)!r} does not tell what was searched (its first line is damaged); give another "
                "output_dir, or resume_from_checkpoint=False to begin anew"
            )
        if found is None:
            self._lines.append({"kind": "search", "settings": settings})
        elif found != settings:
            name = next(name for name in {**found, **settings} if found.get(name) != settings.get(name))
            change = f"{name} was {found.get(name)!r:.150} and is now {settings.get(name)!r:.150}"
            if name == "dataset":
                change = "dataset has other rows now, or they are split in another way"
            self.close()
            raise StoreError(
                f"PromptTrainer: {str(self._lines.file)!r} holds another search ({change}); give "
                "another output_dir, or resume_from_checkpoint=False to begin anew"
            )

    def request(self, key: str, role: str, content: Any) -> None:
        """Note a request that is about to be sent."""
        self._sent(key)
        if self._lines is not None:
            self._lines.append({"kind": "request", "key": key, "role": role, "content": content})

    def unanswered(self, requests: int) -> None:
        """Note requests that got no whole answer and were sent again."""
        self.uncertain += requests
        if self._lines is not None:
            self._lines.append({"kind": "unanswered", "requests": requests})

    def answer(self, key: str, role: str, **content: Any) -> dict[str, Any]:
        """Note an answer; returns the line."""
        line = {"kind": "answer", "key": key, "role": role, **content}
        if self._lines is not None:
            self._lines.append(line)
        self.answers[key] = line
        self.sent.discard(key)
        return line

    def _sent(self, key: str) -> None:
        self.uncertain += key in self.sent
        self.sent.add(key)

    def event(self, **content: Any) -> None:
        """Note something that a person did."""
        line = {"kind": "event", **content}
        if self._lines is not None:
            self._lines.append(line)
        self.events.append(line)

    def time(self, seconds: float) -> None:
        """Note how long the search has run."""
        if self._lines is not None:
            self._lines.append({"kind": "seconds", "seconds": seconds})

    def vectors(self, keys: list[str]) -> dict[str, np.ndarray]:
        """Vectors noted under these keys."""
        return {key: _vector(self.answers[key]["vector"]) for key in keys if key in self.answers}

    def note_vector(self, key: str, role: str, vector: np.ndarray) -> None:
        self.answer(key, role, vector=base64.b64encode(np.asarray(vector, np.float32).tobytes()).decode())

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _is_ours(line: dict[str, Any]) -> bool:
    """Whether a line has what is read of its kind; a line that somebody else wrote is passed over."""
    nothing: tuple[str, Any] = ("", object)
    name, kind = _READ.get(line["kind"], nothing) if isinstance(line.get("kind"), str) else nothing
    value, seconds = line.get(name), line.get("seconds", 0.0)
    good = isinstance(value, kind) and not isinstance(value, bool) and (kind is not int or value >= 0)
    good &= line.get("kind") != "answer" or _is_answer(line)
    return bool(name) and good and isinstance(seconds, int | float) and 0 <= seconds < math.inf


def _is_answer(line: dict[str, Any]) -> bool:
    """Whether an answer holds something that a search reads."""
    asked = "completion" in line or "image" in line or line.get("role") == "likelihood"
    tokens = line.get("tokens", None if asked else [0, 0])
    counted = isinstance(tokens, list) and len(tokens) == 2 and all(type(x) is int and x >= 0 for x in tokens)
    return counted and any(name in line and isinstance(line[name], kind) for name, kind in _ANSWERS.items())


def _vector(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.float32)
