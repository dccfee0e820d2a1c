"""The forms of a trained model: opened, packaged, exported, registered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class Form(Protocol):
    """A form of the trained model, loaded from its files by the program that runs it.

    One that can answer several prompts at once may also have `all_continued(rows, length)`, with a list of rows, and a
    list of what `continued` would give for each.
    """

    def logits(self, input_ids: Any, positions: Any) -> Any:
        """Logits (or log-probabilities), a torch.Tensor of shape (positions, vocabulary), of one row of token ids.

        Both arguments are torch.Tensors of one dimension; position p gives the logits for the token after token p. A
        program that reports only the most probable tokens gives their log-probabilities, and NaN for the others.
        """

    def continued(self, input_ids: Any, length: int) -> list[int]:
        """The most probable next tokens after a row of token ids, at most `length`, including an end token."""


@dataclass(frozen=True, kw_only=True)
class Packaged:
    """A logged form of the trained model: its folder, its LoggedModel, and how close it is to the trained model."""

    name: str
    folder: Path
    model_id: str
    suffix: str
    parity: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A form for another program, logged as artifacts of the run."""

    name: str
    folder: Path
    uri: str
    """`runs:/RUN_ID/exports/NAME`."""
    parity: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Package:
    """Every form that was logged, the main one first."""

    models: tuple[Packaged, ...]
    files: tuple[Exported, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Version:
    """A registered model version."""

    name: str
    version: int
    alias: str
    model_id: str
