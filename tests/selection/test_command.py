"""``hfdataopt select``: files in, files out, the same rows as the function, and one line for each mistake."""

import json

import pytest
import yaml
from datasets import Dataset, load_from_disk

from hfdataopt import balance, diverse, quantile, sample, select, threshold, top
from hfdataopt.cli import main

WORDS = ["cat", "dog", "horse", "sparrow", "eel"]
ROWS = [
    {"text": f"{WORDS[i % 5]} {'very ' * (i * 7 % 11)}big {i}", "kind": i % 3, "row_id": f"r{i}"} for i in range(60)
]
DATA = Dataset.from_list(ROWS)


@pytest.fixture
def file(tmp_path):
    where = tmp_path / "rows.jsonl"
    where.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return where


@pytest.fixture
def call(file, tmp_path, capsys):
    def run(*argv, status=0, output="kept.jsonl"):
        argv = ["select", *map(str, argv), "--dataset", str(file), "--output", str(tmp_path / output)]
        assert main(argv) == status, capsys.readouterr().err
        return capsys.readouterr()

    return run


def rows_in(path):
    return [json.loads(line)["row_id"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        (("--fraction", 0.1), top(fraction=0.1)),
        (("--k", 7), top(k=7)),
        (("--threshold", 9), threshold(9)),
        (("--quantile", 0.8), quantile(0.8)),
        (("--rule", "sample", "--k", 5, "--temperature", 2, "--seed", 3), sample(k=5, temperature=2, seed=3)),
        (("--rule", "balance", "--balance_by", "kind", "--k", 6), balance("kind", k=6)),
        (
            ("--rule", "diverse", "--k", 4, "--diverse_method", "farthest-first", "--diverse_candidates", 3),
            diverse(k=4, method="farthest-first", candidates=3),
        ),
    ],
    ids=str,
)
def test_the_rows_of_the_function(call, tmp_path, flags, rule):
    printed = call("--filter", "length", *flags)
    assert rows_in(tmp_path / "kept.jsonl") == select(DATA, "length", rule=rule)["row_id"][:]
    assert "length: kept " in printed.out


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        ((), sample(fraction=0.5, temperature=2.0, seed=0)),
        (("--k", 3), sample(k=3, temperature=2.0, seed=0)),
        (("--k", 3, "--rule", "top"), top(k=3)),
        (("--threshold", 9), threshold(9)),
    ],
    ids=str,
)
def test_the_command_line_wins_over_an_alternative_in_the_file(call, tmp_path, flags, rule):
    (tmp_path / "select.yaml").write_text("filter: length\nfraction: 0.5\nrule: sample\ntemperature: 2.0\n")
    call("--config", tmp_path / "select.yaml", *flags)
    assert rows_in(tmp_path / "kept.jsonl") == select(DATA, "length", rule=rule)["row_id"][:]


def test_two_sizes_in_one_place_are_still_one_too_many(call, tmp_path):
    (tmp_path / "select.yaml").write_text("filter: length\nfraction: 0.5\nk: 3\n")
    assert "give exactly one of --fraction, --k" in call("--config", tmp_path / "select.yaml", status=2).err
    assert "got fraction, k" in call("--filter", "length", "--fraction", 0.5, "--k", 3, status=2).err


@pytest.mark.parametrize("flags", [("--threshold", 9), ("--rule", "sample", "--fraction", 0.2)])
def test_a_stream_keeps_the_same_rows(call, tmp_path, flags):
    call("--filter", "length", *flags)
    call("--filter", "length", *flags, "--streaming", output="stream.jsonl")
    assert rows_in(tmp_path / "stream.jsonl") == rows_in(tmp_path / "kept.jsonl")


@pytest.mark.parametrize("output", ["kept.jsonl", "kept.csv", "kept.parquet", "folder", "deep/down/kept.jsonl"])
def test_formats_of_the_output(call, tmp_path, output):
    call("--filter", "length", "--k", 3, output=output)
    loaded = (
        load_from_disk(tmp_path / output)
        if output == "folder"
        else Dataset.from_json(str(tmp_path / output))
        if output.endswith("jsonl")
        else Dataset.from_csv(str(tmp_path / output))
        if output.endswith("csv")
        else Dataset.from_parquet(str(tmp_path / output))
    )
    assert loaded["row_id"][:] == select(DATA, "length", k=3)["row_id"][:]


