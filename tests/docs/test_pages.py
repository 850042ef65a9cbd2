"""Every package has a page that the index links; links and paths that pages name exist."""

import re
from pathlib import Path

import pytest

from .blocks import PAGES, ROOT

INDEX = ROOT / "docs" / "README.md"
# Packages whose page has another name, or that need none.
OTHER_PAGE = {"testing": "plugins", "commands": "command_line"}
NO_PAGE = {"demo": "the demo's own data and models; README.md shows it"}
LINK = re.compile(r"(?<!!)\[[^\]\n]+\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def links(page: Path) -> list[str]:
    return [first or second for first, second in LINK.findall(prose(page))]


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def packages() -> list[str]:
    found = [place.parent.name for place in (ROOT / "hfdataopt").glob("*/__init__.py")]
    return sorted(set(found) - set(NO_PAGE))


@pytest.mark.parametrize("package", packages())
def test_every_package_has_a_page_in_the_index(package: str) -> None:
    page = f"{OTHER_PAGE.get(package, package)}.md"
    assert (INDEX.parent / page).is_file()
    assert page in links(INDEX)


def test_the_index_links_every_page_in_one_line() -> None:
    pages = {page.name for page in INDEX.parent.glob("*.md")} - {INDEX.name}
    assert pages == {link for link in links(INDEX) if "/" not in link}
    assert "docs/README.md" in links(ROOT / "README.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page: Path) -> None:
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{link} does not exist"
        if anchor:
            assert anchor in anchors(target), f"{link}: {target.name} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_scripts_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"\b((?:benchmarks|examples|tests)/[\w/]+\.(?:py|md))\b", page.read_text(encoding="utf-8"))
    assert not [name for name in named if not (ROOT / name).is_file()]
