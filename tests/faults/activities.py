"""What is killed: scoring, selection, searching and judging, each with what must hold when it was begun again."""

import functools
import hashlib
import json
import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, load_from_disk
from transformers import TrainerCallback

from hfdataopt import AttributionCallback, Scores, attribute, cli
from hfdataopt.attribution import completions, reader, run
from hfdataopt.errors import HfDataOptError
from hfdataopt.generation import CallableGenerator
from hfdataopt.gradients import GradientStore
from hfdataopt.prompting.judges import ModelJudge, SimulatedJudge
from hfdataopt.prompting.ledger import FILE as LEDGER
from hfdataopt.prompting.page import WebJudge, serve_judge
from hfdataopt.prompting.result import FILE as RESULT
from hfdataopt.shapley import _store, estimator

from .. import policy, tiny
from ..prompting.searches import Duels, Listed, candidates, comparable, digit, digit_of, trainer
from ..training import trainer as policy_trainer
from .harness import Tell, Told

WORDS = ["--text", "text", "--label", "label"]


@dataclass
class Found:
    """What the runs of one sequence show.

    Attributes:
        lost: finished pieces of work that were done again. twice: pieces that count twice in the outcome.
        uncertain: calls that may have been made twice. miscounted: how many of these were not reported as such, or wrongly.
    """

    lost: int = 0
    twice: int = 0
    uncertain: int = 0
    miscounted: int = 0


@dataclass
class Activity:
    """Something that is killed.

    Attributes:
        area: ``scoring``, ``selection``, ``search`` or ``judging``.
        work: all of it, in the folder; what it tells shows which pieces were begun (``made``) and are on disk (``kept``).
        outcome: what must be the same as without a fault.
        check: what the runs show, beyond the pieces that were told.
        prepare: makes what is worked on, beside the folder.
        killed: looks at the folder after a kill; raises where it holds what it must not.
        taken_up: whether what is in the folder is read again. ours: the part of it that is not another package's.
        with_others: whether another package writes there too, whose errors are its own.
        beside: what goes on in other processes meanwhile.
        kinds: of kill points.
    """

    name: str
    area: str
    work: Callable[[Path, Tell], None]
    outcome: Callable[[Path], Any]
    check: Callable[[Path, list[Told], list[Told]], Found] | None = None
    prepare: Callable[[Path], None] | None = None
    killed: Callable[[Path, Any], None] | None = None
    beside: Callable[[Path], Any] | None = None
    kinds: tuple[str, ...] = ("time", "event", "byte")
    taken_up: bool = True
    ours: Callable[[Path], Path] = lambda folder: folder
    with_others: bool = False

    def found(self, folder: Path, runs: list[Told], whole: list[Told]) -> Found:
        found = Found() if self.check is None else self.check(folder, runs, whole)
        kept: set[Any] = set()
        for told in runs:
            found.lost += sum(piece in kept for piece in told.of("made"))
            kept.update(told.of("kept"))
        return found


def command(*words: str) -> None:
    """A command as in a terminal; its exit status 2 stands for an error of ours, of which it prints one line."""
    status = cli.main(words)
    if status == 2:
        raise HfDataOptError(f"hfdataopt {words[0]}")
    assert status == 0, status


# -- scoring


def tell_shards(tell: Tell) -> None:
    """Tell of every shard, permutation, moment and completion that is begun and kept."""
    reader.ROWS_PER_SHARD = 8
    write, sums, score = GradientStore.write, _store.RunFolder.save, run.ScoringRun._score
    append, chunk = completions._Lines.append, estimator.run_chunk

    def write_shard(self: Any, shard: int, arrays: Any) -> None:
        piece = [self.folder.parent.name, self.folder.name, shard]
        tell("made", *piece)
        write(self, shard, arrays)
        tell("kept", *piece)

    def save_sums(self: Any, state: Any) -> None:
        sums(self, state)
        for number in range(state.count):
            tell("kept", self.path.parent.name, "permutation", number)

    def run_chunk(problem: Any, first: int, last: int, full: Any) -> Any:
        for number in range(first, last):
            tell("made", where[-1], "permutation", number)
        return chunk(problem, first, last, full)

    def score_moment(self: Any, model: Any, moment: Any, optimizer: Any, folder: Any, weights: str) -> Any:
        where.append(folder.name)
        tell("made", folder.name)
        result = score(self, model, moment, optimizer, folder, weights)
        tell("kept", folder.name)
        return result

    def append_line(self: Any, document: Any) -> None:
        piece = [self.name, document["query"], document.get("number", -1)]
        tell("made", *piece)
        append(self, document)
        tell("kept", *piece)

    where: list[str] = []
    GradientStore.write, _store.RunFolder.save, run.ScoringRun._score = write_shard, save_sums, score_moment
    completions._Lines.append, estimator.run_chunk = append_line, run_chunk


