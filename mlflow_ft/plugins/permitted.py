"""Which of the plugins that were found may be loaded."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mlflow_ft.errors import PluginError
from mlflow_ft.plugins.offered import Offered

ALLOW = "MLFLOW_FT_PLUGINS_ALLOW"
SETTING = "plugins.allow"


@dataclass(frozen=True, kw_only=True)
class Permitted:
    """The allow-lists: a plugin must be in each that is given. Built-ins always are."""

    lists: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, environ: Mapping[str, str], allow: Collection[str] | None) -> Permitted:
        """The lists of the environment and of the configuration; an empty one allows none."""
        lists = {SETTING: tuple(allow)} if allow is not None else {}
        if ALLOW in environ:
            lists[ALLOW] = tuple(names(environ[ALLOW]))
        return cls(lists=lists)

    def check(self, chosen: Sequence[str], offered: Sequence[Offered]) -> None:
        """Refuse a choice of plugins that are not installed or not allowed.

        Raises:
            PluginError: one is not.
        """
        found = {plugin.name for plugin in offered}
        if missing := sorted(set(chosen) - found):
            raise PluginError(
                f"MLFLOW_FT_PLUGINS names {', '.join(missing)}, which is not installed",
                hint=f"installed: {', '.join(sorted(found)) or 'none'}",
            )
        for source, allowed in self.lists.items():
            if forbidden := sorted(set(chosen) - set(allowed)):
                raise PluginError(
                    f"MLFLOW_FT_PLUGINS names {', '.join(forbidden)}, which {source} does not allow",
                    hint=f"allowed: {', '.join(allowed) or 'none'}",
                )

    def why_not(self, plugin: Offered, chosen: Sequence[str]) -> str:
        """Why a plugin is not loaded; "" where it is."""
        for source, allowed in self.lists.items():
            if plugin.name not in allowed:
                return f"not in {source}"
        if chosen:
            return "" if plugin.name in chosen else "not in MLFLOW_FT_PLUGINS"
        return "" if plugin.wanted else f"an example: load it with MLFLOW_FT_PLUGINS={plugin.name}"


def names(text: str) -> Iterator[str]:
    """The names in a list with commas."""
    return filter(None, map(str.strip, text.split(",")))
