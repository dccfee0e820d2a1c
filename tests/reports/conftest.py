"""Small models of other shapes, made once, and the command in this process with a separate store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import client, run, store
from tests.reports import small_models

__all__ = ["client", "run", "store"]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`small("qwen3_moe")`: the folder of a small model, made when it is first asked for. Not to be changed."""
    made: dict[str, Path] = {}

    def model(kind: str, **more: Any) -> Path:
        key = repr((kind, sorted(more.items())))
        if key not in made:
            made[key] = small_models.make(kind, tmp_path_factory.mktemp("small") / kind, **more)
        return made[key]

    return model
