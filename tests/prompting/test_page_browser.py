"""The judging page in a real browser: thirty votes over a reload, a second tab, a second person, a kill and a restart."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from datasets import Dataset

pytest.importorskip("starlette", reason="the page needs the extra ui")
pytest.importorskip("uvicorn", reason="the page needs the extra ui")
playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs the program chromium")

READY = "body[data-state=ready]"
HOSTILE = "<script>window.hit=1</script><img src=x onerror='window.hit=2'><b>bold</b> ${window.hit=3} </div>"
SEARCH = textwrap.dedent(
    '''
    """A search with people as judges; an answer's worth is the number of its instruction."""
    import itertools, json, sys
    from dataclasses import dataclass
    from pathlib import Path
    from datasets import Dataset
    from hfdataopt.prompting.candidate import Candidate, Duel
    from hfdataopt.prompting.config import PromptConfig
    from hfdataopt.prompting.optimizer import PreferenceOptimizer
    from hfdataopt.prompting.page import WebJudge
    from hfdataopt.prompting.trainer import PromptTrainer

    folder, hostile = Path(sys.argv[1]), sys.argv[2]

    @dataclass
    class InTurn(PreferenceOptimizer):
        name = "in-turn"

        def start(self, task):
            super().start(task)
            pool = [Candidate(f"worth {number}") for number in range(6)]
            self.duels = itertools.cycle([Duel(*pair) for pair in itertools.permutations(pool, 2)])

        def ask(self, n, pending=(), services=None):
            return [next(self.duels) for _ in range(n)]

        @property
        def best(self):
            wins = [vote.duel.first if vote.comparison.winner == 0 else vote.duel.second
                    for vote in self.votes if vote.comparison.outcome == "preferred"]
            return max(wins, key=wins.count, default=None)

    def answer(prompts):
        return [f"{prompt[0]['content']} {hostile}" for prompt in prompts]

    rows = [{"prompt": [{"role": "user", "content": f"Row {n} {hostile}"}]} for n in range(40)]
    trainer = PromptTrainer(
        InTurn(), model=answer, judge=WebJudge(criterion="Which is " + hostile, address_file=folder / "page.json"),
        args=PromptConfig(output_dir=str(folder), max_judge_calls=30, parallel=3, logging_steps=0, examples=0),
        train_dataset=Dataset.from_list(rows),
    )
    result = trainer.train()
    votes = [{"answers": vote.answers, "winner": vote.comparison.winner, "by": vote.by} for vote in result.votes]
    (folder / "done.json").write_text(json.dumps({"votes": votes, "best": trainer.best_prompt}))
    '''
)


@pytest.fixture
def browser():
    with playwright.sync_playwright() as player:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = player.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


class Visitor:
    """A browser of a person's own; notes every request and every script error."""

    def __init__(self, browser, url: str, **options) -> None:
        self.context = browser.new_context(**options)
        self.hosts: Counter[str] = Counter()
        self.errors: list[str] = []
        self.context.on("request", lambda request: self.hosts.update([urlsplit(request.url).netloc]))
        self.context.on("weberror", lambda error: self.errors.append(str(error.error)))
        self.url = url
        self.page = self.open()

    def open(self):
        page = self.context.new_page()
        page.set_default_timeout(40_000)
        page.goto(self.url)
        return page

    def key(self, page=None) -> str:
        page = page or self.page
        page.wait_for_selector(READY)
        return page.get_attribute("body", "data-pair")

    def better(self) -> int:
        """Which answer shows the higher number."""
        worth = [int(self.page.inner_text(f"#answer{side} .text").split()[1]) for side in (0, 1)]
        return int(worth[1] > worth[0])

    def votes(self) -> int:
        return int(self.page.inner_text("#count").split()[0])

    def judge(self, by_mouse: bool = False) -> None:
        """Vote for the better one and wait until the vote is kept."""
        key, side = self.key(), self.better()
        if by_mouse:
            self.page.click(f"[data-word={('left', 'right')[side]}]")
        else:
            self.page.keyboard.press(("ArrowLeft", "ArrowRight")[side])
        self.page.wait_for_function("key => document.body.dataset.pair !== key", arg=key)


class Search:
    """The program above in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.program = folder, folder.parent / "search.py"
        self.program.write_text(SEARCH)
        self.start()

    def start(self) -> None:
        root = Path(__file__).resolve().parents[2]
        environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'plugins'}"}
        with (self.folder.parent / "log.txt").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(self.program), str(self.folder), HOSTILE], stderr=log, stdout=log, env=environment
            )

    def url(self) -> str:
        file = self.folder / "page.json"
        for _ in range(600):
            if file.is_file():
                address = json.loads(file.read_text())
                return f"http://127.0.0.1:{address['port']}/?token={address['token']}"
            assert self.process.poll() is None, (self.folder.parent / "log.txt").read_text()
            time.sleep(0.1)
        raise AssertionError("the search did not begin")

    def events(self) -> list[dict]:
        lines = map(json.loads, (self.folder / "ledger.jsonl").read_text().splitlines())
        return [line for line in lines if line["kind"] == "event"]


@pytest.fixture
def search(tmp_path):
    searching = Search(tmp_path / "search")
    yield searching
    searching.process.kill()
    searching.process.wait()


def test_thirty_votes_over_a_reload_a_second_tab_a_second_person_a_kill_and_a_restart(search, browser):
    ann = Visitor(browser, search.url())
    ann.page.wait_for_selector(READY)
    for number in range(8):
        ann.judge(by_mouse=number % 2 == 0)
    assert len(search.events()) == 8  # each was on disk before the next pair was there
    assert ann.page.inner_text("h1") == "Which is " + HOSTILE
    for part in ("#prompt", "#answer0", "#answer1"):
        assert HOSTILE in ann.page.inner_text(part)
        assert ann.page.locator(f"{part} :is(script, img, b)").count() == 0
    assert ann.page.evaluate("window.hit") is None

    before = ann.key()
    ann.page.reload()
    assert ann.key() == before
    assert ann.votes() == 8

    tab = ann.open()
    assert ann.key(tab) == before
    tab.route("**/look", lambda route: route.abort())  # it does not learn that the pair is done
    ann.judge()
    tab.keyboard.press("1" if ann.page.inner_text("#status").startswith("Kept: 2") else "2")
    tab.locator("#status", has_text="not counted").wait_for()
    assert len(search.events()) == 9
    tab.close()

    bob = Visitor(browser, search.url(), viewport={"width": 390, "height": 800})
    bob.page.fill("#name", "Bob B.")
    bob.page.keyboard.press("Tab")
    assert bob.key() != ann.key()
    for _ in range(4):
        bob.judge(by_mouse=True)
        ann.judge()

    ann.page.keyboard.press("u")
    ann.page.locator("#status", has_text="taken back").wait_for()
    assert search.events()[-1]["undo"]
    ann.judge()
    assert len(search.events()) == 19

    key, side = ann.key(), ann.better()
    ann.page.keyboard.press(("1", "2")[side])  # and at once
    search.process.kill()
    search.process.wait()
    ann.page.locator("#status", has_text="No connection").wait_for()
    search.start()
    ann.page.wait_for_function("key => document.body.dataset.pair !== key", arg=key)  # nobody touched the page
    while len(search.events()) < 32:
        ann.judge()
        if len(search.events()) < 32:
            bob.judge()
    for visitor in (ann, bob):
        visitor.page.wait_for_selector("body[data-state=over]")
    assert ann.page.inner_text("#best-text") == "worth 5"
    assert search.process.wait(30) == 0

    done = json.loads((search.folder / "done.json").read_text())
    assert len(done["votes"]) == 30
    for vote in done["votes"]:
        worth = [int(answer.split()[1]) for answer in vote["answers"]]
        assert vote["winner"] == int(worth[1] > worth[0])
    assert done["best"] == "worth 5"
    counts = Counter()
    for event in search.events():
        counts[event["question"]] += -1 if event["undo"] else 1
    assert set(counts.values()) == {1}
    assert len(counts) == 30
    assert {name.rsplit("-", 1)[0] for name in (vote["by"] for vote in done["votes"])} == {"person", "Bob B."}
    host = urlsplit(search.url()).netloc
    for visitor in (ann, bob):
        assert set(visitor.hosts) <= {host, ""}  # "" = blob: and data:
        assert visitor.errors == []


def test_images_are_shown_and_a_lonely_person_can_do_all_by_keys(browser, tmp_path):
    drawing = pytest.importorskip("PIL.Image")
    from hfdataopt.prompting.page import serve_judge

    rows = [
        {"prompt": f"Draw {n}", "completions": [drawing.new("RGB", (8 + n, 4), color) for color in ("red", "blue")]}
        for n in range(4)
    ]
    address, found = tmp_path / "votes.address.json", []
    serving = threading.Thread(
        target=lambda: found.append(serve_judge(Dataset.from_list(rows), tmp_path / "votes.jsonl"))
    )
    serving.start()
    while not address.is_file():
        time.sleep(0.05)
    port, token = json.loads(address.read_text()).values()
    visitor = Visitor(browser, f"http://127.0.0.1:{port}/?token={token}")
    for number, press in enumerate(["ArrowLeft", "t", "s", "2"]):
        key = visitor.key()
        sizes = visitor.page.evaluate("[...document.querySelectorAll('.answer img')].map(i => [i.naturalWidth, i.alt])")
        assert sizes == [[8 + number, "Answer 1"], [8 + number, "Answer 2"]]
        visitor.page.keyboard.press(press)
        visitor.page.wait_for_function("key => document.body.dataset.pair !== key", arg=key)
    visitor.page.wait_for_selector("body[data-state=over]")
    serving.join(20)
    assert found[0]["prompt"] == ["Draw 0", "Draw 3"]
    assert found[0].column_names == ["prompt", "chosen", "rejected"]
    assert set(visitor.hosts) <= {f"127.0.0.1:{port}", ""}
    assert visitor.errors == []
