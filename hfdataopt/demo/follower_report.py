"""What the demo's follower does, in figures: ``python -m hfdataopt.demo.follower_report [FOLDER ...]``.

Prints the tables of its model card for the shipped model, or for models in other folders (other seeds of training).
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hfdataopt.demo import follower_tasks as world
from hfdataopt.demo.follower_tasks import REPORTED_TASKS, SLOTS, TASKS, Item, Phrasing, items, parts
from hfdataopt.demo.make_follower import REASONS, Row, encode, examples_of, forward, pack, practice, reasons
from hfdataopt.prompting import meta_prompts
from hfdataopt.prompting.meta_prompts import Example, Mistake


@torch.no_grad()
def correct(
    model: Any,
    tokenizer: Any,
    instruction: str,
    asked: Sequence[Item],
    exemplars: Sequence[Item] = (),
) -> np.ndarray:
    """Whether greedy decoding answers each of ``asked`` and then ends [n]; one pass over all of them."""
    prefix = instruction + "".join(f"\n\n{world.query(item.input)} {item.answer}" for item in exemplars)
    row = Row(prefix, [(world.query(item.input), item.answer) for item in asked])
    size = len(asked) + sum(map(len, encode(tokenizer, [prefix, *chain(*row.branches)])))
    batch = next(pack(tokenizer, iter([row] * 64), lines=1, length=size))
    wanted = batch.targets[batch.targets != -100]
    right = (forward(model, batch).argmax(-1) == wanted).tolist()
    ends = (wanted == tokenizer.eos_token_id).nonzero()[: len(asked), 0].tolist()
    return np.array([all(right[a:b]) for a, b in zip([0, *(e + 1 for e in ends)], [e + 1 for e in ends], strict=False)])


def accuracy(model: Any, tokenizer: Any, instruction: str, task: str) -> float:
    """The share of right answers over all inputs of a task."""
    return float(correct(model, tokenizer, instruction, items(task)).mean())


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
) -> list[str]:
    """Continuations of prompts, at ``temperature`` (0: greedy)."""
    torch.manual_seed(seed)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    out = [""] * len(prompts)
    how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        inputs = tokenizer([prompts[i] for i in chosen], padding=True, return_tensors="pt", return_token_type_ids=False)
        made = model.generate(**inputs, max_new_tokens=64, **how)
        texts = tokenizer.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(chosen, texts, strict=True):
            out[i] = text
    return out


def _spearman(a: Sequence[float], b: Sequence[float]) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


def _text(messages: meta_prompts.Messages) -> str:
    return str(messages[0]["content"])


class Report:
    """The tables of one model."""

    def __init__(self, folder: Path) -> None:
        self.model: Any
        self.model, self.tokenizer = world.load_follower(folder)

    def accuracy(self, instruction: str, task: str) -> float:
        """The share of right answers over all inputs of a task."""
        return accuracy(self.model, self.tokenizer, instruction, task)

    def propose(self, messages: list[meta_prompts.Messages], temperature: float = 1.0, seed: int = 0) -> list[str]:
        """One answer to each of many meta-prompts."""
        return generate(self.model, self.tokenizer, [_text(m) for m in messages], temperature=temperature, seed=seed)

    def execution(self, n: int = 16) -> None:
        """Best, held-out, idle and foreign instructions, demonstrations, and how well the grading is kept."""
        print("task            best  spearman  |error|  held-out: spearman |error|  none  junk  other  0..4 exemplars")
        junk = [
            "good luck.",
            "i like rainy days.",
            "you are a pirate. keep it short.",
            "please.",
            "answer with the word.",
        ]
        rng = random.Random(0)
        table = []
        for task in TASKS:
            seen: list[Phrasing] = [practice(task, rng) for _ in range(n)]
            fresh: list[Phrasing] = []
            while len(fresh) < n:
                phrasing = Phrasing(task, tuple(world.sample_part(task, slot, rng, 0.5) for slot in SLOTS))
                if phrasing.held_out:
                    fresh.append(phrasing)
            best = world.best_phrasing(task)
            figures = [self.accuracy(best.text, task)]
            for group in (seen, fresh):
                meant = [min(1.0, max(0.0, phrasing.clarity)) for phrasing in group]
                found = [self.accuracy(phrasing.text, task) for phrasing in group]
                figures += [_spearman(meant, found), float(np.abs(np.subtract(meant, found)).mean())]
            figures.append(self.accuracy("", task))
            figures.append(float(np.mean([self.accuracy(text, task) for text in junk])))
            others = [world.best_known(other) for other in TASKS if other != task]
            figures.append(float(np.mean([self.accuracy(text, task) for text in others])))
            known = items(task)
            gain: list[float] = []
            texts = world.phrasings(task, 5, 7)
            for k in range(5):
                hits = []
                for text in texts:
                    shown = rng.sample(known, k)
                    asked = [item for item in known if item not in shown]
                    hits.append(correct(self.model, self.tokenizer, text, asked, shown).mean())
                gain.append(float(np.mean(hits)))
            table.append([*figures, *gain])
            print(self._line(task, table[-1]), flush=True)
        print(self._line("mean", np.mean(table, axis=0).tolist()), flush=True)

    @staticmethod
    def _line(task: str, figures: Sequence[float]) -> str:
        return f"{task:14s} " + "  ".join(f"{figure:5.2f}" for figure in figures)

    def induction(self, n: int = 100, draws: int = 200) -> None:
        """Induced instructions: how good they are, and the best of what 60, 120 and 400 calls buy at random."""
        print("\ninduced at temperature 1: distinct of 100, in the grammar; accuracy: mean, 5 %, median, 95 %, most;")
        print("random best of 60, 120, 400 calls (10 calls per instruction), their share of the best known")
        table = []
        for task in TASKS:
            rng = random.Random(f"induction {task}")
            shown = [
                [
                    Example(row["input"], row["answer"])
                    for row in rng.sample(list(world.rows(task, "train")), rng.randint(3, 6))
                ]
                for _ in range(n)
            ]
            texts = self.propose([meta_prompts.induce(examples) for examples in shown])
            matrix = np.array([correct(self.model, self.tokenizer, text, items(task)) for text in texts], dtype=float)
            train, test = matrix[:, ::2], matrix[:, 1::2]
            best = correct(self.model, self.tokenizer, world.best_known(task), items(task))[1::2].mean()
            known = parse_all(task, texts)
            all_ = matrix.mean(1)
            shares = []
            draw = np.random.default_rng(0)
            for size in (6, 12, 40):
                won = []
                for _ in range(draws):
                    candidates = draw.choice(n, size, replace=False)
                    asked = draw.choice(train.shape[1], 10, replace=False)
                    won.append(test[candidates[train[candidates][:, asked].mean(1).argmax()]].mean() / best)
                shares.append(float(np.mean(won)))
            table.append([len(set(texts)), known, all_.mean(), *np.quantile(all_, [0.05, 0.5, 0.95, 1.0]), *shares])
            mark = "" if task in REPORTED_TASKS else "  (development)"
            print(self._line(task, table[-1]) + mark, flush=True)

    def proposals(self, n: int = 8) -> None:
        """Rephrased, improved (with true and with shuffled scores), combined, criticised and rewritten instructions."""
        print("\nproposals, mean over tasks: what went in, what came out; distinct; in the grammar")
        rng = random.Random(1)
        asked: dict[str, list[tuple[str, meta_prompts.Messages, float]]] = {
            name: [] for name in ("rephrase", "improve", "improve, scores shuffled", "combine", "rewrite", "revise")
        }
        criticised: list[tuple[meta_prompts.Messages, list[str]]] = []
        for task in TASKS:
            for _ in range(n):
                phrasing = practice(task, rng)
                before = self.accuracy(phrasing.text, task)
                asked["rephrase"].append((task, meta_prompts.rephrase(phrasing.text), before))
                answers = [(i.input, world.annotate(i, phrasing.clarity)) for i in rng.sample(items(task), 3)]
                asked["revise"].append((task, meta_prompts.revise(phrasing.text, answers), before))
                history = [world.sample(task, rng, flat=0.3) for _ in range(5)]
                scores = [self.accuracy(p.text, task) for p in history]
                shuffled = rng.sample(scores, len(scores))
                examples = examples_of(task, 2, rng)
                for name, given in (("improve", scores), ("improve, scores shuffled", shuffled)):
                    pairs = [(p.text, s) for p, s in zip(history, given, strict=True)]
                    asked[name].append((task, meta_prompts.improve(pairs, examples), max(scores)))
                pair = history[:2]
                asked["combine"].append((task, meta_prompts.combine(pair[0].text, pair[1].text), max(scores[:2])))
                known = rng.sample(items(task), 10)
                formatted = bool(phrasing.part("format").text)
                wrong = [
                    Mistake(i.input, world.annotate(i, phrasing.clarity, formatted=formatted), i.answer) for i in known
                ]
                wrong = [mistake for mistake in wrong if mistake.answer != mistake.expected][:4]
                if wrong and (found := reasons(phrasing, wrong)):
                    criticised.append((meta_prompts.criticise(phrasing.text, wrong), [REASONS[name] for name in found]))
                    reason = REASONS[rng.choice(found)]
                    asked["rewrite"].append((task, meta_prompts.rewrite(phrasing.text, reason, wrong), before))
        for name, group in asked.items():
            texts = self.propose([messages for _, messages, _ in group])
            after = [self.accuracy(text, task) for text, (task, _, _) in zip(texts, group, strict=True)]
            before_all = [before for _, _, before in group]
            known_share = np.mean([parse_all(task, [text]) for text, (task, _, _) in zip(texts, group, strict=True)])
            print(
                f"{name:26s} {np.mean(before_all):.3f} -> {np.mean(after):.3f}  "
                f"higher {np.mean(np.greater(after, before_all)):.2f}  {len(set(texts))} of {len(texts)}  {known_share:.2f}",
                flush=True,
            )
        texts = self.propose([messages for messages, _ in criticised], temperature=0.0)
        right = np.mean([text in wanted for text, (_, wanted) in zip(texts, criticised, strict=True)])
        print(f"criticise: a reason that holds in {right:.2f} of {len(texts)}, {len(set(texts))} different ones")
        self._reading(rng)

    def _reading(self, rng: random.Random, n: int = 10) -> None:
        """Whether ``improve`` reads scores: parts shared with the instruction that is said to score highest."""
        said, kept = [], []
        for task in TASKS:
            for _ in range(n):
                history = [practice(task, rng) for _ in range(5)]
                scores = rng.sample([0.1, 0.2, 0.4, 0.5, 0.8], 5)
                said.append(meta_prompts.improve([(p.text, s) for p, s in zip(history, scores, strict=True)]))
                kept.append((history, scores))
        shares: dict[str, list[float]] = {"highest": [], "lowest": []}
        for text, (history, scores) in zip(self.propose(said), kept, strict=True):
            for name, at in (("highest", int(np.argmax(scores))), ("lowest", int(np.argmin(scores)))):
                spoken = [history[at].part(slot).text for slot in SLOTS if history[at].part(slot).text]
                shares[name].append(float(np.mean([part in text for part in spoken])))
        print(
            f"improve, random scores: parts kept of the highest {np.mean(shares['highest']):.2f}, "
            f"of the lowest {np.mean(shares['lowest']):.2f}"
        )

    def soft_prompts(self, n: int = 30) -> None:
        """Greedy instructions under random soft prompts of 3 vectors, in front of 5 examples."""
        print("\nsoft prompts: distinct greedy instructions of 30, and their accuracies (least, mean, most)")
        words = self.model.get_input_embeddings().weight.detach()
        generator = torch.Generator().manual_seed(0)
        for task in REPORTED_TASKS:
            text = _text(meta_prompts.induce(examples_of(task, 5, random.Random(0))))
            ids = self.tokenizer(text, return_tensors="pt")["input_ids"]
            soft = torch.randn(n, 3, words.shape[1], generator=generator) * words.std()
            embedded = torch.cat([soft, words[ids].expand(n, -1, -1)], 1)
            made = self.model.generate(
                inputs_embeds=embedded,
                attention_mask=torch.ones(embedded.shape[:2]),
                max_new_tokens=64,
                do_sample=False,
            )
            texts = self.tokenizer.batch_decode(made, skip_special_tokens=True)
            found = [self.accuracy(t, task) for t in texts]
            print(
                f"{task:14s} {len(set(texts)):3d}  {min(found):.2f} {np.mean(found):.2f} {max(found):.2f}", flush=True
            )


def parse_all(task: str, texts: Sequence[str]) -> float:
    """The share of texts that consist of the grammar's parts for ``task``, with one object at least."""
    options = parts(task)
    known = sorted({part.text for part in chain(*options.values()) if part.text}, key=len, reverse=True)
    inside = 0
    for text in texts:
        rest = f" {text.replace('.', ' ')} "
        has_object = any(part.text in text for part in options["object"])
        for part in known:
            rest = rest.replace(f" {part} ", "  ")
        inside += has_object and not rest.strip()
    return inside / len(texts)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Print the figures of the demo's instruction follower.")
    parser.add_argument("folders", nargs="*", type=Path, default=[world.FOLDER])
    parser.add_argument("--only", choices=("execution", "induction", "proposals", "soft_prompts"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for folder in options.folders:
        start = time.perf_counter()
        print(f"== {folder.name}")
        report = Report(folder)
        for name in (options.only,) if options.only else ("execution", "induction", "proposals", "soft_prompts"):
            getattr(report, name)()
        print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
