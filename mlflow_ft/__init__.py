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
from mlflow_ft.records import Adapter, Answer, DataFormat, Evaluator, Example, Message, Packager, Row, Score, Trainer

__all__ = [
    "Adapter",
    "Answer",
    "ConfigError",
    "DataError",
    "DataFormat",
    "Evaluator",
    "Example",
    "FineTuneError",
    "Message",
    "ModelError",
    "Packager",
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
