"""All settings: small frozen sections whose field names are those of Hugging Face, PEFT and TRL."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, field_validator
from pydantic_core import to_jsonable_python

from mlflow_ft.config.launch import LaunchSection
from mlflow_ft.config.methods import AdapterSection, ObjectiveSection, RolloutSection
from mlflow_ft.config.registry import RegistrySection
from mlflow_ft.config.section import InLine, Section
from mlflow_ft.config.training import TrainingSection

OptionsT = TypeVar("OptionsT")
TRACKERS = ("wandb", "tensorboard")


class RunSection(Section):
    """The run itself."""

    name: str | None = None
    """Name of the MLflow run; method, model and data when not given: `qlora smollm2-135m train.jsonl`."""
    experiment: str | None = None
    """MLflow experiment; set by `mlflow run` or MLFLOW_EXPERIMENT_NAME when not given."""
    output_dir: Path = Path("outputs")
    """Folder in which every run gets a subfolder named by its run id."""
    resume: Literal["never", "auto"] = "never"
    """auto: if a run of the experiment with the same settings is interrupted, continue it instead of a new one."""
    seed: int = 42
    """Seed for the split, the order of the rows and the new weights."""
    also_report_to: list[str] | None = None
    """Report the curves of the training to `wandb` or `tensorboard`, too; MLflow has them in any case."""

    @field_validator("also_report_to")
    @classmethod
    def _names_trackers(cls, names: list[str] | None) -> list[str] | None:
        if wrong := [name for name in names or () if name not in TRACKERS]:
            raise ValueError(f"{wrong[0]} is not one of {', '.join(TRACKERS)}")
        return names


class ModelSection(Section):
    """The base model, and how it is loaded."""

    name: str = "smollm2-135m"
    """A folder, a Hub id, or a short name (`smollm2-135m`). `model` alone means this."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; the commit that was used is recorded."""
    init_from: str | None = None
    """Continue from an earlier result, an adapter or a whole model: a folder, `models:/NAME@alias`, `runs:/...`."""
    add_tokens: list[str] | None = None
    """Tokens to add to the tokenizer, or that have no embeddings in the model; their embeddings are trained."""
    pad_token: str | None = None
    """Padding token; the tokenizer's own, or another special token that does not end a turn, when not given."""
    quantize: Literal["none", "int8", "nf4"] = "none"
    """Quantisation of the frozen base by bitsandbytes: none, 8 bits, 4 bits (NF4)."""
    double_quant: bool = True
    """Quantise the 4-bit constants too (0.4 bits less per weight)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type to compute in; auto is bfloat16 on a GPU that supports it, float32 elsewhere."""
    attn_implementation: str | None = None
    """`sdpa`, `eager`, `flash_attention_2`; chosen by transformers when not given."""
    trust_remote_code: bool = False
    """Run the model's own Python code, in training only: a model that needs it cannot be packaged or served, and is
    trained with `package.packagers` `[]`. Recorded as a tag on the run."""


