"""``PromptSearchCallback``: a prompt search with the live model at the ends of epochs of a running training."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from hfdataopt.errors import OptionError
from hfdataopt.generation import LocalGenerator
from hfdataopt.prompting.config import PromptConfig
from hfdataopt.prompting.result import PromptResult
from hfdataopt.prompting.trainer import PromptTrainer
from hfdataopt.sharded import refuse_sharded


class PromptSearchCallback(TrainerCallback):
    """Searches for the best prompt of the model as it is after an epoch; the training itself goes on as if it had not looked.

    Each search is kept in ``prompt-search/epoch-N`` under the trainer's ``output_dir``. With several processes the first one
    searches while the others wait for its result; a model whose weights are spread over processes is refused.

    Args:
        optimizer: an instance, or a name, as for :class:`~hfdataopt.prompting.trainer.PromptTrainer`.
        args: budget of each search. ``output_dir`` is set here.
        every: epochs from one search to the next.
        processing_class: the tokenizer; by default the trainer's.
        options: all else that ``PromptTrainer`` takes (``reward_funcs`` or ``judge``, ``train_dataset``, ...), but no model.

    Attributes:
        results: one :class:`~hfdataopt.prompting.result.PromptResult` per search.
    """

    def __init__(
        self,
        optimizer: Any,
        args: PromptConfig | None = None,
        *,
        every: int = 1,
        processing_class: Any = None,
        **options: Any,
    ) -> None:
        if every < 1:
            raise OptionError(f"PromptSearchCallback: every={every!r} epochs; it must be at least 1")
        if "model" in options:
            raise OptionError("PromptSearchCallback: the model is the one in training; drop model=")
        self.optimizer, self.args, self.every = optimizer, args or PromptConfig(), every
        self.processing_class, self.options = processing_class, options
        self.results: list[PromptResult] = []

    @property
    def best_prompt(self) -> str:
        """The instruction that the last search found."""
        if not self.results:
            raise OptionError("PromptSearchCallback: there was no search yet")
        return self.results[-1].prompt.instruction

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        refuse_sharded("PromptSearchCallback", kwargs["model"], args)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        epoch = round(state.epoch or 0)
        if epoch % self.every:
            return
        self.results.append(self._search(args, epoch, kwargs))
        if state.is_world_process_zero:
            leader = self.results[-1].leaders[0]
            score = leader.score if leader.fresh is None else leader.fresh
            state.log_history.append(
                {
                    "epoch": state.epoch,
                    "step": state.global_step,
                    "prompt_score": score,
                    "prompt": leader.candidate.instruction,
                }
            )

    def _search(self, args: Any, epoch: int, kwargs: dict[str, Any]) -> PromptResult:
        config = replace(self.args, output_dir=str(Path(args.output_dir) / "prompt-search" / f"epoch-{epoch}"))
        tokenizer = self.processing_class or kwargs.get("processing_class")
        if tokenizer is None:
            raise OptionError("PromptSearchCallback: the trainer has no processing_class; give the tokenizer here")
        model = LocalGenerator(
            kwargs["model"],
            tokenizer,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            batch_size=config.batch_size,
        )
        return PromptTrainer(self.optimizer, model=model, args=config, **self.options).train()
