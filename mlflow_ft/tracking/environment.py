"""A run's environment: folder, git commit, code, installed packages, plugins, machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from importlib import metadata
from pathlib import Path

from mlflow_ft.hashes import files_hash
from mlflow_ft.plugins import PluginInfo, Plugins

VERSIONS, EACH = "mlflow.mlflow_ft.versions", "mlflow_ft.version."
NAMED_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "bitsandbytes",
    "datasets",
    "accelerate",
    "mlflow",
    "tokenizers",
    "safetensors",
    "numpy",
)
PACKAGE = Path(__file__).parents[1]
CPU_INFO = Path("/proc/cpuinfo")
CWD = "mlflow.mlflow_ft.cwd"
"""Tag with the folder in which the run was started, where relative paths in its configuration begin."""
CODE = "mlflow.mlflow_ft.code"
"""Tag with the sha256 over the source of mlflow_ft itself."""
PROCESSOR = "mlflow.mlflow_ft.processor"
"""Tag with the processor's model and the instructions that torch uses of it."""
THREADS = "mlflow.mlflow_ft.threads"
"""Tag with the number of threads that torch computes with."""
GIT_SECONDS = 10


def tags(plugins: Plugins, *, folder: Path) -> dict[str, str]:
    """All of it as tags of a run that is started in `folder`."""
    own = {CWD: str(folder), CODE: code_hash()}
    return own | git_tags(folder) | version_tags() | plugin_tag(plugins) | machine_tags()


@cache
def code_hash() -> str:
    """Sha256 over mlflow_ft's own Python files, the built-in plugins included; "" if they cannot be read."""
    try:
        return "sha256:" + files_hash(sorted(PACKAGE.rglob("*.py")), within=PACKAGE)
    except OSError:  # imported from a zip file
        return ""


def machine_tags(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The processor and the number of threads: with another of either, sums are rounded differently."""
    import torch

    limit = environ.get("OMP_NUM_THREADS")
    threads = f"{torch.get_num_threads()}" + (f" (OMP_NUM_THREADS={limit})" if limit else "")
    return {PROCESSOR: f"{processor()}, {torch.backends.cpu.get_cpu_capability()}", THREADS: threads}


def processor(file: Path = CPU_INFO) -> str:
    """The processor's model; from /proc/cpuinfo, where a cloud's processors differ in the numbers only."""
    try:
        lines = file.read_text().partition("\n\n")[0].splitlines()
    except OSError:
        lines = []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "model name" not in facts:
        return platform.processor() or platform.machine()
    numbers = [f"{name} {facts[name]}" for name in ("cpu family", "model", "stepping") if name in facts]
    return f"{facts['model name']} ({', '.join(numbers)})"


def git_tags(folder: Path) -> dict[str, str]:
    """Commit of the repository around `folder` and whether it has changes; empty without git."""
    commit = _git("rev-parse", "HEAD", folder=folder)
    if not commit:
        return {}
    dirty = _git("status", "--porcelain", folder=folder)
    return {"mlflow_ft.git_commit": commit, "mlflow_ft.git_dirty": str(bool(dirty)).lower()}


def version_tags() -> dict[str, str]:
    """One tag with the versions of Python and the packages that affect training results."""
    versions = {"python": platform.python_version()}
    for package in NAMED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {VERSIONS: ", ".join(f"{package} {version}" for package, version in versions.items())}


def versions(tags: Mapping[str, str]) -> dict[str, str]:
    """The versions that a run recorded, by package; early runs have a tag for each."""
    found = {tag.removeprefix(EACH): version for tag, version in tags.items() if tag.startswith(EACH)}
    pairs = (entry.partition(" ") for entry in filter(None, tags.get(VERSIONS, "").split(", ")))
    return found | {package: version for package, _, version in pairs}


def plugin_tag(plugins: Plugins) -> dict[str, str]:
    """The active plugins as tag `mlflow_ft.plugins`: version and first digits of the sha256 over their source.

    The built-in plugins have one version and one hash, and are listed once.
    """
    entries = dict.fromkeys(f"{_called(info)} {info.version} sha256:{info.sha256[:12]}" for info in plugins.active)
    return {"mlflow_ft.plugins": ", ".join(entries)}


def plugin_table(plugins: Plugins) -> str:
    """Every installed plugin, as JSON."""
    return json.dumps([asdict(info) for info in plugins.infos], indent=2) + "\n"


@cache
def packages() -> str:
    """`name==version` of every installed package, sorted, one per line; read once per process, however many runs."""
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
