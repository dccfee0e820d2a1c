"""The engine's workbench serves here too."""

from __future__ import annotations

from tests.engine.conftest import bench as bench
