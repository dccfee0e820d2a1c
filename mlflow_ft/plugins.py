"""Finds plugins, loads them one by one so that a broken one does not affect the others, and lists them all."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

import pluggy

from mlflow_ft import hookspecs
from mlflow_ft.errors import PluginError, brief
from mlflow_ft.hashes import files_hash
from mlflow_ft.records import (
    Adapter,
    Check,
    DataFormat,
    Engine,
    Evaluator,
    Exporter,
    Gate,
    Launcher,
    Options,
    Packager,
    PlanRule,
    Record,
    Reward,
    ServingEngine,
    Trainer,
)

ENTRY_POINT_GROUP = "mlflow_ft"
KINDS: Mapping[str, type] = {
    "formats": DataFormat,
    "checks": Check,
    "trainers": Trainer,
    "adapters": Adapter,
    "evaluators": Evaluator,
    "rewards": Reward,
    "packagers": Packager,
    "exporters": Exporter,
    "gates": Gate,
    "launchers": Launcher,
    "plan_rules": PlanRule,
    "engines": Engine,
    "serving_engines": ServingEngine,
    "options": Options,
}
CHECKOUT = Path(__file__).parents[1]
"""The folder that contains the package; with an MLproject file in it, it is a checkout, which has its own plugins."""
BUILTIN_FOLDER = CHECKOUT / "mlflow_ft" / "builtin"
BUILTIN = tuple(f"mlflow_ft.builtin.{kind}" for kind in KINDS if kind != "options")  # the core's are its sections
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PluginInfo:
    """A line of `mlflow-ft plugins`: a plugin, and whether it works."""

    name: str
    version: str
    module: str
    sha256: str
    status: Literal["active", "broken", "off"]
    error: str = ""

    @property
    def built_in(self) -> bool:
        return self.module.startswith("mlflow_ft.builtin.")


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A record and the plugin it came from."""

    provider: str
    kind: str
    record: Record


@dataclass(frozen=True, kw_only=True)
class Offered:
    """A plugin that can be loaded: from an installed distribution, or from a folder of the checkout."""

    point: metadata.EntryPoint
    version: str
    folder: Path | None = None
    """The folder of its package, if it is not installed."""
    wanted: bool = True
    """Whether it is loaded by default: a template for copying is not."""

    @property
    def name(self) -> str:
        return self.point.name


class Plugins:
    """The loaded plugins; an object that is passed around, never a global.

    >>> plugins = load()
    >>> [info.name for info in plugins.infos if info.status == "broken"]
    []
    """

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self.infos: tuple[PluginInfo, ...] = ()
        self.registered: tuple[Registered, ...] = ()
        self.chosen: tuple[str, ...] = ()
        """The names in MLFLOW_FT_PLUGINS."""

    @property
    def hook(self) -> pluggy.HookRelay:
        """The hooks to call: `plugins.hook.before_train(job=..., data=..., model=...)`."""
        return self._manager.hook

    @property
    def active(self) -> tuple[PluginInfo, ...]:
        return tuple(info for info in self.infos if info.status == "active")

    def add(self, module: ModuleType, *, name: str, version: str = "") -> PluginInfo:
        """Register all of a plugin, or leave out all of it and list the reason."""
        if self._manager.has_plugin(name):
            return self._list(module, name=name, version=version, error="another plugin of this name is loaded already")
        try:
            self._manager.register(module, name)
            self._manager.check_pending()
            registered = list(self._collect(name))
        except (Exception, SystemExit) as error:  # a third-party plugin's error must not stop the others
            if self._manager.has_plugin(name):
                self._manager.unregister(name=name)
            return self._list(module, name=name, version=version, error=brief(error, with_type=True))
        self.registered += tuple(registered)
        return self._list(module, name=name, version=version)

    def watch(self, hook: str, **arguments: object) -> None:
        """Call an `after_` or `on_` hook of every plugin; an error is logged, and the run continues."""
        for implementation in reversed(getattr(self.hook, hook).get_hookimpls()):
            try:
                implementation.function(*(arguments[name] for name in implementation.argnames))
            except Exception as error:  # observers must not stop a run
                log.warning("plugin %s: %s raised %s", implementation.plugin_name, hook, brief(error, with_type=True))

    def _collect(self, name: str) -> Iterable[Registered]:
        for kind, record_type in KINDS.items():
            for implementation in getattr(self.hook, f"register_{kind}").get_hookimpls():
                if implementation.plugin_name != name:
                    continue
                records = cast("Iterable[Any]", implementation.function())
                for record in records:
                    if not isinstance(record, record_type):
                        raise TypeError(
                            f"register_{kind} returned {record!r}, which is not of type {record_type.__name__}"
                        )
                    yield Registered(provider=name, kind=kind, record=cast("Record", record))

    def _list(self, module: ModuleType | None, *, name: str, version: str, error: str = "") -> PluginInfo:
        info = PluginInfo(
            name=name,
            version=version,
            module=getattr(module, "__name__", ""),
            sha256=_source_hash(module) if module else "",
            status="broken" if error else "active",
            error=error,
        )
        self.infos += (info,)
        return info

    def load(self, plugin: Offered) -> None:
        """Import and register a plugin."""
        if plugin.folder and str(plugin.folder) not in sys.path:
            sys.path.append(str(plugin.folder))  # last, so that it hides no other module
        try:
            module = plugin.point.load()
        except (Exception, SystemExit) as error:  # an import may raise anything
            self._list(None, name=plugin.name, version=plugin.version, error=brief(error, with_type=True))
        else:
            self.add(module, name=plugin.name, version=plugin.version)

    def refuse(self, name: str, error: Exception) -> None:
        """List a plugin whose description cannot be read."""
        self._list(None, name=name, version="", error=brief(error, with_type=True))

    def skip(self, plugin: Offered) -> None:
        """List a plugin that is not loaded."""
        off = PluginInfo(name=plugin.name, version=plugin.version, module=plugin.point.value, sha256="", status="off")
        self.infos += (off,)


