"""mlflow-ft: fine-tuning of language models inside MLflow. This is the public API, for plugins and for programs.

The engine's public functions are in `mlflow_ft.engine`; docs/api.md describes everything.
"""

from typing import TYPE_CHECKING, Any

from mlflow_ft.candidacy import Candidacy, Contender
from mlflow_ft.errors import (
    ConfigError,
    DataError,
    FineTuneError,
    ModelError,
    PluginError,
    Problem,
    ProcessError,
    RefusedError,
    ResourceError,
    StoppedError,
    TrackingError,
    UndeliveredError,
    brief,
)
from mlflow_ft.hookspecs import hookimpl
from mlflow_ft.records import (
    Adapter,
    Check,
    Collector,
    Command,
    DataFormat,
    Engine,
    Evaluator,
    Exporter,
    Gate,
    GuardSet,
    JoiningCollector,
    Launcher,
    Options,
    Packager,
    PlanRule,
    Reward,
    Trainer,
    Verdict,
)
from mlflow_ft.rows import Checked, Encoded, Example, Finding, Kind, Message, Opaque, Place, Row, Severity, Task
from mlflow_ft.values import (
    Advice,
    Aim,
    Answer,
    BaseModel,
    Checkpointer,
    CheckResult,
    Choice,
    Data,
    Exported,
    Form,
    Handle,
    Hardware,
    Job,
    Launch,
    Machines,
    Model,
    Package,
    Packaged,
    Places,
    Process,
    Report,
    Run,
    Score,
    Scores,
    Situation,
    Split,
    StoredRows,
    Subject,
    Trained,
    Trials,
    Version,
    Worse,
)

if TYPE_CHECKING:
    from mlflow_ft.config.gates import Gates, PairedTest
    from mlflow_ft.config.launch import LaunchSection
    from mlflow_ft.config.methods import RolloutSection
    from mlflow_ft.config.schema import ChecksSection, Config

_SETTINGS = {
    "ChecksSection": "schema",
    "Config": "schema",
    "Gates": "gates",
    "LaunchSection": "launch",
    "PairedTest": "gates",
    "RolloutSection": "methods",
}
"""Public classes of settings, by the module of `mlflow_ft.config`; pydantic takes half a second to import."""

__all__ = [
    "Adapter",
    "Advice",
    "Aim",
    "Answer",
    "BaseModel",
    "Candidacy",
    "Check",
    "CheckResult",
    "Checked",
    "Checkpointer",
    "ChecksSection",
    "Choice",
    "Collector",
    "Command",
    "Config",
    "ConfigError",
    "Contender",
    "Data",
    "DataError",
    "DataFormat",
    "Encoded",
    "Engine",
    "Evaluator",
    "Example",
    "Exported",
    "Exporter",
    "Finding",
    "FineTuneError",
    "Form",
    "Gate",
    "Gates",
    "GuardSet",
    "Handle",
    "Hardware",
    "Job",
    "JoiningCollector",
    "Kind",
    "Launch",
    "LaunchSection",
    "Launcher",
    "Machines",
    "Message",
    "Model",
    "ModelError",
    "Opaque",
    "Options",
    "Package",
    "Packaged",
    "Packager",
    "PairedTest",
    "Place",
    "Places",
    "PlanRule",
    "PluginError",
    "Problem",
    "Process",
    "ProcessError",
    "RefusedError",
    "Report",
    "ResourceError",
    "Reward",
    "RolloutSection",
    "Row",
    "Run",
    "Score",
    "Scores",
    "Severity",
    "Situation",
    "Split",
    "StoppedError",
    "StoredRows",
    "Subject",
    "Task",
    "TrackingError",
    "Trained",
    "Trainer",
    "Trials",
    "UndeliveredError",
    "Verdict",
    "Version",
    "Worse",
    "brief",
    "hookimpl",
]


def __getattr__(name: str) -> Any:
    if name not in _SETTINGS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"mlflow_ft.config.{_SETTINGS[name]}"), name)