def numbers(scores: Any) -> Any:
    """The values bit by bit, the ids, and the moments with their weights in a sum."""
    moments = [[one["step"], one["epoch"], one["learning_rate"]] for one in scores.metadata["moments"]]
    return [scores.values.tobytes().hex(), list(scores.row_ids), moments]


def saved_scores(folder: Path) -> Any:
    return numbers(Scores.load(folder))


@functools.cache
def data(kind: str) -> Any:
    """Rows and queries, made once in the parent."""
    return {
        "encoded": lambda: (tiny.encoded(40, ids=True), tiny.encoded(6, seed=7)),
        "policy": lambda: (tiny.questions(9, 1), policy.prompts(4, 3)),
        "training": lambda: (tiny.questions(12, seed=5), tiny.questions(4, 9)),
        "texts": lambda: (tiny.texts(24), tiny.texts(6, seed=7)),
    }[kind]()


def scored(name: str, **options: Any) -> Callable[[Path, Tell], None]:
    def work(folder: Path, tell: Tell) -> None:
        tell_shards(tell)
        attribute(tiny.bert().eval(), *data("encoded"), name, output_dir=folder, **options)

    return work


def scored_by_policy(folder: Path, tell: Tell) -> None:
    tell_shards(tell)
    completions.QUERIES_AT_ONCE = 2
    options = {"samples": 2, "max_new_tokens": 4, "basis": "exact", "precondition": "none", "batch_size": 4}
    attribute(
        *(policy.speaker().eval(), *data("policy"), "nice"),
        output_dir=folder,
        processing_class=policy.reader(),
        reward_funcs=policy.good_words,
        **options,
    )


class Saved(TrainerCallback):
    """Tells that a checkpoint is whole: what comes after is not the trainer's writing."""

    def __init__(self, folder: Path):
        self.file = folder.parent / f"{folder.name}.saved"

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, b"%d\n" % state.global_step)
        os.close(descriptor)


def trained(folder: Path, tell: Tell) -> None:
    """Training that goes on from the last whole checkpoint, of which the trainer itself does not know which it is."""
    tell_shards(tell)
    saved = Saved(folder)
    whole = saved.file.read_text().split() if saved.file.exists() else []
    for checkpoint in folder.glob("checkpoint-*"):
        if checkpoint.name.split("-")[1] not in whole:
            shutil.rmtree(checkpoint)
    callback = AttributionCallback("tracin", queries=data("training")[1], when="epoch", floats_per_row=64)
    one = policy_trainer(folder, saved, callback, pool=data("training")[0], save_strategy="steps", save_steps=2)
    one.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))
    assert callback.scores is not None


def model_and_rows(folder: Path) -> None:
    tiny.bert().save_pretrained(folder.parent / "model")
    tiny.tokenizer().save_pretrained(folder.parent / "model")
    for name, rows in zip(("pool", "queries"), data("texts"), strict=True):
        rows.to_json(folder.parent / f"{name}.jsonl")


def scored_by_command(folder: Path, tell: Tell) -> None:
    tell_shards(tell)
    datasets.config.HF_DATASETS_CACHE = folder.parent / "cache"
    beside = [str(folder.parent / name) for name in ("model", "pool.jsonl", "queries.jsonl")]
    words = ["--model", beside[0], "--pool", beside[1], "--queries", beside[2], "--output_dir", str(folder)]
    command("score", "--scorer", "tracin", "--floats_per_row", "64", *words, *WORDS)


# -- selection


