"""Random draws that belong to a sequence: a function of its key and the step, whatever else is in the batch.

Each sequence has its own SplitMix64 stream (Steele, Lea and Flood 2014), whose start and step come from a hash of its key;
place ``step * V + token`` of it gives that token's noise. A token is drawn as ``argmax(logit + Gumbel noise)``, which
is a draw from the softmax. Against one uniform and the inverse distribution function this needs more noise, but rounding in
the logits, which differs between batches, then changes a draw only where two of its candidates nearly tie.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from hfdataopt.generation.generator import RowId

_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def stream_of(seed: int, key: RowId, sample: int) -> tuple[int, int]:
    """Start and odd step of a sequence's stream, as signed 64-bit numbers."""
    digest = hashlib.sha256(f"{seed}/{type(key).__name__}/{key}/{sample}".encode()).digest()
    start, step = (int.from_bytes(digest[place : place + 8], "little") for place in (0, 8))
    step |= 1
    if (step ^ (step >> 1)).bit_count() < 24:  # too regular to be a good step
        step ^= 0xAAAAAAAAAAAAAAAA
    return _signed(start), _signed(step)


def gumbel(streams: torch.Tensor, step: int, vocabulary: int) -> torch.Tensor:
    """Standard Gumbel noise ``[b, vocabulary]`` float32 of one step, for streams ``[b, 2]`` int64."""
    first = step * vocabulary + 1
    place = torch.arange(first, first + vocabulary, device=streams.device)
    x = (streams[:, 1:] * place).add_(streams[:, :1])
    x = x.bitwise_xor_(_shifted(x, 30)).mul_(_signed(_FIRST))
    x = x.bitwise_xor_(_shifted(x, 27)).mul_(_signed(_SECOND))
    x = x.bitwise_xor_(_shifted(x, 31))
    uniform = _shifted(x, 11).to(torch.float32).add_(0.5).mul_(2.0**-53).clamp_max_(1 - 2.0**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_()


class Draw:
    """A logits processor: adds each sequence's noise, so that greedy decoding draws from the softmax."""

    def __init__(self, streams: Sequence[tuple[int, int]], prompt_tokens: int, device: Any):
        self._streams = torch.tensor(streams, dtype=torch.int64, device=device)
        self._prompt_tokens = prompt_tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores + gumbel(self._streams, input_ids.shape[1] - self._prompt_tokens, scores.shape[-1])


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)  # torch shifts the sign in


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number
