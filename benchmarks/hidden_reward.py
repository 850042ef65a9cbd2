"""A reward that loss cannot see: which scorers find the rows that raise it, in pools where no word tells them.

The pools are those of ``hidden_reward_data``, written by a story model of 260k parameters: 400 rows, 60 of them planted. AUC of
"highest score = planted" (0.5 is chance), mean and 95 % t interval over pools. All methods of a pool see the same rows, queries
and weights. Parts: ``methods`` ranks the rows by every method; ``curve`` by NICE with 1 to 32 samples per query and several
sampling seeds; ``selection`` trains on the 5 % ranked highest and samples answers to new prompts.

    python benchmarks/hidden_reward.py --split reported --part methods --output docs/hidden_reward.json
    python benchmarks/hidden_reward.py --split reported --part curve --output docs/hidden_reward.json
    python benchmarks/hidden_reward.py --split reported --part selection --output docs/hidden_reward.json
    python benchmarks/hidden_reward.py --table docs/hidden_reward.json

Everything was chosen on the development pools; what is in the file already is not run again.
"""

import argparse
import copy
import functools
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HFDATAOPT_QUIET", "1")

import datasets
import numpy as np
import torch
import transformers
from hidden_reward_data import (
    Pool,
    auc,
    bm25,
    build_pool,
    continuation,
    reward,
    rewarded_rows,
    sample,
    token_losses,
    words,
)
from quiet import quiet_and_single_threaded

from hfdataopt import Checkpoint, attribute
from hfdataopt.statistics import mean_interval

SEEDS = {"development": range(1000, 1005), "reported": range(5)}
NEW_TOKENS, BATCH = 40, 64
CURVE, CURVE_SEEDS = (1, 2, 4, 8, 16, 32), 3
SHARE, TRAINING_SEEDS, FRESH = 0.05, 5, 16  # of the rows; FRESH answers to each held-out prompt
EPOCHS, RATE, ROWS_PER_STEP = 2, 1e-4, 4
WARM_UP_RATE = 1e-4
STRONGER_EPOCHS, STRONGER_RATE = 2, 3e-4


class Document:
    """The results file: one run per line, written whole after each."""

    def __init__(self, path: Path | None, split: str = ""):
        self.path = path
        self.runs: list[dict[str, Any]] = []
        if path and path.is_file():
            found = json.loads(path.read_text())
            if split and found["split"] != split:
                raise SystemExit(f"{path} is of the split {found['split']!r}; give another --output")
            self.runs, split = found["runs"], found["split"]
        self.split = split

    def find(self, part: str, pool: int, name: str) -> dict[str, Any] | None:
        return next((x for x in self.runs if (x["part"], x["pool"], x["name"]) == (part, pool, name)), None)

    def values(self, part: str, name: str, key: str) -> list[Any]:
        """One value of a run for each pool that has it."""
        return [x[key] for x in self.runs if (x["part"], x["name"]) == (part, name)]

    def add(self, run: dict[str, Any]) -> None:
        self.runs.append(run)
        if self.path:
            lines = ",\n".join(json.dumps(x) for x in self.runs)
            self.path.write_text(f'{{"split": {json.dumps(self.split)}, "runs": [\n{lines}\n]}}\n')


