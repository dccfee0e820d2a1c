"""The checks of what the configuration names: methods and other records, files, rows and their format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from mlflow_ft.config.schema import Config, DataSection
from mlflow_ft.data import sources, turns
from mlflow_ft.plugins import Plugins
from mlflow_ft.preparing import guards, one_pass
from mlflow_ft.records import DataFormat
from mlflow_ft.registry import Registry
from mlflow_ft.stages import data, ending, start
from mlflow_ft.stages.preflight.examination import Examination


def check_names(examination: Examination, registry: Registry) -> set[str]:
    """Check every name of a record, and that the method can use the settings; return the settings with a wrong name."""
    config = examination.config
    wrong = {
        setting
        for setting, lookup in start.names(config, registry)
        if not examination.check("", partial(_silent, lookup), setting=setting)
    }

    def settings() -> str:
        if config.method == start.PREPARE:
            return "the data alone"
        start.check_method(config, registry)
        return f"method {config.method}, adapter {config.adapter.kind}"

    if not wrong & {"method", "adapter.kind", "package.exports"} and examination.check("settings", settings):
        examination.check("", partial(ending.patience, config), setting="training.early_stopping")
    return wrong


def check_files(examination: Examination, registry: Registry, *, reachable: bool = True) -> bool:
    """Check that every file and every source exists; return whether the rows can be read.

    `reachable` is whether MLflow can be asked.
    """
    config = examination.config
    for setting, call in _files(config, registry):
        examination.check("", partial(_silent, call), setting=setting)
    named = list(_sources(config, registry))
    known = [source for source in named if reachable or not source[1].startswith(sources.MLFLOW_SCHEMES)]
    checks = [
        examination.check("", partial(_silent, partial(sources.check, name, settings)), setting=setting)
        for setting, name, settings in known
    ]
    return all(checks) and len(known) == len(named)


def check_rows(examination: Examination, plugins: Plugins, registry: Registry) -> None:
    """Recognise the formats from the first rows of the sources, if all sources are files."""
    check = partial(_formats, examination.config, plugins, registry)
    examination.check("data", check, setting="data.path")


def _silent(call: Callable[[], object]) -> str:
    call()
    return ""


def _files(config: Config, registry: Registry) -> Iterator[tuple[str, Callable[[], object]]]:
    from mlflow_ft.engine.rewards import reward_sources
    from mlflow_ft.engine.tokens import template_text

    if config.data.chat_template:
        yield "data.chat_template", partial(template_text.read, config.data.chat_template)
    if config.rollout.reward_funcs:
        yield "rollout.reward_funcs", partial(reward_sources.find, config.rollout.reward_funcs, registry)
    if config.registry.gates:
        yield "registry.gates", partial(start.read_gates, config.registry.gates, registry)


def _sources(config: Config, registry: Registry) -> Iterator[tuple[str, str, DataSection]]:
    """Every source of rows: the setting that names it, its name, and how it is read."""
    train, held_out = sources.paths(config.data)
    yield from (("data.path", name, config.data) for name in train)
    if held_out:
        yield "data.eval_path", held_out, config.data
    for asked in (config.evaluation.guards or {}).values():
        name = guards.source(asked, registry)
        yield "evaluation.guards", name, DataSection(path=name)
    for name in config.checks.benchmarks or ():
        yield "checks.benchmarks", name, DataSection(path=name)


def _formats(config: Config, plugins: Plugins, registry: Registry) -> str:
    train, held_out = sources.paths(config.data)
    shown = ", ".join(config.data.sources)
    recognised = _opened(train, config, plugins, registry)
    if recognised is None:
        return f"{shown}, which the run fetches"
    if config.method != start.PREPARE:
        data.fits(config.method, registry, recognised)
    turns.check(recognised.kind, config.data)
    held = _opened({held_out: None}, config, plugins, registry) if held_out else None
    if held_out and held:
        one_pass.check_kind(held, recognised, held_out)
    return f"{shown} in the format {recognised.name}"


def _opened(
    named: Mapping[str, float | None], config: Config, plugins: Plugins, registry: Registry
) -> DataFormat | None:
    if not all(sources.is_local(name) for name in named):
        return None
    return one_pass.open_sources(named, config.data, plugins=plugins, registry=registry)[0].record
