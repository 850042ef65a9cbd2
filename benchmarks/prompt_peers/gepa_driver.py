"""GEPA (gepa 0.1.4) on the follower.

Translated: GEPA's question for a reflection (the instruction, and answers with feedback) becomes two of ours, as in
ProTeGi: one reason for the mistakes, then the rewritten instruction. The seed candidate is one induced instruction. The
examples are GEPA's training rows, the items its validation set.

What the follower cannot do for GEPA: reflect at length, put facts about the task into an instruction, or use right answers
among the feedback. Merging needs a system of several prompts. Settings that are not the defaults: the evaluation cache is
on; repeated prompts cost nothing; the run ends where the next minibatch is not within the budget, not by GEPA's own
count, which goes on counting what came from the cache; and ``OPTIONS``, chosen on the development tasks.
"""

import re
from typing import Any

import gepa
from client import BudgetSpent, Client, main, render, right
from gepa.adapters.default_adapter.default_adapter import DefaultAdapter, EvaluationResult

OPTIONS: dict[int, dict[str, Any]] = {
    60: {"items": 5, "minibatch": 3},
    120: {"items": 10, "minibatch": 3},
    400: {"items": 10, "minibatch": 3},
}
RECORD = re.compile(r"## Inputs\n(.*?)\n\n## Generated Outputs\n(.*?)\n\n## Feedback\n(.*?)(?=\n\n|\Z)", re.DOTALL)


class Adapter(DefaultAdapter):
    """GEPA's own adapter for one system prompt; a batch goes to the server in one request."""

    def __init__(self, client: Client) -> None:
        self.client = client
        super().__init__(model=self.answer, evaluator=self.score)

    def evaluate(self, batch: Any, candidate: dict[str, str], capture_traces: bool = False) -> Any:
        prompt = next(iter(candidate.values()))
        self.client.answers([render(prompt, row["input"]) for row in batch])
        return super().evaluate(batch, candidate, capture_traces)

    def answer(self, messages: Any) -> str:
        return self.client.answers([render(messages[0]["content"], messages[-1]["content"])])[0]

    def score(self, data: Any, response: str) -> EvaluationResult:
        good = right(response, data["answer"])
        return EvaluationResult(float(good), "right" if good else f"wrong; expected: {data['answer']}")


def search(client: Client, method: str) -> str:
    options = client.settings(OPTIONS)

    def reflect(question: Any) -> str:
        instruction = re.search(r"```\n(.*?)\n```", question, re.DOTALL)[1]
        mistakes = [
            (text.strip(), answer.strip(), feedback.split("expected: ")[1].strip())
            for text, answer, feedback in RECORD.findall(question)
            if feedback.startswith("wrong")
        ][:4]
        about = {"instruction": instruction, "mistakes": mistakes}
        reason = client.ask([{"ask": "criticise", **about}])[0]
        new = client.ask([{"ask": "rewrite", **about, "reason": reason}])[0]
        return f"```\n{new}\n```"

    class Notes:
        def on_valset_evaluated(self, event: Any) -> None:
            if event["is_best_program"]:
                client.note(event["candidate"]["prompt"])

    def rows(pairs: list[tuple[str, str]]) -> list[Any]:
        return [{"input": text, "answer": answer, "additional_context": {}} for text, answer in pairs]

    try:
        result = gepa.optimize(
            seed_candidate={"prompt": client.induce()[0]},
            trainset=rows(client.examples),
            valset=rows(client.items[: options["items"]]),
            adapter=Adapter(client),
            reflection_lm=reflect,
            reflection_minibatch_size=options["minibatch"],
            max_metric_calls=4 * client.budget,
            stop_callbacks=lambda state: client.left < options["minibatch"],
            cache_evaluation=True,
            callbacks=[Notes()],
            seed=client.seed,
            **{key: value for key, value in options.items() if key not in ("items", "minibatch")},
        )
    except BudgetSpent:  # in the middle of an iteration: what was accepted before counts
        return client.curve[-1][2]
    return str(result.best_candidate["prompt"])


if __name__ == "__main__":
    main(search, ["gepa"])
