"""No line of the package, its plugins, examples and benchmarks runs text or unpickles what it was given."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = sorted(
    p for folder in ("hfdataopt", "plugins", "benchmarks", "examples") for p in (ROOT / folder).rglob("*.py")
)
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "code", "runpy"}
UNSAFE_NAMES = {"eval", "exec", "compile", "__import__"}
UNSAFE_CALLS = {
    *(("os", name) for name in ("system", "popen")),
    *(("yaml", name) for name in ("load", "load_all", "unsafe_load", "full_load")),
    *(("tempfile", "mktemp"), ("pandas", "read_pickle"), ("pd", "read_pickle")),
    *(("torch", "load"), ("torch.jit", "load"), ("torch.serialization", "load")),
}
# What is found in a file, and why it may be there.
ALLOWED = {
    "hfdataopt/rewards/sandbox.py": (
        {"marshal", "compile"},
        "hands its own two files and a test to the process that runs them",
    ),
    "hfdataopt/rewards/sandbox_inside.py": (
        {"marshal", "exec"},
        "runs in the process that was shut off; reads its parent only",
    ),
    "hfdataopt/rewards/sandbox_judge.py": ({"exec", "compile"}, "runs in the process that was shut off"),
    "hfdataopt/commands/score.py": (
        {"trust_remote_code"},
        "hands on the flag --trust_remote_code, which is off by default",
    ),
    "hfdataopt/commands/arguments.py": ({"trust_remote_code"}, "hands on what its caller says, by default no"),
    "hfdataopt/rewards/code_pass_rate.py": ({"compile"}, "a syntax check: what comes out of it is thrown away"),
}


def unsafe(source: str) -> set[str]:
    return set(_found(ast.parse(source)))


def _found(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in UNSAFE_MODULES)
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in UNSAFE_MODULES:
                yield node.module or ""
            yield from (f"{node.module}.{x.name}" for x in node.names if (node.module, x.name) in UNSAFE_CALLS)
        elif isinstance(node, ast.Call):
            yield from _in_call(node)


def _in_call(node: ast.Call) -> Iterator[str]:
    words = {word.arg: word.value for word in node.keywords if word.arg}
    if isinstance(node.func, ast.Name) and node.func.id in UNSAFE_NAMES:
        yield node.func.id
    if isinstance(node.func, ast.Attribute):
        owner, name = ast.unparse(node.func.value), node.func.attr
        restricted = _constant(words.get("weights_only")) is True
        if (owner, name) in UNSAFE_CALLS and not (owner == "torch" and name == "load" and restricted):
            yield f"{owner}.{name}"
        if owner == "builtins" and name in UNSAFE_NAMES:
            yield name
    for option in ("allow_pickle", "shell", "trust_remote_code"):
        if option in words and _constant(words[option]) is not False:
            yield option


def _constant(node: ast.expr | None) -> object:
    return node.value if isinstance(node, ast.Constant) else None


def test_nothing_loads_pickles_or_runs_text() -> None:
    found = {path.relative_to(ROOT).as_posix(): unsafe(path.read_text()) for path in PYTHON}
    assert {name: what for name, what in found.items() if what} == {name: what for name, (what, _) in ALLOWED.items()}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import cloudpickle as p",
        "from dill import load",
        "from joblib import load",
        "import marshal",
        "import shelve",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "torch.load(f, weights_only=x)",
        "eval('1')",
        "exec(text)",
        "compile(text, '', 'exec')",
        "builtins.eval(text)",
        "__import__(name)",
        "np.load(f, allow_pickle=True)",
        "np.load(f, allow_pickle=x)",
        "yaml.load(f)",
        "yaml.unsafe_load(f)",
        "from yaml import full_load",
        "pd.read_pickle(f)",
        "os.system(c)",
        "subprocess.run(c, shell=True)",
        "tempfile.mktemp()",
        "from tempfile import mktemp",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=trust)",
    ],
)
def test_the_scan_finds_it(source: str) -> None:
    assert len(unsafe(source)) == 1


def test_the_scan_leaves_what_is_safe_alone() -> None:
    safe = "model.eval(); yaml.safe_load(f); np.load(f, allow_pickle=False); re.compile(p); torch.load(f, weights_only=True)"
    assert unsafe(safe + "; run(a, shell=False); load(x, trust_remote_code=False)") == set()
