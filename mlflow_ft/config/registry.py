"""The settings of the model registry; names that it would refuse after the training are refused at once."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import field_validator

from mlflow_ft.config.section import Section

LONGEST_ALIAS = 255


class RegistrySection(Section):
    """The model registry."""

    model_name: str | None = None
    """Registered model; `<base model>-<method>` when not given. The adapter is registered as NAME-adapter."""
    alias: str = "candidate"
    """Alias for the new versions; none when empty. `champion` is refused: only `promote` moves it, on evidence."""
    gates: Path | None = None
    """A YAML file of gates, kept with the run: `promote` applies them to these versions unless it is given others."""

    @field_validator("model_name")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        return taken(name) if name is not None else None

    @field_validator("alias")
    @classmethod
    def _is_no_champion(cls, alias: str) -> str:
        if alias.lower() == "champion":
            raise ValueError("training does not make a champion; choose another alias, such as candidate")
        return _alias(alias)


def taken(name: str) -> str:
    """A name that MLflow's registry takes for a model.

    Raises:
        ValueError: the registry would refuse it.
    """
    if not name.strip() or "/" in name or ":" in name:
        raise ValueError("a registered model has a name without / and :, which MLflow refuses")
    return name


def _alias(name: str) -> str:
    """An alias for a version of a registered model; empty for none.

    Raises:
        ValueError: the registry would refuse it.
    """
    if re.fullmatch(r"[vV]\d+|latest", name, re.IGNORECASE):
        raise ValueError(f"MLflow reserves {name!r} for versions; choose another alias, such as candidate")
    if not re.fullmatch(r"[\w-]*", name) or len(name) > LONGEST_ALIAS:
        raise ValueError("an alias has letters, digits, underscores and dashes only; choose another, such as candidate")
    return name