class Setting:
    """A pool with everything the methods need; made when first asked for."""

    def __init__(self, model: Any, tokenizer: Any, seed: int, work: Path):
        self.model, self.tokenizer, self.seed, self.work = model, tokenizer, seed, work

    @functools.cached_property
    def pool(self) -> Pool:
        return build_pool(self.model, self.tokenizer, self.seed)

    @functools.cached_property
    def rows(self) -> datasets.Dataset:
        return datasets.Dataset.from_dict({"input_ids": self.pool.input_ids, "labels": self.pool.labels})

    @functools.cached_property
    def queries(self) -> datasets.Dataset:
        return datasets.Dataset.from_dict({"prompt": self.pool.queries})

    @functools.cached_property
    def references(self) -> datasets.Dataset:
        return datasets.Dataset.from_dict({"prompt": self.pool.queries, "completion": self.pool.references})

    def score(self, scorer: str, queries: Any = None, **options: Any) -> np.ndarray:
        if scorer.startswith("nice"):
            options = {"reward_funcs": reward, "max_new_tokens": NEW_TOKENS, **options}
        found = attribute(
            self.model,
            self.rows,
            self.queries if queries is None else queries,
            scorer,
            processing_class=self.tokenizer,
            batch_size=BATCH,
            **options,
        )
        return np.asarray(found.values, dtype=float)

    @functools.cached_property
    def answers(self) -> list[tuple[list[int], list[str], float]]:
        """Token ids, words and reward of 32 completions of each query, for the rankings by words."""
        drawn = sample(self.model, self.tokenizer, self.pool.queries, 32, NEW_TOKENS, self.seed)
        found = []
        for prompt, of_query in zip(self.pool.queries, drawn, strict=True):
            texts = [continuation(self.tokenizer, prompt, ids) for ids in of_query]
            found += list(zip(of_query, map(words, texts), reward(texts), strict=True))
        return found

    @functools.cached_property
    def row_words(self) -> list[list[str]]:
        return [words(text) for text in self.pool.completions]

    @functools.cached_property
    def warm(self) -> Checkpoint:
        """The model after an epoch on the pool at a low rate, with its optimizer state: what LESS needs."""
        folder = str(self.work / "warm")
        arguments = transformers.TrainingArguments(
            folder,
            num_train_epochs=1,
            learning_rate=WARM_UP_RATE,
            lr_scheduler_type="constant",
            per_device_train_batch_size=16,
            logging_strategy="no",
            save_strategy="epoch",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            seed=self.seed,
        )
        collator = transformers.DataCollatorForSeq2Seq(self.tokenizer, padding=True)
        trainer = transformers.Trainer(
            copy.deepcopy(self.model), arguments, train_dataset=self.rows, data_collator=collator
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        (found,) = Path(folder).glob("checkpoint-*")
        return Checkpoint(str(found), learning_rate=WARM_UP_RATE)

    @functools.cached_property
    def stronger(self) -> Any:
        """The model trained on completions of its own that have a reward: the stronger source of nice-amc."""
        rows = rewarded_rows(self.model, self.tokenizer, self.seed)
        return train(self.model, *rows, seed=self.seed, epochs=STRONGER_EPOCHS, rate=STRONGER_RATE)


# -- methods: name in the table -> scores of the rows

METHODS: dict[str, Callable[[Setting], Any]] = {
    "nice, 16 samples": lambda it: it.score("nice", samples=16),
    "nice, 32 samples": lambda it: it.score("nice", samples=32),
    "nice, 32 samples, raw reward": lambda it: it.score("nice", samples=32, baseline="none"),
    "nice, 32 samples, after the warm-up, Adam": lambda it: it.score(
        "nice", samples=32, precondition="less", checkpoints=[it.warm]
    ),
    "nice-amc, 16 samples": lambda it: it.score("nice-amc", samples=16, stronger=it.stronger),
    "nice-amc, 16 samples, leave-one-out": lambda it: it.score(
        "nice-amc", samples=16, stronger=it.stronger, baseline="leave-one-out"
    ),
    "nice-if, 32 samples, ekfac": lambda it: it.score("nice-if", samples=32, solver="ekfac"),
    "nice-if, 32 samples, datainf": lambda it: it.score("nice-if", samples=32, solver="datainf"),
    "less, references of another style": lambda it: it.score("less", it.references, checkpoints=[it.warm]),
    "tracin, references of another style": lambda it: it.score("tracin", it.references),
    "word contrast of rewarded and other completions": lambda it: word_contrast(it.row_words, it.answers),
    "random": lambda it: np.random.default_rng(it.seed).random(len(it.rows)),
}
CONTROLS: dict[str, Callable[[Setting], Any]] = {
    "length, tokens": lambda it: [len(ids) for ids in it.pool.input_ids],
    "length, letters of the completion": lambda it: [len(text) for text in it.pool.completions],
    "count of rewarded words": lambda it: [sum(reward(row)) for row in it.row_words],
    "BM25 on rewarded completions": lambda it: bm25(it.row_words, [found for _, found, good in it.answers if good]),
    "BM25 on rewarded completions, tokens": lambda it: bm25(
        [[i for i in ids if i >= 0] for ids in it.pool.labels], [ids for ids, _, good in it.answers if good]
    ),
    "BM25 on queries": lambda it: bm25(
        [words(one + other) for one, other in zip(it.pool.prompts, it.pool.completions, strict=True)],
        [words(prompt) for prompt in it.pool.queries],
    ),
}


def word_contrast(rows: list[list[str]], answers: list[tuple[list[int], list[str], float]]) -> list[float]:
    """Naive Bayes on words: the log odds that a completion with the words of a row has the reward."""
    counts = {good: Counter(word for _, found, r in answers if r == good for word in set(found)) for good in (0.0, 1.0)}
    totals = {good: 2 + sum(r == good for _, _, r in answers) for good in counts}

    def weight(word: str) -> float:
        high, low = ((counts[good][word] + 1) / totals[good] for good in (1.0, 0.0))
        return float(np.log(high / low))

    return [sum(map(weight, sorted(set(row)))) for row in rows]


# -- training


def train(
    model: Any,
    prompts: Sequence[list[int]],
    completions: Sequence[list[int]],
    *,
    seed: int,
    epochs: int = EPOCHS,
    rate: float = RATE,
) -> Any:
    """A copy of the model trained with AdamW on completions, their loss averaged over tokens."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for chosen in torch.randperm(len(prompts), generator=order).split(ROWS_PER_STEP):
            losses = token_losses(model, [prompts[i] for i in chosen], [completions[i] for i in chosen])
            (losses.sum() / sum(len(completions[i]) for i in chosen)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return model


def mean_reward(it: Setting, model: Any, seed: int) -> float:
    """Mean reward of fresh completions of the held-out prompts."""
    drawn = sample(model, it.tokenizer, it.pool.held_out, FRESH, NEW_TOKENS, seed)
    texts = [
        continuation(it.tokenizer, prompt, ids)
        for prompt, of_prompt in zip(it.pool.held_out, drawn, strict=True)
        for ids in of_prompt
    ]
    return float(np.mean(reward(texts)))


def reward_after(it: Setting, rows: Sequence[int], seed: int, epochs: int = EPOCHS) -> float:
    """Mean reward after training on some rows of the pool."""
    labels = [[i for i in it.pool.labels[row] if i >= 0] for row in rows]
    prompts = [it.pool.input_ids[row][: -len(label)] for row, label in zip(rows, labels, strict=True)]
    return mean_reward(it, train(it.model, prompts, labels, seed=seed, epochs=epochs), 10_000 + seed)


# -- parts: each yields what is not in the document yet


def run_methods(it: Setting, document: Document) -> Iterator[dict[str, Any]]:
    """AUC of every method and control, the rows it ranks highest, and its CPU seconds without those of the warm-up."""
    for name, method in {**CONTROLS, **METHODS}.items():
        if document.find("methods", it.seed, name):
            continue
        prepare(it, name)
        started = time.process_time()
        values = np.asarray(method(it), dtype=float)
        seconds = time.process_time() - started
        top = np.argsort(-values, kind="stable")[: round(SHARE * len(values))].tolist()
        yield {
            "part": "methods",
            "pool": it.seed,
            "name": name,
            "auc": auc(values, it.pool.planted),
            "planted_on_top": int(np.sum(np.asarray(it.pool.planted)[top])),
            "top": top,
            "cpu_seconds": seconds,
        }


def prepare(it: Setting, name: str = "") -> None:
    """Make what several methods share, so that its time is nobody's."""
    it.pool  # noqa: B018
    if "warm-up" in name or name.startswith("less"):
        it.warm  # noqa: B018
    if name.startswith("nice-amc"):
        it.stronger  # noqa: B018
    if "completions" in name or name in CONTROLS:
        it.answers  # noqa: B018


def run_curve(it: Setting, document: Document) -> Iterator[dict[str, Any]]:
    """NICE by number of samples; ``noise`` is the share of the scores' variance that differs between sampling seeds.

    One sample has no other to be compared with, so its reward is raw.
    """
    for count in CURVE:
        if document.find("curve", it.seed, str(count)):
            continue
        baseline = "none" if count == 1 else "leave-one-out"
        prepare(it)
        started = time.process_time()
        scores = [
            it.score("nice", samples=count, baseline=baseline, seed=100 * it.seed + draw) for draw in range(CURVE_SEEDS)
        ]
        seconds = (time.process_time() - started) / CURVE_SEEDS
        pairs = np.corrcoef(scores)[np.triu_indices(CURVE_SEEDS, 1)]
        yield {
            "part": "curve",
            "pool": it.seed,
            "name": str(count),
            "auc": [auc(values, it.pool.planted) for values in scores],
            "noise": float(1 - pairs.mean()),
            "cpu_seconds": seconds,
        }


SELECTIONS = {"nice": "nice, 32 samples", "less": "less, references of another style"}


def run_selection(it: Setting, document: Document) -> Iterator[dict[str, Any]]:
    """Mean reward after training on 5 % of the rows, or all of them, for several seeds of draw and training order."""
    count = round(SHARE * len(it.rows))
    for name in ("before training", *SELECTIONS, "planted", "random", "full"):
        if document.find("selection", it.seed, name):
            continue
        prepare(it)
        started, rewards = time.process_time(), []
        for seed in range(TRAINING_SEEDS):
            rng = np.random.default_rng([it.seed, seed])
            if name in SELECTIONS:
                ranked = document.find("methods", it.seed, SELECTIONS[name])
                if ranked is None:
                    raise SystemExit(f"selection by {name} needs --part methods of pool {it.seed} first")
                rows = ranked["top"]
            else:
                among = np.flatnonzero(it.pool.planted) if name == "planted" else np.arange(len(it.rows))
                rows = among.tolist() if name == "full" else rng.permutation(among)[:count].tolist()
            rewards.append(reward_after(it, rows, seed, 0 if name == "before training" else EPOCHS))
        yield {
            "part": "selection",
            "pool": it.seed,
            "name": name,
            "rewards": rewards,
            "cpu_seconds": (time.process_time() - started) / TRAINING_SEEDS,
        }


PARTS = {"methods": run_methods, "curve": run_curve, "selection": run_selection}


# -- tables


def interval(values: Sequence[float], digits: int = 3) -> str:
    mean, low, _ = mean_interval(values)
    return f"{mean:.{digits}f} ± {mean - low:.{digits}f}"


def methods_table(document: Document) -> list[str]:
    lines = ["| ranking | pools | AUC | lowest to highest | planted on top | CPU s |", "|---|---|---|---|---|---|"]
    for name in (*METHODS, *CONTROLS):
        aucs = document.values("methods", name, "auc")
        if aucs:
            top, seconds = (document.values("methods", name, key) for key in ("planted_on_top", "cpu_seconds"))
            lines.append(
                f"| {name} | {len(aucs)} | {interval(aucs)} | {min(aucs):.3f} to {max(aucs):.3f} | {np.mean(top):.1f} | "
                f"{np.mean(seconds):.1f} |"
            )
    return lines


def curve_table(document: Document) -> list[str]:
    lines = ["| samples | pools | AUC | deviation of AUC | noise | CPU s |", "|---|---|---|---|---|---|"]
    for name in map(str, CURVE):
        aucs = document.values("curve", name, "auc")
        if aucs:
            noise, seconds = (document.values("curve", name, key) for key in ("noise", "cpu_seconds"))
            deviation = np.sqrt(np.var(aucs, axis=1, ddof=1).mean())
            lines.append(
                f"| {name} | {len(aucs)} | {interval(np.mean(aucs, axis=1))} | {deviation:.3f} | {interval(noise)} | "
                f"{np.mean(seconds):.1f} |"
            )
    return lines


def selection_table(document: Document) -> list[str]:
    lines = ["| trained on | pools | mean reward | less random 5 % of the same pool |", "|---|---|---|---|"]
    random = {
        x["pool"]: np.mean(x["rewards"]) for x in document.runs if (x["part"], x["name"]) == ("selection", "random")
    }
    for name in ("before training", "random", *SELECTIONS, "planted", "full"):
        found = {
            x["pool"]: np.mean(x["rewards"]) for x in document.runs if (x["part"], x["name"]) == ("selection", name)
        }
        if found:
            shared = [found[pool] - random[pool] for pool in found if pool in random]
            gain = interval(shared) if shared and name != "random" else ""
            lines.append(f"| {name} | {len(found)} | {interval(list(found.values()))} | {gain} |")
    return lines


def tables(document: Document) -> str:
    parts = {"methods": methods_table, "curve": curve_table, "selection": selection_table}
    shown = [f"### {part}\n\n" + "\n".join(make(document)) for part, make in parts.items()]
    return f"## {document.split} pools\n\n" + "\n\n".join(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=SEEDS, default="development")
    parser.add_argument("--part", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--pools", type=int, default=5)
    parser.add_argument("--model", type=Path, default=Path("../shared/models/stories260K"))
    parser.add_argument("--output", type=Path, help="JSON written after each method; what is in it is not run again")
    parser.add_argument("--table", type=Path, nargs="+", help="print tables of such files and exit")
    arguments = parser.parse_args()
    if arguments.table:
        print("\n\n".join(tables(Document(path)) for path in arguments.table))
        return
    if not arguments.model.is_dir():
        raise SystemExit(f"the story model is not at {arguments.model} (--model)")
    quiet_and_single_threaded()
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    model = transformers.AutoModelForCausalLM.from_pretrained(arguments.model).eval()
    document = Document(arguments.output, arguments.split)
    for seed in SEEDS[arguments.split][: arguments.pools]:
        with tempfile.TemporaryDirectory() as work:
            it = Setting(model, tokenizer, seed, Path(work))
            for part in arguments.part:
                for run in PARTS[part](it, document):
                    document.add(run)
                    print({key: value for key, value in run.items() if key != "top"}, flush=True)
    print(tables(document))


if __name__ == "__main__":
    main()
