"""The command line: verbs, exit codes, scoring end to end, and one line for each bad argument."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from datasets import Dataset, DatasetDict

from hfdataopt import PointwiseScorer, Scores, cli, hookimpl
from hfdataopt.commands import arguments
from hfdataopt.errors import DataError
from hfdataopt.plugins import Source, host

from .tiny import bert, llama, masked_lm, texts, tokenizer
from .words import replaced

NAMES = ["bad", "good"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a classifier that does not know the names of its classes, and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    bert().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Training and validation data as JSON lines, with labels in words."""
    folder = tmp_path_factory.mktemp("data")
    for name, rows, seed in (("pool", 12, 1), ("queries", 6, 2)):
        data = texts(rows, seed).map(lambda row: {"label": NAMES[row["label"]]}, remove_columns=["label"])
        with (folder / f"{name}.jsonl").open("w") as stream:
            stream.writelines(json.dumps({"sentence": row["text"], "class": row["label"]}) + "\n" for row in data)
    return folder


@pytest.fixture
def call(capsys, monkeypatch):
    """Run the command in this process: ``(status, stdout lines, stderr lines)``."""

    def run(*argv):
        capsys.readouterr()
        try:
            status = cli.main([str(word) for word in argv])
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return status, out.splitlines(), err.splitlines()

    return run


def base(model, files, out):
    return [
        "--model",
        model,
        "--pool",
        files / "pool.jsonl",
        "--output_dir",
        out,
        "--text",
        "sentence",
        "--label",
        "class",
    ]


# -- verbs


def test_every_verb_is_listed_and_has_a_module(call):
    status, out, _ = call("--help")
    assert status == 0
    assert {"demo", "plugins", "score"} <= set(cli.VERBS)
    for verb, (module, help_text) in cli.VERBS.items():
        assert any(line.split()[:1] == [verb] and help_text in line for line in out)
        assert module == f"hfdataopt.commands.{verb.replace('-', '_')}"


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help(call, verb):
    if verb == "demo":
        pytest.importorskip("hfdataopt.commands.demo")
    status, out, err = call(verb, "--help")
    assert (status, err) == (0, [])
    assert out[0].startswith(f"usage: hfdataopt {verb}")


def test_version_and_no_verb(call):
    import hfdataopt

    assert call("--version") == (0, [hfdataopt.__version__], [])
    status, out, err = call()
    assert status == 2
    assert out[0].startswith("usage: hfdataopt")
    assert err == []


def test_plugins_prints_kind_and_name(call):
    status, out, err = call("plugins")
    assert (status, err) == (0, [])
    listed = [line.split()[0] for line in out]
    assert {"scorer/freeshap", "scorer/grad-norm", "scorer/random", "filter/length"} <= set(listed)
    for kind in ("scorer/", "filter/"):
        names = [name for name in listed if name.startswith(kind)]
        assert names == sorted(names)
    assert all("(hfdataopt " in line for line in out)
    noted = {line.split()[0] for line in out if ")  experimental: " in line}
    assert {"optimizer/opro", "optimizer/spo"} <= noted
    assert not noted & {"optimizer/ape", "optimizer/pmpo", "optimizer/random", "scorer/random"}
    status, out, _ = call("plugins", "--options")
    place = next(i for i, line in enumerate(out) if line.startswith("scorer/random"))
    assert out[place + 1].split() == ["seed"]


# -- score


def test_score_end_to_end(call, model, files, tmp_path):
    out_dir = tmp_path / "out"
    status, out, err = call(
        "score",
        "--scorer",
        "knn-shapley",
        "--k",
        2,
        "--queries",
        files / "queries.jsonl",
        "--show",
        2,
        *base(model, files, out_dir),
    )
    assert status == 0, err
    scores = Scores.load(out_dir)
    assert len(scores) == 12
    assert scores.metadata["options"]["k"] == 2
    assert [line for line in err if str(scores) in line], "the summary is said once, on stderr"
    assert out[0] == "lowest 2:"
    assert out[3] == "highest 2:"
    rows = [json.loads(line) for line in (files / "pool.jsonl").read_text().splitlines()]
    for line, row in zip([*out[1:3], *out[4:6]], [*scores.bottom(k=2), *scores.top(k=2)], strict=True):
        assert line == f"  {scores.values[row]:+.4g}  row {row}  {rows[row]['sentence']} [label {rows[row]['class']}]"
    assert scores.explain(0, 1).helpful[0].text is not None, "tokens and tokenizer are kept"


