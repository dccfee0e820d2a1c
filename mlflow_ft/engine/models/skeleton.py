"""A model without weights, with an adapter, so that PEFT can merge it layer by layer as weights are read.

transformers builds the architecture on torch's meta device and PEFT attaches the adapter, so that targets, rank
patterns, scales, ties and variants are interpreted by PEFT. Then one layer at a time gets its weights, is merged by
PEFT's own code, and releases them: the result equals PEFT's bit for bit, with only one layer in memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn

from mlflow_ft.engine.adapters import files, fitting, unmergeable
from mlflow_ft.engine.adapters.fitting import Fit, Say, silent
from mlflow_ft.engine.adapters.weight_names import short
from mlflow_ft.engine.hub import quiet_transformers
from mlflow_ft.engine.models import architecture, own_quantization
from mlflow_ft.engine.models.loading import quiet_peft
from mlflow_ft.errors import brief

META = torch.device("meta")
MOVES = "_move_adapter_to_device_of_base_layer"
LAYERWISE = (
    *("LORA", "LOHA", "LOKR", "HIRA", "MISS", "GRALORA", "DELORA", "DEFT", "GLORA", "PEANUT", "VERA", "PVERA"),
    *("RANDLORA", "VBLORA", "TINYLORA", "FOURIERFT", "WAVEFT", "SUPERTUNING", "OFT", "BOFT", "HRA", "ROAD", "C3A"),
    *("IA3", "LN_TUNING", "TRAINABLE_TOKENS"),
)
"""PEFT's types that merge one layer at a time (tests/engine/merging/test_stream_merge.py tests each)."""
CHANGE_THE_BASE = ("pissa", "olora")
"""Initialisations that PEFT recomputes from the base's weights when it loads an adapter that it saved itself; see also
`files.LOST`."""
WITHOUT = ("velora_config", "monteclora_config", "kasa_config", "arrow_config", "alora_invocation_tokens")
"""Variants of LoRA that need more of a layer than the files contain, or cannot be merged."""


FAILURES = (*fitting.FAILURES, ImportError)
"""What transformers and PEFT raise for an architecture or adapter that they cannot build without weights; with weights,
they succeed or report the problem."""


