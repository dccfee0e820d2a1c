"""The report as a page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from html.parser import HTMLParser
from typing import Any

import pytest

from mlflow_ft.data.pages import quality_page

EMPTY = {"br", "hr", "img", "input", "link", "meta"}


def check(name: str = "check", **given: Any) -> dict[str, Any]:
    plain = {
        "name": name,
        "severity": "warn",
        "count": 3,
        "share": 0.03,
        "examples": [],
        "summary": f"what {name} means",
    }
    return plain | {"remedy": "mend it", "fix": "", "details": {}} | given


def report(*checks: dict[str, Any]) -> dict[str, Any]:
    return {"rows": 12345, "checks": list(checks)}


HISTOGRAM = {"x": "length in tokens", "edges": [0, 10, 20, 30], "counts": [5, 2, 1], "mark": 25}
SIDES = {"x": "length in characters", "edges": [0, 10, 20], "counts": {"chosen": [5, 2], "rejected": [1, 6]}}
FULL = report(
    check("contamination", severity="error", details={"held_out_rows": 2, "sizes": [4, 2]}, fix="leaves them out"),
    check(
        "length", severity="info", count=0, share=0.0, details={"histogram": HISTOGRAM, "mean": 12.345678, "max": 4500}
    ),
    check("length-bias", details={"histogram": SIDES, "found": True, "preferred": None}),
    check(
        "language",
        severity="info",
        details={"scripts": {"Latin": 998, "Greek": 1}},
        examples=[
            {"file": "rows.jsonl", "line": 7, "message": "half of it is Greek"},
        ],
    ),
)


class Reader(HTMLParser):
    """Reads a page: its tags with their attributes, its words, and whether every tag is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def drawings(page: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)


def test_the_page_tells_all_that_was_found() -> None:
    read = Reader(quality_page(FULL, title="Quality of rows"))
    assert read.open == []
    assert "Quality of rows 12,345 rows, 4 checks: 1 error, 1 warning, 1 remark" in read.text
    for told in (
        *("contamination error 3 3.0 %", "length remark 0", "What to do: mend it.", "prepare --fix leaves them out."),
        *("Examples: 1 of 3 rows.jsonl:7 half of it is Greek", "scripts Latin 998, Greek 1", "held out rows 2"),
        *("found yes preferred –", "mean 12.35 max 4,500", "length nothing found", "rows by length in tokens"),
    ):
        assert told in read.text


def test_the_page_stands_alone() -> None:
    page = quality_page(FULL, title="t")
    read = Reader(page)
    assert {"script", "link", "img", "iframe", "object", "embed", "base", "form"}.isdisjoint(
        {tag for tag, _ in read.tags}
    )
    for tag, attributes in read.tags:
        assert not {"src", "srcset", "action", "style-src"} & set(attributes), tag
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#"), tag
    assert "://" not in page
    assert "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_nothing_of_the_data_becomes_part_of_the_page() -> None:
    evil = '</title><script>alert("x")</script>'
    page = quality_page(
        report(
            check(
                evil,
                summary=evil,
                remedy=evil,
                fix=evil,
                details={evil: evil, "table": {evil: 1}, "histogram": HISTOGRAM | {"x": evil}, "sizes": [1]},
                examples=[{"file": evil, "line": 1, "message": evil}],
            )
        ),
        title=evil,
    )
    assert "<script" not in page
    read = Reader(page)
    assert read.open == []
    assert read.text.count('alert("x")') >= 9


def test_drawings_share_no_id_and_leave_colours_to_the_page() -> None:
    page = quality_page(FULL, title="t")
    plots = drawings(page)
    assert len(plots) == 3
    ids = Counter(re.findall(r'\bid="([^"]*)"', page))
    assert max(ids.values()) == 1
    for drawing in plots:
        ET.fromstring(drawing.replace("xlink:href", "href"))
        assert set(re.findall(r'(?:url\(|href=")#([^")]*)', drawing)) <= set(ids)
        assert "#0102" not in drawing
        assert {"currentColor", "var(--series-1)"} <= set(re.findall(r"currentColor|var\(--[\w-]+\)", drawing))
    assert "var(--series-2)" in plots[2]
    assert "max_length 25" in plots[1]
    assert "chosen" in plots[2]


def test_the_same_report_makes_the_same_page() -> None:
    assert quality_page(FULL, title="t") == quality_page(FULL, title="t")


@pytest.mark.parametrize(
    "details",
    [
        {"histogram": "tall"},
        {"histogram": {"edges": [0, 1], "counts": [1]}},
        {"histogram": {"x": "x", "edges": [0, 1], "counts": [1, 2]}},
        {"histogram": {"x": "x", "edges": [0, 1, 2], "counts": [0, 0]}},
        {"sizes": []},
        {"sizes": "large"},
        {"sizes": ["a"]},
    ],
)
def test_what_cannot_be_drawn_is_not(details: dict[str, Any]) -> None:
    assert drawings(quality_page(report(check(details=details)), title="t")) == []


def test_a_mark_far_beyond_the_lengths_does_not_squeeze_them() -> None:
    [near] = drawings(quality_page(report(check(details={"histogram": HISTOGRAM})), title="t"))
    [far] = drawings(quality_page(report(check(details={"histogram": HISTOGRAM | {"mark": 4000}})), title="t"))
    assert "max_length 25" in near
    assert "max_length" not in far


def test_clean_data_and_no_data() -> None:
    assert "nothing was found" in quality_page(report(check(count=0)), title="t")
    assert "12,345 rows, 0 checks" in Reader(quality_page(report(), title="t")).text
