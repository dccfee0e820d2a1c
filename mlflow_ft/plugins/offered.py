"""Where plugins are found: in installed distributions, and in the folder `plugins/` of a checkout."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ENTRY_POINT_GROUP = "mlflow_ft"


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


def installed() -> Iterator[Offered]:
    """The plugins of installed distributions, from the entry point group `mlflow_ft`."""
    for point in metadata.entry_points(group=ENTRY_POINT_GROUP):
        yield Offered(point=point, version=point.dist.version if point.dist else "")


def uninstalled(refuse: Callable[[str, Exception], None], checkout: Path) -> Iterator[Offered]:
    """The plugins in the folder `plugins/` of a checkout that are not installed.

    `mlflow run` makes an environment of third-party packages only and runs the checkout in it, so the entry points of
    our own plugins are read from their pyproject.toml. `refuse` is called for one that cannot be read.
    """
    if not (checkout / "MLproject").is_file():
        return
    known = {(plugin.name, plugin.point.value) for plugin in installed()}
    for file in sorted(checkout.glob("plugins/*/pyproject.toml")):
        try:
            yield from _offered(file, known)
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            refuse(file.parent.name, error)


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
