"""A 64-bit key per row and random numbers that are a function of (seed, key), so that no draw depends on order or batches."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np


def keys_of(values: Sequence[Any]) -> np.ndarray:
    """``[rows]`` uint64: of an int a bijection, of a string the first 64 bits of BLAKE2b."""
    if len(values) and not isinstance(values[0], str):
        return mix(np.array([int(value) & (2**64 - 1) for value in values], dtype=np.uint64))
    digests = b"".join(
        hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=8).digest() for value in values
    )
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def uniform(seed: int, keys: np.ndarray) -> np.ndarray:
    """``[rows]`` float64 in (0, 1)."""
    salt = mix(np.array([seed & (2**64 - 1)], dtype=np.uint64))
    return ((mix(keys ^ salt) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def gumbel(seed: int, keys: np.ndarray) -> np.ndarray:
    """``[rows]`` draws of Gumbel(0, 1): adding them to log-weights and taking the top k samples without replacement."""
    return -np.log(-np.log(uniform(seed, keys)))


def mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014), a bijection on 64 bits."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
