"""What `mlflow-ft serve` gives to the engine that serves: models with their files, an address, and a proof."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_ft.progress import Progress
from mlflow_ft.values.forms import Form
from mlflow_ft.values.models import BaseModel

if TYPE_CHECKING:
    from mlflow_ft.config.schema import Config


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model to serve: its verified files and, for an adapter, the base that it was trained on."""

    name: str
    """By which requests select it."""
    uri: str
    """What it is, with the version's number in place of an alias: `models:/NAME/3`, or the absolute path of a folder.
    """
    folder: Path
    """Its weights, tokenizer with the chat template, and generation settings."""
    base: BaseModel | None = None
    """None: it is a whole model."""
    note: Mapping[str, Any] = field(default_factory=dict)
    """For an adapter, how its base was held in training (`dtype`, `quantization`, `task`, `tokens`): its base.json."""
    about: Mapping[str, str] = field(default_factory=dict)
    """What people want to know of it, in their words: `version`, `form`, `run`, `base`, `parity`, as far as known."""

    @property
    def plain_name(self) -> str:
        """The name of the registered model, without version or alias; "" if it is not registered."""
        registered = re.fullmatch(r"models:/([^/]+)/\d+", self.uri)
        return registered[1] if registered else ""


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What to serve, where, and what the engine calls on the way."""

    models: Sequence[ServedModel]
    """The first is the default of requests that name none."""
    together: bool
    """Whether they are adapters of one base, which is served with them as `base`; else there is one model."""
    listener: socket.socket
    """Bound, but not listening yet: nobody is served before the engine says so."""
    url: str
    timeout: int
    """Seconds that a request may take until its first token, or as a whole if it is not streamed."""
    follow: float | None
    """Seconds after which the names are looked up again; None: never."""
    config: Config
    """Read a plugin's options with `serving.config.options(...)`; all else in it is for trainings."""
    signature: Any
    """MLflow's signature of a chat model, for its route /invocations."""
    progress: Progress
    ready: Callable[[Sequence[str], str], None]
    """To be called when requests are answered, with the names of the models and the route of an example request."""
    prove: Callable[[ServedModel, Form], Mapping[str, float]]
    """Compares a model as the engine runs it with the trained one, on the reference that its run has kept.

    Returns the numbers (`kl_mean`, `top1_agreement` ...). Raises RefusedError if it is another model.
    """
    look_up: Callable[[ServedModel], ServedModel | None]
    """Looks up the name of a served model again: the model that it means now, or None if that is the same.

    Raises ModelError or TrackingError if nobody can tell.
    """
