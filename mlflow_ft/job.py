"""The values that flow: config -> data -> model -> train -> evaluate -> package -> register."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from mlflow_ft.config.schema import Config
    from mlflow_ft.data.quality import Report
    from mlflow_ft.data.store import Column
    from mlflow_ft.plugins import Plugins
    from mlflow_ft.progress import Progress
    from mlflow_ft.records import Answer, Score
    from mlflow_ft.registry import Registry
    from mlflow_ft.rows import Example, Kind, Place, Task
    from mlflow_ft.tracking import ActiveRun

MLFLOW_URIS = ("models:/", "runs:/", "mlflow-artifacts:/")
"""How the addresses of models in MLflow begin."""


class Checkpointer(Protocol):
    """Keeps a model as it stands during training."""

    def __call__(self, module: Any, step: int, metrics: Mapping[str, float], /) -> None:
        """`metrics` are those of the evaluation at this optimizer step: `eval/loss` ..."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One fine-tuning job, which is one MLflow run: what was asked, and the means to do it."""

    config: Config
    plugins: Plugins
    registry: Registry
    run: ActiveRun
    folder: Path
    """The run's own folder; each stage from `train` on has a sub-folder in it."""
    progress: Progress
    reward_model: Path | None = None
    """The folder of `rollout.reward_model`."""
    keep_checkpoint: Checkpointer | None = None
    """Called at every evaluation during training, where checkpoints were asked for."""

    @property
    def task(self) -> Task:
        """What the method trains a model for."""
        return self.registry.trainers[self.config.method].task


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One example as the trainer sees it: token ids, and labels that are -100 where nothing is learned."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    truncated: bool = False
    way: str = ""
    """How the assistant's spans were found; see `engine.render`."""
    rejected: Encoded | None = None
    """Of a preference, the rejected answer; the rest is the chosen one."""

    @property
    def supervised(self) -> int:
        """Number of tokens that are learned."""
        return len(self.labels) - self.labels.count(-100)


@dataclass(frozen=True, kw_only=True)
class Split:
    """The rows on one side of the split, index by index: where they stand, what they say, what is learned of them.

    The sequences read from disk what is looked at; iterate rather than keep what they give.
    """

    name: Literal["train", "eval", "guard"]
    sources: tuple[str, ...]
    """Absolute paths, Hub ids, MLflow URIs."""
    source_type: Literal["local", "hugging_face"]
    rows: Sequence[Place]
    examples: Sequence[Example]
    encoded: Column[Encoded]
    columns: tuple[str, ...]
    """The names of the columns in the source."""
    counts: Mapping[str, int]
    """`rows`, `tokens`, `supervised_tokens`, `truncated`, and `dropped`: rows of the source that are left out."""
    digest: str
    """First 32 hex digits of a sha256 over content, template and tokens; 36 is MLflow's limit."""

    @property
    def source(self) -> str:
        return ", ".join(self.sources)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Rows made ready and proved: what is learned, and what is held out."""

    train: Split
    eval: Split
    format: str
    kind: Kind
    tokenizer: Any
    """The tokenizer that encoded the rows, a transformers.PreTrainedTokenizerFast; saved with the model."""
    stop_token_ids: tuple[int, ...]
    """The tokens that end an assistant's turn, in the template that was used."""
    fingerprint: str = ""
    """32 hex digits over the sources' bytes, the format, every step of the preparation, template and tokenizer."""
    report: Report | None = None
    """What the checks found; None where nobody looked."""
    clock: Mapping[str, str] = field(default_factory=dict)
    """By format (`%d %b %Y`), the date or time as of which the chat template wrote rows; empty where it asks none."""
    guards: Mapping[str, Data] = field(default_factory=dict)
    """Guard sets by name (`evaluation.guards`): each with its rows as the held-out ones."""


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


class Subject(Protocol):
    """A model under evaluation, as an evaluator sees it."""

    name: Literal["base", "tuned"]
    data: Data

    @cached_property
    def answers(self) -> Sequence[Answer]:
        """Greedy answers to the held-out prompts, at most `evaluation.max_rows`."""

    @cached_property
    def losses(self) -> Sequence[tuple[float, int]]:
        """For every held-out row the summed negative log-likelihood (nats) and the number of supervised tokens."""

    @cached_property
    def pairs(self) -> Sequence[tuple[float, float]]:
        """Of every held-out preference how good the model finds the chosen and the rejected answer: the summed
        log-likelihood (nats) of either, or the score that a reward model gives it; empty where there are none."""

    @cached_property
    def rewards(self) -> Mapping[str, Sequence[float | None]]:
        """Of every reward function (`rollout.reward_funcs`) and of the reward model its value for each of `answers`."""

    @cached_property
    def weighted_reward(self) -> Sequence[float | None]:
        """For each of `answers` the sum of all rewards, each with its weight: what the training went by."""


@dataclass(frozen=True, kw_only=True)
class Worse:
    """That the tuned model is worse than its base."""

    score: str
    sure: bool
    """Beyond chance; else it is said, and nothing follows."""
    sentence: str
    """With the numbers."""
    broken: bool = False
    """NaN or infinite: nothing can be measured of it."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The held-out scores of the base model and of the tuned one."""

    base: tuple[Score, ...]
    tuned: tuple[Score, ...]
    answers: tuple[tuple[Answer, Answer], ...]
    """Of every held-out prompt the base model's answer and the tuned one's."""
    worse: Worse | None = None


class Form(Protocol):
    """A form of the trained model, read back from its files by whatever program runs it."""

    def logits(self, input_ids: Any, positions: Any) -> Any:
        """Logits (or log-probabilities), a torch.Tensor of shape (positions, vocabulary), of one row of token ids.

        Both arguments are torch.Tensors of one dimension; position p is asked for what comes behind token p. A program
        that tells only the most probable tokens gives their log-probabilities, and NaN for the others.
        """

    def continued(self, input_ids: Any, length: int) -> list[int]:
        """The most probable next tokens behind a row of token ids, at most `length`, up to and with an end token."""


@dataclass(frozen=True, kw_only=True)
class Packaged:
    """One form of the trained model, logged: the folder, the LoggedModel, and how near it is to the trained one."""

    name: str
    folder: Path
    model_id: str
    suffix: str
    parity: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A form for another program, logged as files of the run."""

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
