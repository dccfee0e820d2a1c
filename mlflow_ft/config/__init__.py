"""The configuration: what can be set, what was set, and where each value came from."""

from mlflow_ft.config.explain import describe, to_yaml
from mlflow_ft.config.given import Given, pairs, read_yaml
from mlflow_ft.config.load import resolve
from mlflow_ft.config.schema import PRIMARY, Config

__all__ = ["PRIMARY", "Config", "Given", "describe", "pairs", "read_yaml", "resolve", "to_yaml"]