def load(environ: Mapping[str, str] = os.environ, *, checkout: Path = CHECKOUT) -> Plugins:
    """Load the built-ins, every installed plugin, and those of the checkout that are not installed.

    `MLFLOW_FT_PLUGINS=a,b` chooses among them; `MLFLOW_FT_STRICT=1` makes a broken plugin an error.

    Raises:
        PluginError: a plugin is broken and MLFLOW_FT_STRICT is set, or a requested one is not installed.
    """
    plugins = Plugins()
    plugins.chosen = tuple(filter(None, map(str.strip, environ.get("MLFLOW_FT_PLUGINS", "").split(","))))
    for module in BUILTIN:
        plugins.add(importlib.import_module(module), name=module.removeprefix("mlflow_ft."), version=_own_version())
    offered = sorted((*installed(), *uninstalled(plugins, checkout)), key=lambda plugin: plugin.name)
    missing = set(plugins.chosen) - {plugin.name for plugin in offered}
    if missing:
        raise PluginError(
            f"MLFLOW_FT_PLUGINS names {', '.join(sorted(missing))}, which is not installed",
            hint=f"installed: {', '.join(plugin.name for plugin in offered) or 'none'}",
        )
    for plugin in offered:
        if plugin.name in plugins.chosen if plugins.chosen else plugin.wanted:
            plugins.load(plugin)
        else:
            plugins.skip(plugin)
    broken = [info for info in plugins.infos if info.status == "broken"]
    if broken and environ.get("MLFLOW_FT_STRICT", "") not in ("", "0"):
        raise PluginError(
            "; ".join(f"plugin {info.name} {info.version} is broken: {info.error}" for info in broken),
            hint="fix or uninstall it, or unset MLFLOW_FT_STRICT to run without it",
        )
    return plugins


def installed() -> Iterator[Offered]:
    """The plugins of installed distributions, from the entry point group `mlflow_ft`."""
    for point in metadata.entry_points(group=ENTRY_POINT_GROUP):
        yield Offered(point=point, version=point.dist.version if point.dist else "")


def uninstalled(plugins: Plugins, checkout: Path) -> Iterator[Offered]:
    """The plugins in the folder `plugins/` of a checkout that are not installed.

    `mlflow run` makes an environment of third-party packages only and runs the checkout in it, so the entry points of
    our own plugins are read from their pyproject.toml. One that cannot be read is listed as broken.
    """
    if not (checkout / "MLproject").is_file():
        return
    known = {(plugin.name, plugin.point.value) for plugin in installed()}
    for file in sorted(checkout.glob("plugins/*/pyproject.toml")):
        try:
            yield from _offered(file, known)
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            plugins.refuse(file.parent.name, error)


def _offered(file: Path, known: Collection[tuple[str, str]]) -> Iterator[Offered]:
    settings = tomllib.loads(file.read_text(encoding="utf-8"))
    project, ours = settings["project"], settings.get("tool", {}).get("mlflow-ft", {})
    for name, module in project.get("entry-points", {}).get(ENTRY_POINT_GROUP, {}).items():
        if (name, module) not in known:
            yield Offered(
                point=metadata.EntryPoint(name=name, value=module, group=ENTRY_POINT_GROUP),
                version=project["version"],
                folder=file.parent,
                wanted=ours.get("load-from-checkout", True),
            )


def _own_version() -> str:
    try:
        return metadata.version("mlflow-ft")
    except metadata.PackageNotFoundError:  # a checkout that was never installed, as in `mlflow run`
        return "source"


def _source_hash(module: ModuleType) -> str:
    """Sha256 over the names and contents of the Python files of the plugin's package; "" where it has none on disk."""
    file = getattr(module, "__file__", None)
    if not file:
        return ""
    path = Path(file)
    folder = _package_folder(path)
    files = sorted(folder.rglob("*.py")) if folder else [path]
    try:
        return files_hash(files, within=folder or path.parent)
    except OSError:  # imported from a zip file
        return ""


def _package_folder(path: Path) -> Path | None:
    """The outermost package that a module is in, which for the built-ins is theirs; None for a module by itself."""
    folder = None
    for parent in path.parents:
        if not (parent / "__init__.py").is_file():
            break
        folder = parent
        if parent == BUILTIN_FOLDER:
            break
    return folder
