"""``PromptConfig``: the arguments of a prompt search, for code, ``TrlParser`` (YAML and flags) and the command line."""

import math
from dataclasses import dataclass, field
from typing import Any

from hfdataopt.errors import OptionError
from hfdataopt.options import check_options, check_range


@dataclass
class PromptConfig:
    """Arguments of :class:`~hfdataopt.prompting.trainer.PromptTrainer`, named as in TRL's configs where these have them."""

    output_dir: str | None = field(
        default=None, metadata={"help": "Ledger, prompts and result go here; without it a killed search is lost."}
    )
    seed: int = field(default=0, metadata={"help": "Of every draw; the same seed gives the same search, call by call."})
    report_to: None | str | list[str] = field(  # noqa: RUF036 - TrlParser takes the second of the union
        default="none", metadata={"help": "Trackers: none, all, wandb, trackio, tensorboard, mlflow, ..."}
    )
    project: str = field(default="hfdataopt", metadata={"help": "Project name for trackers."})
    run_name: str | None = field(default=None, metadata={"help": "Name of the run for trackers."})
    logging_steps: int = field(
        default=1, metadata={"help": "Log every so many steps, and say a new best or every tenth of them; 0 = never."}
    )
    resume_from_checkpoint: bool | None = field(
        default=None,
        metadata={
            "help": "What to do with a search in output_dir: none = go on if it is this search, true = it must be there, "
            "false = set it aside and begin anew."
        },
    )

    items: int = field(default=20, metadata={"help": "Validation items on which every candidate is scored."})
    minibatch_size: int | None = field(
        default=None,
        metadata={
            "help": "Score new candidates on so many items first, and on all only if they are at least as good there as the best. "
            "For your own optimizers: the built-in ones choose items themselves."
        },
    )
    examples: int = field(
        default=50, metadata={"help": "At most so many rows are shown to proposers, and are not scored."}
    )
    input_column: str | None = field(
        default=None, metadata={"help": "What proposers see as input; by default 'input', else the prompt's text."}
    )
    answer_column: str | None = field(
        default=None,
        metadata={
            "help": "The wanted answer; by default the first of completion, answer, solution, output, target, chosen."
        },
    )
    start: list[str] = field(
        default_factory=list, metadata={"help": "Your own instructions, the present one first; they are tried too."}
    )
    parallel: int = field(default=1, metadata={"help": "Candidates (or duels) that are asked for at a time."})
    max_steps: int | None = field(default=None, metadata={"help": "End after so many rounds of asking and telling."})
    leaders: int = field(
        default=3, metadata={"help": "So many of the best are scored again on fresh items at the end; 0 = none."}
    )
    final_items: int | None = field(
        default=None, metadata={"help": "Fresh items for the leaders; by default what final_share pays for."}
    )
    final_share: float = field(
        default=0.2, metadata={"help": "Share of max_calls (with a judge: of max_judge_calls) kept for the leaders."}
    )
    optimizer_options: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Options of an optimizer that is given by name; JSON on the command line."}
    )

    max_calls: int | None = field(default=None, metadata={"help": "Most completions of the scored model."})
    max_proposer_calls: int | None = field(default=None, metadata={"help": "Most completions of the proposer."})
    max_judge_calls: int | None = field(default=None, metadata={"help": "Most questions to the judge (votes)."})
    max_tokens: int | None = field(default=None, metadata={"help": "Most tokens, prompts and completions, of all."})
    max_seconds: float | None = field(default=None, metadata={"help": "Nothing is sent after so many seconds."})
    max_cost: float | None = field(default=None, metadata={"help": "Most money, by the prices below."})
    prices: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": 'Money per million prompt and completion tokens, such as {"model": [0.5, 1.5], "proposer": [3, 15]}.'
        },
    )

    reward_weights: list[float] | None = field(default=None, metadata={"help": "A weight per reward function."})
    max_new_tokens: int = field(default=256, metadata={"help": "Most tokens of an answer of the scored model."})
    temperature: float = field(default=0.0, metadata={"help": "Of the scored model; 0 = the most probable token."})
    batch_size: int = field(default=16, metadata={"help": "Sequences at a time in a local model."})
    base_url: str | None = field(
        default=None, metadata={"help": "OpenAI-compatible URL; `model` and `proposer` ids are then names there."}
    )
    concurrency: int = field(default=8, metadata={"help": "Requests under way at a time, for a URL."})
    proposer: str | None = field(
        default=None, metadata={"help": "Id of the model that writes prompts; default: model."}
    )
    proposer_max_new_tokens: int = field(default=128, metadata={"help": "Most tokens of a proposal."})
    proposer_temperature: float = field(default=1.0, metadata={"help": "Of the proposer."})
    white_box: str | None = field(default=None, metadata={"help": "Id of a local model for soft prompts."})
    encoder: str | None = field(default=None, metadata={"help": "Id of a model that turns texts into features."})

    def __post_init__(self) -> None:
        import json

        for name in ("optimizer_options", "prices"):
            value = getattr(self, name)
            if isinstance(value, str):
                try:
                    setattr(self, name, json.loads(value))
                except ValueError as error:
                    raise OptionError(f"PromptConfig: {name}={value!r} is not JSON: {error}") from error
        if isinstance(self.start, str):
            self.start = [self.start]
        check_options(self)
        if self.output_dir is not None and not self.output_dir.strip():
            raise OptionError(f"PromptConfig: output_dir={self.output_dir!r} must be the path of a folder, or None")
        for name, least in (
            *[(name, 0) for name in ("seed", "logging_steps", "leaders", "examples", "temperature", "max_seconds")],
            *[(name, 0) for name in ("max_calls", "max_proposer_calls", "max_judge_calls", "max_tokens", "max_cost")],
            *[(name, 1) for name in ("items", "minibatch_size", "parallel", "max_steps", "final_items")],
            *[(name, 1) for name in ("max_new_tokens", "batch_size", "concurrency", "proposer_max_new_tokens")],
            ("proposer_temperature", 0),
        ):
            check_range(self, name, at_least=least)
        check_range(self, "final_share", at_least=0, below=1)
        if self.minibatch_size is not None and self.minibatch_size >= self.items:
            raise OptionError(
                f"PromptConfig: minibatch_size={self.minibatch_size} must be below items={self.items}; leave it out instead"
            )
        prices: Any = self.prices or {}
        for role, price in prices.items():
            good = isinstance(price, list | tuple) and len(price) == 2 and all(map(_is_price, price))
            if role not in ("model", "proposer", "judge") or not good:
                raise OptionError(
                    f"PromptConfig: prices[{role!r}]={price!r}; the roles are model, proposer and judge, each with "
                    "[per million prompt tokens, per million completion tokens]"
                )
        if self.final_items is not None and not self.leaders:
            raise OptionError(
                f"PromptConfig: final_items={self.final_items} are for the leaders, and leaders=0; leave one out"
            )
        if self.max_cost is not None and not self.prices:
            raise OptionError("PromptConfig: max_cost needs prices")


def _is_price(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
