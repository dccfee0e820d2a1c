"""Plugins that a test installs: modules with the metadata of a distribution, in a folder of its own."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflow_ft.plugins import PluginInfo, Plugins

GOOD = """
from mlflow_ft import Adapter, hookimpl

@hookimpl
def register_adapters():
    return [Adapter(name="{name}", summary="of {name}", configure=lambda job, model: None)]
"""


class Install:
    """Makes modules installed distributions, each with an entry point of its name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, name: str, source: str, *, entry_point: str | None = None, module: str | None = None) -> None:
        (self.folder / f"{name}.py").write_text(source)
        info = self.folder / f"{name}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[mlflow_ft]\n{entry_point or name} = {module or name}\n")
        importlib.invalidate_caches()

    def imported(self) -> list[str]:
        """The modules that were imported."""
        here = str(self.folder)
        return [name for name, module in sys.modules.items() if str(getattr(module, "__file__", "")).startswith(here)]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Make `name` an installed distribution with a module of this source, whose entry point has the same name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    install = Install(tmp_path)
    yield install
    for name in install.imported():
        del sys.modules[name]


def info(loaded: Plugins, name: str) -> PluginInfo:
    [match] = [plugin for plugin in loaded.infos if plugin.name == name]
    return match


def providers(loaded: Plugins) -> set[str]:
    return {registered.provider for registered in loaded.registered}
