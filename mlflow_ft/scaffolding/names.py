"""The names of a new plugin, derived from one: of its distribution, its module, and its records."""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Collection
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec

from mlflow_ft.errors import PluginError
from mlflow_ft.plugins import Plugins
from mlflow_ft.scaffolding.kinds import catalogue

DISTRIBUTION = r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"
"""What PyPI accepts."""
LONGEST = 40
PREFIX = "mlflow-ft-"


@dataclass(frozen=True, kw_only=True)
class Names:
    """What a plugin is called where."""

    distribution: str
    """As `pip install` takes it: `mlflow-ft-cards`."""

    @property
    def module(self) -> str:
        """As Python imports it: `mlflow_ft_cards`."""
        return re.sub(r"[-.]+", "_", self.distribution).lower()

    @property
    def slug(self) -> str:
        """The name of its entry point and of its records: `cards`."""
        return re.sub(r"[-._]+", "-", self.distribution).lower().removeprefix(PREFIX)

    @property
    def ident(self) -> str:
        """The same as part of an identifier."""
        return self.slug.replace("-", "_")


def names(distribution: str, kinds: Collection[str], plugins: Plugins, *, commands: Collection[str] = ()) -> Names:
    """The names, if none of them is taken; `commands` are those of mlflow-ft.

    Raises:
        PluginError: it cannot be the name of a package or a module, or is taken.
    """
    wanted = Names(distribution=distribution)
    hint = "choose another, such as my-plugin"
    if not re.fullmatch(DISTRIBUTION, distribution):
        raise PluginError(
            f"{distribution!r} cannot be the name of a package",
            hint="letters, digits, `-`, `_` and `.`, with a letter or a digit at both ends",
        )
    if len(distribution) > LONGEST:
        raise PluginError(f"the name has {len(distribution)} characters", hint=f"use at most {LONGEST}")
    if not wanted.module.isidentifier() or keyword.iskeyword(wanted.module):
        why = "a word of Python's own" if keyword.iskeyword(wanted.module) else "no Python identifier"
        raise PluginError(f"{distribution!r} cannot be the name of a module: {wanted.module} is {why}", hint=hint)
    ours = f"mlflow-ft has a command {wanted.slug}" if "command" in kinds and wanted.slug in commands else ""
    if taken := ours or _taken(wanted, kinds, plugins):
        raise PluginError(f"the name {distribution!r} is taken: {taken}", hint=hint)
    return wanted


def _taken(wanted: Names, kinds: Collection[str], plugins: Plugins) -> str:
    """By what a name is taken; "" if it is free."""
    if wanted.module in sys.stdlib_module_names:
        return f"{wanted.module} is a module of Python's standard library"
    for info in plugins.infos:
        if info.name == wanted.slug:
            return f"a plugin {info.name} is there already ({info.module or info.error})"
    for registered in plugins.registered:
        if registered.record.name == wanted.slug and registered.kind in map(catalogue, kinds):
            return f"{registered.provider} registers {wanted.slug} in {registered.kind}"
    if version := _installed(wanted.distribution):
        return f"{wanted.distribution} {version} is installed"
    spec = find_spec(wanted.module)
    return f"there is a module {wanted.module} ({spec.origin})" if spec and spec.origin else ""


def _installed(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
