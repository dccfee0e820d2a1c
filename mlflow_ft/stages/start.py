"""Before the first stage: check names, open the run's folder and journal, and record the configuration."""

from __future__ import annotations

import errno
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_ft.config.schema import Config
from mlflow_ft.errors import ConfigError, ResourceError, TrackingError, UndeliveredError
from mlflow_ft.job import Job
from mlflow_ft.plugins import Plugins
from mlflow_ft.preparing import guards
from mlflow_ft.progress import Progress
from mlflow_ft.registry import Catalogue, Registry, chosen_evaluators
from mlflow_ft.stages import ending, init_from, method_settings

if TYPE_CHECKING:
    from mlflow_ft.tracking import ActiveRun

REWARDS, REWARD_MODEL = "mlflow_ft.reward_funcs", "mlflow_ft.reward_model"
"""Tags with the reward functions and their hashes, and with the reward model."""
PREPARE = "prepare"
"""In place of a method for a run that only prepares data."""


def job(config: Config, plugins: Plugins, registry: Registry, run: ActiveRun, progress: Progress) -> Job:
    """Open the run's folder and journal, and log config, environment and plugins before anything is loaded.

    Raises:
        ConfigError: the reward model or the gates have changed. ResourceError: the folder cannot be written.
    """
    from mlflow_ft.tracking.unfinished import CONFIG_KEY, FOLDER

    run.begin("config")
    folder = config.run.output_dir.expanduser().resolve() / run.run_id
    job = open_job(config, plugins, registry, run, progress, folder=folder)
    foreign = {"mlflow_ft.trust_remote_code": "True"} if config.model.trust_remote_code else {}
    run.set_tags({"mlflow_ft.method": config.method, CONFIG_KEY: config.key, FOLDER: str(folder), **foreign})
    run.log_config(config)
    run.log_environment(plugins)
    if config.rollout.reward_funcs:
        record_rewards(job)
    if config.registry.gates:
        record_gates(job, config.registry.gates)
    run.system_metrics()
    return job


def open_job(
    config: Config, plugins: Plugins, registry: Registry, run: ActiveRun, progress: Progress, *, folder: Path
) -> Job:
    """Open the run's folder and its journal, and find the reward model.

    Raises:
        ConfigError: the reward model has changed. ResourceError: the folder cannot be written. TrackingError: another
        process is using it.
    """
    job = Job(config=config, plugins=plugins, registry=registry, run=run, folder=folder, progress=progress)
    with writing(folder):
        run.open_journal(folder)
    if config.rollout.reward_model:
        uri, reward_model = init_from.reward_model(config.rollout.reward_model, progress)
        job = replace(job, reward_model=reward_model)
        run.set_tags({REWARD_MODEL: uri})
    return job


def record_rewards(job: Job) -> None:
    """Log the source of every reward function: the file as `rewards/NAME.py`, and its sha256 in a tag.

    Raises:
        ConfigError: a reward function cannot be found; nothing was loaded yet.
    """
    from mlflow_ft.engine.rewards import reward_sources

    for reward in reward_sources.find(job.config.rollout.reward_funcs or [], job.registry):
        if reward.source and not reward.provider:  # plugins.json has the hashes of plugins
            source = reward.source.read_text(encoding="utf-8", errors="replace")
            job.run.artifact_text(source, f"rewards/{reward.name}.py")
    job.run.set_tags({REWARDS: reward_functions(job.config, job.registry)})


def reward_functions(config: Config, registry: Registry) -> str:
    """The reward functions, each with the sha256 of its file, as one text; "" if there are none.

    Raises:
        ConfigError: a reward function cannot be found.
    """
    from mlflow_ft.engine.rewards import reward_sources

    return "; ".join(
        f"{reward.name} = {reward.asked}" + (f" sha256:{reward.sha256}" if reward.sha256 else "")
        for reward in reward_sources.find(config.rollout.reward_funcs or [], registry)
    )


def record_gates(job: Job, file: Path) -> None:
    """Log the gates for a promotion of this run's versions.

    Raises:
        ConfigError: the file cannot be read, or names unknown gates or scores.
    """
    from mlflow_ft.tracking.contenders import GATES_FILE

    read_gates(file, job.registry)
    job.run.artifact_text(file.expanduser().read_text(encoding="utf-8"), GATES_FILE)


def read_gates(file: Path, registry: Registry) -> None:
    """Raise ConfigError if a gates file cannot be read, or names unknown gates."""
    from mlflow_ft.config.gates import gates_file
    from mlflow_ft.registry import chosen_gates

    chosen_gates(registry, gates_file(file.expanduser()), place=str(file))


def check_names(config: Config, registry: Registry) -> None:
    """Raise ConfigError for the first name in the config that no plugin registered, or settings that do not fit."""
    for _, lookup in names(config, registry):
        lookup()
    if config.method != PREPARE:
        check_method(config, registry)


