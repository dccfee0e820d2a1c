"""Real runs of a tiny model, and faults in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.rig import Rig


@pytest.fixture(scope="session")
def rig(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """A store, a model, rows, and a run that nothing interrupted."""
    return Rig(tmp_path_factory.mktemp("faults"), tiny_model)
