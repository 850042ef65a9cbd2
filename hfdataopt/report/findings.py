"""The report in plain words: what was asked, what was found, what to do, how far it can be trusted, what is missing."""

import shlex
from dataclasses import dataclass, field
from typing import Any

from hfdataopt.report.charts import number
from hfdataopt.report.sections import Subject, is_signed
from hfdataopt.report.texts import Text, visible


@dataclass(frozen=True)
class Point:
    """A sentence; ``tone`` is good, bad, or open. ``quote`` is text of a user, ``command`` something to run."""

    text: str
    tone: str = "open"
    quote: Text | None = None
    command: str = ""


@dataclass
class Words:
    """The first section."""

    asked: list[Point] = field(default_factory=list)
    found: list[Point] = field(default_factory=list)
    advice: list[Point] = field(default_factory=list)
    tiles: list[tuple[str, str]] = field(default_factory=list)


def words(subject: Subject, parts: dict[str, Any], question: str | None) -> Words:
    """The summary of the sections."""
    said = Words()
    if question:
        said.asked.append(Point(visible(question)))
    if subject.inputs.scores:
        _of_scores(subject, said, derived=not question)
    if parts["labels"]:
        _of_labels(parts["labels"], said)
    if parts["selection"]:
        _of_selections(parts["selection"], said)
    if parts["retraining"]:
        _of_training(parts["retraining"], said)
    if parts["agreement"] and parts["agreement"]["pairs"]:
        _of_agreement(parts["agreement"], said)
    for one in parts["search"] or []:
        _of_search(one, said, derived=not question)
    _untested(subject, parts, said)
    return said


def percent(share: float) -> str:
    """A share in percent, with a digit after the point where it is small."""
    if 0.995 <= share < 1:
        return "over 99 %"
    return f"{100 * share:.0f} %" if share >= 0.095 else f"{100 * share:.1f}".removesuffix(".0") + " %"


def interval(one: Any) -> str:
    """``value (low to high)``."""
    limits = "" if one["low"] is None or one["high"] is None else f" ({number(one['low'])} to {number(one['high'])})"
    return f"{number(float('nan') if one['value'] is None else one['value'])}{limits}"


def plural(count: int, word: str) -> str:
    """``1 row``, ``2 rows``."""
    many = f"{word[:-1]}ies" if word.endswith("y") else f"{word}s"
    return f"{count:,} {word if count == 1 else many}"


