"""For every test here and in plugins/: the project's own fixtures, and nothing is sent anywhere."""

from __future__ import annotations

import os

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does: idle threads leave the cores to others

pytest_plugins = ["mlflow_ft.testing"]