def test_a_config_file_gives_what_the_command_line_does_not(call, model, files, tmp_path):
    config = tmp_path / "score.yaml"
    config.write_text(
        f"scorer: cv-confidence\nmodel: {model}\npool: {files / 'pool.jsonl'}\noutput_dir: {tmp_path / 'out'}\n"
        "text: sentence\nlabel: class\nfolds: 3\ninverse_penalty: 1e-3\nshow: 1\nbatch_size: 4\n"
    )
    status, out, err = call("score", "--config", config, "--folds", 2)
    assert status == 0, err
    assert len(out) == 4
    options = Scores.load(tmp_path / "out").metadata["options"]
    assert (options["folds"], options["inverse_penalty"]) == (2, 1e-3)


def test_show_nothing(call, model, files, tmp_path):
    status, out, err = call("score", "--scorer", "random", "--show", 0, *base(model, files, tmp_path / "out"))
    assert (status, len(out)) == (0, 0), err


def test_a_model_without_a_classification_head_gets_one_for_the_classes(call, files, tmp_path):
    masked_lm().save_pretrained(tmp_path / "mlm")
    tokenizer().save_pretrained(tmp_path / "mlm")
    words = base(tmp_path / "mlm", files, tmp_path / "out")
    status, _, err = call("score", "--scorer", "cv-confidence", *words)
    assert status == 2
    assert "is a BertForMaskedLM; say --task classification" in err[-1]
    status, _, err = call("score", "--scorer", "cv-confidence", "--task", "classification", *words)
    assert status == 0, err


def test_checkpoints_are_scored_with_the_last_as_the_model(call, model, files, tmp_path):
    words = base(model, files, tmp_path / "out")[2:]
    status, _, err = call("score", "--scorer", "loss", "--checkpoints", model, *words)
    assert status == 0, err
    assert len(Scores.load(tmp_path / "out").metadata["moments"]) == 1


# -- bad arguments


@pytest.fixture
def refused(call):
    """The one line on stderr that the command ends with."""

    def run(*argv):
        status, out, err = call(*argv)
        assert status == 2
        assert out == []
        lines = [line for line in err if line and "Loading weights" not in line and "Generating" not in line]
        assert len(lines) == 1, lines
        assert lines[0].startswith("hfdataopt")
        return lines[0]

    return run


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["bogus"], "invalid choice: 'bogus' (choose from "),
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["plugins", "--bogus"], "unrecognized arguments: --bogus"),
        (["score"], "the following arguments are required: --scorer, --pool, --output_dir"),
        (["score", "--scorer"], "argument --scorer: expected one argument"),
        (["score", "--scorer", "freeshp"], "no scorer is called 'freeshp' (did you mean 'freeshap'?); there are: "),
        (["score", "--scorer", "random"], "the following arguments are required: --pool, --output_dir"),
        (["score", "--config", "absent.yaml"], "--config absent.yaml: [Errno 2] No such file or directory"),
    ],
)
def test_arguments_that_are_missing_or_unknown(refused, argv, says):
    assert says in refused(*argv)


SCORE = ["score", "--scorer", "knn-shapley"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (
            ["--kk", "3"],
            "unknown argument '--kk' (did you mean --k?); scorer 'knn-shapley' of plugin 'knn-shapley' (hfdataopt",
        ),
        (["--kk", "3"], "accepts: k, pooling, cosine"),
        (["stray"], "unknown argument 'stray'"),
        (["--k", "many"], "option --k many is not allowed; it takes int"),
        (["--k", "1e1"], "option --k 10.0 is not allowed; it takes int"),
        (["--k", "0"], "--k 0 must be at least 1"),
        (["--pooling", "[a"], "'[a' is not a YAML value"),
        (["--batch_size", "0"], "--batch_size must be at least 1"),
        (["--batch_size", "x"], "argument --batch_size: invalid int value: 'x'"),
        (["--show", "-1"], "--show at least 0"),
        (["--task", "regression"], "argument --task: invalid choice: 'regression'"),
        (["--model", "/nowhere/at/all"], "the model folder '/nowhere/at/all' does not exist"),
        (["--pool", "absent.jsonl"], "the data file 'absent.jsonl' does not exist"),
        (["--queries", "absent.csv"], "the data file 'absent.csv' does not exist"),
        (["--text", "body"], "the pool has no column 'body'; it has: sentence, class"),
        (["--label", "kind"], "the pool has no column 'kind'"),
    ],
)
def test_arguments_with_bad_values(refused, model, files, tmp_path, more, says):
    words = ["--queries", files / "queries.jsonl", *base(model, files, tmp_path / "out")]
    assert says in refused(*SCORE, *replaced(words, more))
    assert not (tmp_path / "out").exists(), "nothing was begun"


