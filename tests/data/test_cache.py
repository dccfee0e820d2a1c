"""An entry of the cache is there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mlflow_ft.data import cache


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_FT_DATA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fill(text: str) -> Callable[[Path], None]:
    def make(aside: Path) -> None:
        (aside / "rows").write_text(text)

    return make


def test_what_was_made_once_is_found(folder: Path) -> None:
    assert cache.find_or_make("key", fill("one")) == (folder / "key", False)
    assert cache.find_or_make("key", fill("two")) == (folder / "key", True)
    assert (folder / "key" / "rows").read_text() == "one"


def test_what_breaks_leaves_nothing(folder: Path) -> None:
    def broken(aside: Path) -> None:
        (aside / "rows").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.find_or_make("key", broken)
    assert list(folder.iterdir()) == []


def test_of_two_that_make_it_at_once_the_first_is_kept(folder: Path) -> None:
    def slow(aside: Path) -> None:
        (aside / "rows").write_text("slow")
        other = folder / "key"
        other.mkdir()
        (other / "rows").write_text("quick")

    assert cache.find_or_make("key", slow)[0] == folder / "key"
    assert (folder / "key" / "rows").read_text() == "quick"
    assert [entry.name for entry in folder.iterdir()] == ["key"]


def test_the_entries_that_were_not_used_for_longest_go_first(folder: Path) -> None:
    for age, name in enumerate(("new", "middle", "old")):
        entry = folder / name
        entry.mkdir(parents=True)
        (entry / "rows").write_bytes(b"x" * 100)
        os.utime(entry, (1e9 - age, 1e9 - age))
    (folder / "kept").mkdir()
    cache.prune(keep=folder / "kept", most_bytes=250)
    assert sorted(entry.name for entry in folder.iterdir()) == ["kept", "middle", "new"]