def many_rows(folder: Path) -> None:
    folder.mkdir()
    Dataset.from_list(many()).to_json(folder.parent / "rows.jsonl")


def selected(suffix: str) -> Callable[[Path, Tell], None]:
    """``hfdataopt select`` as somebody runs it again: what is there already is taken as done."""

    def work(folder: Path, tell: Tell) -> None:
        rows = folder.parent / "rows.jsonl"
        output, summary = folder / f"kept{suffix}", folder / "summary.json"
        words = ["--dataset", str(rows), "--output", str(output), "--fraction", "0.5", "--summary", str(summary)]
        again = ["--overwrite"] if output.exists() else []
        datasets.config.HF_DATASETS_CACHE = folder.parent / "cache"  # which is killed too
        if not (output.exists() and summary.exists()):
            command("select", "--filter", "length", *words, *again, "--quiet")

    return work


@functools.cache
def many() -> Any:
    return [{"text": f"{row['text']} {number}"} for number, row in enumerate(tiny.texts(300))]


def rows_of(path: Path) -> Any:
    if path.is_dir():
        return load_from_disk(str(path)).to_list()
    loaded = {".jsonl": Dataset.from_json, ".csv": Dataset.from_csv, ".parquet": Dataset.from_parquet}[path.suffix]
    with tempfile.TemporaryDirectory() as cache:
        return loaded(str(path), cache_dir=cache, keep_in_memory=True).to_list()


def selection(suffix: str) -> Callable[[Path], Any]:
    def outcome(folder: Path) -> Any:
        return [rows_of(folder / f"kept{suffix}"), json.loads((folder / "summary.json").read_text())]

    return outcome


def none_or_whole(suffix: str) -> Callable[[Path, Any], None]:
    """An output is there as a whole, or not at all."""

    def killed(folder: Path, outcome: Any) -> None:
        kept, summary = folder / f"kept{suffix}", folder / "summary.json"
        assert not kept.exists() or rows_of(kept) == outcome[0], f"{kept.name} holds a part of the rows"
        assert not summary.exists() or json.loads(summary.read_text()) == outcome[1]

    return killed


def scores_saved(folder: Path, tell: Tell) -> None:
    """Scores saved over others, again and again."""
    for number in range(1, 6):
        some_scores(number).save(folder)


def some_scores(number: int) -> Scores:
    values = np.random.default_rng(number).normal(size=200)
    metadata = {"scorer": f"number {number}", "moments": []}
    return Scores(values, list(range(200)), values[:, None] * [1, 2], metadata=metadata)


def old_new_or_said(folder: Path, outcome: Any) -> None:
    """What is loaded was saved as such; else loading is an error of ours."""
    from hfdataopt.errors import StoreError

    if (folder / "scores.json").exists():
        try:
            scores = Scores.load(folder)
        except StoreError:
            return
        assert numbers(scores) == numbers(some_scores(int(scores.scorer.split()[1])))


# -- search


class Asked:
    """A model that tells of every call, as its provider would, and takes a moment."""

    def __init__(self, tell: Tell, name: str, answer: Callable[[Any], str]):
        self.tell, self.name, self.answer = tell, name, answer

    def __call__(self, prompts: list[Any]) -> list[str]:
        for prompt in prompts:
            self.tell("asked", self.name, hashlib.sha256(json.dumps(prompt).encode()).hexdigest()[:12])
        time.sleep(0.002)
        return [self.answer(prompt) for prompt in prompts]


def model(tell: Tell, name: str = "model", answer: Callable[[Any], str] | None = None, **options: Any) -> Any:
    asked = Asked(tell, name, answer or (lambda prompt: str(digit_of(prompt))))
    return CallableGenerator(asked, batch_size=4, **options)


def proposal(prompt: Any) -> str:
    return f"<instruction>be {digit_of(prompt)} {len(str(prompt))}</instruction>"


def verdict(prompt: Any) -> str:
    return "A" if digit_of(prompt) < 5 else "tie" if digit_of(prompt) == 5 else "B"


def with_rewards(folder: Path, tell: Tell) -> None:
    options: dict[str, Any] = {"max_calls": 80, "minibatch_size": 2, "start": ["mine"], "parallel": 2}
    trainer(Listed(candidates(12)), model(tell), output_dir=str(folder), **options).train()


