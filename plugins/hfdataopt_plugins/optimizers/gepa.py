"""GEPA as its own package runs it (Agrawal et al., "GEPA: Reflective Prompt Evolution Can Outperform Reinforcement Learning", 2025).

The package's reflective mutation and Pareto selection propose instructions; answers, rewards and reflections go through this
library's budget and ledger. GEPA's training rows are the examples, its validation set the common items.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from hfdataopt.errors import MissingDependencyError
from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt.prompting.candidate import Candidate
from hfdataopt.prompting.optimizer import Item, Role, Task
from hfdataopt_plugins.optimizers._driven import DrivenOptimizer, Loop

PART = "instruction"
FRUITLESS = 12  # iterations in a row that scored nothing new
UNLIMITED = 25  # iterations, where the budget does not count completions


@dataclass
class Gepa(DrivenOptimizer):
    """Instructions rewritten by reflection on answers and feedback; a Pareto front over the items chooses what is rewritten.

    Args:
        minibatch: examples per reflection; the rewritten instruction must do better on them to be tried on all items.
        selection: which instruction is rewritten next.
        perfect_score: reward from which an answer needs no reflection; a minibatch of such answers is passed over.
        merge: also combine two instructions of the front.
        demonstrations: examples that the first instruction is induced from where the user gives none.
    """

    name: ClassVar[str] = "gepa"
    experimental: ClassVar[str] = "compared as the package itself, not through this optimizer"

    minibatch: int = 3
    selection: Literal["pareto", "current_best", "epsilon_greedy", "top_k_pareto"] = "pareto"
    perfect_score: float = 1.0
    merge: bool = False
    demonstrations: int = field(default=5, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "minibatch", at_least=1)

    @property
    def needs(self) -> tuple[Role, ...]:
        return ("proposer", "examples")

    def start(self, task: Task) -> None:
        _gepa()
        super().start(task)

    def drive(self, loop: Loop) -> None:
        package, task = _gepa(), loop.task
        loop.score(loop.first, [item.id for item in task.items])
        at_paid = [loop.paid, 0]

        def stop(state: Any) -> bool:
            if loop.paid > at_paid[0]:
                at_paid[:] = loop.paid, state.i
            return state.i - at_paid[1] >= FRUITLESS or (task.calls is None and state.i >= UNLIMITED)

        package.optimize(
            seed_candidate={PART: loop.first.instruction},
            trainset=list(task.examples) or list(task.items),
            valset=list(task.items),
            adapter=_adapter(loop),
            reflection_lm=lambda question: loop.propose(_messages(question)),
            reflection_minibatch_size=self.minibatch,
            candidate_selection_strategy=self.selection,
            perfect_score=self.perfect_score,
            use_merge=self.merge,
            stop_callbacks=stop,
            logger=_Silent(),
            track_best_outputs=False,
            seed=task.seed,
        )


class _Silent:
    def log(self, message: str) -> None: ...


def _gepa() -> Any:
    try:
        import gepa
    except ImportError as error:
        raise MissingDependencyError(
            "optimizer 'gepa' needs the package gepa: pip install 'hfdataopt[gepa]'"
        ) from error
    return gepa


def _messages(question: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}] if isinstance(question, str) else list(question)


def _adapter(loop: Loop) -> Any:
    from gepa.core.adapter import EvaluationBatch, GEPAAdapter

    class Adapter(GEPAAdapter):
        """The scored model for GEPA: a batch of rows is one request."""

        propose_new_texts = None

        def evaluate(self, batch: list[Item], candidate: dict[str, str], capture_traces: bool = False) -> Any:
            told = loop.score(Candidate(candidate[PART], origin="reflect"), [row.id for row in batch])
            traces = list(zip(batch, told.rewards, told.answers, strict=True)) if capture_traces else None
            return EvaluationBatch(outputs=told.answers, scores=told.rewards, trajectories=traces)

        def make_reflective_dataset(
            self, candidate: dict[str, str], eval_batch: Any, components_to_update: list[str]
        ) -> Mapping[str, Sequence[Mapping[str, Any]]]:
            return {part: [_record(*trace) for trace in eval_batch.trajectories] for part in components_to_update}

    return Adapter()


def _record(row: Item, reward: float, answer: str) -> dict[str, str]:
    """What the reflection reads of one answer."""
    feedback = f"Reward: {reward:g}."
    if row.output is not None:
        feedback += f" Wanted answer: {row.output}"
    return {"Inputs": row.input, "Generated Outputs": answer, "Feedback": feedback}


@hookimpl
def register_optimizers(register: Callable[..., None]) -> None:
    register(Gepa)
