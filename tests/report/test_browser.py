"""The report in a real browser, at the width of a phone and of a desk, light and dark."""

import os
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from hfdataopt import cli
from hfdataopt.report.write import TITLES

playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs the program chromium")

LUMINANCE = """
(() => {
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [.2126, .7152, .0722][k], 0);
  const behind = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      const [r, g, b, a = 1] = parse(getComputedStyle(e).backgroundColor);
      if (a > 0) layers.push([r, g, b, a]);
      if (a === 1) break;
    }
    return layers.reverse().reduce((under, [r, g, b, a]) => [r, g, b].map((v, k) => v * a + under[k] * (1 - a)), [255, 255, 255]);
  };
  const low = [];
  for (const element of document.querySelectorAll('main *, nav *, header *, footer *')) {
    if (element.closest('svg') || !element.checkVisibility()) continue;
    if (![...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    const style = getComputedStyle(element), [one, other] = [light(parse(style.color)), light(behind(element))];
    const ratio = (Math.max(one, other) + .05) / (Math.min(one, other) + .05);
    if (ratio < 4.5) low.push([element.tagName, element.className, element.textContent.slice(0, 30), ratio]);
  }
  return low;
})()
"""


@pytest.fixture(scope="module")
def report(work: Path) -> Path:
    where = work / "browser" / "report.html"
    inputs = [work / name for name in ("scores", "evaluation", "search", "length-summary.json", "random-summary.json")]
    data = [
        "--dataset",
        work / "pool.jsonl",
        "--queries",
        work / "queries.jsonl",
        "--text",
        "sentence",
        "--label",
        "class",
    ]
    words = ["report", *inputs, *data, "--flipped", "wrong", "--show", ROWS, "--output", where]
    assert cli.main([str(word) for word in words]) == 0
    return where


ROWS = 32  # so that the hostile rows are on the page


@pytest.fixture(scope="module")
def browser() -> Any:
    with playwright.sync_playwright() as player:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = player.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(360, 740), (1280, 900)])
def test_the_page(browser: Any, report: Path, width: int, height: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    asked: list[str] = []
    said: list[str] = []
    page = context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(report.as_uri())
    for element in page.query_selector_all("details"):
        element.evaluate("e => e.open = true")
    page.wait_for_timeout(200)
    assert said == []
    assert [urlsplit(url).scheme for url in asked] in (["file"], ["file", "data"])
    assert {urlsplit(url).netloc for url in asked} == {""}
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ids = page.evaluate(
        "[...document.querySelectorAll('main > section')].filter(e => e.offsetHeight > 40).map(e => e.id)"
    )
    assert ids == [name for name in TITLES if name != "absent"]
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgba(0, 0, 0, 0)", "the style is taken"
    # Text of rows: shown, and nothing of it became an element or ran.
    assert page.evaluate("window.hit") is None
    assert page.evaluate("document.scripts.length + document.images.length") == 0
    texts = page.evaluate("[...document.querySelectorAll('#rows .text')].map(e => e.innerText)")
    hostile = [
        text for text in texts if text.startswith("<script>window.hit=1</script><img src=x onerror='window.hit=2'>")
    ]
    assert hostile
    assert any("cut after 600 of 1,250,165 characters" in text for text in hostile)
    assert page.evaluate(
        "[...document.querySelectorAll('svg.chart')].every(e => e.getBoundingClientRect().width > 200)"
    )
    # The smallest text in a chart is still read on a phone.
    size = page.evaluate("(e => e.getBoundingClientRect().width / 380 * 11.5)(document.querySelector('svg.chart'))")
    assert size >= 8.5
    assert page.evaluate(LUMINANCE) == []
    links = page.evaluate(
        "[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.getAttribute('href')))"
    )
    assert links
    context.close()


def test_words_are_read_from_right_to_left_where_they_begin_so(browser: Any, tmp_path: Path) -> None:
    import numpy as np
    from datasets import Dataset

    from hfdataopt import Scores
    from hfdataopt.report import write_report

    rows = Dataset.from_dict({"text": ["\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd", "plain words"]})
    scores = Scores(np.array([0.0, 1.0]), [0, 1], metadata={"meaning": "helpfulness", "by_position": True})
    where = write_report(tmp_path / "r.html", scores=scores, dataset=rows)
    context = browser.new_context()
    page = context.new_page()
    page.goto(where.as_uri())
    found = page.evaluate(
        "[...document.querySelectorAll('#rows .worst .text')].map(e => getComputedStyle(e).direction)"
    )
    assert found == ["rtl", "ltr"]
    context.close()
