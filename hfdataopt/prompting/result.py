"""What a search found, with the evidence."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hfdataopt.errors import DataError, MissingDependencyError, OptionError, StoreError
from hfdataopt.files import write_whole
from hfdataopt.prompting.candidate import Candidate, Trial, Vote
from hfdataopt.versions import installed

FILE = "result.json"


@dataclass(frozen=True)
class Leader:
    """One of the best candidates at the end.

    Attributes:
        score: mean reward on the items of the search, on which it was chosen (so it flatters).
        fresh: mean reward on items that no candidate had seen; None where none was left.
        low, high: its 95 % interval: Wilson's where every reward is 0 or 1, else Student's t.
    """

    candidate: Candidate
    score: float
    items: int
    fresh: float | None = None
    low: float | None = None
    high: float | None = None
    fresh_items: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "candidate": self.candidate.to_json(),
            "score": _number(self.score),
            "items": self.items,
            "fresh": _number(self.fresh),
            "interval": [_number(self.low), _number(self.high)],
            "fresh_items": self.fresh_items,
        }


@dataclass
class PromptResult:
    """The outcome of :meth:`~hfdataopt.prompting.trainer.PromptTrainer.train`.

    Attributes:
        best: the chosen candidate.
        status: ``finished`` (the optimizer had nothing more to ask, or ``max_steps``) or ``budget``.
        reason: in words.
        leaders: best first, with the evidence.
        win_rate: with a judge, share of fresh items on which the best beat the first of ``start`` (or no prompt), and its 95 %
            interval: Wilson's, with ties (0.5) Student's t cut to [0, 1].
        trials, votes: everything that was tried, in order.
        history: per step ``step, calls, judge_calls, tokens, score, best_score``.
        spent: calls, tokens, money; ``uncertain`` requests were sent again after no whole answer had come.
        prices: per million prompt and completion tokens, by role, as in ``PromptConfig``.
        had_start: whether there was a prompt of before, ``PromptConfig.start``.
    """

    best: Candidate
    status: Literal["finished", "budget"]
    reason: str
    leaders: list[Leader] = field(default_factory=list)
    win_rate: tuple[float, float, float, int] | None = None
    trials: list[Trial] = field(default_factory=list)
    votes: list[Vote] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    spent: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    prices: dict[str, tuple[float, float]] = field(default_factory=dict)
    had_start: bool = False

    @property
    def prompt(self) -> Candidate:
        """The best, where it is a prompt.

        Raises:
            OptionError: the search chose among answers to each item.
        """
        if self.best.completion is not None:
            raise OptionError(
                "PromptTrainer: the search chose among answers to each item, so that there is no prompt: "
                "trainer.optimizer.best_per_item has the best answer to each, trainer.preferences() the votes as a dataset"
            )
        return self.best

    @property
    def candidates(self) -> int:
        """How many were tried."""
        tried = [trial.candidate for trial in self.trials]
        tried += [one for vote in self.votes for one in (vote.duel.first, vote.duel.second)]
        return len({one.key for one in tried})

    def to_json(self) -> dict[str, Any]:
        """Everything but the answers of each trial, which are in the ledger."""
        return {
            "best": self.best.to_json(),
            "status": self.status,
            "reason": self.reason,
            "leaders": [leader.to_json() for leader in self.leaders],
            "win_rate": None if self.win_rate is None else [_number(x) for x in self.win_rate],
            "candidates": self.candidates,
            "trials": [
                {"candidate": trial.candidate.to_json(), "items": len(trial.items), "score": _number(trial.score)}
                for trial in self.trials
            ],
            "votes": [
                {
                    "first": vote.duel.first.to_json(),
                    "second": vote.duel.second.to_json(),
                    "item": vote.duel.item,
                    "winner": vote.comparison.winner,
                    "outcome": vote.comparison.outcome,
                    "by": vote.by,
                }
                for vote in self.votes
            ],
            "history": self.history,
            "spent": self.spent,
            "prices": {role: list(pair) for role, pair in self.prices.items()},
            "seconds": round(self.seconds, 3),
            "caveats": self.caveats(),
            "versions": installed(),
        }

    def save(self, folder: Path) -> Path:
        """Write ``result.json``."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / FILE, json.dumps(self.to_json(), indent=1, ensure_ascii=False).encode())
        except OSError as error:
            raise StoreError(f"PromptTrainer: {str(folder / FILE)!r} cannot be written: {error}") from error
        return folder / FILE

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """The best score so far by calls of the model, or of a search by votes the share of its votes that the best won; saved
        to ``path`` if given.

        Raises:
            DataError: there is nothing to draw.
        """
        return plot_search(self.to_json(), path)

    def __str__(self) -> str:
        lines = [
            f"{self.status}: {self.reason}; {self.candidates} candidates tried, {_spent(self.spent)}, {self.seconds:.1f} s"
        ]
        for place, leader in enumerate(self.leaders, 1):
            fresh = ""
            if leader.fresh is not None:
                interval = (
                    "" if leader.low is None or math.isnan(leader.low) else f" ({leader.low:.3f} to {leader.high:.3f})"
                )
                fresh = f"; {leader.fresh:.3f}{interval} on {leader.fresh_items} fresh items"
            shown = "" if math.isnan(leader.score) else f" {leader.score:.3f} on {leader.items} items{fresh}"
            lines.append(f"  {place}.{shown} {describe(leader.candidate)}")
        if self.win_rate is not None:
            rate, low, high, count = self.win_rate
            before = "the prompt of before" if self.had_start else "no prompt"
            lines.append(f"  beats {before} on {rate:.0%} of {count} fresh items ({low:.0%} to {high:.0%})")
        lines += [f"  note: {one}" for one in self.caveats()]
        return "\n".join(lines)

    def caveats(self) -> list[str]:
        """What keeps the result from meaning what it seems to."""
        found = []
        rewards = {float(x) for trial in self.trials for x in trial.rewards if not math.isnan(x)}
        if len(rewards) == 1 and self.candidates > 1:
            found.append(f"every answer was rewarded with {min(rewards):g}, so nothing tells one prompt from another")
        own = next((leader for leader in self.leaders if leader.candidate.origin == "start"), None)
        if own is None or not self.leaders:
            return found
        best = self.leaders[0]
        if own is best and self.candidates > 1:
            found.append("no prompt was found that is better than the one of before")
        elif own is not best and best.fresh is not None and own.fresh is not None:
            if best.fresh <= own.fresh:
                found.append("on the fresh items the best is no better than the prompt of before")
            elif best.low is not None and best.low <= own.fresh:
                found.append("the prompt of before lies within the interval of the best: more fresh items would tell")
        return found


