"""What the sections on a prompt search show: the prompt and its evidence, the trajectory, and what was spent by whom."""

from collections.abc import Mapping
from typing import Any

from hfdataopt.prompting.result import votes_won
from hfdataopt.report.charts import Series, lines, number
from hfdataopt.report.inputs import Search
from hfdataopt.report.texts import Text, shown, visible

LONGEST = 4000  # characters of the best prompt
MILLION = 1_000_000
COUNTERS = {"model": "calls", "proposer": "proposer_calls", "judge": "judge_calls"}


def searches(given: list[Search]) -> list[dict[str, Any]] | None:
    """Each search: what it found, with what evidence, and how it came there."""
    return [_search(one) for one in given] or None


def _search(search: Search) -> dict[str, Any]:
    result = search.result
    entry: dict[str, Any] = {
        "name": visible(search.name),
        "folder": visible(search.folder or ""),
        "finished": result is not None,
    }
    if result is None:
        return entry
    leaders = [
        {
            "prompt": _prompt(leader["candidate"], 300),
            "exemplars": len(leader["candidate"].get("exemplars") or ()),
            "origin": visible(leader["candidate"].get("origin") or ""),
            **{name: leader[name] for name in ("score", "items", "fresh", "fresh_items")},
            "low": leader["interval"][0],
            "high": leader["interval"][1],
        }
        for leader in result["leaders"]
    ]
    best = result["best"]
    return {
        **entry,
        "status": result["status"],
        "reason": visible(result["reason"]),
        "best": _prompt(best, LONGEST),
        "is_answer": best.get("completion") is not None,
        "exemplars": [(shown(question), shown(answer)) for question, answer in best.get("exemplars") or ()],
        "leaders": leaders,
        "before": before(search),
        "candidates": result.get("candidates"),
        "seconds": result.get("seconds"),
        "win_rate": result.get("win_rate"),
        "votes": _votes(result),
        "charts": trajectories(result),
        "spent": result["spent"],
    }


def _prompt(candidate: Mapping[str, Any], longest: int) -> Text:
    text = candidate.get("completion")
    text = candidate.get("instruction", "") if text is None else text
    return shown(text or "(no instruction)", longest)


def before(search: Search) -> dict[str, Any] | None:
    """The prompt that the search was to beat, the first of ``start``, with its score on the items of the search."""
    start = (search.settings or {}).get("start") or []
    if search.result is None or not start:
        return None
    tried = [
        trial
        for trial in search.result.get("trials", [])
        if trial["candidate"]["instruction"] == start[0] and not trial["candidate"].get("exemplars")
    ]
    whole = max(tried, key=lambda trial: trial["items"], default=None)
    if whole is None or whole["score"] is None:
        return {"prompt": shown(start[0], 300), "score": None, "items": 0}
    return {"prompt": shown(start[0], 300), "score": whole["score"], "items": whole["items"]}


# -- trajectory


def trajectories(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Best so far by calls of the scored model and by tokens; of a search by votes, the votes that the prompt won."""
    found = []
    history = [entry for entry in result["history"] if entry.get("best_score") is not None]
    for unit, label in (("calls", "calls of the scored model"), ("tokens", "tokens"), ("judge_calls", "votes")):
        points = [entry for entry in history if entry.get(unit) is not None]
        if not points or points[-1][unit] == 0:
            continue
        told = [entry for entry in points if entry.get("score") is not None]
        series = [
            Series("best of a round", [p[unit] for p in told], [p["score"] for p in told], 1, line=False),
            Series(
                "best so far", [p[unit] for p in points], [p["best_score"] for p in points], 0, step=True, dots=False
            ),
        ]
        words = f"Best score so far by {label}: from {number(series[1].y[0])} to {number(series[1].y[-1])} after {number(points[-1][unit])}."
        found.append({"title": f"By {label}", "chart": lines(series, label, "score", words), "kind": "score"})
    if not history and result.get("votes"):
        found += _by_votes(result)
    return found


def _by_votes(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    at, shares = votes_won(result)
    if not at:
        return []
    series = [Series("votes won so far", at, shares, 0, step=True, dots=False)]
    words = f"Share of its votes that the chosen prompt had won: {number(shares[-1])} of {len(at)} at the end."
    return [{"title": "By votes", "chart": lines(series, "votes", "share of its votes won", words), "kind": "votes"}]


def _votes(result: Mapping[str, Any]) -> dict[str, Any] | None:
    votes = result.get("votes") or []
    if not votes:
        return None
    outcomes: dict[str, int] = {}
    people: dict[str, int] = {}
    for vote in votes:
        outcomes[vote["outcome"]] = outcomes.get(vote["outcome"], 0) + 1
        if vote.get("by"):
            people[visible(vote["by"])] = people.get(visible(vote["by"]), 0) + 1
    at, shares = votes_won(result)
    return {
        "count": len(votes),
        "outcomes": outcomes,
        "people": people,
        "own": len(at),
        "won": shares[-1] if at else None,
    }


# -- cost


def costs(given: list[Search]) -> list[dict[str, Any]] | None:
    """What was asked of each model, by the ledger, with tokens and money."""
    found = [_cost(one) for one in given if one.roles or one.result]
    return found or None


def _cost(search: Search) -> dict[str, Any]:
    spent = search.result["spent"] if search.result else {}
    prices = (search.result or {}).get("prices") or {}
    rows = []
    for name, role in search.roles.items():
        price = prices.get(name)
        rows.append(
            {
                "role": visible(name.replace("_", "-")),
                "requests": role.requests,
                "open": role.open,
                "again": role.again,
                "prompt_tokens": role.prompt_tokens,
                "completion_tokens": role.completion_tokens,
                "money": None
                if price is None
                else (price[0] * role.prompt_tokens + price[1] * role.completion_tokens) / MILLION,
            }
        )
    if not rows:
        for name, counter in COUNTERS.items():
            if spent.get(counter):
                rows.append({"role": name, "requests": int(spent[counter])})
    return {
        "name": visible(search.name),
        "rows": rows,
        "ledger": bool(search.roles),
        "priced": bool(prices),
        "spent": spent,
        "seconds": (search.result or {}).get("seconds"),
    }
