"""What `make docs` builds has every page in its place, and reads them as GitHub does; MkDocs itself is not needed."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(file.name for file in DOCS.glob("*.md"))
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
KINDS = ["Start", "Tutorials", "How-to", "Reference", "Explanation"]
MOST_BYTES = 1_500_000
"""Of all pictures together: they are part of every clone."""


def pages(nav: Any) -> Iterator[tuple[str, str]]:
    """Title and file of every page of a nav, in order."""
    for entry in nav:
        for title, below in entry.items():
            if isinstance(below, str):
                yield title, below
            else:
                yield from pages(below)


def test_the_nav_has_every_page_once() -> None:
    assert sorted(file for _, file in pages(SITE["nav"])) == PAGES


def test_the_nav_is_sorted_by_what_readers_want() -> None:
    assert [kind for entry in SITE["nav"] for kind in entry] == KINDS


def test_the_start_page_lists_the_pages_as_the_nav_does() -> None:
    sections = re.split(r"(?m)^## ", (DOCS / "README.md").read_text())[1:]
    listed = {section.splitlines()[0]: re.findall(r"(?m)^\| \[(.+?)\]\((.+?)\)", section) for section in sections}
    named = {kind: list(pages(below)) for entry in SITE["nav"][1:] for kind, below in entry.items()}
    assert listed == named


def test_a_link_or_an_anchor_that_leads_nowhere_ends_the_build() -> None:
    assert SITE["strict"] is True
    assert {*SITE["validation"]["links"].values(), *SITE["validation"]["nav"].values()} == {"warn"}
    assert {"not_found", "anchors", "absolute_links", "unrecognized_links"} == set(SITE["validation"]["links"])
    [build] = re.findall(r"mkdocs build.*", (ROOT / "Makefile").read_text())
    assert "--quiet" not in build, "MkDocs counts the warnings that it prints"


def test_the_site_fetches_nothing() -> None:
    assert SITE["theme"]["font"] is False
    assert "offline" in SITE["plugins"]
    for file in (*SITE["extra"]["polyfills"], *SITE["extra_css"], *SITE["hooks"]):
        assert (DOCS / file).is_file() or (ROOT / file).is_file(), file
    assert "repo_url" not in SITE, "the theme asks GitHub how many stars it has"


def test_the_tools_of_the_site_are_pinned() -> None:
    lines = (DOCS / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    assert "mkdocs-material" in {line.partition("==")[0] for line in lines}


@pytest.mark.parametrize("name", PAGES)
def test_python_markdown_reads_the_page_as_github_does(name: str) -> None:
    """It wants an empty line before a list, and four spaces before a list in a list."""
    text = re.sub(r"(?ms)^```\w*\n.*?^```", "", (DOCS / name).read_text())
    lines = ["", *text.splitlines()]
    for before, line in itertools.pairwise(lines):
        if re.match(r"(?:[-*]|\d+\.) ", line):
            assert re.match(r"(?:[-*]|\d+\.) |  |$", before), f"no empty line before: {line}"
        if line.startswith("|"):
            assert re.match(r"\||$", before), f"no empty line before: {line}"
        assert not re.match(r" {1,3}(?:[-*]|\d+\.) ", line), f"four spaces before: {line}"


def test_every_picture_is_shown_and_small() -> None:
    pictures = {f"pictures/{file.name}": file.stat().st_size for file in (DOCS / "pictures").glob("*.png")}
    texts = "".join((DOCS / name).read_text() for name in PAGES)
    assert [name for name in pictures if f"({name})" not in texts] == []
    assert sum(pictures.values()) < MOST_BYTES


@pytest.mark.parametrize("name", PAGES)
def test_every_picture_says_what_it_shows(name: str) -> None:
    for words, target in re.findall(r"!\[(.*?)\]\((.*?)\)", (DOCS / name).read_text()):
        assert len(words) > 20, target
        assert (DOCS / target).is_file(), target
