"""``hfdataopt new-plugin NAME --kind filter``: a distribution with a component that works, to be changed into your own."""

import argparse
import importlib.util
import keyword
import re
import warnings
from pathlib import Path

from hfdataopt.errors import DataError, OptionError
from hfdataopt.plugins import PluginWarning, host

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

SCORER = '''"""The scorer {name}: say here what it measures, and where it comes from."""

from dataclasses import dataclass
from typing import Any, ClassVar

import hfdataopt


@dataclass
class {cls}(hfdataopt.PointwiseScorer):
    """Minus the number of tokens of a row, to a power.

    Args:
        power: above 1, long rows lose more.
    """

    name: ClassVar[str] = "{name}"
    meaning: ClassVar[str] = "a shorter row"

    power: float = 1.0

    def score_batch(self, model: Any, batch: dict[str, Any]) -> Any:
        return -(batch["attention_mask"].sum(1) ** self.power)


@hfdataopt.hookimpl
def register_scorers(register: Any) -> None:
    register({cls})
'''

FILTER = '''"""The filter {name}: say here what it measures, and where it comes from."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

import hfdataopt


@dataclass(frozen=True)
class {cls}(hfdataopt.TextFilter):
    """The share of different words among the words of a text.

    Args:
        lower: whether upper and lower case are the same.
    """

    name: ClassVar[str] = "{name}"
    meaning: ClassVar[str] = "a text that repeats fewer words"

    lower: bool = True

    def score(self, batch: Any) -> np.ndarray:
        words = [(text.lower() if self.lower else text).split() for text in batch.texts]
        return np.array([len(set(row)) / max(1, len(row)) for row in words])


@hfdataopt.hookimpl
def register_filters(register: Any) -> None:
    register({cls})
'''

OPTIMIZER = '''"""The optimizer {name}: say here how it searches, and where it comes from."""

from dataclasses import dataclass
from typing import Any, ClassVar

import hfdataopt


@dataclass
class {cls}(hfdataopt.PromptOptimizer):
    """Tries other wordings of the best instruction so far.

    Args:
        request: what the proposer is asked for.
    """

    name: ClassVar[str] = "{name}"
    needs = ("proposer",)

    request: str = "Say this instruction in other words. Reply with it alone.\\n\\nInstruction: "

    def start(self, task: Any) -> None:
        super().start(task)
        self.seen: set[str] = set()

    def ask(self, n: int, pending: Any = (), services: Any = None) -> list[hfdataopt.Candidate]:
        texts = list(self.task.start)[:n]
        if not texts or self.seen:
            about = self.request + (self.best.instruction if self.best else "Do the task.")
            texts = services.propose([{{"role": "user", "content": about}}], n)
        found = {{one.key: one for one in map(hfdataopt.Candidate, texts) if one.key not in self.seen}}
        self.seen |= set(found)
        return list(found.values())


@hfdataopt.hookimpl
def register_optimizers(register: Any) -> None:
    register({cls})
'''

GENERATOR = '''"""The generator {name}: say here where its completions come from."""

import random
from dataclasses import dataclass
from typing import Any, ClassVar

import hfdataopt
from hfdataopt.generation import Completion
from hfdataopt.generation.generator import Generator, check_refused, open_jobs, table


@dataclass
class {cls}(Generator):
    """Says words of the prompt again, drawn at random.

    Args:
        words: how many.
    """

    name: ClassVar[str] = "{name}"

    words: int = 4

    def describe(self) -> dict[str, Any]:
        return {{"kind": self.name, "words": self.words}}

    def generate(self, prompts, n, *, keys, seed=0, have=None, on_done=None, admit=None, allowed=None):
        made, jobs = {{}}, open_jobs(self.name, prompts, n, keys, 1.0, have)
        for index, sample in jobs:
            if admit is None or admit(index, sample):
                draws = random.Random(f"{{seed}}/{{keys[index]}}/{{sample}}")
                made[index, sample] = Completion(" ".join(draws.choices(str(prompts[index]).split(), k=self.words)))
                if on_done is not None:
                    on_done(index, sample, made[index, sample])
        check_refused(self.name, len(jobs) - len(made), len(made))
        return table(prompts, n, have, made)


@hfdataopt.hookimpl
def register_generators(register: Any) -> None:
    register({cls})
'''

