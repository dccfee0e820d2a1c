"""The base model, the model in training, and the trained model on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mlflow_ft.rows import Task

MLFLOW_URIS = ("models:/", "runs:/", "mlflow-artifacts:/")
"""Prefixes of the URIs of models in MLflow."""


class LossWatcher(Protocol):
    """Watches the held-out loss during training."""

    def __call__(self, share: float, loss: float, /) -> None:
        """`loss` is the held-out loss after a share of the optimizer steps, 0 to 1; an error ends the training."""


class Checkpointer(Protocol):
    """Saves the model during training."""

    def __call__(self, module: Any, step: int, metrics: Mapping[str, float], /) -> None:
        """`metrics` are from the evaluation at this optimizer step: `eval/loss` ..."""


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """The base model's place and identity: enough to find and recognise it again."""

    name: str
    """The name that the user gave."""
    path: Path
    """The folder that transformers reads."""
    name_or_path: str
    """The name in the adapter's files: the Hub id or the folder."""
    revision: str
    """The commit on the Hub, or `sha256:...` over the weight files."""
    origin: str
    """Where it came from, in one line for people: the Hub, the wheel, a folder."""
    task: Task = "generate"
    start: Path | None = None
    """The folder of an adapter on this base that is trained further."""
    start_uri: str = ""
    """Where that adapter came from."""

    @property
    def whole_name(self) -> str:
        """The base model and the adapter that is on it already, in short, for people."""
        path = Path(self.name_or_path)
        name = path.name if path.is_absolute() else self.name_or_path
        return f"{name} with the adapter {self.start_uri}" if self.start_uri else name

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer: that of the adapter that is trained further, if it has one, else the base's."""
        own = self.start is not None and (self.start / "tokenizer_config.json").is_file()
        return self.start if self.start and own else self.path


@dataclass(frozen=True, kw_only=True)
class Model:
    """The base model with its adapter, ready to train."""

    base: BaseModel
    module: Any
    """A transformers.PreTrainedModel, or the peft.PeftModel around it."""
    trainable: int
    """The number of trainable weights."""
    total: int


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The checkpoint that the trained model is, chosen by its held-out loss (`training.load_best`)."""

    step: int
    """The optimizer step after which it was written."""
    loss: float
    """Its held-out loss, in nats per learned token for sft, else as the method measures it."""
    steps: int
    """Optimizer steps of the whole training."""

    def __str__(self) -> str:
        return f"step {self.step:,} of {self.steps:,}, held-out loss {self.loss:.4g}"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The result of training on disk."""

    folder: Path
    """Has `adapter/` or `model/`, and `reference.safetensors`: logits of the model in memory."""
    base: BaseModel
    metrics: Mapping[str, float]
    findings: tuple[str, ...] = ()
    """Problems in the training that did not end it, a sentence each: for the card and a tag of the run."""
    stopped: str = ""
    """Why the training ended before its last step, a sentence; "" if it did not."""
    chosen: Chosen | None = None
    """The checkpoint that was kept; None: the weights after the last step."""

    @property
    def adapter(self) -> Path | None:
        path = self.folder / "adapter"
        return path if path.is_dir() else None

    @property
    def model(self) -> Path:
        return self.folder / "model"