def test_neither_model_nor_checkpoints(refused, model, files, tmp_path):
    assert "give --model or --checkpoints" in refused(*SCORE, *base(model, files, tmp_path)[2:])


def test_queries_that_the_scorer_needs(refused, model, files, tmp_path):
    assert "scorer 'knn-shapley' needs validation data; give --queries" in refused(
        *SCORE, *base(model, files, tmp_path)
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1, 2]", "expected a mapping of argument names to values; got list"),
        ("", "got NoneType"),
        ("a: [", "while parsing a flow node"),
        ("scorer: knn-shapley\nkk: 3", "unknown argument 'kk' (did you mean 'k'?); there are: "),
        ("scorer: knn-shapley\nhelp: true", "unknown argument 'help'"),
        ("scorer: knn-shapley\nbatch_size: many", "batch_size takes int; got 'many'"),
        ("scorer: knn-shapley\nbatch_size: true", "batch_size takes int; got True"),
        ("scorer: knn-shapley\ntrust_remote_code: 'no'", "trust_remote_code takes bool; got 'no'"),
        ("scorer: knn-shapley\ntask: regression", "task is one of classification, causal; got 'regression'"),
        ("scorer: knn-shapley\nmodel: 3", "model takes str; got 3"),
        ("scorer: knn-shapley\ncheckpoints: [1]", "checkpoints takes str or a list of them; got 1"),
        ("scorer: knn-shapley\nk: 1.5", "option --k 1.5 is not allowed"),
        ("scorer: nothing", "no scorer is called 'nothing'"),
    ],
)
def test_bad_config_files(refused, model, files, tmp_path, text, says):
    config = tmp_path / "score.yaml"
    config.write_text(text)
    assert says in refused("score", "--config", config, *base(model, files, tmp_path / "out"))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("labels", "query_labels", "says"),
    [
        (["a", "b", "c"], ["a"], "the pool has 3 classes, but the model in "),
        ([0, 1, 2], [0], "the pool has 3 classes, but the model in "),
        (["a", "b", None], ["a"], "the pool: row 2 has no label"),
        ([0, 1, None], [0], "the pool: row 2 has no label"),
        (["a", "b", "a"], ["a", "z"], "the queries: row 1 has the label 'z', which is not among the classes a, b"),
        (["a", "b", "a"], ["a", None], "the queries: row 1 has no label"),
        (
            [0, 1, 0],
            ["a"],
            "the queries: row 0 has the label 'a', which is not among the classes of the pool, which are whole",
        ),
        ([0, 1, 0], None, "the queries has no column 'label'; it has: text. Say which it is with --label"),
    ],
)
def test_labels_that_do_not_fit(refused, model, tmp_path, labels, query_labels, says):
    pool = write(tmp_path / "pool.jsonl", [{"text": "fine film", "label": label} for label in labels])
    rows = [{"text": "fine"}] if query_labels is None else [{"text": "fine", "label": label} for label in query_labels]
    queries = write(tmp_path / "queries.jsonl", rows)
    line = refused(*SCORE, "--model", model, "--pool", pool, "--queries", queries, "--output_dir", tmp_path / "out")
    assert says in line


def test_a_broken_data_file_and_a_broken_model_are_one_line(refused, model, files, tmp_path):
    (tmp_path / "pool.jsonl").write_text("{not json\n")
    words = ["--model", model, "--output_dir", tmp_path / "out"]
    words += ["--queries", files / "queries.jsonl"]
    assert "could not be loaded" in refused(*SCORE, *words, "--pool", tmp_path / "pool.jsonl")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text((type(files)(model) / "config.json").read_text())
    assert "no ModelForSequenceClassification could be loaded from" in refused(
        "score", "--scorer", "random", *base(tmp_path / "model", files, tmp_path / "out")
    )


def test_a_real_process_prints_one_line_and_no_traceback(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "hfdataopt.cli",
            "score",
            "--scorer",
            "random",
            "--pool",
            "absent.csv",
            "--output_dir",
            "x",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "HFDATAOPT_PLUGINS": "random"},
    )
    assert done.returncode == 2
    assert done.stderr == "hfdataopt score: give --model or --checkpoints\n"