TEST = '''"""The promises of a {kind}, one test each; `pytest -k batch-size` runs one."""

from hfdataopt.testing import conformance
from {module} import {cls}


@conformance({cls}())
def test_contract(check):
    check()
'''

PROJECT = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{distribution}"
version = "0.1.0"
description = "The {kind} {name} for hfdataopt."
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["hfdataopt"]

[project.optional-dependencies]
test = ["pytest"]

[project.entry-points.hfdataopt]
{name} = "{module}"

[tool.setuptools]
py-modules = ["{module}"]
"""

README = """# {distribution}

The {kind} `{name}` for hfdataopt, in [{module}.py]({module}.py).

    pip install -e '.[test]'
    pytest
    hfdataopt plugins --options
    hfdataopt check-plugin {name}

{use}
"""

USE = {
    "scorer": """```python
from hfdataopt import AttributionCallback

trainer.add_callback(AttributionCallback("{name}", power=1.0))
```""",
    "filter": """```python
from hfdataopt import select

best = select(dataset, "{name}", fraction=0.5)
```""",
    "optimizer": """```python
from hfdataopt import PromptConfig, PromptTrainer

args = PromptConfig(max_calls=200, start=["Answer the question."])
trainer = PromptTrainer("{name}", model=model, reward_funcs=reward, train_dataset=dataset, args=args)
print(trainer.train())
```""",
    "generator": """```python
from hfdataopt import get_generator

generator = get_generator("{name}", words=4)  # as model= of PromptTrainer, too
completions = generator.generate(["the film was"], n=2, keys=["a"])
```""",
}
MODULES = {"scorer": SCORER, "filter": FILTER, "optimizer": OPTIMIZER, "generator": GENERATOR}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="NAME", help="of the distribution, such as my-filter; a prefix hfdataopt- is dropped inside"
    )
    parser.add_argument("--kind", choices=MODULES, required=True, help="what it adds")
    parser.add_argument("--directory", default=".", help="where the folder NAME is made (default: here)")


def run(parser: argparse.ArgumentParser, argv: list[str]) -> int:
    """Write the distribution; status 2 where the name cannot be used or the folder exists."""
    arguments = parser.parse_args(argv)
    for file in write_plugin(arguments.name, arguments.kind, arguments.directory):
        print(f"wrote {file}")
    print(
        f"next: pip install -e '{Path(arguments.directory) / arguments.name}[test]', then pytest there; docs/plugins.md tells more"
    )
    return 0


def write_plugin(distribution: str, kind: str, directory: str = ".") -> list[Path]:
    """Write the files of a distribution into a new folder of its name, and return them.

    Raises:
        OptionError: a name that no module or component can have, or that is taken.
        DataError: the folder exists, or cannot be written.
    """
    name, module = distribution.removeprefix("hfdataopt-"), distribution.replace("-", "_")
    if not _NAME.fullmatch(distribution) or not _NAME.fullmatch(name) or keyword.iskeyword(module):
        raise OptionError(
            f"NAME={distribution!r} must be lower-case words joined by dashes, beginning with a letter, such as 'my-{kind}'"
        )
    if importlib.util.find_spec(module) is not None:
        raise OptionError(
            f"NAME={distribution!r}: Python has a module {module!r} already, which the plugin's would hide; take another"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)
        taken = host().components[kind].get(name)
    if taken is not None:
        raise OptionError(
            f"NAME={distribution!r}: plugin {taken.source} has a {kind} of the name {name!r} already; take another"
        )
    folder = Path(directory) / distribution
    if folder.exists():
        raise DataError(f"{str(folder)!r} exists already; take another name or --directory, or remove it")
    words = {
        "distribution": distribution,
        "name": name,
        "module": module,
        "kind": kind,
        "cls": "".join(word.capitalize() for word in name.split("-")),
    }
    files = {
        "pyproject.toml": PROJECT.format(**words),
        "README.md": README.format(**words, use=USE[kind].format(**words)),
        f"{module}.py": MODULES[kind].format(**words),
        "tests/test_contract.py": TEST.format(**words),
    }
    try:
        (folder / "tests").mkdir(parents=True)
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{str(folder)!r} cannot be written: {error}") from error
    return [folder / file for file in files]
