"""What a proposer is asked: to induce an instruction from examples, to rephrase, to improve, to criticise, to rewrite.

Each function returns messages of one turn of the user. A proposer without a chat template continues the text as it stands,
so every text ends where the answer begins.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hfdataopt.errors import DataError

Messages = list[dict[str, Any]]
ALONE = "Reply with the instruction alone."


class Example(NamedTuple):
    """An input of the task and the output that is wanted for it."""

    input: str
    output: str


class Mistake(NamedTuple):
    """An input, what the model answered, and what was wanted (None where only a reward says that it was bad)."""

    input: str
    answer: str
    expected: str | None


def show(examples: Sequence[Example]) -> str:
    """Examples as text, a blank line between them."""
    return "\n\n".join(f"Input: {example.input}\nOutput: {example.output}" for example in examples)


def induce(examples: Sequence[Example]) -> Messages:
    """Ask for the instruction behind examples (Honovich et al., 2022; APE)."""
    if not examples:
        raise DataError("induce: an instruction is induced from examples, but there are none; give rows with answers")
    return _ask(
        "These outputs were all written by following one instruction. What was it?",
        show(examples),
        f"{ALONE}\n\nThe instruction was:",
    )


def rephrase(instruction: str) -> Messages:
    """Ask for the same instruction in other words."""
    return _ask(
        "Say this instruction in other words, and keep its meaning.",
        f"Instruction: {instruction}",
        f"{ALONE}\n\nIn other words:",
    )


def improve(history: Sequence[tuple[str, float]], examples: Sequence[Example] = ()) -> Messages:
    """Ask for an instruction that scores higher than those of ``history``, ``(instruction, score)`` (OPRO).

    Scores from 0 to 1 are shown times 100. Where one lies outside, the lowest is shown as 0 and the highest as 100.
    """
    scores = [score for _, score in history]
    low, high = (0.0, 1.0) if all(0 <= score <= 1 for score in scores) else (min(scores), max(scores))
    shown = [100 if high == low else round(100 * (score - low) / (high - low)) for score in scores]
    scored = [f"Instruction: {text}\nScore: {score}" for (text, _), score in zip(history, shown, strict=True)]
    return _ask(
        "These are instructions for one task, with scores from 0 to 100; higher is better.",
        *scored,
        *(["Examples of the task:", show(examples)] if examples else []),
        f"Write a new instruction that would score higher than all of them. {ALONE}\n\nInstruction:",
    )


def criticise(instruction: str, mistakes: Sequence[Mistake]) -> Messages:
    """Ask for one reason why an instruction led to these mistakes (ProTeGi's textual gradient)."""
    return _ask(
        "A model followed this instruction and made mistakes.",
        f"Instruction: {instruction}",
        *map(_mistake, mistakes),
        "Give one reason why the instruction led to these mistakes.\n\nReason:",
    )


def rewrite(instruction: str, reason: str, mistakes: Sequence[Mistake] = ()) -> Messages:
    """Ask for an instruction without the fault that ``reason`` names (ProTeGi's edit)."""
    return _ask(
        "A model followed this instruction and made mistakes.",
        f"Instruction: {instruction}",
        *map(_mistake, mistakes),
        f"Reason: {reason}",
        f"Write a better instruction. {ALONE}\n\nInstruction:",
    )


def revise(instruction: str, answers: Sequence[tuple[str, str]], requirements: str = "") -> Messages:
    """Ask for a changed instruction, given the answers ``(input, answer)`` that this one led to (SPO)."""
    return _ask(
        "A model followed this instruction and gave these answers.",
        f"Instruction: {instruction}",
        *[f"Input: {text}\nAnswer: {answer}" for text, answer in answers],
        *([f"Requirements: {requirements}"] if requirements else []),
        f"Write a changed instruction that leads to better answers. {ALONE}\n\nInstruction:",
    )


def combine(first: str, second: str) -> Messages:
    """Ask for one instruction made of two (the crossover of evolutionary search)."""
    return _ask(
        "Make one instruction out of these two, and take the best of each.",
        f"Instruction: {first}",
        f"Instruction: {second}",
        f"{ALONE}\n\nInstruction:",
    )


def compare(prompt: str, first: str, second: str, criterion: str = "") -> Messages:
    """Ask a model which of two answers is better."""
    return _ask(
        "Which of the two answers to this prompt is better?" + (f" {criterion}" if criterion else ""),
        f"Prompt: {prompt}",
        f"Answer A: {first}",
        f"Answer B: {second}",
        "Reply with A, with B, or with tie.\n\nBetter:",
    )


def read_instruction(answer: str, longest: int = 2000) -> str | None:
    """The instruction in a proposer's answer; None where there is none, or one longer than ``longest`` characters.

    Tags, quotes and a heading before it are taken off. An answer that goes on after a blank line is cut there.
    """
    text = answer.strip()
    lower = text.lower()
    for tag in ("instruction", "ins", "prompt", "start"):
        if (start := lower.find(f"<{tag}>")) >= 0:
            text = text[start + len(tag) + 2 :]
            end = text.lower().find(f"</{tag}>")
            text = (text if end < 0 else text[:end]).strip()
            break
    else:
        text = text.split("\n\n")[0].strip()
    for heading in ("the instruction was:", "new instruction:", "instruction:", "in other words:"):
        if text.lower().startswith(heading):
            text = text[len(heading) :].strip()
    for left, right in (('"', '"'), ("'", "'"), ("“", "”"), ("**", "**"), ("`", "`")):
        if len(text) > 2 * len(left) and text.startswith(left) and text.endswith(right):
            text = text[len(left) : -len(right)].strip()
    return text if text and len(text) <= longest else None


def _ask(*parts: str) -> Messages:
    return [{"role": "user", "content": "\n\n".join(parts)}]


def _mistake(mistake: Mistake) -> str:
    wanted = "" if mistake.expected is None else f"\nExpected: {mistake.expected}"
    return f"Input: {mistake.input}\nOutput: {mistake.answer}{wanted}"


def text_of_messages(messages: Sequence[Mapping[str, Any]]) -> str:
    """Messages as one text, for a proposer that has no chat template."""
    return "\n\n".join(str(message["content"]) for message in messages)