def votes_won(result: Mapping[str, Any]) -> tuple[list[int], list[float]]:
    """Of a document as :meth:`PromptResult.to_json` makes it: after how many votes, and which share of the votes on the best
    so far it won. A tie is half a win."""
    same = ("instruction", "exemplars", "item", "completion")
    at, shares, wins = [], [], 0.0
    for number, vote in enumerate(result.get("votes") or (), 1):
        sides = [all(vote[side].get(name) == result["best"].get(name) for name in same) for side in ("first", "second")]
        if vote["outcome"] in ("preferred", "tie") and sides[0] != sides[1]:
            wins += 0.5 if vote["outcome"] == "tie" else float(sides[vote["winner"]])
            at.append(number)
            shares.append(wins / len(at))
    return at, shares


def plot_search(result: Mapping[str, Any], path: str | os.PathLike[str] | None = None) -> Any:
    """The trajectory of a document as :meth:`PromptResult.to_json` makes it, saved to ``path`` if given."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("PromptResult.plot needs matplotlib: pip install 'hfdataopt[plot]'") from error
    steps = [entry for entry in result["history"] if entry.get("best_score") is not None]
    at, shares = ([], []) if steps else votes_won(result)
    if not steps and not at:
        raise DataError(
            "PromptResult.plot: the search has neither a score nor a vote on its best, so there is nothing to draw"
        )
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    if steps:
        told = [entry for entry in steps if entry.get("score") is not None]
        axes.plot(
            [e["calls"] for e in told], [e["score"] for e in told], ".", color="tab:orange", label="best of a round"
        )
        axes.step([e["calls"] for e in steps], [e["best_score"] for e in steps], where="post", label="best so far")
        fresh = result["leaders"][0] if result["leaders"] else {}
        if fresh.get("fresh") is not None:
            low, high = fresh["interval"]
            errors = None if low is None else [[fresh["fresh"] - low], [high - fresh["fresh"]]]
            end = [max(result["spent"].get("calls", 0), steps[-1]["calls"])]
            axes.errorbar(
                end, [fresh["fresh"]], yerr=errors, fmt="D", color="tab:green", label="the best on fresh items"
            )
        axes.set(xlabel="calls of the scored model", ylabel="score")
    else:
        axes.step(at, shares, where="post", label="share of its votes that the best won")
        axes.axhline(0.5, color="0.6", lw=0.8)
        axes.set(xlabel="votes", ylabel="share won", ylim=(-0.02, 1.02))
    axes.set_title(f"{result.get('candidates')} candidates, {_spent(result['spent'])}", fontsize=10)
    axes.legend(frameon=False)
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    return figure


def describe(candidate: Candidate) -> str:
    """A candidate in one line."""
    text = candidate.completion if candidate.completion is not None else candidate.instruction
    shown = " ".join(text.split())
    shown = f"{shown[:157]}..." if len(shown) > 160 else shown or "(no instruction)"
    return f"{shown!r}" + (f" + {len(candidate.exemplars)} exemplars" if candidate.exemplars else "")


def _spent(spent: dict[str, float]) -> str:
    words = [f"{spent.get('calls', 0):g} calls", f"{spent.get('proposer_calls', 0):g} proposer calls"]
    if spent.get("judge_calls"):
        words.append(f"{spent['judge_calls']:g} votes")
    words.append(f"{spent.get('tokens', 0):g} tokens")
    if spent.get("cost"):
        words.append(f"cost {spent['cost']:.4g}")
    if spent.get("uncertain"):
        words.append(f"{spent['uncertain']:g} uncertain")
    return ", ".join(words)


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)
