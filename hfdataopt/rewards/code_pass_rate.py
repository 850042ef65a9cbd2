"""``code_pass_rate``: the share of tests that a written program passes, as a reward function of TRL's signature."""

import ast
import re
from collections.abc import Sequence
from typing import Any

from hfdataopt.errors import DataError, OptionError
from hfdataopt.rewards.sandbox import Program, Sandbox
from hfdataopt.rewards.texts import is_messages, needed_column, text_of

_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
_NO_CODE = (SyntaxError, ValueError, RecursionError, MemoryError)
_STATEMENTS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign)


def code_pass_rate(
    *,
    tests_column: str = "test",
    entry_point_column: str = "entry_point",
    prompt_column: str = "prompt",
    timeout: float = 3.0,
    memory_mb: int = 512,
    workers: int = 2,
    allow_code_execution: bool = False,
    allow_network: bool = False,
    name: str | None = None,
) -> "CodePassRate":
    """A reward function that runs each completion against the tests of its row: the share that pass, 0 to 1.

    Each test runs in a process of its own, shut off as :mod:`hfdataopt.rewards.sandbox` says; read there what it does not
    protect. The program is the completion, or the prompt and the completion where the prompt is code (a completion
    that defines the function anew replaces it). Of an answer with fenced code the block counts that defines the function,
    else the first. An empty completion, and one that is no Python, gets 0. Packages outside the standard library are missing.

    Args:
        tests_column: the dataset's column of tests: a list of strings (MBPP: assert statements), each a test; or one
            string, one test. A string that defines ``check`` is followed by ``check(<entry point>)`` (HumanEval).
        entry_point_column: the column with the name of the tested function; it may be missing where no test needs it.
        prompt_column: where the code is that a completion continues, if not in the prompt.
        timeout: seconds of wall-clock time per test.
        memory_mb: MiB per test.
        workers: tests that run at a time.
        allow_code_execution: must be True: this runs what a model writes.
        allow_network: leave the network open to the programs, and run them also where Linux namespaces are refused.
        name: under which the reward is reported.

    Raises:
        OptionError: not allowed to run code, or the sandbox cannot be made.
    """
    if allow_code_execution is not True:
        raise OptionError(
            "code_pass_rate runs programs that a model wrote, on this machine; they are shut off from it as far as Linux "
            "can (hfdataopt.rewards.sandbox says how far), and pass allow_code_execution=True if you accept that"
        )
    sandbox = Sandbox(timeout=timeout, memory_mb=memory_mb, workers=workers, allow_network=allow_network)
    return CodePassRate(sandbox, tests_column, entry_point_column, prompt_column, name or "code_pass_rate")


class CodePassRate:
    """What :func:`code_pass_rate` returns; can be pickled."""

    def __init__(
        self, sandbox: Sandbox, tests_column: str, entry_point_column: str, prompt_column: str, name: str
    ) -> None:
        self.sandbox, self.tests_column, self.entry_point_column = sandbox, tests_column, entry_point_column
        self.prompt_column = prompt_column
        self.__name__ = name

    @property
    def settings(self) -> tuple[Any, ...]:
        """What tells it from others (:mod:`hfdataopt.attribution.identity`)."""
        return self.sandbox, self.tests_column, self.entry_point_column, self.prompt_column

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """The rewards; ``DataError`` names the row whose tests cannot be used, before anything has run."""
        if self.prompt_column != "prompt":
            prompts = needed_column(columns, self.prompt_column, self.__name__)
        column = needed_column(columns, self.tests_column, self.__name__)
        entry_points = columns.get(self.entry_point_column) or [None] * len(completions)
        programs: list[Program] = []
        counts: list[tuple[int, bool]] = []
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            tests = self._tests(column[row], entry_points[row], row)
            code = _program(
                text_of(prompt), text_of(completion) if completion else "", entry_points[row], not is_messages(prompt)
            )
            programs += [Program(code, test, entry_points[row]) for test in tests if code]
            counts.append((len(tests), bool(code)))
        passed = iter([verdict == "passed" for verdict in self.sandbox.run(programs)])
        return [sum(next(passed) for _ in range(tests)) / tests if code else 0.0 for tests, code in counts]

    def _tests(self, value: Any, entry_point: str | None, row: int) -> list[str]:
        """The tests of a row, each ready to run after the program."""
        tests = [value] if isinstance(value, str) else value
        if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
            raise DataError(
                f"{self.__name__}: row {row} of the batch has {value!r:.200} in column {self.tests_column!r}; "
                "it takes a string or a list of strings, at least one"
            )
        return [self._test(test, entry_point, row) for test in tests]

    def _test(self, test: str, entry_point: str | None, row: int) -> str:
        try:
            tree = ast.parse(test)
            compile(tree, "<test>", "exec", dont_inherit=True)
        except _NO_CODE as error:
            raise DataError(
                f"{self.__name__}: a test of row {row} of the batch does not compile ({error}): {test!r:.200}"
            ) from error
        if not any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body):
            return test
        if entry_point is None:
            raise DataError(
                f"{self.__name__}: the test of row {row} of the batch defines check(), so column "
                f"{self.entry_point_column!r} must name the function to check; there is none"
            )
        return f"{test}\n\ncheck({entry_point})\n"


def _program(prompt: str, completion: str, entry_point: str | None, continues: bool) -> str:
    """Source of a row's program, empty when the completion is.

    Args:
        continues: the completion is the text right after the prompt, not an answer to it.
    """
    opened = continues and prompt.count("```") % 2  # the prompt ends inside a block
    code = completion.partition("```")[0] if opened else _fenced(completion, entry_point)
    if not code.strip():
        return ""
    start = _FENCE.findall(prompt)[-1] if opened else prompt if _runnable(prompt) else _fenced(prompt, entry_point)
    if entry_point and _defines(code, entry_point):
        return f"{_runnable(start)}\n\n{code}"
    if continues and entry_point and not _runnable(start):
        return prompt + code  # code that stops where only the completion makes it whole
    return f"{start if _runnable(start) else ''}{'' if continues else chr(10)}{code}"


def _fenced(text: str, entry_point: str | None) -> str:
    """The code block of a text: the one that defines the function, else the first; without blocks the text itself."""
    blocks = _FENCE.findall(text)
    if not blocks:
        return text
    return next((block for block in blocks if entry_point and _defines(block, entry_point)), blocks[0])


def _defines(code: str, name: str) -> bool:
    pattern = rf"^(?:(?:async[ \t]+)?def[ \t]+|class[ \t]+){re.escape(name)}\b|^{re.escape(name)}[ \t]*[=:]"
    return re.search(pattern, code, re.MULTILINE) is not None


def _runnable(prompt: str) -> str:
    """The prompt as a program, with a body where the last function has none; empty when it is no code."""
    for text in (prompt, f"{prompt.rstrip()}\n    pass\n"):
        try:
            statements = ast.parse(text).body
        except _NO_CODE:
            continue
        if any(isinstance(node, _STATEMENTS) for node in statements):
            return text
    return ""
