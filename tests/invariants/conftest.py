"""These tests use the engine's workbench too."""

from __future__ import annotations

from tests.engine.conftest import bench as bench
