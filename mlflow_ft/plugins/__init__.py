"""Finds plugins, loads them one by one so that a broken one does not affect the others, and lists them all."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pluggy

from mlflow_ft import hookspecs
from mlflow_ft.errors import PluginError, brief
from mlflow_ft.plugins import doors, faults
from mlflow_ft.plugins.listing import KINDS, Described, PluginInfo, Registered, check_record, singular
from mlflow_ft.plugins.offered import Offered, installed, uninstalled
from mlflow_ft.plugins.permitted import Permitted, names
from mlflow_ft.plugins.source import source_hash
from mlflow_ft.records import Record

__all__ = ["BUILTIN", "CHECKOUT", "KINDS", "PluginInfo", "Plugins", "Registered", "load"]

CHECKOUT = Path(__file__).parents[2]
"""The folder that contains the package; with an MLproject file in it, it is a checkout, which has its own plugins."""
BUILTIN = tuple(f"mlflow_ft.builtin.{kind}" for kind in KINDS if kind not in ("guards", "options", "commands"))
"""The core has no guard sets; its own options and commands are in `config/` and `cli/`."""
log = logging.getLogger(__name__)


class Plugins:
    """The loaded plugins; an object that is passed around, never a global.

    >>> plugins = load()
    >>> [info.name for info in plugins.infos if info.faulty]
    []
    """

    def __init__(self, specifications: ModuleType = hookspecs) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(specifications)
        self.infos: tuple[PluginInfo, ...] = ()
        self.registered: tuple[Registered, ...] = ()
        self.chosen: tuple[str, ...] = ()
        """The names in MLFLOW_FT_PLUGINS."""

    @property
    def hook(self) -> pluggy.HookRelay:
        """The hooks; call them by `ask` and `watch`, which name the plugin that fails."""
        return self._manager.hook

    @property
    def arguments(self) -> dict[str, tuple[str, ...]]:
        """The names of the arguments of every hook."""
        callers = [caller for caller in vars(self.hook).values() if isinstance(caller, pluggy.HookCaller)]
        return {caller.name: tuple(caller.spec.argnames) for caller in callers if caller.spec}

    @property
    def active(self) -> tuple[PluginInfo, ...]:
        return tuple(info for info in self.infos if info.status == "active")

    def add(self, module: ModuleType, *, name: str, version: str = "", load_seconds: float = 0.0) -> PluginInfo:
        """Register all of a plugin, or leave out all of it and list the reason."""
        described = Described(module=module, name=name, version=version, load_seconds=load_seconds)
        if self._manager.has_plugin(name):
            return self._list(described, error="another plugin of this name is loaded already")
        try:
            with warnings.catch_warnings(record=True) as deprecated:
                warnings.simplefilter("always")
                self._manager.register(module, name)
            self._manager.check_pending()
            implementations = self._implementations(name)
            faults.check(module, list(implementations.values()))
            registered = list(self._collect(name, implementations, guarded=not described.built_in))
        except (Exception, SystemExit) as error:  # a third-party plugin's error must not stop the others
            if self._manager.has_plugin(name):
                self._manager.unregister(name=name)
            return self._list(described, error=faults.sentence(error, hooks=self.arguments))
        self.registered += tuple(registered)
        notes = [str(warning.message) for warning in deprecated]
        return self._list(
            described,
            provides=tuple(record.called for record in registered),
            hooks=tuple(hook for hook in implementations if not hook.startswith("register_")),
            notes=tuple(filter(None, [faults.slow(load_seconds), *notes])),
        )

    def ask(self, hook: str, **arguments: object) -> Iterator[tuple[str, Any]]:
        """Call a hook of every plugin, the last loaded first: the plugin's name, and what it returns.

        Raises:
            PluginFaultError: a plugin raised something else than a FineTuneError.
        """
        for implementation in reversed(getattr(self.hook, hook).get_hookimpls()):
            try:
                value = implementation.function(*(arguments[name] for name in implementation.argnames))
            except (Exception, SystemExit) as error:  # a plugin may raise anything
                if doors.of_the_machine(error):
                    raise
                said = f"{hook} raised {brief(error, with_type=True)}{faults.place(error)}"
                raise self.fault(implementation.plugin_name, said) from error
            yield implementation.plugin_name, value

    def fault(self, name: str, said: str) -> doors.PluginFaultError:
        """The error for something that a plugin did wrong."""
        return doors.fault(f"plugin {name}", said)

    def watch(self, hook: str, **arguments: object) -> None:
        """Call an `after_` or `on_` hook of every plugin; an error is logged, and the run continues."""
        for implementation in reversed(getattr(self.hook, hook).get_hookimpls()):
            try:
                implementation.function(*(arguments[name] for name in implementation.argnames))
            except (Exception, SystemExit) as error:  # observers must not stop a run
                log.warning("plugin %s: %s raised %s", implementation.plugin_name, hook, brief(error, with_type=True))

    def leave_out(self, name: str, *, error: str) -> None:
        """List a plugin that was loaded as a clash, and take its hooks and records away."""
        self._manager.unregister(name=name)
        self.registered = tuple(registered for registered in self.registered if registered.provider != name)
        self.infos = tuple(
            replace(info, status="clash", error=error, provides=(), hooks=())
            if info.name == name and info.status == "active"
            else info
            for info in self.infos
        )

    def _implementations(self, name: str) -> dict[str, pluggy.HookImpl]:
        return {
            hook: implementation
            for hook in self.arguments
            for implementation in getattr(self.hook, hook).get_hookimpls()
            if implementation.plugin_name == name
        }

    def _collect(
        self, name: str, implementations: Mapping[str, pluggy.HookImpl], *, guarded: bool
    ) -> Iterable[Registered]:
        for kind, record_type in KINDS.items():
            hook = f"register_{kind}"
            implementation = implementations.get(hook)
            for record in cast("Iterable[Any]", implementation.function()) if implementation else ():
                if not isinstance(record, record_type):
                    raise TypeError(f"{hook} returned {record!r}, which is not of type {record_type.__name__}")
                check_record(record, hook)
                of_kind = cast("Record", record)
                shielded = doors.guarded(of_kind, provider=name, kind=kind) if guarded else of_kind
                yield Registered(provider=name, kind=kind, record=shielded)

    def _list(self, described: Described, *, error: str = "", **more: Any) -> PluginInfo:
        info = PluginInfo(
            name=described.name,
            version=described.version,
            module=described.module.__name__ if described.module else "",
            sha256=source_hash(described.module) if described.module else "",
            status="broken" if error else "active",
            error=error,
            load_seconds=described.load_seconds,
            **more,
        )
        self.infos += (info,)
        return info

    def load(self, plugin: Offered) -> None:
        """Import and register a plugin."""
        if plugin.folder and str(plugin.folder) not in sys.path:
            sys.path.append(str(plugin.folder))  # last, so that it hides no other module
        began = time.perf_counter()
        try:
            with redirect_stdout(sys.stderr):  # a banner that it prints is not part of a command's output
                module = plugin.point.load()
        except (Exception, SystemExit) as error:  # an import may raise anything
            described = Described(module=None, name=plugin.name, version=plugin.version)
            self._list(described, error=faults.sentence(error, hooks=self.arguments))
        else:
            seconds = time.perf_counter() - began
            self.add(module, name=plugin.name, version=plugin.version, load_seconds=seconds)

    def refuse(self, name: str, error: Exception) -> None:
        """List a plugin whose description cannot be read."""
        self._list(Described(module=None, name=name, version=""), error=brief(error, with_type=True))

    def skip(self, plugin: Offered, reason: str) -> None:
        """List a plugin that is not loaded."""
        disabled = PluginInfo(
            name=plugin.name,
            version=plugin.version,
            module=plugin.point.value,
            sha256="",
            status="disabled",
            error=reason,
        )
        self.infos += (disabled,)


def load(
    environ: Mapping[str, str] = os.environ, *, checkout: Path = CHECKOUT, allow: Collection[str] | None = None
) -> Plugins:
    """Load the built-ins, every installed plugin, and those of the checkout that are not installed.

    `MLFLOW_FT_PLUGINS=a,b` chooses among them; `MLFLOW_FT_STRICT=1` makes a broken plugin an error. Where
    `MLFLOW_FT_PLUGINS_ALLOW=a,b` is set, or `allow` (the setting `plugins.allow`), no other plugin is imported.

    Raises:
        PluginError: a plugin is broken and MLFLOW_FT_STRICT is set, or a requested one is not installed or allowed.
    """
    plugins = Plugins()
    plugins.chosen = tuple(names(environ.get("MLFLOW_FT_PLUGINS", "")))
    for module in BUILTIN:
        plugins.add(importlib.import_module(module), name=module.removeprefix("mlflow_ft."), version=_own_version())
    offered = sorted((*installed(), *uninstalled(plugins.refuse, checkout)), key=lambda plugin: plugin.name)
    permitted = Permitted.of(environ, allow)
    permitted.check(plugins.chosen, offered)
    for plugin in offered:
        if reason := permitted.why_not(plugin, plugins.chosen):
            plugins.skip(plugin, reason)
        else:
            plugins.load(plugin)
    _leave_out_clashes(plugins)
    faulty = [info for info in plugins.infos if info.faulty]
    if faulty and environ.get("MLFLOW_FT_STRICT", "") not in ("", "0"):
        raise PluginError(
            "; ".join(f"plugin {info.name} {info.version} is broken: {info.error}" for info in faulty),
            hint="fix or uninstall it, or unset MLFLOW_FT_STRICT to run without it",
        )
    return plugins


def _leave_out_clashes(plugins: Plugins) -> None:
    """Leave out every plugin that registers a name which another has, but for built-in ones."""
    owners: dict[tuple[str, str], list[str]] = {}
    for registered in plugins.registered:
        owners.setdefault((registered.kind, registered.record.name), []).append(registered.provider)
    reasons: dict[str, list[str]] = {}
    for (kind, name), providers in owners.items():
        for provider in dict.fromkeys(providers) if len(providers) > 1 else ():
            others = [other for other in dict.fromkeys(providers) if other != provider]
            also = " and ".join(others) if others else "it, twice,"
            reasons.setdefault(provider, []).append(f"{singular(kind)} {name!r} is also registered by {also}")
    for provider, said in reasons.items():
        if not provider.startswith("builtin."):
            way_out = "uninstall one of them, or choose with MLFLOW_FT_PLUGINS"
            plugins.leave_out(provider, error=f"{'; '.join(said)}; {way_out}")


def _own_version() -> str:
    try:
        return metadata.version("mlflow-ft")
    except metadata.PackageNotFoundError:  # a checkout that was never installed, as in `mlflow run`
        return "source"
