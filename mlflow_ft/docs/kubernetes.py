"""kubernetes/MLproject: the project's entry points in an image, for MLflow refuses two environments in one file."""

from __future__ import annotations

from pathlib import Path

PROJECT = Path(__file__).parents[2] / "MLproject"
HEAD = """\
# Generated from ../MLproject by `python -m mlflow_ft.docs`: the same entry points, in an image instead of a conda
# environment. `mlflow run kubernetes --backend kubernetes ...`: see README.md.
"""
CONDA, IMAGE = "conda_env: conda.yaml", "docker_env:\n  image: mlflow-ft-kubernetes"
PLAIN, UNQUOTED = 'command: "python ', 'command: "exec-unquoted python '


def kubernetes_project() -> str:
    """The text of kubernetes/MLproject."""
    project = PROJECT.read_text(encoding="utf-8")
    body = project[project.index("name: ") :]
    return HEAD + body.replace(CONDA, IMAGE).replace(PLAIN, UNQUOTED)
