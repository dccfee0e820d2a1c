"""The base model, the model that trains, and what training leaves on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mlflow_ft.rows import Task

MLFLOW_URIS = ("models:/", "runs:/", "mlflow-artifacts:/")
"""How the addresses of models in MLflow begin."""


class Checkpointer(Protocol):
    """Keeps a model as it stands during training."""

    def __call__(self, module: Any, step: int, metrics: Mapping[str, float], /) -> None:
        """`metrics` are those of the evaluation at this optimizer step: `eval/loss` ..."""


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """Where the base model lies, and what it is: enough to find and to recognise it again."""

    name: str
    """What the user asked for."""
    path: Path
    """The folder that transformers reads."""
    name_or_path: str
    """What is written into the adapter: the Hub id, or the folder."""
    revision: str
    """Commit on the Hub, or `sha256:...` over the weight files."""
    origin: str
    """One line for people: from the Hub, from the wheel, from a folder."""
    task: Task = "generate"
    start: Path | None = None
    """The folder of an adapter on this base that is trained further."""
    start_uri: str = ""
    """Where that adapter came from."""

    @property
    def whole_name(self) -> str:
        """What the training begins with: the base model, and the adapter that is on it already; short, for people."""
        path = Path(self.name_or_path)
        name = path.name if path.is_absolute() else self.name_or_path
        return f"{name} with the adapter {self.start_uri}" if self.start_uri else name

    @property
    def tokenizer(self) -> Path:
        """The folder whose tokenizer is used: that of the adapter, where one is trained further and has its own."""
        own = self.start is not None and (self.start / "tokenizer_config.json").is_file()
        return self.start if self.start and own else self.path


@dataclass(frozen=True, kw_only=True)
class Model:
    """The base model with its adapter, ready to train."""

    base: BaseModel
    module: Any
    """A transformers.PreTrainedModel, or the peft.PeftModel around it."""
    trainable: int
    """Number of weights that train."""
    total: int


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What training left on disk."""

    folder: Path
    """Holds `adapter/` or `model/`, and `reference.safetensors`: logits of the model as it was in memory."""
    base: BaseModel
    metrics: Mapping[str, float]
    findings: tuple[str, ...] = ()
    """What went wrong in the training without ending it, a sentence each: for the card, and a tag of the run."""

    @property
    def adapter(self) -> Path | None:
        path = self.folder / "adapter"
        return path if path.is_dir() else None

    @property
    def model(self) -> Path:
        return self.folder / "model"
