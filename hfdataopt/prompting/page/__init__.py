"""A web page on which people say which of two answers is better, and what it needs of the loop.

One page on Starlette and uvicorn (extra ``ui``) rather than Gradio. Gradio 6.31 does stay silent with
``GRADIO_ANALYTICS_ENABLED=False`` and its default theme, but it answers requests under any ``Host``, sets no content security
policy, and has no keys, leases, acknowledged votes or sessions that outlive a restart: all of these would have been our own
script and our own requests inside it. It needs 18 packages (a wheel of 31 MB, Pillow below 13) where these are two (0.2 MB).
"""

import json
import os
import random
import re
import secrets
import sys
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfdataopt.errors import DataError, OptionError, StoreError
from hfdataopt.files import JsonLines
from hfdataopt.prompting.candidate import Comparison
from hfdataopt.prompting.judges import Decision, Judge, Question
from hfdataopt.prompting.page.desk import Desk

if TYPE_CHECKING:
    from datasets import Dataset

    from hfdataopt.prompting.page.server import Server

GOODBYE = 5.0  # seconds that the end waits for open pages to hear of it


class WebJudge(Judge):
    """People judge in their browsers, several at once; set ``parallel`` to at least their number.

    Of the search's state the page shows ``votes``, ``of`` (how many there will be) and ``best_prompt``. A word is answered to the person who gave it
    when the loop has called :meth:`kept`, so nobody sees the next pair before the last word is on disk. Undo reaches back over a
    restart for decisions of which the loop tells :meth:`kept` again after it has submitted their questions.

    Args:
        port: 0 = a free one.
        host: address to listen at. Everybody who reaches it and has the link can vote.
        token: secret in the link, at least 16 letters, digits, ``-`` or ``_``; by default a new one.
        criterion: the question above the pair, such as "Which answer is more polite?".
        hosts: names, beside ``localhost`` and addresses, under which browsers may reach the page: of a proxy or a Space.
        lease: seconds after which the pair of a person who has gone is given to another; an open page renews it every 2 s.
        open_browser: open the page on this machine.
        address_file: keeps port and token (mode 600), so that a restarted search is where it was and open pages find it again.

    Raises:
        OptionError: an option that cannot be honoured, or a port that is taken.
        MissingDependencyError: without starlette and uvicorn.

    Attributes:
        url: the link, once the search has begun.
    """

    interactive = True

    def __init__(
        self,
        port: int = 0,
        host: str = "127.0.0.1",
        token: str | None = None,
        *,
        criterion: str = "",
        hosts: Sequence[str] = (),
        lease: float = 60.0,
        open_browser: bool = False,
        address_file: str | Path | None = None,
    ) -> None:
        import hfdataopt.prompting.page.server  # noqa: F401  # what is missing is said before the search

        if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 65536:
            raise OptionError(f"WebJudge: port={port!r} must be 0 (a free one) to 65535")
        if token is not None and not re.fullmatch(r"[A-Za-z0-9_-]{16,}", token):
            raise OptionError("WebJudge: token must be at least 16 letters, digits, '-' or '_'")
        if isinstance(hosts, str):
            raise OptionError(f"WebJudge: hosts={hosts!r} must be a list of names")
        if not lease > 0:
            raise OptionError(f"WebJudge: lease={lease!r} must be above 0 seconds")
        self.port, self.host, self.criterion, self.hosts, self.lease = port, host, criterion, tuple(hosts), lease
        self.open_browser = open_browser
        self.address_file = None if address_file is None else Path(address_file)
        self.url = ""
        self._token = token
        self._server: Server | None = None

    def begin(self, complete: Callable[..., list[str]], state: Callable[[], dict[str, Any]]) -> None:
        from hfdataopt.prompting.page.server import Server, application

        self.close()
        kept = self._kept_address()
        token = self._token or kept.get("token") or secrets.token_urlsafe(24)
        self._state, self._desk = state, Desk(token, self.lease)
        app = application(self._desk, token, self.hosts, self.criterion)
        try:
            self._server = Server(app, self.host, self.port or kept.get("port", 0))
        except OptionError:
            if self.port or not kept:
                raise
            self._server = Server(app, self.host, 0)  # its old port is somebody else's now
        if self.address_file is not None:
            _write_private(self.address_file, json.dumps({"port": self._server.port, "token": token}))
        name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(
            self.host, f"[{self.host}]" if ":" in self.host else self.host
        )
        self.url = f"http://{name}:{self._server.port}/?token={token}"
        print(f"Judge the answers at {self.url}", file=sys.stderr, flush=True)
        if self.open_browser:
            webbrowser.open(self.url)

    def _kept_address(self) -> dict[str, Any]:
        if self.address_file is None or not self.address_file.is_file():
            return {}
        try:
            kept = json.loads(self.address_file.read_text())
            return {"port": int(kept["port"]), "token": str(kept["token"])}
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"WebJudge: {str(self.address_file)!r} holds no address; give another address_file"
            ) from error

    def submit(self, questions: Sequence[Question]) -> None:
        self._desk.submit(questions, self._state())

    def collect(self) -> list[Decision]:
        return self._desk.collect(self._state())

    def kept(self, decision: Decision) -> None:
        self._desk.kept(decision)

    def end(self, state: dict[str, Any]) -> None:
        self._desk.end(state, GOODBYE)
        self.close()

    def close(self) -> None:
        """Stop the server, if it runs."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def describe(self) -> dict[str, Any]:
        return {"kind": "web", "criterion": self.criterion}


def _write_private(path: Path, text: str) -> None:
    """Write a file in one step that only its owner may read."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
            stream.write(text)
        os.replace(partial, path)
    except OSError as error:
        raise StoreError(f"WebJudge: {str(path)!r} cannot be written: {error}") from error


