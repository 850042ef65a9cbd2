"""MIPROv2 as DSPy runs it (Opsahl-Ong et al., "Optimizing Instructions and Demonstrations for Multi-Stage Language Model Programs", 2024).

The program is one ``dspy.Predict("input -> output")``. DSPy bootstraps demonstrations, writes instructions and chooses among
their combinations; answers, rewards and proposals go through this library's budget and ledger. Training rows are the examples,
the validation set the common items, all of which each program is tried on.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from hfdataopt.errors import MissingDependencyError
from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt.prompting.candidate import Candidate, Exemplar
from hfdataopt.prompting.meta_prompts import read_instruction
from hfdataopt.prompting.optimizer import Item, Role, Task
from hfdataopt_plugins.optimizers._driven import DrivenOptimizer, Loop, Told

UNLIMITED = 25  # trials, where the budget does not count completions
INSTALL = "optimizer 'dspy' needs DSPy and optuna: pip install 'hfdataopt[dspy]'"


@dataclass
class DspyMipro(DrivenOptimizer):
    """Instructions and demonstrations chosen together by a Bayesian search over what was proposed and bootstrapped.

    Args:
        candidates: instructions, and sets of demonstrations, to choose among.
        bootstrapped: most demonstrations in a set whose outputs are the model's own, with a reward of ``full_reward`` or more.
        labeled: most demonstrations in a set, with the dataset's outputs where bootstrapping found too few; 0 and
            ``bootstrapped=0`` search for instructions alone.
        train: examples to bootstrap on, which costs completions; None is a twentieth of the budget, at least 4.
        full_reward: reward of an answer that may be shown as a demonstration.
    """

    name: ClassVar[str] = "dspy"
    experimental: ClassVar[str] = "compared as the package itself, not through this optimizer"

    candidates: int = 10
    bootstrapped: int = 2
    labeled: int = 4
    train: int | None = None
    full_reward: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "candidates", at_least=2)
        check_range(self, "train", at_least=1)
        for option in ("bootstrapped", "labeled"):
            check_range(self, option, at_least=0)

    @property
    def needs(self) -> tuple[Role, ...]:
        return ("proposer", "examples")

    def start(self, task: Task) -> None:
        _dspy()
        super().start(task)

    def drive(self, loop: Loop) -> None:
        dspy, task = _dspy(), loop.task
        items = len(task.items)
        loop.score(loop.first, [item.id for item in task.items])
        known = [one for one in task.examples if one.output is not None]
        limit = self.train or (len(known) if task.calls is None else max(4, task.calls // 20))
        train = task.rng(self.name, "train").sample(known, min(limit, len(known)))
        model = _Model(dspy, loop, train)

        def metric(example: Any, prediction: Any, trace: Any = None) -> float | bool:
            reward = model.reward(example)
            return reward if trace is None else reward >= self.full_reward

        loggers = [logging.getLogger(name) for name in ("dspy", "optuna")]
        levels = [logger.level for logger in loggers]
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            with dspy.context(lm=_unused(dspy), adapter=model.adapter()):
                _quiet(dspy)(
                    metric,
                    auto=None,
                    num_candidates=self.candidates,
                    max_bootstrapped_demos=min(self.bootstrapped, self.labeled or self.bootstrapped),
                    max_labeled_demos=self.labeled,
                    num_threads=1,
                    seed=task.seed + 1,  # DSPy takes 0 for none
                ).compile(
                    dspy.Predict(dspy.Signature("input -> output", loop.first.instruction)),
                    trainset=[_example(dspy, row) for row in train],
                    valset=[_example(dspy, row) for row in task.items],
                    num_trials=UNLIMITED if task.calls is None else max(1, 3 * task.calls // items),
                    minibatch=False,
                )
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


class _Model:
    """The scored model and the proposer for DSPy, in the place of its format and its model."""

    def __init__(self, dspy: Any, loop: Loop, train: list[Item]) -> None:
        self.dspy, self.loop = dspy, loop
        self.common = {(row.input, row.output or ""): [] for row in loop.task.items}  # type: dict[Any, list[Item]]
        self.train: dict[Any, list[Item]] = {(row.input, row.output or ""): [] for row in train}
        for rows, table in ((loop.task.items, self.common), (train, self.train)):
            for row in rows:
                table[row.input, row.output or ""].append(row)
        self.last = loop.first

    def rows_of(self, text: str) -> list[Item]:
        """Rows with this input, common items first."""
        return [
            row
            for table in (self.common, self.train)
            for (input_, _), rows in table.items()
            if input_ == text
            for row in rows
        ]

    def told(self, rows: list[Item]) -> Told:
        """The last program on rows; all common items at once where one of them is a common item."""
        if rows[0].id in {item.id for item in self.loop.task.items}:
            self.loop.score(self.last, [item.id for item in self.loop.task.items])
        return self.loop.score(self.last, [row.id for row in rows])

    def answer(self, signature: Any, demos: Any, inputs: dict[str, Any]) -> str:
        """The answer to an input, with the program's instruction and demonstrations."""
        shown = tuple(Exemplar(demo["input"], demo["output"]) for demo in demos)
        self.last = Candidate(signature.instructions, shown, origin="mipro")
        return self.told(self.rows_of(inputs["input"])[:1]).answers[0]

    def reward(self, example: Any) -> float:
        """Reward of the last program on an example; the mean where several rows are the same to DSPy."""
        key = example["input"], example["output"]
        told = self.told(self.common.get(key) or self.train[key])
        return sum(told.rewards) / len(told.rewards)

    def propose(self, signature: Any, demos: Any, inputs: dict[str, Any], temperature: float | None) -> str:
        """An answer of the proposer to one of DSPy's own questions; the whole answer where it does not keep to the format."""
        chat = self.dspy.ChatAdapter()
        text = self.loop.propose(chat.format(signature, demos, inputs), temperature)
        (output,) = signature.output_fields
        try:
            return str(chat.parse(signature, text)[output])
        except self.dspy.utils.exceptions.AdapterParseError:
            return read_instruction(text) or text

    def adapter(self) -> Any:
        """The adapter that DSPy calls."""
        model = self

        class Adapter(self.dspy.Adapter):  # type: ignore[name-defined]
            def __call__(
                self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: dict[str, Any]
            ) -> list[dict[str, Any]]:
                (output,) = signature.output_fields
                if (*signature.input_fields, output) == ("input", "output"):
                    return [{output: model.answer(signature, demos, inputs)}]
                return [{output: model.propose(signature, demos, inputs, lm_kwargs.get("temperature"))}]

        return Adapter()


def _example(dspy: Any, row: Item) -> Any:
    return dspy.Example(input=row.input, output=row.output or "").with_inputs("input")


def _unused(dspy: Any) -> Any:
    class Unused(dspy.BaseLM):
        """DSPy asks for a model; the adapter does the work."""

        def forward(self, prompt: Any = None, messages: Any = None, **_: Any) -> Any:
            raise NotImplementedError

    return Unused("hfdataopt")


def _quiet(dspy: Any) -> Any:
    class Quiet(dspy.MIPROv2):
        """Without a progress bar on standard output."""

        def _optimize_prompt_parameters(
            self, program: Any, instructions: Any, demos: Any, evaluate: Any, *rest: Any
        ) -> Any:
            evaluate.display_progress = False
            return super()._optimize_prompt_parameters(program, instructions, demos, evaluate, *rest)

    return Quiet


def _dspy() -> Any:
    try:
        import dspy
        import dspy.utils.exceptions
        import optuna  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(INSTALL) from error
    return dspy


@hookimpl
def register_optimizers(register: Callable[..., None]) -> None:
    register(DspyMipro)
