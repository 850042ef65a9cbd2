"""Any words on the command line, any YAML and any data file: status 0, or one line on stderr and status 2."""

import contextlib
import functools
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from hfdataopt import cli
from hfdataopt.commands.arguments import Parser, add_component_options, apply_config_file, load_rows, read_config
from hfdataopt.errors import DataError
from hfdataopt.plugins import host
from hfdataopt.testing.tiny import bert, texts, tokenizer

from .inputs import awkward_texts, nested, odd_numbers, scalars, surrogates, words
from .kinds import folder, kind, outcome, refused

pytestmark = pytest.mark.filterwarnings("ignore")


@functools.cache
def world() -> Path:
    """A folder with a model, rows and scores, in which the commands run."""
    place = tempfile.TemporaryDirectory(prefix="hfdataopt-properties-")
    _KEPT.append(place)
    where = Path(place.name)
    bert().save_pretrained(where / "model")
    tokenizer().save_pretrained(where / "model")
    texts(8).to_json(where / "pool.jsonl")
    (where / "empty.jsonl").write_text("")
    (where / "broken.jsonl").write_text("{no\n")
    (where / "own_rewards.py").write_text("def one(completions, **kwargs):\n    return [1.0] * len(completions)\n")
    status, said = typed(
        ["score", "--scorer", "random", "--model", "model", "--pool", "pool.jsonl", "--output_dir", "scores"], where
    )
    assert status == 0, said
    return where


_KEPT: list[Any] = []


def typed(argv: list[str], where: Path) -> tuple[int, str]:
    """Status and stderr of a command."""
    before, err = os.getcwd(), io.StringIO()
    try:
        os.chdir(where)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
            try:
                status = cli.main(argv)
            except SystemExit as stop:  # --help
                status = int(stop.code or 0)
    finally:
        os.chdir(before)
    return status, err.getvalue()


def check(argv: list[str]) -> int:
    """The command ends well, or says in one line why not; what it says is no surprise to itself."""
    status, said = typed(argv, world())
    lines = [line for line in said.splitlines() if line.startswith("hfdataopt")]
    assert status in (0, 2), said
    assert "Traceback" not in said
    assert "unexpected " not in said.partition("unexpected keyword")[0], said
    if status == 2 and "--help" not in argv and argv and argv[0] != "--":
        assert len(lines) == 1, said
        assert len(lines[0]) <= 1100
    return status


VERBS = sorted(cli.VERBS)
FLAGS = [
    *(
        "--scorer",
        "--filter",
        "--optimizer",
        "--model",
        "--pool",
        "--dataset",
        "--queries",
        "--target",
        "--output_dir",
        "--output",
    ),
    *(
        "--text",
        "--label",
        "--batch_size",
        "--k",
        "--fraction",
        "--threshold",
        "--rule",
        "--config",
        "--seed",
        "--seeds",
        "--show",
    ),
    *(
        "--flipped",
        "--scores",
        "--lds",
        "--reward_funcs",
        "--judge",
        "--max_calls",
        "--items",
        "--options",
        "--kind",
        "--dry-run",
    ),
    *(
        "--option_k",
        "--overwrite",
        "--task",
        "--checkpoints",
        "--",
        "-h",
        "-1",
        "--=",
        "--trust_remote_code",
        "--balance_by",
    ),
]
VALUES = [
    *(
        "loss",
        "random",
        "length",
        "bm25",
        "ape",
        "model",
        "pool.jsonl",
        "empty.jsonl",
        "broken.jsonl",
        "scores",
        "absent",
        "text",
    ),
    *(
        "label",
        "1",
        "0",
        "-1",
        "nan",
        "1e400",
        "0.5",
        "null",
        "[a",
        "{}",
        "*",
        "own_rewards:one",
        "own_rewards",
        "top",
        "",
        "a=b",
    ),
    *("pool.jsonl:train", "scores:x", "model/config.json", ".", "~", "/", "\x00", "x" * 300),
]
# Nothing is downloaded, trained or written outside of the folder: verbs that would are given no chance to begin.
safe = st.sampled_from([verb for verb in VERBS if verb not in ("demo", "check-plugin", "new-plugin", "optimize")])
value = st.sampled_from(VALUES) | awkward_texts | surrogates


@kind(40, argv=st.lists(st.sampled_from([*VERBS, *FLAGS]) | value, max_size=3))
def test_any_words(argv):
    if argv[:1] not in (["demo"], ["check-plugin"], ["new-plugin"], ["plugins"]):
        check(argv)


@kind(60, verb=safe, more=st.lists(st.tuples(st.sampled_from(FLAGS), value), max_size=5))
def test_flags_and_values_in_any_combination(verb, more):
    check([verb, *[word for pair in more for word in pair]])


SELECT = ["select", "--filter", "length", "--dataset", "pool.jsonl", "--output", "best.jsonl", "--overwrite"]
CHANGES = [
    "--k",
    "--fraction",
    "--threshold",
    "--rule",
    "--seed",
    "--text",
    "--unit",
    "--best",
    "--on_nan",
    "--column",
    "--dataset",
]


@kind(30, more=st.lists(st.tuples(st.sampled_from(CHANGES), value), min_size=1, max_size=3))
def test_selecting_with_any_value(more):
    argv = [*SELECT, *[word for pair in more for word in pair]]
    if check(argv) == 0:
        for line in (world() / "best.jsonl").read_text().splitlines():
            assert set(json.loads(line)) >= {"text", "label"}


SCORE = ["score", "--scorer", "random", "--model", "model", "--pool", "pool.jsonl", "--dry-run", "--output_dir", "out"]