class UnsuitedError(Exception):
    """The merge cannot work layer by layer; PEFT must do it with the whole model in memory."""


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """The model on the meta device, its adapter in memory."""

    model: Any
    """The transformers model, with the adapter's layers in it."""
    shapes: Mapping[str, torch.Size]
    """Shapes of the model's weights without the adapter, by name; tied ones under each of their names."""
    tied: tuple[frozenset[str], ...]
    """Sets of names that share one weight."""
    units: Mapping[str, str]
    """From the name of a weight that the adapter may change to the module that contains it."""
    replaced: Mapping[str, Tensor] = field(default_factory=dict)
    """Weights of the base that the adapter stores completely: biases, resized embeddings."""
    notes: Sequence[str] = ()
    """Deviations from the adapter's files, in sentences."""

    @property
    def stored(self) -> list[str]:
        """The weights that the adapter stores completely instead of the base's (`modules_to_save`)."""
        whole = [unit for unit in set(self.units.values()) if self._is_stored(unit)]
        return [name for name, unit in self.units.items() if unit in whole]

    def _is_stored(self, unit: str) -> bool:
        return isinstance(self.model.get_submodule(unit), ModulesToSaveWrapper)

    def merged(self, unit: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Merge one module: from its weights in the base, by their names in it, to those of the merged model.

        Raises:
            ValueError: PEFT found NaN or infinite weights. UnsuitedError: it would need more than this module.
        """
        module = self.model.get_submodule(unit)
        bare = _bare(module)
        _put(bare, weights)
        merged = _unloaded(module)
        tensors = {f"{unit}.{name}": weight.detach() for name, weight in merged.state_dict().items()}
        for layer in module.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.merged_adapters.clear()  # so that it can be merged again
        _put(bare, {name: weight.to(META) for name, weight in weights.items()})
        if loose := [name for name, weight in tensors.items() if weight.is_meta]:
            raise UnsuitedError(f"{', '.join(loose)} is neither in the base nor in the adapter")
        return tensors


def build(base: Path, adapter: Path, *, task: str = "generate", rows: int | None = None) -> Skeleton:
    """Build the model of `base` without weights, and attach the adapter.

    `rows` is the number of rows that the embeddings need; the adapter's own rows are added if there are more.

    Raises:
        UnsuitedError: the adapter's kind or initialisation needs the whole model. ModelError: the adapter's files are
        broken, or it does not fit this base.
    """
    _check_kind(files.settings(adapter))
    try:
        return _built(base, adapter, task=task, rows=rows)
    except FAILURES as error:
        raise UnsuitedError(f"it cannot be built without weights: {brief(error)}") from error


def _built(base: Path, adapter: Path, *, task: str, rows: int | None) -> Skeleton:
    state = {name: _exact(weight) for name, weight in files.tensors(adapter).items()}
    model = bare_model(base, task=task)
    _grow(model, max(rows or 0, brought_rows(model, {name: weight.shape for name, weight in state.items()})))
    names = dict(model.named_parameters(remove_duplicate=False))
    shapes = {name: weight.shape for name, weight in names.items()}
    tied = _ties(names)
    with quiet_peft(), quiet_transformers(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter.*")
        notes = _attach(model, adapter, state)
    units = {name: unit for unit in _units(model) for name in shapes if name.startswith(f"{unit}.")}
    replaced = {_plain(name): weight for name, weight in model.named_parameters() if _plain(name) in shapes}
    replaced = {name: weight.detach() for name, weight in replaced.items() if not weight.is_meta}
    _check_whole(model, units)
    return Skeleton(model=model, shapes=shapes, tied=tied, units=units, replaced=replaced, notes=notes)


def bare_model(base: Path, *, task: str = "generate") -> Any:
    """The architecture of a folder's config.json, on the meta device."""
    if (own := own_quantization.of(base)) and own.held is None:
        raise UnsuitedError(f"the base's own files are in {own.description}")
    return architecture.build(base, task=task)


def fit(base: Path, adapter: Path, *, task: str = "generate", rows: int | None = None, say: Say = silent) -> Fit:
    """The adapter's tensors by their names in `base`, without the base's weights.

    Raises:
        ModelError: the adapter does not fit. UnsuitedError: this needs the base's weights.
    """
    state = files.tensors(adapter)
    try:
        model = bare_model(base, task=task)
        _grow(model, max(rows or 0, brought_rows(model, {name: weight.shape for name, weight in state.items()})))
        peft_config = fitting.config_for(model, adapter)
        with quiet_peft(), quiet_transformers():
            wrapped: Any = PeftModel(model, peft_config, low_cpu_mem_usage=True, autocast_adapter_dtype=False)
            return fitting.fitted(wrapped, state, where=adapter, say=say)
    except FAILURES as error:
        raise UnsuitedError(f"it cannot be built without weights: {brief(error)}") from error


def check(base: Path, adapter: Path, *, task: str = "generate") -> None:
    """Refuse an adapter that does not fit `base` before the base's weights are loaded, if possible.

    Raises:
        ModelError: it does not fit.
    """
    with suppress(UnsuitedError):
        fit(base, adapter, task=task)


def _check_kind(settings: Mapping[str, Any]) -> None:
    kind = settings.get("peft_type")
    if kind not in LAYERWISE:
        raise UnsuitedError(f"{kind} is merged by PEFT")
    if str(settings.get("init_lora_weights")).lower().startswith(CHANGE_THE_BASE):
        raise UnsuitedError(f"it began as {settings['init_lora_weights']}, which PEFT recomputes from all weights")
    for name in (*WITHOUT, "target_parameters", "use_bdlora"):
        if settings.get(name):
            raise UnsuitedError(f"{name} is merged by PEFT")


def _exact(weight: Tensor) -> Tensor:
    """Convert half precision to float32, as PEFT does when it reads an adapter."""
    return weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight


def brought_rows(model: Any, shapes: Mapping[str, Sequence[int]]) -> int:
    """The number of rows that an adapter with tensors of these shapes has for the embedding layer; 0 if none."""
    names = {id(layer): name for name, layer in model.named_modules()}
    name = short(f"base_model.model.{names[id(model.get_input_embeddings())]}")
    held = {short(key): shape for key, shape in shapes.items() if short(key).startswith(f"{name}.") and shape}
    full = [shape[0] for key, shape in held.items() if key.endswith("weight")]
    low_rank = [shape[-1] for key, shape in held.items() if key.endswith("lora_embedding_A")]
    return max([0, *full, *low_rank])


def _grow(model: Any, rows: int) -> None:
    if rows > len(model.get_input_embeddings().weight):
        with quiet_transformers():
            model.resize_token_embeddings(rows, mean_resizing=False)


def _ties(names: Mapping[str, nn.Parameter]) -> tuple[frozenset[str], ...]:
    groups: dict[int, set[str]] = {}
    for name, weight in names.items():
        groups.setdefault(id(weight), set()).add(name)
    return tuple(frozenset(group) for group in groups.values() if len(group) > 1)


def _attach(model: Any, adapter: Path, state: dict[str, Tensor]) -> list[str]:
    """Attach the adapter, with its weights in memory, and return notes about them.

    Raises:
        ModelError: it does not fit this model. UnsuitedError, ValueError: PEFT cannot merge it.
    """
    notes: list[str] = []
    peft_config = fitting.config_for(model, adapter)
    peft_config.inference_mode = True
    wrapped: Any = PeftModel(model, peft_config, low_cpu_mem_usage=True, autocast_adapter_dtype=False)
    fit = fitting.fitted(wrapped, state, where=adapter, say=notes.append)
    with _stay():
        set_peft_model_state_dict(wrapped, fit.state, low_cpu_mem_usage=True)
    if loose := [name for name, weight in fitting.saved(wrapped).items() if weight.is_meta]:
        raise UnsuitedError(f"PEFT cannot load {loose[0]} without the base's weights")
    fitting.prove(wrapped, fit, where=adapter)
    unmergeable.check(wrapped, where=adapter)
    tuner: BaseTuner = wrapped.base_model
    tuner._check_merge_allowed()
    wrapped.eval()
    return notes


@contextmanager
def _stay() -> Iterator[None]:
    """Keep PEFT from moving the adapter's weights to the device of the base, which is the meta device here."""
    moves = getattr(BaseTunerLayer, MOVES)
    setattr(BaseTunerLayer, MOVES, _nowhere)
    try:
        yield
    finally:
        setattr(BaseTunerLayer, MOVES, moves)


def _nowhere(*_: Any, **__: Any) -> None:
    return


def _units(model: Any) -> list[str]:
    """The outermost modules with which the adapter has replaced the model's own."""
    units: list[str] = []
    for name, module in model.named_modules():
        ours = isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))
        if ours and not any(name.startswith(f"{unit}.") for unit in units):
            units.append(name)
    return units


