"""The report's content, from what the commands wrote: each number against another way to compute it."""

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from datasets import Dataset, load_dataset

from hfdataopt import Scores, cli
from hfdataopt.errors import DataError, OptionError
from hfdataopt.evaluation import label_noise_auc
from hfdataopt.report import write_report
from hfdataopt.report.sections import rank_shares
from hfdataopt.report.write import TITLES

from .conftest import BEFORE, FLIPPED, ROWS


class Page(HTMLParser):
    """Elements and text of a page; every start has its end."""

    VOID = ("meta", "link", "img", "br", "line", "path", "rect", "circle", "input")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.open: list[str] = []
        self.sections: dict[str, str] = {}
        self.section = ""
        self.feed(self.source)
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag == "section":
            self.section = dict(attributes)["id"]
            self.sections[self.section] = ""
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: Any) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        if tag in self.VOID:
            return
        assert self.open.pop() == tag
        if tag == "section":
            self.section = ""

    def handle_data(self, data: str) -> None:
        if self.section:
            self.sections[self.section] += f" {data}"

    def text(self, section: str) -> str:
        return " ".join(self.sections[section].split())

    def links(self) -> list[str]:
        return [a["href"] for tag, a in self.tags if tag == "a" and "href" in a]


@pytest.fixture(scope="module")
def page(work: Path) -> Page:
    where = work / "out" / "report.html"
    words = [
        "report",
        *(work / name for name in ("scores", "evaluation", "search")),
        *sorted(work.glob("*-summary.json")),
    ]
    words += [
        "--dataset",
        work / "pool.jsonl",
        "--queries",
        work / "queries.jsonl",
        "--text",
        "sentence",
        "--label",
        "class",
    ]
    words += [
        "--flipped",
        "wrong",
        "--output",
        where,
        "--card",
        work / "out" / "card.md",
        "--figures",
        work / "out" / "figures",
    ]
    assert cli.main([str(word) for word in words]) == 0
    return Page(where)


def test_all_sections_are_there_and_in_the_navigation(page: Page) -> None:
    assert list(page.sections) == [name for name in TITLES if name != "absent"]
    assert page.links() == ["#summary", *(f"#{name}" for name in page.sections)]


def test_headings_go_down_one_by_one_and_tables_have_scopes_and_images_words(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all(a.get("scope") in ("col", "row") for tag, a in page.tags if tag == "th")
    assert all(a.get("aria-label") or a.get("aria-hidden") for tag, a in page.tags if tag == "svg")
    assert len([tag for tag, _ in page.tags if tag == "svg"]) > 10


def test_nothing_is_loaded_and_nothing_runs(page: Page) -> None:
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "iframe", "object", "embed", "form", "base", "img"}
    assert not re.findall(r"https?://", page.source)
    assert all(a["href"].startswith("data:") for tag, a in page.tags if tag == "link")
    assert not [a for _, a in page.tags if any(name.startswith("on") or name == "style" for name in a)]
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_a_hostile_row_is_text_and_a_long_one_is_cut(page: Page) -> None:
    assert "<script" not in page.source
    assert "&lt;script&gt;window.hit=1&lt;/script&gt;" in page.source
    assert "cut after 600 of 1,250,165 characters" in page.text("rows")
    assert len(page.source) < 400_000
    assert not re.findall(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\u200b]", page.source)
    assert "[U+202E]right to left" in page.source
    assert "nul\u2400bell\u2407esc\u241b[31m[U+200B]zero" in page.source
    assert "\U0001f468\u200d\U0001f469\u200d\U0001f467" in page.source
    assert "{{ 7*7 }}" in page.text("rows")
    assert "49{% raw" not in page.text("rows")


