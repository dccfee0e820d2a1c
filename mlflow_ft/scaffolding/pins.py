"""Requirements that install what is installed here: exact versions, or where a package came from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from mlflow_ft.errors import ConfigError, PluginError
from mlflow_ft.plugins import CHECKOUT

OURS = "mlflow-ft"
GROUP = "mlflow_ft"


def distribution_of(plugin: str) -> metadata.Distribution:
    """The installed distribution of a plugin, by the name of either.

    Raises:
        PluginError: there is none.
    """
    points = [point for point in metadata.entry_points(group=GROUP) if point.dist]
    for point in points:
        if point.dist and plain(plugin) in (plain(point.name), plain(point.dist.name)):
            return point.dist
    names = sorted({point.dist.name for point in points if point.dist})
    raise PluginError(
        f"{plugin} is no installed plugin, so its version cannot be pinned",
        hint=f"install it first; installed: {', '.join(names) or 'none'}",
    )


def requirement(distribution: metadata.Distribution) -> str:
    """The line that installs this distribution again: `name==version`, or `name @ URL` if it came from elsewhere."""
    name = distribution.name
    direct = json.loads(distribution.read_text("direct_url.json") or "{}")
    if not direct:
        return f"{name}=={distribution.version.partition('+')[0]}"  # a local build (2.13.0+cpu) is on no index
    url = str(direct["url"])
    if version_control := direct.get("vcs_info"):
        url = f"{version_control['vcs']}+{url}@{version_control['commit_id']}"
    folder = f"#subdirectory={direct['subdirectory']}" if direct.get("subdirectory") else ""
    return f"{name} @ {url}{folder}"


def ours() -> tuple[str, list[str]]:
    """The line that installs mlflow-ft, and the names of the packages that it needs.

    Raises:
        ConfigError: it is not installed, and this is no checkout of it.
    """
    try:
        own = metadata.distribution(OURS)
    except metadata.PackageNotFoundError:
        if not (CHECKOUT / "pyproject.toml").is_file():
            raise ConfigError(
                "mlflow-ft is not installed, so its version cannot be pinned", hint="pip install mlflow-ft"
            ) from None
        return f"{OURS} @ {CHECKOUT.as_uri()}", list(needed_by_checkout(CHECKOUT))
    return requirement(own), list(needed(own))


def needed_by_checkout(folder: Path) -> Iterator[str]:
    """The names of the packages that a checkout requires."""
    import tomllib

    project: Any = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    yield from map(name_in, project["dependencies"])


def needed(distribution: metadata.Distribution) -> Iterator[str]:
    """The names of the packages that a distribution requires, without those of extras."""
    for line in distribution.requires or ():
        if "extra ==" not in line:
            yield name_in(line)


def versions(names: Iterable[str]) -> list[str]:
    """Exact versions of the packages that are installed, by name."""
    lines = {}
    for name in names:
        try:
            lines[plain(name)] = requirement(metadata.distribution(name))
        except metadata.PackageNotFoundError:  # not needed on this platform
            continue
    return [line for name, line in sorted(lines.items()) if name != OURS]


def name_in(line: str) -> str:
    """The name at the beginning of a requirement."""
    found = re.match(r"[A-Za-z0-9._-]+", line.strip())
    return found[0] if found else line


def plain(name: str) -> str:
    """A distribution's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()