def test_a_reader_that_has_gone_is_no_error(tmp_path):
    code = "import sys; from hfdataopt.cli import main; sys.exit(main(['plugins']))"
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "{code}" | true; exit ${{PIPESTATUS[0]}}'],
        capture_output=True,
        text=True,
        env={**os.environ, "HFDATAOPT_PLUGINS": "random"},
    )
    assert (done.returncode, done.stderr) == (0, "")


# -- options of a component


@dataclass
class Awkward(PointwiseScorer):
    name: ClassVar[str] = "awkward"

    label: float = 1.0
    show: list[str] = field(default_factory=lambda: ["100%"])

    def score_batch(self, model, batch):
        return batch["labels"] * self.label


def test_an_option_named_like_an_argument_has_a_flag_of_its_own(call, model, files, tmp_path):
    class Plugin:
        @hookimpl
        def register_scorers(self, register):
            register(Awkward)

    plugin = Plugin()
    host().register(plugin, Source("awkward"))
    try:
        words = ["score", "--scorer", "awkward", *base(model, files, tmp_path / "out")]
        status, out, err = call(*words, "--option_label", "3", "--option_show", "[a]", "--show", "1")
        assert status == 0, err
        assert set(Scores.load(tmp_path / "out").values.tolist()) == {0.0, 3.0}
        assert len(out) == 4
        status, out, _ = call("score", "--scorer", "awkward", "--help")
        assert status == 0
        assert any("100%" in line for line in out)
    finally:
        host().manager.unregister(plugin)
        host().components["scorer"].pop("awkward")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-6", 1e-6),
        ("1.5E+3", 1500.0),
        ("null", None),
        ("[a, 2]", ["a", 2]),
        ("auto", "auto"),
        ("last:2", "last:2"),
        ("*.query", "*.query"),
        ("nan", "nan"),
    ],
)
def test_values_are_yaml(text, value):
    assert arguments._yaml(text) == value


# -- datasets


@pytest.mark.parametrize("suffix", ["csv", "parquet", "json"])
def test_files_of_every_kind(tmp_path, suffix):
    data = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    getattr(data, f"to_{suffix}")(str(tmp_path / f"data.{suffix}"))
    assert arguments.load_rows(str(tmp_path / f"data.{suffix}"), "train").to_dict() == data.to_dict()


def test_saved_folders_and_splits(tmp_path):
    data = Dataset.from_dict({"text": ["a", "b"]})
    data.save_to_disk(tmp_path / "one")
    DatasetDict(train=data, test=data.select([1])).save_to_disk(tmp_path / "many")
    assert len(arguments.load_rows(str(tmp_path / "one"), "train")) == 2
    assert len(arguments.load_rows(str(tmp_path / "many"), "train")) == 2
    assert len(arguments.load_rows(f"{tmp_path / 'many'}:test", "train")) == 1
    with pytest.raises(DataError, match=r"has no split 'validation'; it has: train, test. Write .*many:SPLIT"):
        arguments.load_rows(str(tmp_path / "many"), "validation")


def test_a_dataset_that_is_nowhere(tmp_path):
    with pytest.raises(DataError, match="the dataset 'nobody/nothing' could not be loaded"):
        arguments.load_rows("nobody/nothing", "train")


def test_columns_are_renamed():
    data = Dataset.from_dict({"body": ["a"], "text": ["old"], "kind": ["x"]})
    renamed = arguments.rename_columns(data, "body", "kind", "pool")
    assert renamed.to_dict() == {"text": ["a"], "label": ["x"]}


# -- scorers of generating models