def test_rows_at_both_ends_with_their_nearest_queries(page: Page, work: Path) -> None:
    scores = Scores.load(work / "scores" / "tracin")
    queries = load_dataset("json", data_files=str(work / "queries.jsonl"), split="train")
    text = page.text("rows").partition("By loss")[0]
    for row in (*scores.bottom(k=10), *scores.top(k=10)):
        assert re.search(rf"row {row}\b", text)
    assert scores.matrix is not None
    worst = scores.bottom(k=1)[0]
    nearest = sorted(range(len(queries)), key=lambda q: scores.matrix[worst, q])[:3]
    first = text.partition("Harms these queries most")[2].partition("row ")[0]
    assert [int(one) for one in re.findall(r"query (\d+)", first)] == nearest
    assert all(queries[q]["sentence"] in first for q in nearest)


def test_agreement_is_spearmans(page: Page, work: Path) -> None:
    values = {name: Scores.load(work / "scores" / name).values for name in ("tracin", "loss", "random")}
    text = page.text("agreement").replace("−", "-")
    for one in values:
        for other in values:
            assert f"{scipy.stats.spearmanr(values[one], values[other]).statistic:.2f}".replace("-0.00", "0.00") in text
    assert f"over {ROWS} rows in common" in text


def test_label_errors_by_majority_and_auc(page: Page, work: Path) -> None:
    auc = label_noise_auc(Scores.load(work / "scores" / "tracin"), [row in FLIPPED for row in range(ROWS)]).auc
    assert f"{auc.value:.3g} ({auc.low:.3g} to {auc.high:.3g})" in page.text("labels")
    assert "known error" in page.text("rows")
    methods = {name: Scores.load(work / "scores" / name) for name in ("tracin", "loss")}
    lowest = {row for one in methods.values() for row in one.bottom(k=1)}  # 5 % of 32 rows
    shown = page.text("labels").partition("How well")[0]
    assert set(map(int, re.findall(r"row (\d+)\b", shown))) == lowest


def test_rank_shares_by_hand() -> None:
    one, other = Scores(np.array([3.0, 1.0, np.nan, 2.0]), [0, 1, 2, 3]), Scores(np.array([5.0, 4.0]), [7, 3])
    ids, shares = rank_shares({"one": one, "other": other})
    assert ids == [0, 1, 2, 3, 7]
    nan = np.nan
    np.testing.assert_allclose(shares, [[1, 1 / 3, nan, 2 / 3, nan], [nan, nan, nan, 0.5, 1]])


def test_curves_have_every_point_with_its_interval(page: Page, work: Path) -> None:
    curves = json.loads((work / "evaluation" / "evaluation.json").read_text())["curves"]
    text = page.text("retraining").replace("−", "-")
    assert len(curves["points"]) == 12
    for point in curves["points"]:
        one = point["utility"]
        assert f"{one['value']:.3g} ({one['low']:.3g} to {one['high']:.3g})" in text
    assert "linear datamodeling" in text.lower()


def test_selections_and_what_they_share(page: Page, work: Path) -> None:
    one, other = (json.loads((work / f"{name}-summary.json").read_text())["kept_ids"] for name in ("length", "random"))
    share = len(set(one) & set(other)) / 16
    assert f"{100 * share:.0f} %" in page.text("selection")
    assert page.text("selection").count("Kept 16 of 32 rows") == 2


def test_search_its_evidence_and_its_cost_by_role(page: Page, work: Path) -> None:
    result = json.loads((work / "search" / "result.json").read_text())
    text = page.text("search")
    assert result["best"]["instruction"] in text
    assert BEFORE in text
    leader = result["leaders"][0]
    assert (
        f"{leader['fresh']:.3g} ({leader['interval'][0]:.3g} to {leader['interval'][1]:.3g}) on {leader['fresh_items']}"
        in text
    )
    assert result["history"][-1]["tokens"] <= result["spent"]["tokens"]
    tokens: dict[str, list[int]] = {}
    for line in map(json.loads, (work / "search" / "ledger.jsonl").read_text().splitlines()):
        if line["kind"] == "answer" and line["role"] in ("model", "proposer"):
            into, out = line["tokens"]
            count = tokens.setdefault(line["role"], [0, 0, 0])
            tokens[line["role"]] = [count[0] + 1, count[1] + into, count[2] + out]
    cost = page.text("cost").replace(",", "")
    money = 0.0
    for role, price in (("model", (0.5, 1.5)), ("proposer", (2.0, 8.0))):
        calls, into, out = tokens[role]
        spent = (price[0] * into + price[1] * out) / 1e6
        money += spent
        assert f"{role} {calls} {into} {out} {spent:.4f} 0 0" in cost
    assert result["spent"]["cost"] == pytest.approx(money)
    assert result["spent"]["calls"] == tokens["model"][0]