def serve_judge(pairs: "Dataset", votes_file: str | Path, *, seed: int = 0, **options: Any) -> "Dataset":
    """Let people judge pairs that are there already, without a search; returns when all have a word, or somebody ended it.

    Each pair is shown in a random order. Called again with the same file it goes on where it was.

    Args:
        pairs: rows with ``prompt`` and ``completions``, a list of two (text, messages or images); other columns stay.
        votes_file: one JSON object per vote: ``row``, ``winner`` (of ``completions``), ``outcome``, ``by``, ``undo``.
        seed: of the orders in which the pairs are shown.
        options: of :class:`WebJudge`; by default ``address_file`` stands beside the votes.

    Returns:
        The rows of which one completion is preferred, as ``chosen`` and ``rejected`` in place of ``completions``, in the order of
        ``pairs``: a preference dataset as TRL's trainers take it.

    Raises:
        DataError: rows without a prompt and two completions.
        StoreError: the file holds votes on other pairs.
    """
    file = Path(votes_file)
    judge = WebJudge(**{"address_file": file.with_suffix(".address.json"), **options})
    rows = _Rows(pairs, seed)
    lines = JsonLines(file, "serve_judge")
    words: dict[int, Comparison] = {}

    def state() -> dict[str, Any]:
        return {"votes": len(words), "of": len(pairs)}

    before = list(lines.read())
    if not before:
        lines.append(rows.settings)
    elif before[0] != rows.settings:
        raise StoreError(
            f"serve_judge: {str(file)!r} holds votes on other pairs, or of another seed; give another file"
        )
    judge.begin(_no_models, state)
    judge.submit([rows.question(row) for row in range(len(pairs))])

    def take(decision: Decision) -> None:
        row = int(decision.question)
        words.pop(row, None)
        if not decision.undo:
            words[row] = decision.comparison

    try:
        for line in before[1:]:
            word = Comparison(line["winner"], line["outcome"])
            decision = Decision(str(line["row"]), rows.turned(line["row"], word), line["by"], line["undo"])
            take(decision)
            judge.kept(decision)
        while len(words) < len(pairs) and (decisions := judge.collect()):
            for decision in decisions:
                row = int(decision.question)
                word = rows.turned(row, decision.comparison)
                lines.append(
                    {
                        "row": row,
                        "winner": word.winner,
                        "outcome": word.outcome,
                        "by": decision.by,
                        "undo": decision.undo,
                    }
                )
                take(decision)
                judge.kept(decision)
        judge.end(state())
    finally:
        judge.close()
    winners = {row: rows.turned(row, word).winner for row, word in sorted(words.items())}
    return rows.preferred({row: winner for row, winner in winners.items() if winner is not None})


def _no_models(*_: Any) -> list[str]:
    raise OptionError("serve_judge: people need no model")


class _Rows:
    """Pairs of a dataset as questions; which are shown the other way round."""

    def __init__(self, pairs: "Dataset", seed: int) -> None:
        if not {"prompt", "completions"} <= set(pairs.column_names):
            raise DataError(
                f"serve_judge: the dataset needs the columns 'prompt' and 'completions'; it has: {', '.join(pairs.column_names)}"
            )
        for row, completions in enumerate(pairs["completions"]):
            if not isinstance(completions, list) or len(completions) != 2:
                raise DataError(
                    f"serve_judge: row {row}: 'completions' must be a list of two; got {completions!r:.100}"
                )
        self.pairs, rng = pairs, random.Random(seed)
        self._turned = [rng.random() < 0.5 for _ in range(len(pairs))]
        self.settings = {"kind": "pairs", "pairs": pairs._fingerprint, "rows": len(pairs), "seed": seed}

    def question(self, row: int) -> Question:
        content = self.pairs[row]
        first, second = content["completions"][:: -1 if self._turned[row] else 1]
        return Question(str(row), content["prompt"], (first, second), row)

    def turned(self, row: int, word: Comparison) -> Comparison:
        """The word on ``completions`` from the word on the pair as shown, and back."""
        return word.flipped() if self._turned[row] else word

    def preferred(self, winners: dict[int, int]) -> "Dataset":
        """``{row: winner}`` as a preference dataset."""
        order = list(winners.values())

        def split(row: dict[str, Any], place: int) -> dict[str, Any]:
            winner = order[place]
            return {"chosen": row["completions"][winner], "rejected": row["completions"][1 - winner]}

        return self.pairs.select(list(winners)).map(split, with_indices=True, remove_columns="completions")