def listed(names: list[str], most: int = 4) -> str:
    """``a, b and c``."""
    names = names if len(names) <= most else [*names[: most - 1], f"{len(names) - most + 1} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# -- one function per section


def _of_scores(subject: Subject, said: Words, derived: bool) -> None:
    scores = subject.inputs.scores
    names = list(subject.judging) or list(scores)
    rows = max(len(one) for one in scores.values())
    if derived:
        models = list(
            dict.fromkeys(str(one.metadata.get("model")) for one in scores.values() if one.metadata.get("model"))
        )
        of = f" {visible(listed(models))}" if models else " the model"
        said.asked.append(
            Point(
                f"Which of {plural(rows, 'training row')} help{of}, and which harm it? Scored by {visible(listed(names))}."
            )
        )
    said.tiles.append((f"{rows:,}", "training rows scored"))
    for name, one in subject.judging.items():
        negative = int((one.values < 0).sum())
        if is_signed(one):
            said.found.append(
                Point(
                    f"{visible(name)} gives {plural(negative, 'row')} ({percent(negative / len(one))}) a score below 0: by its "
                    "estimate the queries would be better off without each of them."
                )
            )
            break


def _of_labels(part: dict[str, Any], said: Words) -> None:
    for one in part["measured"][:1]:
        value = one["auc"]["value"] or 0
        said.found.append(
            Point(
                f"Known label errors are found: {one['name']} puts a wrong row below a right one in {percent(value)} of pairs "
                f"(AUC {interval(one['auc'])}; guessing is 0.5)."
                if (one["auc"]["low"] or 0) > 0.5
                else f"Known label errors are not clearly found: the best AUC is {interval(one['auc'])}, by {one['name']}; guessing is 0.5.",
                "good" if (one["auc"]["low"] or 0) > 0.5 else "bad",
            )
        )
    suspects = part["suspects"]
    if not suspects or not suspects["rows"]:
        return
    of = len(suspects["methods"])
    by = f"at least {suspects['most']} of {of} methods" if of > 1 else visible(suspects["methods"][0])
    if not suspects["count"]:
        said.found.append(
            Point(f"No row is in the lowest {percent(part['share'])} by {by}: there are no clear suspects.")
        )
        return
    said.tiles.append((f"{suspects['count']:,}", "rows to check for wrong labels"))
    known = "" if suspects["known"] is None else f" {suspects['known']:,} of them are known to be wrong."
    said.found.append(
        Point(
            f"{plural(suspects['count'], 'row')} {'is' if suspects['count'] == 1 else 'are'} in the lowest {percent(part['share'])} "
            f"by {by}: the first to check for wrong labels.{known}"
        )
    )
    said.advice.append(
        Point("Read the rows under “Suspected label errors”. Mend a wrong label rather than dropping its row.")
    )


def _of_selections(part: dict[str, Any], said: Words) -> None:
    kept = [f"{one['name']} kept {one['kept']:,} of {plural(one['rows'], 'row')}" for one in part["selections"]]
    said.found.append(Point(f"{listed(kept)}."))


def _of_training(part: dict[str, Any], said: Words) -> None:
    curves = part["curves"]
    for one in curves["judged"] if curves else ():
        name, points = one["name"], one["points"]
        counts = (
            f"better at {one['better']} of {points} sizes, worse at {one['worse']}; {plural(curves['seeds'], 'seed')}"
        )
        if one["better"] * 2 >= points and not one["worse"]:
            said.found.append(
                Point(f"Tested by training again, the ranking of {name} held against random rows ({counts}).", "good")
            )
            said.advice.append(Point(f"Select by {name}: its ranking held when models were trained again."))
        elif one["worse"] > one["better"]:
            said.found.append(
                Point(f"Tested by training again, the ranking of {name} did worse than random rows ({counts}).", "bad")
            )
        else:
            said.found.append(
                Point(f"Tested by training again, the ranking of {name} is not told apart from random rows ({counts}).")
            )
    if curves and not any(one["better"] * 2 >= one["points"] and not one["worse"] for one in curves["judged"]):
        said.advice.append(
            Point(
                "Do not drop rows by these rankings alone: no test by training shows yet that it helps. More seeds would tell."
            )
        )
    modeling = part["modeling"]
    for one in modeling["rows"][:1] if modeling else ():
        said.found.append(
            Point(
                f"{one['name']} is best at predicting trainings on {plural(one['subsets'], 'random subset')}: rank correlation "
                f"{interval(one['score'])}."
            )
        )


def _of_agreement(part: dict[str, Any], said: Words) -> None:
    pairs = part["pairs"]
    low, high = min(pairs), max(pairs)
    tone = "good" if low > 0.5 else "bad" if high < 0.2 else "open"
    verdict = "agree" if low > 0.5 else "hardly agree" if high < 0.2 else "agree in part"
    span = number(low) if len(pairs) == 1 else f"{number(low)} to {number(high)}"
    said.found.append(Point(f"The methods {verdict}: rank correlation {span}.", tone))


def _of_search(one: dict[str, Any], said: Words, derived: bool) -> None:
    old = one.get("before")
    if derived:
        said.asked.append(
            Point("Is there a better prompt than this one?", quote=old["prompt"])
            if old
            else Point("Which prompt is best?")
        )
    if not one["finished"]:
        said.found.append(Point(f"The search {one['name']} has not ended; only what it spent is known.", "bad"))
        said.advice.append(Point("Run the same search again: it goes on from where it stopped."))
        return
    leader = one["leaders"][0] if one["leaders"] else None
    said.found.append(
        Point("The answer that was chosen:" if one["is_answer"] else "The prompt that was found:", quote=one["best"])
    )
    better = None
    if one["win_rate"]:
        rate, low, high, count = one["win_rate"]
        better = low is not None and low > 0.5
        span = "" if low is None else f" ({percent(low)} to {percent(high)})"
        said.found.append(
            Point(
                f"It beat the starting prompt on {percent(rate)} of {count} fresh items{span}.",
                "good" if better else "open",
            )
        )
    elif leader and leader["fresh"] is not None:
        fresh = {"value": leader["fresh"], "low": leader["low"], "high": leader["high"]}
        said.found.append(Point(f"On {plural(leader['fresh_items'], 'fresh item')} it scores {interval(fresh)}."))
        said.tiles.append((number(leader["fresh"]), f"score on {plural(leader['fresh_items'], 'fresh item')}"))
        if old and old["score"] is not None and leader["low"] is not None:
            better = leader["low"] > old["score"]
    elif leader and leader["score"] is not None:
        said.tiles.append((number(leader["score"]), "score on the items of the search"))
    if old and old["score"] is not None and leader and leader["score"] is not None:
        said.found.append(
            Point(
                f"On the items of the search it scores {number(leader['score'])}, the starting prompt {number(old['score'])}. The prompt "
                "was chosen on these, so the first number flatters.",
                "good" if better else "open",
            )
        )
    spent = one["spent"]
    if spent.get("calls"):
        said.tiles.append((f"{spent['calls']:,g}", "calls of the scored model"))
    if one["is_answer"]:
        return
    if better:
        where = f"({one['folder']!r})" if one["folder"] else "(FOLDER)"
        said.advice.append(Point("Use the prompt that was found.", command=f"dataset.map(ApplyPrompt.load{where})"))
    else:
        said.advice.append(
            Point(
                "Compare the prompt that was found with the starting prompt on more fresh rows before you rely on it (eval_dataset)."
            )
        )


def _untested(subject: Subject, parts: dict[str, Any], said: Words) -> None:
    inputs = subject.inputs
    if not subject.judging or (parts["retraining"] and parts["retraining"]["curves"]):
        return
    said.advice.append(
        Point(
            "Before you drop many rows, have models trained with and without them; nothing here says yet what that would change.",
            command=evaluate_command(subject),
        )
    )
    if inputs.folders and not parts["selection"]:
        folder = next((inputs.folders[name] for name in subject.judging if name in inputs.folders), None)
        if folder is not None:
            said.advice.append(
                Point(
                    "To go on without the lowest 5 % of the rows:",
                    command=f"select(dataset, Scores.load({folder!r}), fraction=0.95)",
                )
            )


def evaluate_command(subject: Subject) -> str:
    """How to get curves for these scores."""
    folders = [shlex.quote(one) for one in subject.inputs.folders.values()] or ["SCORES"]
    pool = shlex.quote(subject.source) if subject.source else "TRAIN"
    return f"hfdataopt evaluate --scores {' '.join(folders)} --pool {pool} --model MODEL --test TEST --curves --output_dir evaluation"


# -- the last two sections


def limits(subject: Subject, parts: dict[str, Any]) -> list[str]:
    """How to read what is on the page, and what it does not say."""
    found = []
    if subject.inputs.scores:
        found += [
            "Higher = more helpful, in every table and chart. Scores of two methods have different units: compare ranks, not numbers.",
            "A score is an estimate for one model, one training and these queries. Another model, seed or set of queries can rank rows otherwise.",
            "A low score is a reason to read a row, not proof that it is wrong. Rare but right rows score low, too.",
        ]
        if any(one["error"] for one in parts["scores"] or () if "error" in one):
            found.append(
                "± is the Monte Carlo error of the method's own sampling, not what another training would change."
            )
        if any(one.by_position for one in subject.inputs.scores.values()):
            found.append(
                "Rows are identified by their position: the dataset must not be sorted, filtered or shuffled before it is joined."
            )
    if parts["retraining"]:
        found.append(
            "Whiskers and brackets are 95 % intervals over training seeds, on the test rows that were given; a point whose interval "
            "crosses the control's tells nothing."
        )
    if parts["search"]:
        found += [
            "Scores on the items of the search flatter the prompt that was chosen by them. Only fresh items tell what it is worth.",
            "Each round's dot may stand on few items; only “best so far” compares candidates on all of theirs.",
        ]
    if parts["cost"]:
        found.append(
            "Tokens are as the model or server reported them, else counted with the tokenizer, else bytes. “Sent twice” are requests "
            "that a killed run may have paid for without reading the answer."
        )
    found.append("This file holds rows of the data in plain text. Share it as you would share the data.")
    return found


def absent(subject: Subject, parts: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Sections that have nothing to show: title, how to get them, and a command."""
    pool = shlex.quote(subject.source) if subject.source else "TRAIN"
    score = f"hfdataopt score --model MODEL --pool {pool}"
    second = f"{score} --scorer loss --output_dir scores-loss"
    score += " --queries VALIDATION --scorer freeshap --output_dir scores"
    names = f"--dataset {pool} --label LABEL --flipped COLUMN"
    select = (
        f"hfdataopt select --filter FILTER --dataset {pool} --fraction 0.5 --output kept.jsonl --summary summary.json"
    )
    search = "hfdataopt optimize --optimizer ape --model MODEL --dataset ROWS --reward_funcs MODULE:FUNCTION --output_dir search"
    scored = bool(parts["scores"])
    wanted = [
        (not scored, "Scores of training rows", "Score the training rows with one or more methods.", score),
        (
            scored and not parts["labels"],
            "Suspected label errors",
            "Give the dataset with its label column, or name the column of known errors.",
            f"hfdataopt report SCORES {names}",
        ),
        (
            not parts["selection"],
            "What was selected",
            "Select with a summary, and give its file to the report.",
            select,
        ),
        (
            not parts["retraining"],
            "Tested by training again",
            "Have models trained with and without the highest rows.",
            evaluate_command(subject),
        ),
        (
            scored and not parts["agreement"],
            "Do the methods agree?",
            "Score the same rows with a second method.",
            second,
        ),
        (
            not parts["search"],
            "Prompt search, and what it cost",
            "Search for a prompt, and give its folder to the report.",
            f"{search} --max_calls 400",
        ),
    ]
    return [(title, how, command) for missing, title, how, command in wanted if missing]


def seeds(subject: Subject, parts: dict[str, Any]) -> list[tuple[str, str]]:
    """Where random numbers began."""
    found = []
    for name, one in subject.inputs.scores.items():
        seed = (one.metadata.get("options") or {}).get("seed")
        found.append((visible(name), "draws nothing, or does not say" if seed is None else visible(str(seed))))
    for search in subject.inputs.searches:
        if search.settings and search.settings.get("seed") is not None:
            found.append((visible(search.name), visible(str(search.settings["seed"]))))
    if parts["retraining"] and parts["retraining"]["curves"]:
        found.append(("training again", f"{parts['retraining']['curves']['seeds']} seeds for each point"))
    return found
