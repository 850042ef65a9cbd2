"""A local model that is steered by soft prompts: vectors in front of its token embeddings (InstructZero, INSTINCT)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hfdataopt.errors import DataError
from hfdataopt.generation.local import LocalGenerator
from hfdataopt.prompting.meta_prompts import Messages, text_of_messages

WHO = "white_box"
MOST_EMBEDDINGS = 4096  # rows of the table that the scale is taken from


class WhiteBox:
    """A live causal LM of transformers that reads soft prompts, left as it was after each call.

    The soft prompt stands in front of everything, also of a first special token, so that no key-value cache can be shared
    between two soft prompts: each is a full pass over the rendered messages.

    Args:
        model: also in training mode, with LoRA, or wrapped; or a hub id or folder, which is loaded.
        processing_class: its tokenizer, or a processor that holds it; None = the one beside the model's weights.
        max_new_tokens: the most tokens that :meth:`decode` continues with.
        batch_size: soft prompts at a time; fewer from when memory ran out.
    """

    def __init__(
        self, model: Any, processing_class: Any = None, max_new_tokens: int = 64, batch_size: int = 16
    ) -> None:
        self._local = LocalGenerator(
            model, processing_class, max_new_tokens=max_new_tokens, temperature=0.0, batch_size=batch_size
        )
        self._tokenizer = self._local._tokenizer

    def describe(self) -> dict[str, Any]:
        """A JSON object of everything that changes the output, apart from the weights."""
        return {**self._local.describe(), "kind": "white_box"}

    @property
    def model(self) -> Any:
        """The model itself."""
        return self._local.model

    @property
    def width(self) -> int:
        """Size of the token embeddings."""
        return int(self._embeddings.embedding_dim)

    @property
    def scale(self) -> float:
        """Root mean square of the entries of the token embeddings, as the model's layers read them."""
        table = self._embeddings
        step = -(-table.num_embeddings // MOST_EMBEDDINGS)
        with torch.no_grad():
            rows = table(torch.arange(0, table.num_embeddings, step, device=table.weight.device))
        return float(rows.float().square().mean().sqrt())

    def decode(self, soft_prompts: np.ndarray, messages: Messages) -> list[str]:
        """The most probable continuation (greedy) of each of ``soft_prompts [n, tokens, width]`` and the messages."""
        from transformers import GenerationConfig

        ends = self._local._ends()
        pad = self._tokenizer.pad_token_id
        settings = GenerationConfig(
            max_new_tokens=self._local.max_new_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=ends or None,
            pad_token_id=pad if pad is not None else ends[0] if ends else 0,
        )

        def run(model: Any, inputs: Tensor) -> list[str]:
            made = model.generate(
                inputs_embeds=inputs, attention_mask=_ones(inputs), generation_config=settings
            ).tolist()
            cut = [row[: next((i for i, token in enumerate(row) if token in ends), None)] for row in made]
            return [self._tokenizer.decode(row, skip_special_tokens=True) for row in cut]

        return self._over_batches(soft_prompts, messages, run)

    def hidden(self, soft_prompts: np.ndarray, messages: Messages) -> np.ndarray:
        """Last hidden state (after the final norm) at the last position of the same inputs, ``[n, h]`` float32."""

        def run(model: Any, inputs: Tensor) -> list[np.ndarray]:
            output = model.base_model(inputs_embeds=inputs, attention_mask=_ones(inputs), use_cache=False)
            return list(output.last_hidden_state[:, -1].float().cpu().numpy())

        return np.stack(self._over_batches(soft_prompts, messages, run))

    @property
    def _embeddings(self) -> Any:
        return self._local._inner().get_input_embeddings()

    def _over_batches(
        self, soft_prompts: np.ndarray, messages: Messages, run: Callable[[Any, Tensor], list[Any]]
    ) -> list[Any]:
        soft_prompts = np.ascontiguousarray(soft_prompts)
        if soft_prompts.ndim != 3 or not len(soft_prompts) or soft_prompts.shape[2] != self.width:
            raise DataError(
                f"{WHO}: soft prompts of shape {soft_prompts.shape}; they must be [n, tokens, {self.width}], n at least 1"
            )
        chat = getattr(self._tokenizer, "chat_template", None)
        ids = self._local.check([messages if chat else text_of_messages(messages)], ["meta-prompt"])[0]
        self._local._check_lengths({"meta-prompt": soft_prompts.shape[1] + len(ids)})
        found: list[Any] = []
        with self._local._ready() as (model, _):
            table = model.get_input_embeddings()
            text = table(torch.tensor([ids], device=table.weight.device))
            while len(found) < len(soft_prompts):
                size = self._local.memory.rows or self._local.batch_size
                soft = torch.as_tensor(soft_prompts[len(found) : len(found) + size]).to(text)
                try:
                    found += run(model, torch.cat([soft, text.expand(len(soft), -1, -1)], 1))
                except torch.OutOfMemoryError:
                    self._local.memory.shrink(len(soft), list(range(len(found), len(found) + len(soft))), WHO)
        return found


def _ones(inputs: Tensor) -> Tensor:
    return torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device)
