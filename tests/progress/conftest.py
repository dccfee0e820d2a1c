from __future__ import annotations

import pytest

from mlflow_ft import progress


@pytest.fixture(autouse=True)
def _any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the tests run does not decide what a terminal gets."""
    for name in (*progress.PLAIN, "TERM"):
        monkeypatch.delenv(name, raising=False)
