"""The settings of the plugin: which Unsloth trains."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class UnslothOptions:
    """Where Unsloth is; by default the plugin installs it the first time that it is needed."""

    python: str | None = None
    """The interpreter of an environment of your own that has Unsloth, instead of one that the plugin makes."""
    requirements: list[str] | None = None
    """What pip installs into the environment, instead of the version that the plugin was written for."""