def with_proposals(folder: Path, tell: Tell) -> None:
    proposer = model(tell, "proposer", proposal)
    trainer("ape", model(tell), proposer=proposer, output_dir=str(folder), max_calls=70).train()


def with_a_simulated_user(folder: Path, tell: Tell) -> None:
    judge = SimulatedJudge(digit, scale=3.0, ties=0.2)
    options: dict[str, Any] = {"judge": judge, "max_judge_calls": 30, "parallel": 2}
    trainer(Duels(candidates(5)), model(tell), output_dir=str(folder), **options).train()


def with_a_model_as_judge(folder: Path, tell: Tell) -> None:
    judge = ModelJudge(model(tell, "judge", verdict, max_new_tokens=4))
    options: dict[str, Any] = {"judge": judge, "max_judge_calls": 40, "max_tokens": 100_000, "parallel": 2}
    trainer(Duels(candidates(4)), model(tell, max_new_tokens=4), output_dir=str(folder), **options).train()


def search_result(folder: Path) -> Any:
    return comparable(json.loads((folder / RESULT).read_text()))


def ledger(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of the ledger; what a kill cut short is none."""
    found = []
    for line in (folder / LEDGER).read_bytes().splitlines() if (folder / LEDGER).exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def calls(folder: Path, runs: list[Told], whole: list[Told]) -> Found:
    """What the provider saw, against the ledger and the result."""
    seen = Counter(piece for told in runs for piece in told.of("asked"))
    once = Counter(piece for told in whole for piece in told.of("asked"))
    lines = ledger(folder)
    requests = Counter(line["key"] for line in lines if line["kind"] == "request")
    answers = Counter(line["key"] for line in lines if line["kind"] == "answer")
    uncertain = json.loads((folder / RESULT).read_text())["spent"]["uncertain"]
    again = (seen - once).total()
    return Found(
        lost=(once - seen).total() + len(set(seen) - set(once)),
        twice=sum(count > 1 for count in answers.values()) + max(again - uncertain, 0),
        uncertain=uncertain,
        miscounted=abs(uncertain - sum(count - 1 for count in requests.values())),
    )


# -- judging


def pairs() -> Dataset:
    rows = [{"prompt": f"Row {n}", "completions": [f"one {n}", f"two {n}"], "extra": n} for n in range(12)]
    return Dataset.from_list(rows)


def judged(folder: Path, tell: Tell) -> None:
    """People judge pairs on the page."""
    folder.mkdir(exist_ok=True)
    kept = serve_judge(pairs(), folder / "votes.jsonl", seed=3)
    (folder / "kept.json").write_text(json.dumps(kept.to_list()))


def judged_in_a_search(folder: Path, tell: Tell) -> None:
    """A person is the judge of a search."""
    judge = WebJudge(address_file=folder / "votes.address.json")
    options: dict[str, Any] = {"judge": judge, "max_judge_calls": 12, "parallel": 1, "leaders": 0}
    trainer(Duels(candidates(4)), model(tell), output_dir=str(folder), **options).train()


def word_for(pair: dict[str, Any]) -> str:
    """A word that depends on the pair, and not on the order in which it is shown."""
    prompt, sides = pair["prompt"][-1]["text"], [turns[-1]["text"] for turns in pair["answers"]]
    if digit_of([prompt, sorted(sides)]) < 2:
        return "tie"
    return (
        "left"
        if digit_of([prompt, sides[0]]) * 10 + digit_of(sides[0])
        > digit_of([prompt, sides[1]]) * 10 + digit_of(sides[1])
        else "right"
    )


@contextmanager
def people(folder: Path, count: int = 2, undo: bool = True) -> Iterator[None]:
    """People in processes of their own with the page open, who go on whatever becomes of the server."""
    told = folder.parent / f"{folder.name}.people"
    processes = []
    for number in range(count):
        process = os.fork()
        if process == 0:
            signal.alarm(600)
            try:
                be_a_person(folder / "votes.address.json", f"Person-{number}", told, undo)
            finally:
                os._exit(0)
        processes.append(process)
    try:
        yield
    finally:
        for process in processes:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)


def be_a_person(address: Path, name: str, told: Path, undo: bool) -> None:
    """Vote on what is shown; some words are taken back once and given again. What was acknowledged is a line each."""
    import http.client

    undone: set[str] = set()

    def ask(path: str, body: Any = None) -> Any:
        where = json.loads(address.read_text())
        connection = http.client.HTTPConnection("127.0.0.1", where["port"], timeout=10)
        headers = {"Authorization": f"Bearer {where['token']}", "X-Session": name}
        connection.request("GET" if body is None else "POST", path, body and json.dumps(body), headers)
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return answer

    def note(*parts: Any) -> None:
        with told.open("a") as stream:
            stream.write(json.dumps(parts) + "\n")

    while True:
        try:
            view = ask("/look")
            pair = view["pair"]
            if pair is None:
                time.sleep(0.02)
                continue
            shown, word = pair["prompt"][-1]["text"], word_for(pair)
            said = ask("/vote", {"pair": pair["key"], "word": word})
            if said["result"] != "counted":
                continue
            note("vote", shown)
            if undo and digit_of(shown) >= 7 and shown not in undone:
                undone.add(shown)
                if ask("/undo", {"pair": pair["key"]})["result"] == "counted":
                    note("undo", shown)
        except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
            time.sleep(0.01)


def kept_votes(folder: Path) -> Any:
    return json.loads((folder / "kept.json").read_text())


def votes(folder: Path, runs: list[Told], whole: list[Told]) -> Found:
    """Every acknowledged word is in the file, and each pair has one word that stands."""
    lines, standing = [], Counter[int]()
    for line in (folder / "votes.jsonl").read_bytes().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    in_file = Counter((f"Row {line['row']}", line["undo"]) for line in lines[1:])
    for line in lines[1:]:
        standing[line["row"]] += -1 if line["undo"] else 1
    notes = folder.parent / f"{folder.name}.people"
    told = Counter((what[1], what[0] == "undo") for what in map(json.loads, notes.read_text().splitlines()))
    return Found(lost=(told - in_file).total(), twice=sum(abs(standing[row] - 1) for row in range(12)))


def searched_votes(folder: Path, runs: list[Told], whole: list[Told]) -> Found:
    found = calls(folder, runs, whole)
    events = Counter(line["question"] for line in ledger(folder) if line["kind"] == "event")
    notes = folder.parent / f"{folder.name}.people"
    found.lost += max(len(notes.read_text().splitlines()) - events.total(), 0)
    found.twice += sum(count - 1 for count in events.values())
    return found


ACTIVITIES = [
    Activity("attribute: tracin", "scoring", scored("tracin", floats_per_row=300), saved_scores),
    Activity("attribute: freeshap", "scoring", scored("freeshap", permutations=4, floats_per_row=300), saved_scores),
    Activity("attribute: nice", "scoring", scored_by_policy, saved_scores),
    Activity(
        "callback: tracin",
        *("scoring", trained, lambda folder: saved_scores(folder / "attribution" / "tracin")),
        ours=lambda folder: folder / "attribution",
        with_others=True,
    ),
    Activity("hfdataopt score", "scoring", scored_by_command, saved_scores, prepare=model_and_rows),
    *(
        Activity(
            f"hfdataopt select: {suffix or 'folder'}",
            *("selection", selected(suffix), selection(suffix)),
            prepare=many_rows,
            killed=none_or_whole(suffix),
            taken_up=False,
        )
        for suffix in (".jsonl", ".csv", ".parquet", "")
    ),
    Activity("Scores.save", "selection", scores_saved, saved_scores, killed=old_new_or_said, taken_up=False),
    Activity("search: rewards", "search", with_rewards, search_result, calls),
    Activity("search: ape", "search", with_proposals, search_result, calls),
    Activity("search: simulated user", "judging", with_a_simulated_user, search_result, calls),
    Activity("search: model as judge", "judging", with_a_model_as_judge, search_result, calls),
    Activity("page: pairs", "judging", judged, kept_votes, votes, beside=people),
    Activity(
        "page: search",
        "judging",
        judged_in_a_search,
        search_result,
        searched_votes,
        beside=lambda folder: people(folder, 1, undo=False),
    ),
]