class DataSection(Section):
    """Where the rows come from, and how they become examples."""

    path: str | list[str] | dict[str, float] = "demo"
    """A file, a folder, a Hub id, an MLflow URI, or `demo`; several as `[a, b]`, a mixture as `{a: 0.7, b: 0.3}`.
    `data` alone means this."""
    subset: str | None = None
    """Configuration name of a Hub data set, or of a folder whose README.md names some; refused where no source has
    any."""
    split: str = "train"
    """Split of a Hub data set, of a saved data set, or of a folder whose files or README.md name splits; refused where
    no source has splits."""
    revision: str | None = None
    """Branch, tag or commit of a Hub data set."""
    format: str = "auto"
    """Name of a registered format (`mlflow-ft show formats`), or auto."""
    columns: dict[str, str] | None = None
    """Columns with other names than the format's: `instruction=task,output=solution`."""
    system: str | None = None
    """System prompt for conversations without one."""
    eval_path: str | None = None
    """Source of the held-out rows; when not given, `test_size` of the rows are held out."""
    test_size: float = Field(default=0.1, gt=0)
    """Rows to hold out: a share below 1, or a count."""
    split_by: str | None = None
    """Column of a group or a key: rows with the same value stay on one side; the prompt when not given."""
    max_length: int = Field(default=1024, ge=8)
    """Longest row in tokens; longer rows are cut at the end, counted and reported."""
    max_rows: int | None = Field(default=None, ge=2)
    """Read at most this many rows of a source."""
    chat_template: str | None = None
    """A Jinja file, or the template itself, for a tokenizer without one or to replace its own."""
    date: datetime.date | None = None
    """The date for chat templates that write one (Llama 3, gpt-oss); the date of the run when not given."""
    turns: Literal["all", "last", "each"] = "all"
    """Assistant turns to learn: all in a row, the last, or each as the last turn of a separate row."""
    on_bad_row: Literal["error", "drop"] = "error"
    """What to do with a row that cannot be read, converted or proved: stop, or leave it out, counted and listed."""
    engine: str = "local"
    """Where rows are tokenised and checked: local, or a registered engine (`mlflow-ft show engines`)."""
    fail_on: Literal["error", "warn", "never"] = "error"
    """Do not train if a data check has a finding of this severity or worse."""

    @field_validator("columns", mode="before")
    @classmethod
    def _names_columns(cls, columns: Any) -> Any:
        for name, column in columns.items() if isinstance(columns, Mapping) else ():
            if isinstance(column, InLine):
                raise ValueError(f"{name} takes the name of one column")
        return columns

    @field_validator("date", mode="before")
    @classmethod
    def _is_a_day(cls, day: Any) -> Any:
        if isinstance(day, str) and not re.fullmatch(r"\d{4}-\d\d-\d\d", day):
            raise ValueError("write the date as 2026-01-31")
        return day

    @field_validator("split")
    @classmethod
    def _is_a_name(cls, split: str) -> str:
        if re.fullmatch(r"0*\.\d+", split):
            raise ValueError(
                "write the name of a split, such as train; the share of rows to hold out is data.test_size"
            )
        return split

    @field_validator("path")
    @classmethod
    def _names_a_source(cls, path: str | list[str] | dict[str, float]) -> str | list[str] | dict[str, float]:
        if not path:
            raise ValueError("names no source")
        if isinstance(path, dict) and min(path.values()) <= 0:
            raise ValueError("a weight must be above 0")
        return path

    @property
    def sources(self) -> dict[str, float | None]:
        """Every source, in order, with its weight in the mixture; None where all of its rows are used."""
        if isinstance(self.path, dict):
            return dict(self.path)
        return dict.fromkeys([self.path] if isinstance(self.path, str) else self.path)


class ChecksSection(Section):
    """The checks of data quality, before training and in `mlflow-ft data check`."""

    names: list[str] | None = None
    """Registered checks to run (`mlflow-ft show checks`); all that apply when not given."""
    max_examples: int = Field(default=5, ge=0)
    """Example rows to show for each check."""
    near_duplicate: float = Field(default=0.8, gt=0, le=1)
    """Two rows are near duplicates if they share at least this much of their three-word sequences (Jaccard)."""
    benchmarks: list[str] | None = None
    """Further files that no training row may come from, besides the held-out rows."""
    overlap: float = Field(default=0.7, gt=0, le=1)
    """A training row is contaminated if it has at least this share of a held-out row's eight-word sequences."""


class EvaluationSection(Section):
    """The comparison of base and tuned model on the held-out rows."""

    evaluators: list[str] | None = None
    """Registered evaluators to run; all that apply when not given."""
    max_rows: int = Field(default=200, ge=1)
    """Held-out rows to generate answers for; the loss uses all of them."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Longest generated answer, in tokens."""
    per_device_eval_batch_size: int = Field(default=16, ge=1)
    """Rows per forward pass in evaluation and generation. On a CPU, short answers are generated more at a time."""
    guards: dict[str, str] | None = None
    """Further data by name (`{safety: refusals.jsonl}`), scored before and after as `safety/SCORE`, that must not get
    worse; a source, or a ready set (`{general: builtin}`, `mlflow-ft show guards`)."""
    on_worse: Literal["refuse", "warn"] = "refuse"
    """If the tuned model is significantly worse than its base: register it without the alias and exit with 1; or
    warn."""
    samples: int = Field(default=4, ge=0)
    """Held-out prompts to answer during training, after a tenth of the steps and at every evaluation, logged as tables;
    0: none."""