def names(config: Config, registry: Registry) -> Iterator[tuple[str, Callable[[], object]]]:
    """Every setting that names a record of a plugin, with the lookup, which raises ConfigError if there is none."""
    if config.method != PREPARE:
        yield "method", partial(registry.trainers.__getitem__, config.method)
    yield "adapter.kind", partial(registry.adapters.__getitem__, config.adapter.kind)
    if config.data.format != "auto":
        yield "data.format", partial(registry.formats.__getitem__, config.data.format)
    several: tuple[tuple[str, Catalogue[Any], Sequence[str] | None], ...] = (
        ("checks.names", registry.checks, config.checks.names),
        ("evaluation.evaluators", registry.evaluators, config.evaluation.evaluators),
        ("package.packagers", registry.packagers, config.package.packagers),
        ("package.exports", registry.exporters, config.package.exports),
    )
    for setting, catalogue, named in several:
        for name in named or ():
            yield setting, partial(catalogue.__getitem__, name)
    yield "evaluation.evaluators", partial(check_evaluators, config, registry)
    yield "launch.launcher", partial(registry.launchers.__getitem__, config.launch.launcher)
    yield "data.engine", partial(check_engine, config, registry)
    yield "evaluation.guards", partial(guards.check_names, config, registry)
    yield "run.also_report_to", partial(check_trackers, config)


def check_trackers(config: Config) -> None:
    """Raise ConfigError if a tracker that is reported to, besides MLflow, is not installed."""
    for name in config.run.also_report_to or ():
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a folder of this name, which W&B makes, is no package
            raise ConfigError(f"{name} is not installed", hint=f"pip install {name}, or leave it out")


def check_evaluators(config: Config, registry: Registry) -> None:
    """Raise ConfigError if an evaluator cannot run with these settings."""
    names, catalogue = config.evaluation.evaluators, registry.evaluators
    if config.method not in registry.trainers or not all(name in catalogue for name in names or ()):
        return  # each of these is an error of its own
    for evaluator in chosen_evaluators(registry, names, task=registry.trainers[config.method].task):
        if reason := evaluator.refuses(config):
            raise ConfigError(f"evaluator {evaluator.name}: {reason}")


def check_engine(config: Config, registry: Registry) -> None:
    """Raise ConfigError if the data engine is unknown, or cannot be used here."""
    if reason := registry.engines[config.data.engine].refuses():
        raise ConfigError(f"data.engine {config.data.engine}: {reason}")


def check_method(config: Config, registry: Registry) -> None:
    """Refuse settings that cannot work together, with the reason, before anything is loaded.

    Raises:
        ConfigError: method, adapter, quantisation and settings do not fit together.
    """
    trainer, adapter = registry.trainers[config.method], registry.adapters[config.adapter.kind]
    if adapter.name == "none" and config.model.quantize != "none":
        raise ConfigError(
            f"a base quantised to {config.model.quantize} cannot be trained without an adapter",
            hint="add an adapter (--adapter.kind lora), or do not quantise (--model.quantize none)",
        )
    method_settings.check(config, trainer)
    ending.check(config, trainer)
    from mlflow_ft.engine.launching import strategy

    misfit = strategy.refused(config, learned_prompt=adapter.learned_prompt)
    for reason in (trainer.refuses(config, adapter), adapter.refuses(config), misfit):
        if reason:
            raise ConfigError(f"method {trainer.name} with adapter {adapter.name}: {reason}")
    if "merged" in (config.package.packagers or ()) and not adapter.merges:
        raise ConfigError(
            f"adapter {adapter.name} cannot be merged into its base: it changes no weights",
            hint="remove `merged` from package.packagers; base and adapter are served together",
        )
    check_exports(config, registry)


def check_exports(config: Config, registry: Registry, base: Path | None = None) -> None:
    """Refuse exports that cannot be made from the trained model or on this machine; `base` is the base's folder.

    Raises:
        ConfigError: there will be no whole model, or an exporter is not ready.
    """
    from mlflow_ft.engine.models import own_quantization

    names = config.package.exports or ()
    adapter = registry.adapters[config.adapter.kind]
    whole = "model" if adapter.name == "none" else "merged"
    if names and whole == "merged" and not adapter.merges:
        raise ConfigError(
            f"package.exports needs the merged model, but adapter {adapter.name} cannot be merged into its base",
            hint="remove package.exports; base and adapter are served together",
        )
    if names and whole not in (config.package.packagers or (whole,)):
        raise ConfigError(
            f"package.exports needs the form {whole}, which package.packagers leaves out",
            hint=f"--package.packagers {','.join([whole, *(config.package.packagers or ())])}",
        )
    own = own_quantization.of(base) if base else None
    for name in names:
        if reason := registry.exporters[name].ready(base):
            raise ConfigError(f"package.exports: {name} cannot be made: {reason}")
        if own and own.make == registry.exporters[name].grid:
            raise ConfigError(
                f"package.exports: {name} cannot be made: the base's files are already in {own.description}, and "
                "quantising onto the same grid again would round the adapter away",
                hint="remove it and serve the adapter with its base, or train on the base in full precision",
            )


@contextmanager
def reporting_to_plugins(job: Job) -> Iterator[None]:
    """Report the error that ends a run to the plugins; a full disk becomes an error with a remedy."""
    try:
        with writing(job.folder):
            yield
    except BaseException as error:
        job.plugins.watch("on_run_error", job=job, error=error)
        raise


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a full disk or a folder without write permission into a ResourceError.

    Weights are written by Rust code, which reports a full disk as its own error with the system's message in it.
    """
    try:
        yield
    except (TrackingError, UndeliveredError):  # about the artifact store, not about this folder
        raise
    except Exception as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error):
            raise ResourceError(
                f"no space is left on the disk while writing under {folder}",
                hint="free some space, or set another --run.output_dir; nothing was registered",
            ) from error
        if isinstance(error, OSError) and str(error.filename or "").startswith((str(folder), str(folder.parent))):
            raise ResourceError(
                f"cannot write under {folder}: {error.strerror}", hint="choose another --run.output_dir"
            ) from error
        raise
