"""Prompts and completions as token ids, the way the model reads them.

A prompt is a string, taken as it is, or a list of messages, rendered with the tokenizer's chat template.
"""

from typing import Any

from hfdataopt.errors import DataError, OptionError
from hfdataopt.generation.completion import Completion

Prompt = str | list[dict[str, Any]]


def tokenizer_of(processing_class: Any, who: str) -> Any:
    """The tokenizer: ``processing_class`` itself, or the one inside a processor."""
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    if not callable(tokenizer):
        raise OptionError(f"{who}: a tokenizer is needed; got processing_class={type(processing_class).__name__}")
    return tokenizer


def check_prompt(prompt: Any, who: str, row_id: str | int) -> None:
    """Raise :class:`DataError`, naming the row, unless this is text or a list of messages, and not empty."""
    if prompt is None or (isinstance(prompt, str) and not prompt.strip()) or prompt == []:
        raise DataError(f"{who}: row {row_id!r} has no prompt (got {prompt!r}); leave it out or give it one")
    messages = isinstance(prompt, list) and all(isinstance(x, dict) and "role" in x for x in prompt)
    if not isinstance(prompt, str) and not messages:
        raise DataError(
            f"{who}: the prompt of row {row_id!r} is neither text nor a list of messages with 'role' and 'content'; "
            f"got {str(prompt)[:80]!r}"
        )


def prompt_ids(prompt: Any, processing_class: Any, who: str, row_id: str | int) -> list[int]:
    """Token ids of a prompt, ready to be continued.

    Messages: the chat template with its generation prompt (a last message of the assistant is continued). Text: with the
    special tokens that the tokenizer puts in front, without those that it puts behind.

    Raises:
        DataError: no prompt, messages without a chat template, or a template that refuses them; the row is named.
    """
    check_prompt(prompt, who, row_id)
    tokenizer = tokenizer_of(processing_class, who)
    ids = _ids(prompt, "", tokenizer, who, row_id)
    if not ids:
        raise DataError(f"{who}: the prompt of row {row_id!r} has no tokens (got {prompt!r}); leave it out")
    return ids


def completion_ids(
    completion: Completion, prompt: Any, processing_class: Any, eos: bool = True, row_id: str | int = "?"
) -> list[int]:
    """Token ids of a completion behind the ids of :func:`prompt_ids`.

    Sampled tokens are returned as they are. Text is tokenized together with its prompt, and alone where a token would
    reach across the border; behind a finished one stands the tokenizer's end token, once.

    Args:
        eos: whether the end token is part of the completion.
        row_id: for messages.
    """
    who = "completion_ids"
    tokenizer = tokenizer_of(processing_class, who)
    if completion.token_ids is not None:
        ids = list(completion.token_ids)
        ends = {tokenizer.eos_token_id, *tokenizer.all_special_ids}
        return ids[:-1] if not eos and completion.finished and ids and ids[-1] in ends else ids
    start = prompt_ids(prompt, tokenizer, who, row_id)
    joined = _ids(prompt, completion.text, tokenizer, who, row_id)
    alone = joined[: len(start)] != start
    ids = _plain(completion.text, tokenizer) if alone else joined[len(start) :]
    end = tokenizer.eos_token_id
    while ids and ids[-1] == end:
        ids = ids[:-1]
    return [*ids, end] if eos and completion.finished and end is not None else ids


def as_messages(completion: Completion | str, prompt: Any) -> str | list[dict[str, str]]:
    """A completion as TRL hands it to rewards: text for a plain prompt, one message of the assistant for messages."""
    text = completion if isinstance(completion, str) else completion.text
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def _ids(prompt: Prompt, more: str, tokenizer: Any, who: str, row_id: str | int) -> list[int]:
    """Token ids of a prompt with more text behind it."""
    if isinstance(prompt, str):
        return _read(prompt + more, tokenizer)
    return _plain(_render(prompt, tokenizer, who, row_id) + more, tokenizer)


def _plain(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _read(text: str, tokenizer: Any) -> list[int]:
    plain, whole = _plain(text, tokenizer), list(tokenizer(text)["input_ids"])
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[: start + len(plain)]
    while whole and whole[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        whole.pop()
    return whole


def _render(messages: list[dict[str, Any]], tokenizer: Any, who: str, row_id: str | int) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"{who}: the prompt of row {row_id!r} is a list of messages, but the tokenizer has no chat template; set "
            "tokenizer.chat_template, or give the prompts as text"
        )
    going_on = messages[-1]["role"] == "assistant"
    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=not going_on, continue_final_message=going_on
        )
    except Exception as error:
        raise DataError(
            f"{who}: the chat template cannot read the messages of row {row_id!r}: {type(error).__name__}: {error}"
        ) from error
