"""CAPO, OPRO and plain APE (promptolution 2.3.0) on the follower.

Translated: CAPO's crossover becomes ``combine``, its mutation ``rephrase``, OPRO's history ``improve``, and the creation of
prompts from samples (which is APE) ``induce``. First prompts are induced from the examples by promptolution itself, which
are also CAPO's few shots. Few shots are rendered as the follower knows them, "Input: .. Output: ..".

What the follower cannot do for it: read a task description, see more than six instructions of OPRO's history (the best six
are shown), and reason in few shots, which therefore hold the answers alone (``create_fs_reasoning`` is off and costs
nothing). Where a budget ends within a step, promptolution drops the step; of the population before it the best on what
was scored already is taken. ``OPTIONS`` were chosen on the development tasks.
"""

import logging
import random
import re
from typing import Any

import numpy as np
import pandas as pd
from client import BudgetSpent, Client, main, render, shown
from promptolution.llms.base_llm import BaseLLM
from promptolution.optimizers.capo import CAPO
from promptolution.optimizers.opro import OPRO
from promptolution.predictors.base_predictor import BasePredictor
from promptolution.tasks.classification_tasks import ClassificationTask
from promptolution.utils.callbacks import BaseCallback
from promptolution.utils.prompt import Prompt
from promptolution.utils.prompt_creation import create_prompts_from_samples

OPTIONS: dict[str, dict[int, dict[str, Any]]] = {
    "capo": {
        60: {"items": 10, "population": 5, "block": 3, "crossovers_per_iter": 2, "upper_shots": 4},
        120: {"items": 10, "population": 4, "block": 5, "crossovers_per_iter": 4, "upper_shots": 4},
        400: {"items": 10, "population": 6, "block": 5, "crossovers_per_iter": 4, "upper_shots": 4},
    },
    "opro": {
        60: {"items": 4, "population": 5, "num_instructions_per_step": 1},
        120: {"items": 10, "population": 4, "num_instructions_per_step": 2},
        400: {"items": 10, "population": 8, "num_instructions_per_step": 1},
    },
    "ape": {60: {"items": 10}, 120: {"items": 10}, 400: {"items": 10}},
}
PAIR = re.compile(r"Input: (.*)\nOutput: (.*)")


class Proposer(BaseLLM):
    """promptolution's meta-prompts as questions to the follower."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self.client = client

    def _get_response(self, prompts: list[str], system_prompts: list[str]) -> list[str]:
        answers = self.client.ask([self.translate(prompt) for prompt in prompts])
        return [f"<prompt>{answer}</prompt>" for answer in answers]

    def translate(self, prompt: str) -> dict[str, Any]:
        if prompt.startswith("You are asked to give the corresponding prompt"):
            return {"ask": "induce", "examples": PAIR.findall(prompt)}
        if found := re.search(r"\nPrompt 1: (.*)\nPrompt 2: (.*)\n", prompt):
            return {"ask": "combine", "first": found[1], "second": found[2]}
        if found := re.search(r"\nPrompt: (.*)\n", prompt):
            return {"ask": "rephrase", "instruction": found[1]}
        scored = re.findall(r"text:\n(.*)\nscore: (\d+)\n", prompt)
        if not scored:
            raise ValueError(f"no question that is known: {prompt}")
        history = [(text, int(score) / 100) for text, score in scored[-6:]]  # the worst first
        return {"ask": "improve", "history": history, "examples": PAIR.findall(prompt)}


class Predictor(BasePredictor):
    """The answer is the whole text; a batch goes to the server in one request."""

    def __init__(self, client: Client) -> None:
        super().__init__(Proposer(client))
        self.client = client

    def predict(self, prompts: Any, xs: list[str], system_prompts: Any = None) -> tuple[list[str], list[str]]:
        prompts = [prompts] if isinstance(prompts, str) else prompts
        asked = [render(plain(prompt), x) for prompt, x in zip(prompts, xs, strict=True)]
        answers = self.client.answers(asked)
        return self._extract_preds(answers), [f"{x}\n{answer}" for x, answer in zip(xs, answers, strict=True)]

    def _extract_preds(self, preds: list[str]) -> list[str]:
        return [answer.strip().lower() for answer in preds]


def plain(prompt: object) -> str:
    """A prompt's text without the "Input:" that its template ends with where there are few shots."""
    text = str(prompt).removesuffix("Input:").strip()
    return re.sub(r"Input:\n(.*)\nOutput:\n(.*)", lambda found: shown([(found[1], found[2])]), text)


class Notes(BaseCallback):
    """Notes the best prompt after each step, and ends the run where not even one more item can be scored."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self.client = client

    def on_step_end(self, optimizer: Any) -> bool:
        self.client.note(plain(optimizer.prompts[int(np.argmax(optimizer.scores))]))
        return self.client.left > 0


def search(client: Client, method: str) -> str:
    logging.disable(logging.CRITICAL)
    random.seed(client.seed)
    np.random.seed(client.seed)  # noqa: NPY002 (what promptolution draws from)
    options = client.settings(OPTIONS[method])

    def task(rows: list[tuple[str, str]], block: int) -> ClassificationTask:
        frame = pd.DataFrame(rows, columns=["x", "y"])
        return ClassificationTask(frame, n_subsamples=block, seed=client.seed, metric=lambda y, p: float(y == p))

    items = options.pop("items")
    block = options.pop("block", items)
    scored = task(client.items[:items], block)
    proposer, predictor = Proposer(client), Predictor(client)
    size = options.pop("population", client.budget // items)
    first = create_prompts_from_samples(task(client.examples, 1), proposer, n_samples=5, n_prompts=size)
    if method == "ape":
        for count in range(1, len(first) + 1):
            found = scored.evaluate([Prompt(one) for one in first[:count]], predictor).agg_scores
            client.note(first[int(np.argmax(found))])
        return str(client.curve[-1][2])
    client.note(first[0])
    common = {"meta_llm": proposer, "initial_prompts": first, "callbacks": [Notes(client)]}
    if method == "opro":
        optimizer: Any = OPRO(predictor, scored, **common, **options)
    else:
        shots = pd.DataFrame(client.examples, columns=["x", "y"])
        optimizer = CAPO(predictor, scored, df_few_shots=shots, create_fs_reasoning=False, **common, **options)
    try:
        optimizer.optimize(client.budget)
    except BudgetSpent as error:
        client.failures.append(str(error))
    return best(optimizer, predictor)


def best(optimizer: Any, predictor: Predictor) -> str:
    """The best of the population by all that is scored already."""
    means = optimizer.task.evaluate(optimizer.prompts, predictor, eval_strategy="evaluated").agg_scores
    return plain(optimizer.prompts[int(np.argmax(np.nan_to_num(means, nan=-1.0)))])


if __name__ == "__main__":
    main(search, list(OPTIONS))
