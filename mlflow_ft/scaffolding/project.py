"""A new MLflow Project whose entry points are methods, with mlflow-ft and the plugins pinned."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from mlflow_ft.plugins import Plugins
from mlflow_ft.records import Trainer
from mlflow_ft.registry import Registry
from mlflow_ft.scaffolding import pins
from mlflow_ft.scaffolding.rendering import check_free, environment, write

PLACES = {
    "MLproject.j2": "MLproject",
    "conda.yaml.j2": "conda.yaml",
    "config.yaml.j2": "config.yaml",
    "README.md.j2": "README.md",
    "gitignore.j2": ".gitignore",
}
TAKEN = ("main", "promote", "resume")
"""Entry points that every project has."""
ON_THIS_MACHINE = "Some packages were installed from a folder: with these lines, only this machine can install them."


@dataclass(frozen=True, kw_only=True)
class NewProject:
    """What was written."""

    folder: Path
    methods: tuple[str, ...]
    requirements: tuple[str, ...]
    """The lines for mlflow-ft and the plugins."""
    local: bool
    """Whether some of them name a folder of this machine."""


def new_project(folder: Path, *, methods: Sequence[str], packages: Sequence[str], plugins: Plugins) -> NewProject:
    """Write the project to `folder`, which must not exist or be empty.

    The plugins are those that are named, and those of the methods; all methods of these plugins get entry points.

    Raises:
        ConfigError: there is no such method, or the folder is not free. PluginError: a plugin is not installed.
    """
    check_free(folder)
    registry = Registry(plugins)
    asked = [registry.trainers[name] for name in methods]
    distributions = {pins.plain(found.name): found for found in map(pins.distribution_of, packages)}
    for trainer in asked:
        provider = registry.trainers.provider(trainer.name)
        if not provider.startswith("builtin."):
            found = pins.distribution_of(provider)
            distributions[pins.plain(found.name)] = found
    theirs = [trainer for trainer in registry.trainers if _plugin_of(trainer, registry) in distributions]
    trainers = list({trainer.name: trainer for trainer in (*asked, *theirs) if trainer.name not in TAKEN}.values())
    own, needs = pins.ours()
    lines = [own, *(pins.requirement(found) for found in distributions.values())]
    needs += [name for found in distributions.values() for name in pins.needed(found)]
    others = [line for line in pins.versions(needs) if line not in lines]
    local = any(" @ file:" in line for line in (*lines, *others))
    values: dict[str, Any] = {
        "name": folder.absolute().name,
        "methods": [trainer.name for trainer in trainers],
        "plugins": [found.name for found in distributions.values()],
        "python": platform.python_version(),
        "requirements": [*lines, *others],
        "notes": [ON_THIS_MACHINE] if local else [],
        "defaults": {trainer.name: nested(trainer.defaults) for trainer in trainers if trainer.defaults},
    }
    templates = environment("project")
    write(folder, {place: templates.get_template(name).render(values) for name, place in PLACES.items()})
    return NewProject(folder=folder, methods=tuple(values["methods"]), requirements=tuple(lines), local=local)


def _plugin_of(trainer: Trainer, registry: Registry) -> str:
    """The distribution of the plugin that has a method; "" for ours, and for one that is not installed."""
    provider = registry.trainers.provider(trainer.name)
    points = metadata.entry_points(group=pins.GROUP, name=provider)
    return next((pins.plain(point.dist.name) for point in points if point.dist), "")


def nested(defaults: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Settings by section, as YAML writes their values: `{"adapter": {"r": "4"}}`."""
    sections: dict[str, dict[str, str]] = {}
    for path, value in defaults.items():
        section, _, key = path.partition(".")
        sections.setdefault(section, {})[key] = json.dumps(value)
    return sections
