"""A scripted judge, a cache of its own for each test, and models under evaluation with given answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow_ft_judge.testing import Server, answered, serving

from mlflow_ft.progress import Progress


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Start a server that follows a script."""
    with ExitStack() as stack:
        yield lambda *script: stack.enter_context(serving(*script))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Replies of other tests are not found."""
    monkeypatch.setenv("MLFLOW_FT_CACHE", str(tmp_path / "cache"))
    for name in ("MLFLOW_FT_JUDGE_ENDPOINT", "MLFLOW_FT_JUDGE_API_KEY"):
        monkeypatch.delenv(name, raising=False)


class Kept:
    """What an evaluator told: tables, lines and warnings."""

    def __init__(self) -> None:
        self.tables: dict[str, Any] = {}
        self.lines: list[str] = []


@pytest.fixture
def subject_of():
    """A model under evaluation with given answers, and what was kept and told about it."""

    def make(name: str, texts: list[str], base: list[str] | None = None) -> tuple[Any, Kept]:
        kept = Kept()
        progress = Progress(quiet=True)
        progress.say = kept.lines.append  # type: ignore[method-assign]  # to read what is told
        progress.warn = kept.lines.append  # type: ignore[method-assign]  # the same
        answers = [answered(text, asked=f"Which {number}?") for number, text in enumerate(texts)]
        others = [answered(text, asked=f"Which {number}?") for number, text in enumerate(base or ())]
        subject = SimpleNamespace(
            name=name,
            data=SimpleNamespace(eval=SimpleNamespace(name="eval", digest="0" * 32)),
            answers=answers,
            base_answers=answers if name == "base" else others,
            config=SimpleNamespace(),
            run=SimpleNamespace(table=lambda rows, path: kept.tables.update({path: rows})),
            progress=progress,
        )
        return subject, kept

    return make
