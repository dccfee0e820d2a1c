"""An imported LLaMA-Factory configuration gives LLaMA-Factory's loss curve, trained for real by both."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from mlflow_ft.errors import PluginError

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "imported.py"


@pytest.fixture
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("imported", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_curves_agree(benchmark: ModuleType, tmp_path: Path) -> None:
    try:
        benchmark.environment()
    except PluginError as error:
        pytest.skip(f"LLaMA-Factory cannot be installed here: {error.message}")
    theirs, ours = benchmark.compare(tmp_path, template="vicuna")
    assert len(theirs) == benchmark.ROWS // 2
    assert theirs[-1] < theirs[0] / 2, "nothing was learned, so that the comparison says nothing"
    assert benchmark.difference(ours, theirs) < benchmark.TOLERANCE


def test_a_difference_is_seen(benchmark: ModuleType) -> None:
    assert benchmark.difference([4.0, 2.0], [4.0, 2.1]) == pytest.approx(0.025)
