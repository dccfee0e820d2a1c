"""An import of a small configuration, and what became of its keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mlflow_ft import plugins
from mlflow_ft.config import Config, read_yaml, resolve
from mlflow_ft.operations.importing import tools, writing
from mlflow_ft.operations.importing.translating import Imported
from mlflow_ft.registry import Registry


class Result(NamedTuple):
    """An import, read back from the YAML that it wrote."""

    imported: Imported
    config: Config
    text: str

    @property
    def status(self) -> dict[str, str]:
        """Verdict by key."""
        return {told.key.name: told.status for told in self.imported.told}

    @property
    def note(self) -> dict[str, str]:
        """Reason by key."""
        return {told.key.name: told.note for told in self.imported.told}

    @property
    def flat(self) -> dict[str, Any]:
        """Every setting, as it is resolved."""
        return self.config.flat()


Import = Callable[..., Result]


@pytest.fixture(scope="session")
def registry() -> Registry:
    return Registry(plugins.load({}))


@pytest.fixture
def imports(registry: Registry, tmp_path: Path) -> Import:
    """Write a configuration, import it, and read the result back."""

    def call(text: str, *, name: str = "config.yaml", tool: str | None = None, **extra: str) -> Result:
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        imported = tools.import_file(str(file), registry, tool=tool, extra=extra)
        ours = tmp_path / "ours.yaml"
        ours.write_text(writing.as_yaml(imported, source=name), encoding="utf-8")
        defaults = registry.trainers[imported.method].defaults
        config = resolve(imported.method, defaults=defaults, file=read_yaml(ours))
        return Result(imported, config, ours.read_text(encoding="utf-8"))

    return call
