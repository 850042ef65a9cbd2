"""Parts of searches: rows, models and reward functions that are plain functions, and optimizers with a fixed list."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hfdataopt.prompting.candidate import Candidate, Duel, Query, Trial, Vote
from hfdataopt.prompting.config import PromptConfig
from hfdataopt.prompting.optimizer import PreferenceOptimizer, PromptOptimizer, Role, Task
from hfdataopt.prompting.trainer import PromptTrainer

ROWS = [{"prompt": f"question {i}", "answer": f"answer {i}", "level": i % 3} for i in range(40)]
CHAT_ROWS = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS]


def digit_of(prompt: Any) -> int:
    """A number from 0 to 9 that anybody can compute for a prompt, text or messages."""
    return int(hashlib.sha256(json.dumps(prompt).encode()).hexdigest(), 16) % 10


class Model:
    """Answers each prompt with its digit; keeps what it was given, in order."""

    def __init__(self) -> None:
        self.given: list[Any] = []

    def __call__(self, prompts: list[Any]) -> list[str]:
        self.given.extend(prompts)
        return [str(digit_of(prompt)) for prompt in prompts]


class Proposer:
    """Gives instructions ``be 0``, ``be 1`` and so on."""

    def __init__(self) -> None:
        self.given: list[Any] = []

    def __call__(self, prompts: list[Any]) -> list[str]:
        start = len(self.given)
        self.given.extend(prompts)
        return [f"<instruction>be {start + place}</instruction>" for place in range(len(prompts))]


def text(completion: Any) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]


def digit(completions: list[Any], **_: Any) -> list[float]:
    """A TRL reward function: the digit as a share."""
    return [int(text(completion)) / 10 for completion in completions]


@dataclass
class Listed(PromptOptimizer):
    """Asks for what it was made with; a whole number stands for so many proposals of the proposer."""

    name: ClassVar[str] = "listed"
    asks: list[Any] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)
    told: list[list[Trial]] = field(init=False, repr=False, compare=False)

    @property
    def needs(self) -> tuple[Role, ...]:
        return tuple(self.roles)  # type: ignore[return-value]

    def start(self, task: Task) -> None:
        super().start(task)
        self.told, self._left, self.starts = [], list(self.asks), getattr(self, "starts", 0) + 1

    def ask(self, n: int, pending: Sequence[Query] = (), services: Any = None) -> Sequence[Any]:
        if self._left and isinstance(self._left[0], int):
            texts = services.propose([{"role": "user", "content": "Write an instruction."}], self._left.pop(0))
            return [Candidate(text, origin="proposed") for text in texts]
        asked, self._left = self._left[:n], self._left[n:]
        return asked

    def tell(self, trials: Sequence[Trial]) -> None:
        super().tell(trials)
        self.told.append(list(trials))


@dataclass
class Duels(PreferenceOptimizer):
    """Every candidate against the next, round and round; the best has the highest share of its votes."""

    name: ClassVar[str] = "duels"
    candidates: list[Any] = field(default_factory=list)
    rounds: int = 1000

    def start(self, task: Task) -> None:
        super().start(task)
        self.asked, self.forgotten = 0, []

    def ask(self, n: int, pending: Sequence[Duel] = (), services: Any = None) -> Sequence[Duel]:  # type: ignore[override]
        duels = []
        while len(duels) < n and self.asked < self.rounds:
            size = len(self.candidates)
            first, step = self.asked % size, 1 + self.asked // size % (size - 1)
            duels.append(Duel(self.candidates[first], self.candidates[(first + step) % size]))
            self.asked += 1
        return duels

    def forget(self, vote: Vote) -> None:
        super().forget(vote)
        self.forgotten.append(vote)

    def share(self, candidate: Candidate) -> float:
        found = []
        for vote in self.votes:
            if vote.comparison.target is not None:
                found += [vote.comparison.target] * (vote.duel.first == candidate)
                found += [1 - vote.comparison.target] * (vote.duel.second == candidate)
        return sum(found) / len(found) if found else 0.5

    @property
    def best(self) -> Candidate | None:
        return max(self.candidates, key=self.share)


def candidates(count: int) -> list[Candidate]:
    return [Candidate(f"instruction {number}") for number in range(count)]


def trainer(optimizer: Any, model: Any = None, rows: Any = ROWS, **options: Any) -> PromptTrainer:
    """A trainer with the reward function above, unless a judge or others are given; other options are those of the config."""
    own = (
        "eval_dataset",
        "callbacks",
        "proposer",
        "encoder",
        "white_box",
        "processing_class",
        "reward_processing_classes",
    )
    parts = {name: options.pop(name) for name in own if name in options}
    if "judge" in options:
        parts["judge"] = options.pop("judge")
    else:
        parts["reward_funcs"] = options.pop("reward_funcs", digit)
    args = PromptConfig(**{"items": 5, "logging_steps": 0, **options})
    return PromptTrainer(optimizer, model=Model() if model is None else model, args=args, train_dataset=rows, **parts)


def comparable(result: Any) -> dict[str, Any]:
    """A result without the time it took, and without what killed runs asked twice."""
    document = result if isinstance(result, dict) else result.to_json()
    spent = {name: value for name, value in document["spent"].items() if name != "uncertain"}
    return {**document, "seconds": 0, "spent": spent}
