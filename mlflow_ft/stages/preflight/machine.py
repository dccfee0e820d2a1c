"""The checks of the machine before a run: the device, the disks, the plugins."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_ft.errors import PluginError
from mlflow_ft.plugins import Plugins
from mlflow_ft.registry import Registry
from mlflow_ft.stages import memory, space
from mlflow_ft.stages.preflight.examination import Examination
from mlflow_ft.values.inspected import Caution

if TYPE_CHECKING:
    from mlflow_ft.tracking.run_place import RunPlace
    from mlflow_ft.values import BaseModel


def check_device(examination: Examination, base: BaseModel | None) -> None:
    """Check dtype, attention, kernels and quantisation against the device and what is installed."""
    from mlflow_ft.engine import capabilities
    from mlflow_ft.engine.models import compiled, liger, own_quantization

    config = examination.config
    examination.check("device", capabilities.check_device)
    examination.check("dtype", partial(capabilities.check_dtype, config), setting="model.dtype")
    attention = partial(capabilities.check_attention, config)
    examination.check("attention", attention, setting="model.attn_implementation")
    if config.training.liger is True:
        examination.check("liger", partial(liger.check, config), setting="training.liger")
    if config.training.compile:
        examination.check("compile", partial(compiled.check, config), setting="training.compile")
    if config.rollout.engine != "transformers":
        rollout = partial(capabilities.check_rollout, config.rollout.engine)
        examination.check("rollout", rollout, setting="rollout.engine")
    own = own_quantization.of(base.path) if base else None
    quantize = own.held if own and own.held else config.model.quantize
    if quantize != "none":
        check = partial(capabilities.check_quantization, quantize)
        examination.check("quantisation", check, setting="model.quantize")


def check_memory(examination: Examination, registry: Registry, base: BaseModel, place: RunPlace | None) -> None:
    """Compare the memory that the run needs with what the machine has."""
    config = examination.config
    here = memory.room(config, place.experiment_id if place else None)
    examination.check("memory", partial(memory.check, config, registry, base, here))


def check_output(examination: Examination) -> bool:
    """Check that the run's folder can be written."""
    config = examination.config

    def check() -> str:
        from mlflow_ft.tracking.databases import check_folder

        folder = config.run.output_dir.expanduser().absolute()
        check_folder(folder, f"the output folder {folder}", hint="choose another --run.output_dir")
        return str(folder)

    return examination.check("output folder", check, setting="run.output_dir")


def check_room(
    examination: Examination,
    registry: Registry,
    base: BaseModel,
    artifacts: Path | None,
    run_id: str | None = None,
) -> None:
    """Check that the disks have room for checkpoints, models and artifacts; a continued run has some already."""
    config = examination.config

    def check() -> str:
        folder = config.run.output_dir.expanduser().absolute() / (run_id or "")
        return space.check(space.needs(config, registry, base.path, folder=folder, artifacts=artifacts))

    examination.check("disk", check, setting="run.output_dir")


def check_plugins(plugins: Plugins, allow: Collection[str] | None) -> str | Caution:
    """The plugins that work; a caution if one is broken or slow.

    If the configuration names a record of a broken plugin, the lookup of that name fails.

    Raises:
        PluginError: one that MLFLOW_FT_PLUGINS names is broken, or one is loaded that is not in `plugins.allow`.
    """
    present = [info.name for info in plugins.active if not info.built_in]
    if allow is not None and (forbidden := [name for name in present if name not in allow]):
        raise PluginError(
            f"plugins.allow does not allow {', '.join(forbidden)}, which is loaded already",
            hint=f"set MLFLOW_FT_PLUGINS_ALLOW={','.join(allow)}, so that no other is imported",
        )
    broken = [info for info in plugins.infos if info.faulty]
    if chosen := [info for info in broken if info.name in plugins.chosen]:
        raise PluginError(
            "; ".join(f"plugin {info.name} is broken: {info.error}" for info in chosen),
            hint="fix it, or remove it from MLFLOW_FT_PLUGINS",
        )
    if broken:
        return Caution(
            message="; ".join(f"plugin {info.name} is broken and ignored: {info.error}" for info in broken),
            remedy="fix or uninstall it",
        )
    return f"{len(plugins.active)} work"