def test_versions_and_seeds(page: Page) -> None:
    import torch

    assert "tracin, loss, random, search" in page.text("versions")
    assert page.text("versions").count(torch.__version__) == 2
    assert "2 seeds for each point" in page.text("versions")


def test_card_names_rows_by_id_and_shows_no_text(page: Page, work: Path) -> None:
    card = (work / "out" / "card.md").read_text()
    assert card.startswith("## ")
    assert "window.hit" not in card
    assert "| tracin |" in card
    assert json.loads((work / "search" / "result.json").read_text())["best"]["instruction"] in card
    lines = [line for line in card.splitlines() if line.startswith("|")]
    assert lines
    for table in re.split(r"\n\n", card):
        rows = [line for line in table.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) <= 1


def test_figures(page: Page, work: Path) -> None:
    names = sorted(path.name for path in (work / "out" / "figures").iterdir())
    assert names == ["curves.png", "scores-loss.png", "scores-random.png", "scores-tracin.png", "search-search.png"]
    assert all((work / "out" / "figures" / name).read_bytes().startswith(b"\x89PNG") for name in names)


# -- less than everything


def test_sections_without_data_are_left_out_and_named_with_the_way_to_them(work: Path, tmp_path: Path) -> None:
    page = Page(write_report(tmp_path / "r.html", scores=work / "scores" / "tracin"))
    assert set(page.sections) == {"summary", "data", "scores", "rows", "versions", "limits", "absent"}
    absent = page.text("absent")
    for title in ("labels", "selection", "retraining", "agreement"):
        assert TITLES[title] in absent
        assert f"#{title}" not in page.links()
    assert f"hfdataopt evaluate --scores {work / 'scores' / 'tracin'}" in absent
    assert "film" in page.text("rows"), "without the dataset the tokens are decoded"


def test_only_a_search_as_an_object(work: Path, tmp_path: Path) -> None:
    from .conftest import search

    result = search(tmp_path / "again")
    page = Page(write_report(tmp_path / "r.html", prompt_result=result, question="Is <b>it</b> better?"))
    assert set(page.sections) == {"summary", "search", "cost", "versions", "limits", "absent"}
    assert "Is <b>it</b> better?" in page.text("summary")
    assert "give the folder of the search" in page.text("cost")
    result.plot(tmp_path / "p" / "search.png")
    assert (tmp_path / "p" / "search.png").is_file()
    axes = result.plot().axes[0]
    steps = [entry for entry in result.history if "best_score" in entry]
    assert axes.get_lines()[1].get_ydata().tolist() == [entry["best_score"] for entry in steps]


def test_objects_with_ids_and_a_dataset_in_another_order(tmp_path: Path) -> None:
    rows = Dataset.from_dict(
        {"row_id": ["b", "a", "c"], "prompt": ["p1", "p2", "p3"], "completion": ["c1", "c2", "c3"], "label": [0, 1, 0]}
    )
    scores = {
        "<i>one</i>": Scores(np.array([1.0, -1.0, np.nan]), ["a", "b", "c"], metadata={"meaning": "helpfulness"}),
        "two": Scores(np.array([1.0, 2.0, 3.0]), ["a", "b", "c"], metadata={"meaning": "suspicion"}),
    }
    page = Page(write_report(tmp_path / "r.html", scores=scores, dataset=rows, flipped=[True, False, False]))
    text = page.text("rows")
    assert "row b 0 known error prompt p1" in text
    assert "&lt;i&gt;one" in page.source
    assert "1 row without a score" in page.text("scores")