def test_without_a_size_every_row_gets_its_score(call, tmp_path):
    call("--filter", "length", "--unit", "characters")
    lines = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert [line["score_length"] for line in lines] == [len(row["text"]) for row in ROWS]


def test_a_yaml_file_and_the_command_line_wins(call, tmp_path):
    config = tmp_path / "select.yaml"
    config.write_text(yaml.safe_dump({"filter": "length", "unit": "characters", "fraction": 1, "best": "shortest"}))
    call("--config", config, "--fraction", 0.05)
    assert (
        rows_in(tmp_path / "kept.jsonl")
        == select(DATA, "length", fraction=0.05, unit="characters", best="shortest")["row_id"][:]
    )


def test_summaries_and_their_overlap(call, tmp_path):
    call("--filter", "length", "--k", 10, "--summary", tmp_path / "long.json")
    document = json.loads((tmp_path / "long.json").read_text())
    assert document["kept"] == 10
    assert sum(kept for _, kept in document["histogram"]) == 10
    printed = call(
        *("--filter", "length", "--best", "shortest", "--k", 10),
        *("--overlap", tmp_path / "long.json", "--quiet"),
        output="short.jsonl",
    ).out
    assert "100 %" in printed
    assert " 0 %" in printed
    assert "kept 10" not in printed, "quiet"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--filter", "lenght", "--k", 3), "no filter is called 'lenght' (did you mean 'length'?)"),
        (
            ("--filter", "length", "--k", 3, "--fraction", 0.5),
            "give exactly one of --fraction, --k, --threshold, --quantile; got fraction, k",
        ),
        (("--filter", "length", "--rule", "top"), "got none"),
        (("--filter", "length", "--k", 100), "--k 100 must be a whole number from 1 to 60"),
        (("--filter", "length", "--k", 3, "--temperature", 2), "--temperature goes with --rule sample"),
        (("--filter", "length", "--rule", "sample", "--threshold", 3), "--threshold goes without --rule"),
        (("--filter", "length", "--rule", "balance", "--k", 3), "--rule balance needs --balance_by COLUMN"),
        (
            ("--filter", "length", "--rule", "diverse", "--k", 3, "--streaming"),
            "the rule diverse needs the whole dataset",
        ),
        (
            ("--filter", "length", "--k", 3, "--streaming", "--summary", "x.json"),
            "--summary and --overlap need the whole dataset",
        ),
        (("--filter", "length", "--summary", "x.json"), "go with a size"),
        (
            ("--filter", "length", "--k", 3, "--unitt", "words"),
            "unknown argument '--unitt' (did you mean --unit?); filter 'length' of plugin",
        ),
        (("--filter", "length", "--k", 3, "--rule", "best"), "invalid choice: 'best'"),
        (("--filter", "dsir", "--k", 3), "dsir: compares rows with validation data; give --target"),
        (("--filter", "length", "--k", 3, "--text", "body"), "length: the dataset has no column 'body'"),
        (
            ("--filter", "length", "--k", 3, "--overlap", "absent.json"),
            "--overlap absent.json: not a summary written by --summary",
        ),
    ],
)
def test_one_line_for_each_mistake(call, argv, message):
    err = call(*argv, status=2).err
    assert message in err
    assert err.strip().splitlines()[-1].startswith("hfdataopt select: ")


def test_an_output_is_replaced_only_when_asked(call, tmp_path, file):
    (tmp_path / "kept.jsonl").write_text("precious")
    assert "is there already; pass --overwrite to replace it" in call("--filter", "length", "--k", 3, status=2).err
    assert (tmp_path / "kept.jsonl").read_text() == "precious"
    call("--filter", "length", "--k", 3, "--overwrite")
    assert len(rows_in(tmp_path / "kept.jsonl")) == 3
    before = file.read_text()
    err = call("--filter", "length", "--k", 3, "--overwrite", status=2, output=file.name).err
    assert "is the --dataset itself; write to another place" in err
    assert file.read_text() == before


def test_an_output_of_unknown_format_is_refused(call):
    err = call("--filter", "length", "--k", 3, status=2, output="kept.txt").err
    assert "must end in .jsonl, .json, .csv, .parquet, or have no ending, for a folder" in err


def test_without_a_size_it_says_what_it_wrote(call):
    assert "no size was given, so all rows are in" in call("--filter", "length").err
