"""Evolution: edits of an instruction's phrases under a genetic algorithm, hill climbing or annealing (GrIPS: Prasad et al., 2023;
Plum: Pan et al., 2024; with components: SPRIG, Zhang et al., 2024)."""

import math
import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from hfdataopt.errors import OptionError
from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt.prompting import meta_prompts
from hfdataopt.prompting.budget import BudgetSpent
from hfdataopt.prompting.candidate import Candidate, Query
from hfdataopt.prompting.meta_prompts import read_instruction
from hfdataopt.prompting.optimizer import Role
from hfdataopt.prompting.rounds import FRUITLESS, Ask, InducingRounds, Rounds, combined, rephrased, rungs_of

UNLIMITED = 25  # generations, where the budget does not count completions
BORDER = re.compile(r"(?<=[.!?;:,\n])\s+")
Edit = Literal["delete", "swap", "add", "rephrase", "combine"]
Phrases = tuple[str, ...]
Selection = Generator[list[Query], None, list[Candidate]]


@dataclass
class Evolution(InducingRounds):
    """Instructions as sequences of phrases, which edits delete, exchange, add and rephrase.

    Args:
        strategy: ``genetic`` breeds children with the crossed phrases of two of the population, or of one after an edit;
            ``hill-climbing`` goes to the best neighbour unless it is worse; ``annealing`` also goes to a worse one, with chance
            exp(difference / temperature).
        edits: those that are drawn from. ``delete``, ``swap`` (two phrases change places) and ``add`` (a phrase of the components, of
            another instruction, or one deleted before) need no model; ``rephrase`` and ``combine`` (of two instructions into one)
            ask the proposer.
        components: phrases to build system prompts from (SPRIG); then ``rephrase`` is of one phrase, else of the instruction.
        pool_size: instructions to begin with, the user's own and induced ones; 0 = the user's own alone, or single components.
        population: instructions that a generation begins with (genetic).
        children: new instructions per generation, or neighbours per step.
        crossover: share of children with two parents (genetic).
        temperature: of the first step, in units of the reward; it falls to 0 with the budget (annealing).
        block: items between two looks at a neighbour's score (annealing).
        unit: what a phrase is. An instruction of one clause is split into words.
    """

    name: ClassVar[str] = "evolution"
    experimental: ClassVar[str] = "no better than random search on the shipped model (8 tasks, 60 and 120 calls)"

    strategy: Literal["genetic", "hill-climbing", "annealing"] = "genetic"
    edits: list[Edit] = field(default_factory=lambda: ["delete", "swap", "add", "rephrase", "combine"])
    components: list[str] = field(default_factory=list)
    pool_size: int = 4
    population: int = 4
    children: int = 3
    crossover: float = 0.5
    temperature: float = 0.1
    block: int = 2
    unit: Literal["clause", "word"] = "clause"

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("population", "children", "block"):
            check_range(self, option, at_least=1)
        for option in ("pool_size", "temperature"):
            check_range(self, option, at_least=0)
        check_range(self, "crossover", at_least=0, at_most=1)
        if not self.edits:
            raise OptionError("evolution: edits=[] leaves nothing to search with; name at least one")

    @property
    def needs(self) -> tuple[Role, ...]:
        proposer: tuple[Role, ...] = ("proposer",) if self.pool_size or {"rephrase", "combine"} & {*self.edits} else ()
        return (*proposer, "examples") if self.pool_size and self.demonstrations else proposer

    def start(self, task: Any) -> None:
        if not self.pool_size and not task.start and not self.components:
            raise OptionError("evolution: pool_size=0 needs an instruction to begin with, or components")
        super().start(task)
        self.made: dict[str, Phrases] = {}
        self.deleted: list[str] = []
        self.drawn = 0

    def least_calls(self) -> int:
        return 2 * len(self.task.items)

    def plan_in_words(self) -> str:
        return f"an instruction and an edited one on {len(self.task.items)} items each"

    def search(self) -> Rounds:
        first = self.beginning()
        size = max(1, min(len(first), self.left // max(2, self.first)))
        population = yield from self.select(first[:size], self.population if self.strategy == "genetic" else 1)
        step = {"genetic": self.generation, "hill-climbing": self.climb, "annealing": self.anneal}[self.strategy]
        generation = 0
        while population and self.left >= 1 and (self.task.calls is not None or generation < UNLIMITED):
            spent = self.paid
            population = yield from step(population, generation)
            if self.paid == spent:  # nothing new, or nothing that the budget pays
                break
            generation += 1

    @property
    def first(self) -> int:
        """Items on which all of a generation are tried."""
        items = len(self.task.items)
        return min(items, max(2, -(-items // 4)))

    def beginning(self) -> list[Candidate]:
        if self.pool_size:
            return self.pool(self.pool_size)
        texts = self.task.start or tuple(self.components)
        return [one for one in (Candidate(text, origin="start") for text in texts) if self.is_new(one)]

    def select(self, candidates: Sequence[Candidate], keep: int) -> Selection:
        """The best ``keep``, by successive halving."""
        rungs = rungs_of(len(candidates), len(self.task.items), self.first, 2)
        trials = yield from self.halve(candidates, rungs)
        return [trial.candidate for trial in trials[:keep]]

    # -- strategies

    def generation(self, population: list[Candidate], number: int) -> Selection:
        """Children of crossed and edited parents against the population; new ones first, so that they win a tie."""
        return (yield from self.select([*self.breed(population, number, self.children), *population], self.population))

    def climb(self, population: list[Candidate], number: int) -> Selection:
        """The best of the neighbours, unless it is worse than the place they are neighbours of."""
        return (yield from self.select([*self.breed(population, number, self.children), population[0]], 1))

    def anneal(self, population: list[Candidate], number: int) -> Selection:
        """A neighbour, accepted where its score exceeds the present one by at least temperature times ln u (Metropolis).

        u is drawn first, so that a neighbour is given up as soon as it can no longer be accepted.
        """
        present, items = population[0], len(self.task.items)
        yield from self.score([present], items)
        spent = self.paid / self.task.calls if self.task.calls else number / UNLIMITED
        warmth = self.temperature * max(0.0, 1 - spent)
        chance = self.rng("accept", number).random()
        wanted = self.known(present).score + warmth * math.log(max(chance, 1e-300))
        for one in self.breed(population, number, 1):
            for seen in [*range(self.block, items, self.block), items]:
                trials = yield from self.score([one], seen)
                if not trials:
                    return population
                rewards = (float(reward) for trial in self.trials for reward in trial.rewards if reward == reward)
                highest = max(rewards, default=0.0)
                total = float(np.nansum(trials[0].rewards))
                if (total + highest * (items - seen)) / items < wanted - 1e-12:
                    return population
            return [one]
        return population

    # -- edits

    def breed(self, population: Sequence[Candidate], number: int, count: int) -> list[Candidate]:
        """New candidates, each by one edit; fewer where no edit brings anything new."""
        found: list[Candidate] = []
        fruitless = 0
        while len(found) < count and fruitless < FRUITLESS:
            rng = self.rng("edit", number, self.drawn)
            self.drawn += 1
            try:
                child = self.child(population, rng)
            except BudgetSpent:
                if not found:
                    raise
                break  # those that are paid for are tried
            fruitless += 1
            if child is not None and self.is_new(child):
                found.append(child)
                fruitless = 0
        return found

    def child(self, population: Sequence[Candidate], rng: Any) -> Candidate | None:
        """One edit of a member of the population, or of the crossed phrases of two."""
        parent = rng.choice(population)
        phrases = self.phrases(parent)
        parents: tuple[Candidate, ...] = (parent,)
        others = [one for one in population if one is not parent]
        edit = rng.choice(self.edits)
        if self.strategy == "genetic" and others and rng.random() < self.crossover:
            other = rng.choice(others)
            parents = (parent, other)
            if edit == "combine":
                return self.asked(combined(parent, other))
            phrases = crossed(phrases, self.phrases(other), rng)
            made = self.of(phrases, "crossover", parents)
            if made.key not in self.seen:
                return made
        if edit == "combine":
            other = rng.choice(others) if others else None
            return None if other is None else self.asked(combined(parent, other))
        if edit == "rephrase":
            return self.rephrase_one(parent, phrases, rng)
        changed = self.edited(phrases, edit, population, rng)
        return None if changed is None else self.of(changed, edit, parents)

    def edited(self, phrases: Phrases, edit: str, population: Sequence[Candidate], rng: Any) -> Phrases | None:
        """The phrases after one edit; None where it cannot be made."""
        made = list(phrases)
        if edit == "delete":
            if len(made) < 2:
                return None
            self.deleted.append(made.pop(rng.randrange(len(made))))
        elif edit == "swap":
            if len(made) < 2:
                return None
            one, other = rng.sample(range(len(made)), 2)
            made[one], made[other] = made[other], made[one]
        else:
            known = self.components or [*self.deleted, *(phrase for one in population for phrase in self.phrases(one))]
            unused = [phrase for phrase in known if phrase not in made]
            if not unused:
                return None
            made.insert(rng.randrange(len(made) + 1), rng.choice(unused))
        return tuple(made)

    def rephrase_one(self, parent: Candidate, phrases: Phrases, rng: Any) -> Candidate | None:
        """Of components one in other words, else the whole instruction."""
        if not self.components:
            return self.asked(rephrased(parent))
        place = rng.randrange(len(phrases))
        told = self.answers([meta_prompts.rephrase(phrases[place])])
        text = read_instruction(told[0]) if told else None
        if text is None:
            return None
        return self.of((*phrases[:place], text, *phrases[place + 1 :]), "rephrase", (parent,))

    def asked(self, ask: Ask) -> Candidate | None:
        """The proposer's answer, whether it is new or not."""
        told = self.answers([ask.messages])
        text = read_instruction(told[0]) if told else None
        keys = tuple(parent.key for parent in ask.parents)
        return None if text is None else Candidate(text, parents=keys, origin=ask.origin)

    def of(self, phrases: Phrases, origin: str, parents: Sequence[Candidate]) -> Candidate:
        made = Candidate(" ".join(phrases), parents=tuple(parent.key for parent in parents), origin=origin)
        self.made.setdefault(made.key, phrases)
        return made

    def phrases(self, candidate: Candidate) -> Phrases:
        """Those it was made of, else its clauses; its words where it has but one clause."""
        if candidate.key in self.made:
            return self.made[candidate.key]
        if candidate.instruction in self.components:
            return (candidate.instruction,)
        return split(candidate.instruction, self.unit)


def split(text: str, unit: str = "clause") -> Phrases:
    """Clauses, which end in punctuation; words where there is one clause or where ``unit`` is ``word``."""
    clauses = tuple(filter(None, BORDER.split(text.strip())))
    return clauses if unit == "clause" and len(clauses) > 1 else tuple(text.split())


def crossed(first: Phrases, second: Phrases, rng: Any) -> Phrases:
    """The beginning of one and the end of the other, cut at the same share of both; what would come twice comes once."""
    share = rng.random()
    joined = [*first[: math.ceil(share * len(first))], *second[math.ceil(share * len(second)) :]]
    return tuple(dict.fromkeys(joined)) or first


@hookimpl
def register_optimizers(register: Callable[..., None]) -> None:
    register(Evolution)
