"""Before an MLflow run is opened: check every name, path and file in the configuration, in about a second.

All problems are reported at once, and a mistyped path leaves no FAILED run. What needs a whole file, or a model in
memory, is checked later, in the run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from mlflow_ft.config.schema import Config, DataSection
from mlflow_ft.data import sources, turns
from mlflow_ft.errors import ConfigError, FineTuneError, ModelError, Problem
from mlflow_ft.plugins import Plugins
from mlflow_ft.preparing import one_pass
from mlflow_ft.progress import Progress
from mlflow_ft.records import DataFormat
from mlflow_ft.registry import Registry
from mlflow_ft.stages import init_from, start
from mlflow_ft.values import MLFLOW_URIS

Check = Callable[[], object]
"""Raises a FineTuneError if something is wrong."""


def check(
    config: Config,
    *,
    plugins: Plugins,
    registry: Registry,
    accept: Callable[[DataFormat], None] = lambda record: None,
    later: Collection[str] = (),
) -> None:
    """Check everything that the configuration names. `accept` gets the format of the training rows, and may raise.

    `later` are names of things that do not exist yet, but will.

    Raises:
        FineTuneError: one thing is wrong. ConfigError: several are; each is listed with the place of its setting.
    """
    start.check_names(config, registry)
    wrong: list[tuple[str, FineTuneError]] = []
    checks = [*_models(config, later), *_files(config, registry), *_data(config)]
    for path, check_value in checks:
        try:
            check_value()
        except FineTuneError as error:
            wrong.append((path, error))
    if not any(path.startswith("data.") for path, _ in wrong):
        try:
            _formats(config, plugins, registry, accept)
        except FineTuneError as error:
            wrong.append(("data.path", error))
    if len(wrong) == 1:
        raise wrong[0][1]
    if wrong:
        raise ConfigError(
            f"{len(wrong)} settings are wrong; no run was opened",
            problems=[_problem(config, path, error) for path, error in wrong],
        )


def _problem(config: Config, path: str, error: FineTuneError) -> Problem:
    inside = "; ".join(str(problem) for problem in error.problems)
    message = f"{error.message}: {inside}" if inside else error.message
    return Problem(place=f"{config.origins.get(path, 'default')}  {path}", message=message, hint=error.hint)


def _models(config: Config, later: Collection[str]) -> Iterator[tuple[str, Check]]:
    named = "model.name" in config.origins or not config.model.init_from
    if named and config.model.name not in later:
        yield "model.name", partial(_model, config)
    starts = {"model.init_from": config.model.init_from, "rollout.reward_model": config.rollout.reward_model}
    for path, uri in starts.items():
        if not uri or uri in later:
            continue
        if uri.startswith(MLFLOW_URIS):
            yield path, partial(_in_mlflow, uri, path)
        elif _is_path(uri):
            yield path, partial(init_from.read, uri, setting=path)


def _in_mlflow(uri: str, path: str) -> None:
    from mlflow_ft import tracking

    tracking.check_uri(uri, error=ModelError, what=path)


def _is_path(name: str) -> bool:
    return Path(name).expanduser().exists() or name.startswith((".", "/", "~"))


def _model(config: Config) -> None:
    """Find the base model: for a model on the Hub its small files, for a short name nothing."""
    from mlflow_ft.engine import hub, weight_files
    from mlflow_ft.engine.models import own_quantization

    name = config.model.name
    if name in hub.SHORT_NAMES:
        return
    if name.startswith(MLFLOW_URIS):
        _in_mlflow(name, "model.name")
        return
    base = hub.find(config.model, Progress(quiet=True), weights=False)
    if Path(name).expanduser().is_dir() and config.method != start.PREPARE:
        weight_files.check(base.path, name)
    if config.method != start.PREPARE:
        own_quantization.check_training(config, own_quantization.of(base.path))


def _files(config: Config, registry: Registry) -> Iterator[tuple[str, Check]]:
    from mlflow_ft.engine.rewards import reward_sources
    from mlflow_ft.engine.tokens import template_text

    if config.data.chat_template:
        yield "data.chat_template", partial(template_text.read, config.data.chat_template)
    if config.rollout.reward_funcs:
        yield "rollout.reward_funcs", partial(reward_sources.find, config.rollout.reward_funcs, registry)
    if config.registry.gates:
        yield "registry.gates", partial(start.read_gates, config.registry.gates, registry)


def _data(config: Config) -> Iterator[tuple[str, Check]]:
    train, held_out = sources.paths(config.data)
    named = [("data.path", name) for name in train]
    named += [("data.eval_path", held_out)] if held_out else []
    named += [("evaluation.guards", name) for name in (config.evaluation.guards or {}).values()]
    named += [("checks.benchmarks", name) for name in config.checks.benchmarks or ()]
    for path, name in named:
        settings = config.data if path.startswith("data.") else DataSection(path=name)
        yield path, partial(sources.check, name, settings)


def _formats(config: Config, plugins: Plugins, registry: Registry, accept: Callable[[DataFormat], None]) -> None:
    """Recognise the formats from the first rows of the sources, if all sources are files."""
    train, held_out = sources.paths(config.data)
    recognised = _opened(train, config, plugins, registry)
    if recognised is None:
        return
    accept(recognised)
    turns.check(recognised.kind, config.data)
    held = _opened({held_out: None}, config, plugins, registry) if held_out else None
    if held_out and held:
        one_pass.check_kind(held, recognised, held_out)


def _opened(
    named: Mapping[str, float | None], config: Config, plugins: Plugins, registry: Registry
) -> DataFormat | None:
    if not all(sources.is_local(name) for name in named):
        return None
    return one_pass.open_sources(named, config.data, plugins=plugins, registry=registry)[0].record


@contextmanager
def reporting_to_run() -> Iterator[None]:
    """Also report an error to the MLflow run that `mlflow run` opened, if any."""
    try:
        yield
    except FineTuneError as error:
        if "MLFLOW_RUN_ID" in os.environ:  # importing MLflow takes seconds; avoid it for a typo
            from mlflow_ft import tracking

            tracking.refuse(error)
        raise
