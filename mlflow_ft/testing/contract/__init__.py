"""What any plugin must keep, checked by using it.

The module imports nothing heavy, and its hooks have no parameters with a default, which pluggy would not pass. It loads
with MLFLOW_FT_STRICT, clashes with no name, and every record has a name and a summary. Defaults are valid settings.
Converters give valid examples. Methods, adapters, packagers, exporters and evaluators work in trainings of two steps
with a tiny real model, whose products load and answer. Gates abstain unless they are asked, and then judge.

What a check needs to know is given by the test: see `Given`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest

from mlflow_ft.plugins.doors import PluginFaultError
from mlflow_ft.testing.contract import loading, records, runs


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the contract needs to know about a plugin."""

    rows: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """For each format some rows, at least one; those of the first format are trained on, repeated if they are few."""
    gates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """For each gate with options, values with which it judges a model, as in the gates file."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the trainings, by full path: `{"rollout.reward_funcs": "[my-reward]"}`."""
    without: Mapping[str, str] = field(default_factory=dict)
    """What cannot be tried here, and why: `{"trainers": "needs a GPU"}`; a kind as `mlflow-ft show` names it."""


def check(module: ModuleType, given: Given, *, fixtures: pytest.FixtureRequest) -> None:
    """Check a plugin.

    Raises:
        AssertionError: what is wrong, in a sentence.
    """
    plugin = check_alone(module, given)
    with faults_told():
        runs.check(plugin, given, fixtures)


def check_alone(module: ModuleType, given: Given) -> loading.Loaded:
    """The part that trains nothing: the module, its hooks, and its records one by one."""
    loading.check_import(module)
    loading.check_parameters(module)
    plugin = loading.load(module)
    with faults_told():
        records.check(plugin, given.rows, without=given.without)
    return plugin


@contextmanager
def faults_told() -> Iterator[None]:
    """What is wrong with a value of a plugin is known where it arrives; here it breaks the contract."""
    try:
        yield
    except PluginFaultError as error:
        raise AssertionError(error.message) from error
