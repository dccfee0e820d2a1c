"""For every test here and in plugins/: the project's own fixtures, and nothing is sent anywhere."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import sys
import tempfile

import pytest
from hypothesis import HealthCheck, settings

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # ten processes a server, for what is not tested here
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does: idle threads leave the cores to others
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # every core has a worker already

os.environ["MLFLOW_FT_DATA_CACHE"] = tempfile.mkdtemp(prefix="mlflow-ft-tests-")  # nothing prepared by other code
atexit.register(shutil.rmtree, os.environ["MLFLOW_FT_DATA_CACHE"], ignore_errors=True)

# A machine that others use is slow now and then; that is no fault of what is tested.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

pytest_plugins = ["mlflow_ft.testing", "tests.browsing", "tests.installed"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests marked `long`, unless LONG_TESTS=1 as in `make faults` and `make combinations`.

    What takes longest begins first, so that no core waits for it at the end.
    """
    if os.environ.get("LONG_TESTS") != "1":
        long = [item for item in items if item.get_closest_marker("long")]
        items[:] = [item for item in items if not item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
    items.sort(key=lambda item: item.get_closest_marker("end_to_end") is None)


MODULES = 300
"""So many more modules in memory, and what they made is spared as well."""
_spared = 0


def pytest_collection_finish() -> None:
    spare()


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Most modules are imported by tests, when they are needed."""
    if nextitem and nextitem.path != item.path and len(sys.modules) > _spared + MODULES:
        spare()


def spare() -> None:
    """Spare what imports have made from garbage collection: the end of each training asks for a full one."""
    global _spared  # hooks have no state of their own
    gc.collect()
    gc.freeze()
    _spared = len(sys.modules)
