"""A run's environment: the git commit, the installed packages, the plugins."""

from __future__ import annotations

import json
import platform
import subprocess
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from mlflow_ft.plugins import PluginInfo, Plugins

NAMED_PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "accelerate", "mlflow")
GIT_SECONDS = 10


def git_tags(folder: Path) -> dict[str, str]:
    """Commit of the repository around `folder` and whether it has changes; empty without git."""
    commit = _git("rev-parse", "HEAD", folder=folder)
    if not commit:
        return {}
    dirty = _git("status", "--porcelain", folder=folder)
    return {"mlflow_ft.git_commit": commit, "mlflow_ft.git_dirty": str(bool(dirty)).lower()}


def version_tags() -> dict[str, str]:
    """`mlflow_ft.version.<package>` for Python and the packages that affect training results."""
    tags = {"mlflow_ft.version.python": platform.python_version()}
    for package in NAMED_PACKAGES:
        try:
            tags[f"mlflow_ft.version.{package}"] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return tags


def plugin_tag(plugins: Plugins) -> dict[str, str]:
    """The active plugins as tag `mlflow_ft.plugins`: version and first digits of the sha256 over their source.

    The built-in plugins have one version and one hash, and are listed once.
    """
    entries = dict.fromkeys(f"{_called(info)} {info.version} sha256:{info.sha256[:12]}" for info in plugins.active)
    return {"mlflow_ft.plugins": ", ".join(entries)}


def plugin_table(plugins: Plugins) -> str:
    """Every installed plugin, as JSON."""
    return json.dumps([asdict(info) for info in plugins.infos], indent=2) + "\n"


def packages() -> str:
    """`name==version` of every installed package, sorted, one per line."""
    lines = {f"{item.name}=={item.version}" for item in metadata.distributions() if item.name}
    return "\n".join(sorted(lines, key=str.lower)) + "\n"


def _called(info: PluginInfo) -> str:
    return "built in" if info.built_in else info.name


def _git(*arguments: str, folder: Path) -> str | None:
    """What git prints; None if it fails or is not installed."""
    try:
        completed = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=GIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return completed.stdout.strip() if completed.returncode == 0 else None
