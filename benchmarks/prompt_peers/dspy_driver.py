"""MIPROv2 (dspy 3.4.1) on the follower, without and with demonstrations in the prompt.

The program is one predictor, "input -> output". An adapter of DSPy renders its instruction and demonstrations as the
follower knows them, and translates the proposer's questions: the request for an instruction becomes ``induce``, from the
bootstrapped demonstrations that DSPy shows and from the rows of its dataset summary. The follower cannot summarise: a
summary holds all examples as they are, also where the training rows, on which DSPy bootstraps at the budget's cost, are
fewer. The first instruction is an induced one. The items are the validation set.

What the follower cannot do for MIPROv2: read tips, describe the program, or improve on the basic instruction. Settings
that are not the defaults: ``OPTIONS``, chosen on the development tasks; trials go on until the budget ends.
"""

import contextlib
import os
import random
import re
from typing import Any

os.environ.setdefault("DSPY_CACHEDIR", os.getcwd())
import dspy
from client import BudgetSpent, Client, main, render, right, shown

OPTIONS: dict[str, dict[int, dict[str, Any]]] = {
    "mipro": {
        60: {"items": 5, "train": 5, "candidates": 11, "minibatch_size": None},
        120: {"items": 10, "train": 6, "candidates": 12, "minibatch_size": None},
        400: {"items": 10, "train": 10, "candidates": 40, "minibatch_size": None},
    },
    "mipro-demos": {
        60: {"items": 5, "train": 5, "candidates": 6, "minibatch_size": None},
        120: {"items": 6, "train": 8, "candidates": 10, "minibatch_size": None},
        400: {"items": 10, "train": 19, "candidates": 15, "minibatch_size": None},
    },
}
PAIR = re.compile(r"Input: (.*)\nOutput: (.*)")
SHOWN = 5


class Unused(dspy.BaseLM):
    """DSPy asks for a model; the adapter does the work."""

    def __init__(self) -> None:
        super().__init__("follower")

    def forward(self, prompt: Any = None, messages: Any = None, **_: Any) -> Any:
        raise NotImplementedError


class Adapter(dspy.Adapter):
    """The follower in the place of DSPy's format and model."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self.client = client

    def __call__(
        self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        (field,) = signature.output_fields
        if field == "output":
            text = self.client.answers([render(text_of(signature.instructions, demos), inputs["input"])])[0]
        elif field == "observations":
            text = shown(self.client.examples) + "\n\n"
        elif field == "summary":
            text = inputs["observations"]
        elif field == "proposed_instruction":
            text = self.propose(inputs.get("task_demos", ""), inputs.get("dataset_description", ""))
        else:
            text = "Not available"
        return [{field: text}]

    def propose(self, demos: str, summary: str) -> str:
        rows = PAIR.findall(demos)[:SHOWN]
        rest = [pair for pair in dict.fromkeys(PAIR.findall(summary)) if pair not in rows]
        return self.client.ask(
            [{"ask": "induce", "examples": rows + self.client.rng.sample(rest, min(SHOWN - len(rows), len(rest)))}]
        )[0]


class Recorded(dspy.MIPROv2):
    """Notes the best program after each full evaluation, and ends where the next trial is not within the budget."""

    client: Client
    needed: int

    def _log_normal_eval(self, *args: Any, **kwargs: Any) -> None:
        super()._log_normal_eval(*args, **kwargs)
        scored = args[3]
        self.seen(max((one for one in scored if one["full_eval"]), key=lambda one: one["score"])["program"])

    def _perform_full_evaluation(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._perform_full_evaluation(*args, **kwargs)
        self.seen(found[1])
        return found

    def seen(self, best: Any) -> None:
        self.client.note(prompt_of(best))
        if self.client.left < self.needed:
            raise BudgetSpent


def text_of(instruction: str, demos: Any) -> str:
    """An instruction and demonstrations as the follower knows them."""
    parts = [instruction, shown([(demo["input"], demo["output"]) for demo in demos])]
    return "\n\n".join(part for part in parts if part)


def prompt_of(program: Any) -> str:
    (predictor,) = program.predictors()
    return text_of(predictor.signature.instructions, predictor.demos)


def search(client: Client, method: str) -> str:
    options = client.settings(OPTIONS[method])
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    dspy.configure(lm=Unused(), adapter=Adapter(client))

    def examples(rows: list[tuple[str, str]]) -> list[Any]:
        return [dspy.Example(input=text, output=answer).with_inputs("input") for text, answer in rows]

    def exact(example: Any, prediction: Any, trace: Any = None) -> bool:
        return right(prediction.output, example.output)

    signature = dspy.Signature("input -> output", client.induce()[0])
    program = dspy.Predict(signature)
    client.note(prompt_of(program))
    demos = 4 if method == "mipro-demos" else 0
    items = options["items"]
    minibatch = options["minibatch_size"]
    optimizer = Recorded(
        exact,
        auto=None,
        num_candidates=options["candidates"],
        max_bootstrapped_demos=min(demos, options.get("bootstrapped", 2)),
        max_labeled_demos=demos,
        num_threads=1,
        max_errors=10_000,
        seed=client.seed + 1,  # dspy takes seed 0 for none
    )
    optimizer.client, optimizer.needed = client, minibatch or items
    rows = random.Random(client.seed).sample(client.examples, min(options["train"], len(client.examples)))
    with contextlib.suppress(BudgetSpent):
        optimizer.compile(
            program,
            trainset=examples(rows),
            valset=examples(client.items[:items]),
            num_trials=3 * client.budget // items,
            minibatch=minibatch is not None,
            minibatch_size=minibatch or items,
        )
    return client.curve[-1][2]


if __name__ == "__main__":
    main(search, list(OPTIONS))
