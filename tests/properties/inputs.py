"""Strategies of bad and good input that several kinds share."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from hfdataopt.testing.tiny import BAD, GOOD, PLAIN

words = st.lists(st.sampled_from([*GOOD, *BAD, *PLAIN]), min_size=1, max_size=8).map(" ".join)
# As datasets can hold them: pyarrow takes no lone surrogates.
awkward_texts = st.sampled_from(
    [
        "",
        " ",
        "\n",
        "\t\r\n",
        "\x00",
        "a\x00b",
        "\x1b[31mred",
        "\u202e right to left",
        "é" * 3,
        "é",
        "😀" * 2,
        "\ufeff",
        "\u2028",
        "{}",
        "{text}",
        "%s",
        "<eos>",
        "[PAD]",
        "[CLS] [SEP]",
        "NaN",
        "None",
        "-1",
        "the " * 400,
        "x" * 5000,
    ]
) | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
any_text = words | awkward_texts
surrogates = st.text(st.characters(categories=["Cs", "Lu"]), min_size=1, max_size=4)
odd_numbers = st.sampled_from(
    [
        0,
        -1,
        1,
        2,
        3,
        -100,
        2**31,
        -(2**31),
        2**63 - 1,
        10**30,
        0.0,
        -0.0,
        0.5,
        1.5,
        -2.5,
        1e-320,
        1e308,
        math.nan,
        math.inf,
        -math.inf,
    ]
)
scalars = st.none() | st.booleans() | odd_numbers | awkward_texts
# What is no plain JSON: of libraries, and of Python.
objects = st.sampled_from(
    [
        *(
            np.float64(0.5),
            np.float32("nan"),
            np.int64(3),
            np.bool_(True),
            np.array([1.0]),
            np.array(2.0),
            np.zeros((2, 2)),
        ),
        *(np.array([]), np.str_("fine"), torch.tensor(0.5), torch.tensor([1.0]), torch.zeros(2, 2), torch.tensor(True)),
        *(
            1j,
            Fraction(1, 3),
            b"bytes",
            object(),
            object,
            len,
            lambda *_: None,
            range(3),
            {1, 2},
            frozenset(),
            (),
            iter([]),
        ),
        *(Ellipsis, NotImplemented, ValueError("no"), slice(1), bytearray(b"a")),
    ]
)
nested = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "a", ""]), inner, max_size=3)
    ),
    max_leaves=5,
)
anything = scalars | objects | nested

contents = st.one_of(
    words,
    awkward_texts,
    st.none(),
    odd_numbers,
    st.lists(
        st.dictionaries(
            st.sampled_from(["type", "text", "image"]), words | st.sampled_from(["text", "image"]), max_size=3
        ),
        max_size=2,
    ),
)
messages = st.lists(
    st.one_of(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": words}),
        st.fixed_dictionaries({"role": st.sampled_from(["user", "tool", "", None, 3]), "content": contents}),
        st.dictionaries(st.sampled_from(["role", "content", "text", "tool_calls"]), contents, max_size=3),
        st.none(),
        words,
    ),
    max_size=3,
)


def rectangular(rows: list[dict[str, Any]]) -> Any:
    """The rows as a ``Dataset``, or None where Arrow cannot hold them."""
    from datasets import Dataset

    try:
        return Dataset.from_list(rows)
    except Exception:
        return None


def dataset_of(columns: dict[str, list[Any]]) -> Any:
    """The columns as a ``Dataset``, or None where Arrow cannot hold them."""
    from datasets import Dataset

    try:
        return Dataset.from_dict(columns)
    except Exception:
        return None
