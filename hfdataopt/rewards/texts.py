"""Plain text of prompts and completions, which are strings or lists of messages (``{"role": ..., "content": ...}``)."""

from collections.abc import Mapping
from typing import Any

from hfdataopt.errors import OptionError


def is_messages(value: Any) -> bool:
    """Whether a value is a conversation: a list whose first item is a message."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "content" in value[0]


def text_of(value: Any) -> str:
    """A string as it is; of messages the text of the last one, which is the answer.

    Raises:
        TypeError: neither.
    """
    if isinstance(value, str):
        return value
    if is_messages(value):
        return _content(value[-1])
    raise TypeError(f"a string or a list of messages was expected, got {value!r:.200}")


def transcript(value: Any) -> str:
    """A prompt as one text: of several messages ``role: content``, a blank line between; one alone without its role."""
    if isinstance(value, str):
        return value
    if not is_messages(value):
        raise TypeError(f"a string or a list of messages was expected, got {value!r:.200}")
    if len(value) == 1:
        return _content(value[0])
    return "\n\n".join(f"{message['role']}: {_content(message)}" for message in value)


def _content(message: dict[str, Any]) -> str:
    content = message["content"]
    if content is None:  # a message that only calls a tool
        return ""
    if isinstance(content, str):
        return content
    return "".join(block["text"] for block in content if block.get("type") == "text")


def needed_column(columns: Mapping[str, Any], name: str, who: str) -> list[Any]:
    """The dataset's column that a reward function needs.

    Raises:
        OptionError: it is not among the keywords.
    """
    if name not in columns:
        keywords = ("prompts", "completions", "completion_ids")
        there = [column for column, values in columns.items() if isinstance(values, list) and column not in keywords]
        raise OptionError(f"{who}: the dataset has no column {name!r}; its columns are {', '.join(there)}")
    return columns[name]