def test_a_preference_search_shows_its_votes(tmp_path: Path) -> None:
    from hfdataopt.prompting.judges import CallableJudge

    from ..prompting.searches import Duels, candidates, trainer

    def judge(prompts: Any, completions: Any, shuffle_order: bool = True) -> list[int]:
        return [int(second > first) for first, second in completions]

    search = trainer(
        Duels(candidates=candidates(3)),
        judge=CallableJudge(judge),
        max_judge_calls=12,
        output_dir=str(tmp_path / "s"),
        examples=0,
    )
    result = search.train()
    page = Page(write_report(tmp_path / "r.html", prompt_result=tmp_path / "s"))
    key = result.best.key
    won = []
    for vote in result.votes:
        if key in (vote.duel.first.key, vote.duel.second.key) and vote.comparison.target is not None:
            won.append(vote.comparison.target if vote.duel.first.key == key else 1 - vote.comparison.target)
    assert f"The choice won {100 * sum(won) / len(won):.0f} % of the {len(won)} votes on it" in page.text("search")
    assert result.plot().axes[0].get_lines()[0].get_ydata()[-1] == pytest.approx(sum(won) / len(won))


def test_a_search_that_was_killed_says_what_it_spent(work: Path, tmp_path: Path) -> None:
    lines = (work / "search" / "ledger.jsonl").read_text().splitlines()
    request = next(line for line in lines if '"request"' in line)
    (tmp_path / "ledger.jsonl").write_text("\n".join([*lines[:40], request, request, lines[41][:30]]))
    page = Page(write_report(tmp_path / "r.html", prompt_result=tmp_path))
    assert "has not ended" in page.text("summary")
    assert "asked of the" in page.text("cost")


# -- mistakes


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["nowhere"], "'nowhere' does not exist"),
        (["{work}/model"], "has nothing to report"),
        (["{work}/pool.jsonl"], "cannot be read"),
        (["{work}/model/config.json"], "neither an evaluation nor a summary"),
        (["{work}/scores", "--output", "x.txt"], "must end in .html"),
        (["{work}/scores", "--show", "0"], "--show 0"),
        (["{work}/scores", "--text", "x"], "--dataset"),
        (["{work}/scores", "--dataset", "{work}/pool.jsonl", "--text", "x"], "no column 'x'; it has: sentence"),
        (["{work}/scores", "--dataset", "{work}/pool.jsonl", "--flipped", "sentence"], "true or false"),
        (["{work}/scores", "--dataset", "{work}/test.jsonl"], "do not fit the dataset"),
        (["{work}/scores", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["{work}/scores", "--output", "/proc/no/r.html"], "cannot be written"),
        ([], "the following arguments are required: inputs"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], wanted: str, work: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert cli.main(["report", *(word.format(work=work) for word in words)]) == 2
    error = capsys.readouterr().err.strip()
    assert wanted in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_objects_of_no_use_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing was given"):
        write_report(tmp_path / "r.html")
    with pytest.raises(OptionError, match=r"scores takes Scores or folders.*got int"):
        write_report(tmp_path / "r.html", scores=3)
    with pytest.raises(DataError, match="label_noise, linear_datamodeling_score, curves"):
        write_report(tmp_path / "r.html", evaluation={"x": 1})
    with pytest.raises(DataError, match="not as `hfdataopt evaluate` writes it"):
        write_report(tmp_path / "r.html", evaluation={"curves": {"points": [{}]}})


def test_a_config_file(work: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"output: {tmp_path}/r.html\ntitle: Ours\nshow: 2\n")
    assert cli.main(["report", str(work / "scores"), "--config", str(tmp_path / "c.yaml")]) == 0
    assert "<title>Ours</title>" in (tmp_path / "r.html").read_text()
