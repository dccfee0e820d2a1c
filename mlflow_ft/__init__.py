"""mlflow-ft: fine-tuning of language models inside MLflow. This is the public API, for plugins and for programs."""

from mlflow_ft.errors import (
    ConfigError,
    DataError,
    FineTuneError,
    ModelError,
    PluginError,
    Problem,
    RefusedError,
    ResourceError,
    StoppedError,
    TrackingError,
    UndeliveredError,
)
from mlflow_ft.hookspecs import hookimpl
from mlflow_ft.records import (
    Adapter,
    Answer,
    Check,
    Collector,
    DataFormat,
    Evaluator,
    Packager,
    Score,
    Trainer,
)
from mlflow_ft.rows import Checked, Example, Finding, Message, Place, Row

__all__ = [
    "Adapter",
    "Answer",
    "Check",
    "Checked",
    "Collector",
    "ConfigError",
    "DataError",
    "DataFormat",
    "Evaluator",
    "Example",
    "Finding",
    "FineTuneError",
    "Message",
    "ModelError",
    "Packager",
    "Place",
    "PluginError",
    "Problem",
    "RefusedError",
    "ResourceError",
    "Row",
    "Score",
    "StoppedError",
    "TrackingError",
    "Trainer",
    "UndeliveredError",
    "hookimpl",
]
