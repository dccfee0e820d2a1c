"""Before the first stage: names are checked, the run's folder and journal opened, and what was asked for recorded."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_ft.config.schema import Config
from mlflow_ft.errors import ConfigError, Problem, ResourceError
from mlflow_ft.job import Job
from mlflow_ft.plugins import Plugins
from mlflow_ft.preparing import guards
from mlflow_ft.progress import Progress
from mlflow_ft.records import Trainer
from mlflow_ft.registry import Registry
from mlflow_ft.stages import init_from

if TYPE_CHECKING:
    from mlflow_ft.tracking import ActiveRun

PREPARE = "prepare"
"""Stands in the place of a method where the data alone is looked at."""


def job(config: Config, plugins: Plugins, registry: Registry, run: ActiveRun, progress: Progress) -> Job:
    """Open the run's folder and journal, and log config, environment and plugins before anything is loaded.

    Raises:
        ConfigError: the reward model or the gates are not what they were. ResourceError: the folder cannot be written.
    """
    run.begin("config")
    folder = config.run.output_dir.expanduser().resolve() / run.run_id
    made = opened(config, plugins, registry, run, progress, folder=folder)
    run.set_tags(
        {
            "mlflow_ft.method": config.method,
            "mlflow_ft.trust_remote_code": str(config.model.trust_remote_code),
            "mlflow_ft.folder": str(folder),
        }
    )
    run.log_config(config)
    run.log_environment(plugins)
    if config.rollout.reward_funcs:
        record_rewards(made)
    if config.registry.gates:
        record_gates(made, config.registry.gates)
    run.system_metrics()
    return made


def opened(
    config: Config, plugins: Plugins, registry: Registry, run: ActiveRun, progress: Progress, *, folder: Path
) -> Job:
    """Open the run's folder and its journal, and find the reward model.

    Raises:
        ConfigError: the reward model is not what it was. ResourceError: the folder cannot be written. TrackingError:
        another process works in it.
    """
    made = Job(config=config, plugins=plugins, registry=registry, run=run, folder=folder, progress=progress)
    with writing(folder):
        run.open_journal(folder)
    if config.rollout.reward_model:
        uri, reward_model = init_from.reward_model(config.rollout.reward_model, progress)
        made = replace(made, reward_model=reward_model)
        run.set_tags({"mlflow_ft.reward_model": uri})
    return made


def record_rewards(job: Job) -> None:
    """Keep the source of every reward function: the file as `rewards/NAME.py`, and its sha256 in a tag.

    Raises:
        ConfigError: one cannot be found; nothing was loaded yet.
    """
    from mlflow_ft.engine.rewards import reward_sources

    tags = []
    for one in reward_sources.find(job.config.rollout.reward_funcs or [], job.registry):
        tags.append(f"{one.name} = {one.asked}" + (f" sha256:{one.sha256}" if one.sha256 else ""))
        if one.source and not one.provider:  # plugins.json has the hashes of plugins
            job.run.artifact_text(one.source.read_text(encoding="utf-8", errors="replace"), f"rewards/{one.name}.py")
    job.run.set_tags({"mlflow_ft.reward_funcs": "; ".join(tags)})


def record_gates(job: Job, file: Path) -> None:
    """Keep the gates that a promotion of this run's versions is to hold them to.

    Raises:
        ConfigError: the file cannot be read, or asks for what there is not.
    """
    from mlflow_ft.tracking.contenders import GATES_FILE

    read_gates(file, job.registry)
    job.run.artifact_text(file.expanduser().read_text(encoding="utf-8"), GATES_FILE)


def read_gates(file: Path, registry: Registry) -> None:
    """Raise ConfigError where a file of gates cannot be read, or asks for what there is not."""
    from mlflow_ft.config.gates import gates_file
    from mlflow_ft.registry import chosen_gates

    chosen_gates(registry, gates_file(file.expanduser()), place=str(file))


def check_names(config: Config, registry: Registry) -> None:
    """Raise ConfigError for the first name in the config that no plugin registered."""
    if config.method != PREPARE:
        registry.trainers[config.method]
    registry.adapters[config.adapter.kind]
    if config.data.format != "auto":
        registry.formats[config.data.format]
    for name in config.checks.names or ():
        registry.checks[name]
    for name in config.evaluation.evaluators or ():
        registry.evaluators[name]
    for name in config.package.packagers or ():
        registry.packagers[name]
    for name in config.package.exports or ():
        registry.exporters[name]
    guards.check_names(config)
    if config.method != PREPARE:
        check_method(config, registry)


def check_method(config: Config, registry: Registry) -> None:
    """Refuse what cannot work together, with the reason, before anything is loaded.

    Raises:
        ConfigError: method, adapter, quantisation and settings do not fit.
    """
    trainer, adapter = registry.trainers[config.method], registry.adapters[config.adapter.kind]
    if adapter.name == "none" and config.model.quantize != "none":
        raise ConfigError(
            f"a base quantised to {config.model.quantize} cannot be trained itself",
            hint="add an adapter (--adapter.kind lora), or do not quantise (--model.quantize none)",
        )
    check_settings(config, trainer)
    for reason in (trainer.refuses(config, adapter), adapter.refuses(config)):
        if reason:
            raise ConfigError(f"method {trainer.name} with adapter {adapter.name}: {reason}")
    if "merged" in (config.package.packagers or ()) and not adapter.merges:
        raise ConfigError(
            f"adapter {adapter.name} cannot be merged into its base: it changes no weights",
            hint="leave `merged` out of package.packagers; base and adapter are served together",
        )
    check_exports(config, registry)


def check_exports(config: Config, registry: Registry, base: Path | None = None) -> None:
    """Refuse forms that cannot be made of what is trained, or not on this machine; `base` is the base model's folder.

    Raises:
        ConfigError: there will be no whole model, or an exporter is not ready.
    """
    from mlflow_ft.engine.models import own_quantization

    names = config.package.exports or ()
    adapter = registry.adapters[config.adapter.kind]
    whole = "model" if adapter.name == "none" else "merged"
    if names and whole == "merged" and not adapter.merges:
        raise ConfigError(
            f"package.exports are made of the merged model, and adapter {adapter.name} cannot be merged into its base",
            hint="leave package.exports out; base and adapter are served together",
        )
    if names and whole not in (config.package.packagers or (whole,)):
        raise ConfigError(
            "package.exports are made of the whole model, and package.packagers leaves it out",
            hint=f"--package.packagers {','.join([whole, *(config.package.packagers or ())])}",
        )
    own = own_quantization.of(base) if base else None
    for name in names:
        if reason := registry.exporters[name].ready(base):
            raise ConfigError(f"package.exports: {name} cannot be made: {reason}")
        if own and own.make == registry.exporters[name].grid:
            raise ConfigError(
                f"package.exports: {name} cannot be made: the base's own files are in {own.description}, and "
                "rounding to the same grid once more would take the adapter away",
                hint="leave it out, and serve the adapter beside its base; or name the base in full precision",
            )


def check_settings(config: Config, trainer: Trainer) -> None:
    """Refuse settings that the method does not read: who gave them expects them to matter."""
    idle = [
        Problem(place=f"{origin}  {path}", message=f"means nothing to the method {trainer.name}")
        for path, origin in config.origins.items()
        if trainer.settings is not None
        and path.startswith(("objective.", "rollout."))
        and not origin.startswith("method ")
        and path.partition(".")[2] not in trainer.settings
    ]
    if idle:
        reads = ", ".join(trainer.settings or ()) or "none of them"
        raise ConfigError(
            f"settings of other methods: {len(idle)}",
            problems=idle,
            hint=f"leave them out; of objective and rollout, {trainer.name} reads {reads}",
        )


@contextmanager
def reporting_to_plugins(job: Job) -> Iterator[None]:
    """Let plugins see the error that ends a run; a full disk becomes an error with a remedy."""
    try:
        with writing(job.folder):
            yield
    except BaseException as error:
        job.plugins.watch("on_run_error", job=job, error=error)
        raise


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a full disk or a folder that may not be written into a ResourceError.

    Weights are written by Rust code, which reports a full disk as its own error with the system's words in it.
    """
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error):
            raise ResourceError(
                f"no space is left on the disk while writing under {folder}",
                hint="free some, or choose another place with --run.output_dir; nothing was registered",
            ) from error
        if isinstance(error, OSError) and str(error.filename or "").startswith((str(folder), str(folder.parent))):
            raise ResourceError(
                f"cannot write under {folder}: {error.strerror}", hint="choose another --run.output_dir"
            ) from error
        raise


def check_space(job: Job, needed: int) -> None:
    """Raise ResourceError where fewer than `needed` bytes are free, before anything is spent."""
    free = shutil.disk_usage(job.folder).free
    if free < needed:
        raise ResourceError(
            f"the run needs about {needed / 2**30:.1f} GiB under {job.folder}, and {free / 2**30:.1f} GiB are free",
            hint="free some space, or choose another place with --run.output_dir",
        )
