"""A sequence-classification model with one logit as a reward."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hfdataopt.errors import DataError, OptionError, first_line
from hfdataopt.gradients.batches import RowId, name_rows
from hfdataopt.hub import why_not_on_hub
from hfdataopt.rewards.texts import is_messages

Formatting = Callable[[Any, Any], str | tuple[str, str]]


class RewardModel:
    """``logits[:, 0]`` of a model over prompt and completion, in float64.

    The text is the chat template's for messages, else prompt + completion; no special tokens are added, as in TRL.
    ``formatting(prompt, completion)`` gives another text, taken as it is too, or a pair of texts, which the tokenizer joins
    with its special tokens. The model is put in eval mode, its ``config.pad_token_id`` is set to the tokenizer's, and it
    runs without gradients, padded on the right. An id or path is loaded at the first call.
    """

    def __init__(
        self, model: Any, processing_class: Any, formatting: Formatting | None, batch_size: int, who: str
    ) -> None:
        self.name = _name(model)
        self.who = f"{who}: reward model {self.name!r}"
        self._model: Any = model
        self._tokenizer, self._formatting, self._batch_size = processing_class, formatting, batch_size
        self._ready = False
        if isinstance(model, torch.nn.Module):
            labels = getattr(getattr(model, "config", None), "num_labels", None)
            if labels != 1:
                raise OptionError(
                    f"{self.who} has num_labels={labels}; a reward model is a sequence-classification model with num_labels=1"
                )

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], row_ids: Sequence[RowId]) -> list[float]:
        self.load()
        encoded = [
            self._encode(prompt, completion, row)
            for prompt, completion, row in zip(prompts, completions, row_ids, strict=True)
        ]
        self._model.eval()
        rewards = [0.0] * len(encoded)
        by_length = sorted(range(len(encoded)), key=lambda i: len(encoded[i]["input_ids"]))
        for start in range(0, len(by_length), self._batch_size):
            rows = by_length[start : start + self._batch_size]
            scores = self._forward([encoded[row] for row in rows], [row_ids[row] for row in rows])
            for row, score in zip(rows, scores, strict=True):
                rewards[row] = score
        return rewards

    def _forward(self, encoded: list[dict[str, list[int]]], row_ids: list[RowId]) -> list[float]:
        batch = self._tokenizer.pad(encoded, padding=True, padding_side="right", return_tensors="pt")
        device = next(self._model.parameters()).device
        try:
            with torch.no_grad():
                logits = self._model(**{name: values.to(device) for name, values in batch.items()}).logits
        except Exception as error:
            raise DataError(
                f"{self.who} raised {type(error).__name__}: {error} (rows {name_rows(row_ids)}, padded to "
                f"{batch['input_ids'].shape[1]} tokens; is that more than it takes?)"
            ) from error
        if logits.shape != (len(encoded), 1):
            raise OptionError(f"{self.who} gives logits of shape {list(logits.shape)}, not [{len(encoded)}, 1]")
        return logits[:, 0].double().tolist()

    def _encode(self, prompt: Any, completion: Any, row: RowId) -> dict[str, list[int]]:
        try:
            text = self._formatting(prompt, completion) if self._formatting else self._text(prompt, completion)
        except OptionError:
            raise
        except Exception as error:
            raise DataError(f"{self.who}: formatting row {row!r} raised {type(error).__name__}: {error}") from error
        if isinstance(text, str):
            encoded = self._tokenizer(text, add_special_tokens=False)
        elif isinstance(text, tuple) and len(text) == 2 and all(isinstance(part, str) for part in text):
            encoded = self._tokenizer(*text)
        else:
            raise DataError(
                f"{self.who}: the formatting function must return a string or two, got {text!r:.200} for row {row!r}"
            )
        if not encoded["input_ids"]:
            raise DataError(f"{self.who}: row {row!r} has no tokens; a reward model needs a text")
        return dict(encoded)

    def _text(self, prompt: Any, completion: Any) -> str:
        if not is_messages(prompt):
            return prompt + completion
        if getattr(self._tokenizer, "chat_template", None) is None:
            raise OptionError(
                f"{self.who}: the prompts are conversations, but its tokenizer has no chat template; set one or pass "
                "reward_formatting_funcs"
            )
        return self._tokenizer.apply_chat_template(prompt + completion, tokenize=False)

    def load(self) -> None:
        """Load model and tokenizer where that was not done."""
        if self._ready:
            return
        if not isinstance(self._model, torch.nn.Module):
            self._model = self._pretrained(os.fspath(self._model))
        if self._tokenizer is None:
            self._tokenizer = self._pretrained_tokenizer()
        if self._tokenizer.pad_token_id is None:
            raise OptionError(
                f"{self.who}: its tokenizer has no pad token, so the last token of a text cannot be told from padding; set "
                "pad_token to a token that no text ends with and pass it as reward_processing_classes"
            )
        # the score is read at the last token that is not config.pad_token_id
        config: Any = self._model.config
        config.get_text_config().pad_token_id = self._tokenizer.pad_token_id
        self._ready = True

    def _pretrained(self, path: str) -> Any:
        from transformers import AutoModelForSequenceClassification

        if (why := why_not_on_hub(path)) is not None:
            raise OptionError(f"{self.who} cannot be loaded: the folder {path!r} {why}")
        try:
            model, report = AutoModelForSequenceClassification.from_pretrained(
                path, num_labels=1, output_loading_info=True, trust_remote_code=False
            )
        except Exception as error:
            raise OptionError(f"{self.who} cannot be loaded: {type(error).__name__}: {first_line(error)}") from error
        if report["missing_keys"]:
            raise OptionError(
                f"{self.who}: {path} lacks the weights {', '.join(sorted(report['missing_keys']))}; it is not a trained "
                "reward model"
            )
        accelerator = torch.accelerator
        return model.to(accelerator.current_accelerator()) if accelerator.is_available() else model

    def _pretrained_tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        path = self._model.config._name_or_path
        try:
            return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        except Exception as error:
            raise OptionError(
                f"{self.who}: no tokenizer can be loaded from {path!r} ({type(error).__name__}: {error}); pass "
                "reward_processing_classes"
            ) from error


def _name(model: Any) -> str:
    """The last part of its id, as TRL reports it; the class of a model that has none."""
    path = getattr(getattr(model, "config", None), "_name_or_path", "")
    if not isinstance(model, torch.nn.Module):
        path = os.fspath(model)
    return path.rstrip("/").split("/")[-1] or type(model).__name__
