"""Find plugins, load them one by one, keep a broken one from breaking the rest, and list them all."""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

import pluggy

from mlflow_ft import hookspecs
from mlflow_ft.errors import PluginError
from mlflow_ft.records import Adapter, Check, DataFormat, Evaluator, Packager, Record, Reward, Trainer

ENTRY_POINT_GROUP = "mlflow_ft"
KINDS: Mapping[str, type] = {
    "formats": DataFormat,
    "checks": Check,
    "trainers": Trainer,
    "adapters": Adapter,
    "evaluators": Evaluator,
    "rewards": Reward,
    "packagers": Packager,
}
BUILTIN = tuple(f"mlflow_ft.builtin.{kind}" for kind in KINDS)
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PluginInfo:
    """A line of `mlflow-ft plugins`: what was found, and whether it works."""

    name: str
    version: str
    module: str
    sha256: str
    status: Literal["active", "broken", "off"]
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A record and the plugin it came from."""

    provider: str
    kind: str
    record: Record


class Plugins:
    """The loaded plugins; an object that is passed on, never a global.

    >>> plugins = load()
    >>> [info.name for info in plugins.infos if info.status == "broken"]
    []
    """

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self.infos: tuple[PluginInfo, ...] = ()
        self.registered: tuple[Registered, ...] = ()

    @property
    def hook(self) -> pluggy.HookRelay:
        """The hooks to call: `plugins.hook.before_train(job=..., data=..., model=...)`."""
        return self._manager.hook

    @property
    def active(self) -> tuple[PluginInfo, ...]:
        return tuple(info for info in self.infos if info.status == "active")

    def add(self, module: ModuleType, *, name: str, version: str = "") -> PluginInfo:
        """Register one plugin whole, or leave it out whole and say why."""
        if self._manager.has_plugin(name):
            return self._list(module, name=name, version=version, error="another plugin of this name is loaded already")
        try:
            self._manager.register(module, name)
            self._manager.check_pending()
            found = list(self._collect(name))
        except (Exception, SystemExit) as error:  # whatever a stranger's plugin raises must not stop the others
            if self._manager.has_plugin(name):
                self._manager.unregister(name=name)
            return self._list(module, name=name, version=version, error=_one_line(error))
        self.registered += tuple(found)
        return self._list(module, name=name, version=version)

    def watch(self, hook: str, **arguments: object) -> None:
        """Call an `after_` or `on_` hook of every plugin; what one raises is logged, and the run goes on."""
        for implementation in reversed(getattr(self.hook, hook).get_hookimpls()):
            try:
                implementation.function(*(arguments[name] for name in implementation.argnames))
            except Exception as error:  # watchers may not stop a run
                log.warning("plugin %s: %s raised %s", implementation.plugin_name, hook, _one_line(error))

    def _collect(self, name: str) -> Iterable[Registered]:
        for kind, record_type in KINDS.items():
            for implementation in getattr(self.hook, f"register_{kind}").get_hookimpls():
                if implementation.plugin_name != name:
                    continue
                records = cast("Iterable[Any]", implementation.function())
                for record in records:
                    if not isinstance(record, record_type):
                        raise TypeError(f"register_{kind} returned {record!r}, which is no {record_type.__name__}")
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

    def add_entry_point(self, entry_point: metadata.EntryPoint) -> None:
        """Import and register what an installed distribution offers under the group `mlflow_ft`."""
        version = entry_point.dist.version if entry_point.dist else ""
        try:
            module = entry_point.load()
        except (Exception, SystemExit) as error:  # an import may raise anything
            self._list(None, name=entry_point.name, version=version, error=_one_line(error))
        else:
            self.add(module, name=entry_point.name, version=version)

    def skip(self, entry_point: metadata.EntryPoint) -> None:
        """List a plugin that MLFLOW_FT_PLUGINS leaves out."""
        version = entry_point.dist.version if entry_point.dist else ""
        off = PluginInfo(name=entry_point.name, version=version, module=entry_point.value, sha256="", status="off")
        self.infos += (off,)


def load(environ: Mapping[str, str] = os.environ) -> Plugins:
    """Load the built-ins and every installed plugin.

    `MLFLOW_FT_PLUGINS=a,b` chooses among the installed ones; `MLFLOW_FT_STRICT=1` makes a broken one an error.

    Raises:
        PluginError: a plugin is broken and MLFLOW_FT_STRICT is set, or one that was asked for is not installed.
    """
    plugins = Plugins()
    for module in BUILTIN:
        plugins.add(importlib.import_module(module), name=module.removeprefix("mlflow_ft."), version=_own_version())
    chosen = [name.strip() for name in environ.get("MLFLOW_FT_PLUGINS", "").split(",") if name.strip()]
    installed = sorted(metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name)
    missing = set(chosen) - {point.name for point in installed}
    if missing:
        raise PluginError(
            f"MLFLOW_FT_PLUGINS names {', '.join(sorted(missing))}, which is not installed",
            hint=f"installed: {', '.join(point.name for point in installed) or 'none'}",
        )
    for point in installed:
        if not chosen or point.name in chosen:
            plugins.add_entry_point(point)
        else:
            plugins.skip(point)
    broken = [info for info in plugins.infos if info.status == "broken"]
    if broken and environ.get("MLFLOW_FT_STRICT", "") not in ("", "0"):
        raise PluginError(
            "; ".join(f"plugin {info.name} {info.version} is broken: {info.error}" for info in broken),
            hint="mend or uninstall it, or unset MLFLOW_FT_STRICT to run without it",
        )
    return plugins


def _own_version() -> str:
    try:
        return metadata.version("mlflow-ft")
    except metadata.PackageNotFoundError:  # run from a checkout that was never installed, as `mlflow run` does
        return "source"


def _source_hash(module: ModuleType) -> str:
    """Sha256 over the plugin's Python files, by their names in its package; "" where it has none on the disk."""
    file = getattr(module, "__file__", None)
    if not file:
        return ""
    path = Path(file)
    in_package = path.parent.joinpath("__init__.py").is_file()
    files = sorted(path.parent.rglob("*.py")) if in_package else [path]
    digest = hashlib.sha256()
    try:
        for source in files:
            digest.update(source.relative_to(path.parent).as_posix().encode() + b"\0" + source.read_bytes())
    except OSError:  # imported from a zip file
        return ""
    return digest.hexdigest()


def _one_line(error: BaseException | Any) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