def test_nice_with_a_reward_by_name_and_groups_of_queries(call, tmp_path, monkeypatch):
    llama().save_pretrained(tmp_path / "lm")
    tokenizer(special=False).save_pretrained(tmp_path / "lm")
    (tmp_path / "own_rewards.py").write_text(
        "def fine(completions, **kwargs):\n    return [float(text.count('fine')) for text in completions]\n"
    )
    pool = [{"prompt": "the film was", "completion": word} for word in ("fine", "poor", "dire", "great")]
    queries = [{"prompt": f"the {word} was", "kind": word} for word in ("plot", "scene", "actor")]
    for name, rows in (("pool", pool), ("queries", queries)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    argv = ["score", "--scorer", "nice", "--model", "lm", "--pool", "pool.jsonl", "--queries", "queries.jsonl"]
    argv += ["--output_dir", "out", "--max_new_tokens", "6", "--precondition", "none", "--basis", "exact"]
    argv += ["--query_group", "kind", "--aggregate", "max"]
    status, _, err = call(*argv, "--reward_funcs", "own_rewards:fine")
    assert status == 0, err
    assert any("variance within a query" in line for line in err)
    scores = Scores.load(tmp_path / "out")
    assert scores.top(k=1) == [0]
    assert scores.metadata["aggregate"] == "max"
    assert "own_rewards" not in sys.path
    status, _, err = call(*argv, "--reward_funcs", "own_rewards:missing")
    assert status == 2
    assert "cannot be imported" in err[-1]
    assert "Traceback" not in "".join(err)


def test_several_files_and_patterns_are_read_one_after_another(tmp_path):
    for name, text in (("a", "one"), ("b", "two"), ("c", "three")):
        Dataset.from_dict({"text": [text]}).to_json(tmp_path / f"part-{name}.jsonl")
    named = [str(tmp_path / f"part-{name}.jsonl") for name in "cab"]
    assert arguments.load_rows(named, "train")["text"][:] == ["three", "one", "two"]
    assert arguments.load_rows(str(tmp_path / "part-*.jsonl"), "train")["text"][:] == ["one", "two", "three"]
    assert [row["text"] for row in arguments.load_rows(named, "train", streaming=True)] == ["three", "one", "two"]
    assert len(arguments.load_rows(str(tmp_path), "train")) == 3, "a folder of files"


def test_evaluate_takes_a_config_file_too(call, model, files, tmp_path):
    scores = tmp_path / "scores"
    assert call("score", "--scorer", "loss", *base(model, files, scores))[0] == 0
    (tmp_path / "evaluate.yaml").write_text(
        f"scores: {scores}\npool: [{files / 'pool.jsonl'}]\nfractions: [0.5, 1]\noutput_dir: {tmp_path / 'out'}\nflipped: wrong\n"
    )
    status, _, err = call("evaluate", "--config", tmp_path / "evaluate.yaml")
    assert (status, err) == (2, ["hfdataopt evaluate: the pool has no column 'wrong'; it has: sentence, class"])
    (tmp_path / "demo.yaml").write_text("seeds: many\n")
    status, _, err = call("demo", "--config", tmp_path / "demo.yaml")
    assert (status, err) == (2, [f"hfdataopt demo: --config {tmp_path / 'demo.yaml'}: seeds takes int; got 'many'"])


# -- help


@pytest.mark.parametrize("component", host().all_components(), ids=lambda c: f"{c.kind}-{c.name}")
def test_every_option_has_its_help(component):
    from hfdataopt.options import option_help

    described = option_help(component.cls)
    assert [option for option in component.options if option not in described and option != "rule"] == []
    if component.kind != "generator":
        parser = arguments.Parser(prog="x")
        arguments.add_component_options(parser, component, leave_out=("rule",))
        text = " ".join(parser.format_help().split())
        assert not re.search(r"\bAny[];,]", text)
        assert "typing." not in text
        assert "``" not in text


@pytest.mark.parametrize(
    ("message", "typed"),
    [
        ("drop such rows with on_nan='drop'", "drop such rows with --on_nan drop"),
        ("give target=", "give --target"),
        ("text='my column' is no column", "--text 'my column' is no column"),
        ("k=3 must be at most 2", "--k 3 must be at most 2"),
        ("e.g. top(fraction=0.1), or map(f, batched=True)", "e.g. top(fraction=0.1), or map(f, batched=True)"),
        ("keep=top(k=3) and n=4; target=Dataset({...})", "keep=top(k=3) and n=4; target=Dataset({...})"),
        ("--on_nan=drop stands there already", "--on_nan=drop stands there already"),
    ],
)
def test_options_in_errors_are_spelled_as_they_are_typed(message, typed):
    parser = arguments.Parser(prog="hfdataopt select")
    for name in ("text", "target", "k", "fraction"):
        parser.add_argument(f"--{name}")
    arguments.add_component_options(parser, host().get("filter", "length"), leave_out=("rule", "text"))
    assert parser.spelled(message) == typed


def test_a_name_that_is_neither_here_nor_on_the_hub_is_said_to_be_neither(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError, match=r"it is no file or folder here \(there is no folder 'data'\), and no dataset of the hub"
    ):
        arguments.load_rows("data/rows", "train")
    with pytest.raises(DataError, match=r"it is no file or folder here, and no dataset of the hub that can be read: "):
        arguments.load_rows("rows:train", "train")