def _bare(module: Any) -> Any:
    """The model's own module inside the adapter's."""
    if isinstance(module, BaseTunerLayer):
        return module.get_base_layer()
    return module.original_module


def _put(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Set a module's weights, by their names in it: those of a block belong to the layers inside."""
    for name, weight in weights.items():
        owner, _, own = name.rpartition(".")
        module.get_submodule(owner).register_parameter(own, nn.Parameter(weight, requires_grad=False))


def _unloaded(module: Any) -> Any:
    """What PEFT's `merge_and_unload` replaces a module with (`BaseTuner._unload_and_optionally_merge`)."""
    if hasattr(module, "unload_and_optionally_merge_module"):
        return module.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
    module.merge(safe_merge=True)
    return module.get_base_layer()


def _plain(name: str) -> str:
    """The name of a weight of the base without the adapter."""
    for inner in (".token_adapter.base_layer", ".base_layer", ".original_module"):
        name = name.replace(inner, "")
    return name


def _check_whole(model: Any, units: Mapping[str, str]) -> None:
    """Raise UnsuitedError if a weight of the adapter's own modules is not in its files."""
    for unit in dict.fromkeys(units.values()):
        module = model.get_submodule(unit)
        own = {id(weight) for weight in (*_bare(module).parameters(), *_bare(module).buffers())}
        for name, weight in (*module.named_parameters(), *module.named_buffers()):
            if weight.is_meta and id(weight) not in own and "trainable_tokens_original." not in name:
                raise UnsuitedError(f"{unit}.{name} is not in the adapter's files")
