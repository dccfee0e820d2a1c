"""What plugins return to train: methods and adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlflow_ft.rows import Kind, Task

if TYPE_CHECKING:
    from mlflow_ft.config.schema import Config
    from mlflow_ft.values import Data, Job, Model, Trained

    # A value from another library (a peft config, a torch module): this module must not import it.
    Foreign = Any


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """A method: what is minimised, and the defaults that define the method.

    `train` gets the frozen job, data and model, trains, and returns where the result is. `defaults` are config
    values by full path; they override the schema's defaults, and the user's file and command line override them.
    """

    name: str
    summary: str
    train: Callable[[Job, Data, Model], Trained]
    """Called once, after the checks of data and model."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    paper: str = ""
    """An address."""
    needs: str = "conversations: messages, ShareGPT, Alpaca, question and answer ..., or plain text"
    """Which rows it learns from, in words."""
    kinds: tuple[Kind, ...] = ("conversation", "text")
    """The kinds of rows it can learn from; others are refused before anything is loaded."""
    task: Task = "generate"
    """What the model is for: to generate text, or to score it (a reward model)."""
    refuses: Callable[[Config, Adapter], str | None] = lambda config, adapter: None
    """Why these settings cannot work with this method and adapter, and a remedy, in a sentence; None where they can.
    Called before anything is loaded."""
    held_out_loss: bool = False
    """It measures a loss on the held-out rows during training that says how well the model does (`eval/loss`), with
    the callbacks of `engine.training.loop`: `training.early_stopping` and `load_best` go by it, and are refused for
    other methods."""
    in_parts: Callable[[Config], bool] = lambda config: False
    """Whether, with these settings, it computes the rows of a batch in parts on a CPU (`engine.training.parts`); the
    estimate of memory counts on it."""
    settings: tuple[str, ...] | None = None
    """The fields of `objective` and `rollout` that it uses; others are refused if set. None: any."""
    options: Callable[[], type] | None = None
    """The dataclass whose fields `objective.options` sets, imported when it is asked for. Names that it does not have,
    and text for its numbers, are refused before anything is loaded. None: the method checks its options by itself."""
    use_for: str = ""
    """When to use it, in a sentence."""
    memory: str = ""
    """How much memory it needs, compared with other methods."""
    ranges: Mapping[str, str] = field(default_factory=dict)
    """Usual values by full path: `{"training.learning_rate": "1e-5 to 5e-4"}`. A sweep searches those that are written
    so; where they differ, `1e-6 to 5e-6 for all weights, 1e-5 to 1e-4 with an adapter`."""
    scores: tuple[str, ...] = ()
    """The method's own score: the first of these that has a value for each held-out row. It is used to compare the
    tuned model with its base after training (`evaluation.on_worse`) and in a promotion (`metric: auto`).
    Empty: the first of loss, preference_accuracy and exact_match that exists, else any."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A parameter-efficient adapter: `configure` makes its PEFT config, or returns None where all weights train.

    `merges` says whether the adapter can be folded into the base model's weights.
    """

    name: str
    summary: str
    configure: Callable[[Job, Model], Foreign | None]
    """Called once, before the training."""
    merges: bool = True
    paper: str = ""
    """An address."""
    learned_prompt: bool = False
    """It comes before the text, as virtual tokens or their keys and values, and changes no weights."""
    refuses: Callable[[Config], str | None] = lambda config: None
    """Why these settings cannot work with this adapter, and a remedy, in a sentence; None where they can."""
    use_for: str = ""
    memory: str = ""
    ranges: Mapping[str, str] = field(default_factory=dict)