class PackageSection(Section):
    """The models that are kept, and how close they must be to the trained one."""

    packagers: list[str] | None = None
    """Registered packagers to run; all that apply when not given."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the saved weights; auto: as in the base model's files for a merged model, as trained for a full one."""
    exports: list[str] | None = None
    """Further forms of the whole model to make (`mlflow-ft show exporters`): `[nf4, gguf-q8_0]`; none by default."""
    max_kl: float = Field(default=0.02, gt=0)
    """Largest mean KL divergence per token (nats) from the trained model; above it nothing is registered."""
    max_kl_share: float = Field(default=0.5, gt=0)
    """Largest KL divergence of a form as a share of the base model's own; 1 is as far off as the base."""
    min_top1: float = Field(default=0.75, ge=0, le=1)
    """Smallest share of tokens on which a form and the trained model must agree."""
    max_perplexity_change: float = Field(default=0.1, gt=0)
    """Largest relative change in perplexity from the trained model on the same tokens."""
    export_max_kl: float | None = Field(default=None, gt=0)
    """Largest mean KL divergence for `exports`; when not given, each has its own limit instead of those above."""
    round_trip: bool = True
    """Load every logged model from the store, in a clean process with only its requirements, before registering it."""


class PluginsSection(Section):
    """The plugins that may be loaded. Their own options are `plugins.NAME.key` (`mlflow-ft show options`)."""

    allow: list[str] | None = None
    """The installed plugins that may be loaded; no other is imported. All when not given, none when empty."""


class Config(Section):
    """All settings, resolved: defaults < method < YAML < command line."""

    method: str
    run: RunSection = RunSection()
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    checks: ChecksSection = ChecksSection()
    adapter: AdapterSection = AdapterSection()
    objective: ObjectiveSection = ObjectiveSection()
    rollout: RolloutSection = RolloutSection()
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()
    package: PackageSection = PackageSection()
    registry: RegistrySection = RegistrySection()
    launch: LaunchSection = LaunchSection()
    plugins: PluginsSection = PluginsSection()
    plugin_options: Mapping[str, Any] = Field(default_factory=dict, exclude=True)
    """The options of every active plugin that has some, by their name; `options` gets those of a class."""
    origins: Mapping[str, str] = Field(default_factory=dict, exclude=True)
    """Where each value that is not a default came from: `{"adapter.r": "qlora.yaml line 12"}`."""

    @property
    def key(self) -> str:
        """sha256 over all settings but names, places and processes of the run: the same for a command started again."""
        ours = {f"run.{name}" for name in ("name", "experiment", "output_dir", "resume", "also_report_to")} | {
            "plugins.allow"
        }
        settings = {
            path: value for path, value in self.flat().items() if path not in ours and not path.startswith("launch.")
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()

    def flat(self) -> dict[str, Any]:
        """Every value by full path, as plain JSON values: `{"training.learning_rate": 0.0002, ...}`."""
        flat: dict[str, Any] = {"method": self.method}
        for section, values in self.model_dump(mode="json", exclude={"method"}).items():
            flat |= {f"{section}.{key}": value for key, value in values.items()}
        given = {path.rpartition(".")[0] for path in self.origins}
        for name, options in self.plugin_options.items():  # those of which none was set have their plugin's defaults
            if f"plugins.{name}" in given:
                flat |= {f"plugins.{name}.{key}": value for key, value in to_jsonable_python(asdict(options)).items()}
        return flat

    def options(self, kind: type[OptionsT]) -> OptionsT:
        """The options of a plugin, given the dataclass with which it registered them.

        Where they are not registered, as in a test of the plugin's functions alone, they have their defaults.
        """
        return next((options for options in self.plugin_options.values() if type(options) is kind), None) or kind()


PRIMARY = {"model": "name", "data": "path"}
"""A section named alone means this field of it: `--model X` is `--model.name X`."""