@kind(
    24,
    more=st.lists(
        st.tuples(
            st.sampled_from(
                [
                    "--batch_size",
                    "--show",
                    "--seed",
                    "--text",
                    "--label",
                    "--task",
                    "--query_group",
                    "--aggregate",
                    "--k",
                    "--split",
                ]
            ),
            value,
        ),
        min_size=1,
        max_size=2,
    ),
)
def test_scoring_with_any_value(more):
    check([*SCORE, *[word for pair in more for word in pair]])


@kind(
    16,
    more=st.lists(
        st.tuples(
            st.sampled_from(
                [
                    "--scores",
                    "--pool",
                    "--dataset",
                    "--flipped",
                    "--text",
                    "--label",
                    "--output",
                    "--output_dir",
                    "--seeds",
                    "--fractions",
                ]
            ),
            value,
        ),
        min_size=1,
        max_size=3,
    ),
    verb=st.sampled_from(["evaluate", "report"]),
)
def test_reports_and_evaluations_with_any_value(verb, more):
    start = {
        "evaluate": ["evaluate", "--scores", "scores", "--pool", "pool.jsonl", "--output_dir", "ev"],
        "report": ["report", "scores"],
    }
    check([*start[verb], *[word for pair in more for word in pair]])


# -- configurations


@functools.cache
def parser() -> Parser:
    made = Parser(prog="hfdataopt score")
    made.add_argument("--pool", nargs="+")
    made.add_argument("--batch_size", type=int, default=8)
    made.add_argument("--fraction", type=float)
    made.add_argument("--task", choices=["classification", "causal"])
    made.add_argument("--verbose", action="store_true")
    made.add_argument("--config")
    add_component_options(made, host().get("scorer", "knn-shapley"))
    return made


@kind(
    40,
    content=st.binary(max_size=30)
    | st.text(max_size=30).map(str.encode)
    | nested.map(lambda x: json.dumps(x).encode())
    | st.sampled_from(
        [
            b"a: *b",
            b"&a [*a]",
            b"!!python/object/apply:os.system [ls]",
            b"? [a]\n: b",
            b"{[a]: 1}",
            b"a: 2020-01-01",
            b"\xff\xfe",
            b"-" * 99,
            b"[" * 1000,
        ]
    ),
)
def test_yaml_files_of_any_content(content):
    with folder() as where:
        (where / "a.yaml").write_bytes(content)
        found = outcome(lambda: read_config(str(where / "a.yaml")))
        assert refused(found) or isinstance(found, dict)


@kind(
    60,
    name=st.sampled_from(
        ["pool", "batch_size", "fraction", "task", "verbose", "k", "cosine", "pooling", "config", "help", "", "kk"]
    ),
    given=nested | odd_numbers | scalars,
)
def test_yaml_entries_of_any_value(name, given):
    """What a file gives is held to what the command line would accept."""
    import yaml

    with folder() as where:
        file = where / "a.yaml"
        try:
            file.write_text(yaml.safe_dump({name: given}, allow_unicode=True), encoding="utf-8")
        except (yaml.YAMLError, UnicodeError):
            return

        def run() -> Any:
            apply_config_file(parser(), str(file))
            return parser().parse_args([])

        defaults = dict(parser()._defaults)
        found = outcome(run)
        parser()._defaults.clear()
        parser()._defaults.update(defaults)
        for action in parser()._actions:
            if action.dest in ("pool", "batch_size", "fraction", "task", "verbose"):
                action.default = {"batch_size": 8, "verbose": False}.get(action.dest)
            elif action.dest.startswith("option_"):
                action.default = "==SUPPRESS=="
    if name in ("config", "help", "", "kk"):
        assert refused(found)
    elif not refused(found) and name in ("batch_size", "verbose"):
        assert type(getattr(found, name)) is {"batch_size": int, "verbose": bool}[name]


# -- data files


@kind(
    40,
    suffix=st.sampled_from([".jsonl", ".json", ".csv", ".parquet"]),
    content=st.binary(max_size=40)
    | st.lists(nested.map(json.dumps), max_size=3).map(lambda x: "\n".join(x).encode())
    | st.text(max_size=40).map(lambda x: x.encode("utf-8", "surrogatepass")),
)
def test_data_files_of_any_content(suffix, content):
    with folder() as where:
        file = where / f"data{suffix}"
        file.write_bytes(content)
        found = outcome(lambda: load_rows(str(file), "train"))
        if not refused(found):
            assert len(found) == len(list(found))


@kind(
    40,
    spec=awkward_texts
    | surrogates
    | words
    | st.sampled_from(
        [
            "a:b:c",
            ":",
            ":train",
            "*.jsonl",
            "[",
            "**",
            "a/b/c",
            "../..",
            "hf://x",
            "http://localhost:1/x.csv",
            "x.jsonl:train",
            "-",
            "~/x",
        ]
    ),
    more=st.none() | awkward_texts,
)
def test_names_of_datasets_of_any_kind(spec, more):
    with folder() as where:
        before = os.getcwd()
        os.chdir(where)
        try:
            found = outcome(lambda: load_rows(spec if more is None else [spec, more], "train"))
        finally:
            os.chdir(before)
    assert refused(found)


@pytest.mark.parametrize(
    "content", ["null", 'null\n{"a": 1}', "\n null", "\ufeffnull", "1", '"text"', '[null, {"a": 1}]', "[ 1]"]
)
def test_json_that_holds_no_rows(content, tmp_path):
    """Arrow's reader ends the process on a first ``null``."""
    (tmp_path / "data.jsonl").write_text(content)
    with pytest.raises(DataError, match="holds no rows: it begins with"):
        load_rows(str(tmp_path / "data.jsonl"), "train")
