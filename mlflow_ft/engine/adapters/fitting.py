"""Put a saved adapter on a base: every weight of it used, every weight that its config asks for there, or refuse.

PEFT itself only warns: what has no place is left out, and what is missing stays as random as it began.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.auto import MODEL_TYPE_TO_PEFT_MODEL_MAPPING
from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers
from safetensors.torch import save_file
from torch import Tensor

from mlflow_ft.engine.adapters import files, misfits
from mlflow_ft.engine.adapters.layer_names import as_named_here
from mlflow_ft.engine.adapters.weight_names import Shapes, counted, matched, unwrapped
from mlflow_ft.errors import ModelError

FAILURES = (OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError, AssertionError)
"""What PEFT and torch raise at an adapter that they cannot put on a model."""
KEY = "default"
"""PEFT's name of the only adapter on a model."""
SAME = 1e-2
"""Largest relative difference of a weight in the model from the one in the file: rounding to the model's type."""

Say = Callable[[str], object]


def nobody(text: str) -> None:
    """Say it to nobody."""


class UnattachedError(ModelError):
    """PEFT cannot put such an adapter on this base, whatever its weights are."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """An adapter's tensors by the names under which PEFT reads them on this base."""

    state: dict[str, Tensor]
    renamed: Mapping[str, str]
    """From the file's names to these, where they are others."""


def put_on(module: Any, folder: Path, *, key: str = KEY, trainable: bool = False, say: Say = nobody) -> Any:
    """Put the adapter in `folder` on a loaded base, or beside the adapters that are on it already, as `key`.

    `say` gets a sentence for each thing that was not as the files have it: a renaming, settings of a later PEFT.

    Returns:
        The PeftModel.

    Raises:
        ModelError: the files are broken, or do not fit this base; nothing is half loaded then that could be used.
    """
    state = files.tensors(folder)
    wrapped = attached(module, folder, key=key, trainable=trainable)
    fit = fitted(wrapped, state, key=key, where=folder, say=say)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            source = folder
            if fit.renamed:
                source = Path(scratch)
                save_file(fit.state, source / files.WEIGHTS, metadata={"format": "pt"})
            wrapped.load_adapter(source, key, is_trainable=trainable)
    except FAILURES as error:
        raise misfits.refused(error, folder) from error
    prove(wrapped, fit, key=key, where=folder)
    return wrapped


def attached(module: Any, folder: Path, *, key: str = KEY, trainable: bool = False) -> Any:
    """A base with the adapter that the config in `folder` asks for, whose weights are not loaded yet.

    Raises:
        ModelError: the config is broken. UnattachedError: PEFT cannot put such an adapter on this base.
    """
    config = config_for(module, folder)
    config.inference_mode = not trainable
    try:
        if isinstance(module, PeftModel):
            module.add_adapter(key, config)
            return module
        return MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type or "", PeftModel)(module, config, key)
    except FAILURES as error:
        raise _unattached(error, folder) from error


def config_for(module: Any, folder: Path) -> Any:
    """The config of an adapter as PEFT reads it, with the names that this base has for its layers.

    Raises:
        ModelError: the config is broken, or is about tokens that this base does not have.
    """
    config: Any = files.config(folder)
    base: Any = module.get_base_model() if isinstance(module, PeftModel) else module
    as_named_here(config, [name for name, _ in base.named_modules()])
    tokens = getattr(config, "trainable_token_indices", None) or getattr(config, "token_indices", None) or []
    last = max(
        [-1, *(token for ids in (tokens.values() if isinstance(tokens, Mapping) else [tokens]) for token in ids)]
    )
    if last >= 0 and last >= (rows := len(base.get_input_embeddings().weight)):
        raise ModelError(
            f"the adapter in {folder} trains the token {last}, but its base has {rows:,}",
            hint="its base had more tokens during training, whose embeddings were not saved with the adapter "
            "(save_embedding_layers); save it again with them",
        )
    return config


def _unattached(error: Exception, folder: Path) -> UnattachedError:
    refused = misfits.refused(error, folder)
    return UnattachedError(refused.message, hint=refused.hint)


def fitted(wrapped: Any, state: Mapping[str, Tensor], *, key: str = KEY, where: Path, say: Say = nobody) -> Fit:
    """The tensors of an adapter by the names under which a base with that adapter attached (`attached`) reads them.

    They are renamed only if that makes all of them fit (`weight_names.matched`). `where` is the adapter's folder.

    Raises:
        ModelError: some have no place on this base, are missing, or have another shape.
    """
    if later := files.unknown(where):
        told = ", ".join(f"{name}={value!r}" for name, value in sorted(later.items()))
        say(f"PEFT {peft.__version__} ignores settings in the adapter's config that it does not support: {told}")
    try:
        wanted = _shapes(saved(wrapped, key))
    except FAILURES as error:  # beside another adapter PEFT may have put on half of it
        raise _unattached(error, where) from error
    more = {name: shape for name, shape in _shapes(wrapped.state_dict()).items() if name not in wanted}
    tried = [_shapes(state)]
    for names, read in _readings(wrapped, state, key, where):
        found = _without_copies(wrapped, read, {**more, **wanted})
        tried.append(_shapes(found))
        partners = matched(tried[-1], wanted, more=more)
        if partners is not None:
            # where transformers joins several tensors to one (experts), PEFT does so again as it loads them
            renamed = partners | {name: partners.get(new, new) for name, new in names.items()}
            renamed = {name: new for name, new in renamed.items() if name != new}
            if not renamed:
                return Fit(state=dict(state), renamed={})
            say(misfits.renaming(renamed))
            return Fit(state={partners[name]: one.contiguous() for name, one in found.items()}, renamed=renamed)
    raise misfits.error(tried, wanted, more, where=where, base=_name(wrapped))


def _readings(
    wrapped: Any, state: Mapping[str, Tensor], key: str, where: Path
) -> Iterator[tuple[dict[str, str], dict[str, Tensor]]]:
    """Ways to read the tensors: under the names of the file, and under those without wrappers.

    Each comes with what the file's names become, and with the tensors as transformers 5 calls and joins them.
    """
    for change in (str, unwrapped):
        names = {name: change(name) for name in state}
        if len(set(names.values())) < len(state):
            continue
        read = _as_transformers_calls_them(wrapped, {names[name]: weight for name, weight in state.items()}, key)
        if len(read) < len(state) and not counted(state):
            raise ModelError(
                f"the adapter in {where} does not fit {_name(wrapped)}: the numbers of the experts in its file do not "
                "run from 0 without a gap",
                hint=f"save the adapter again: {files.INCOMPLETE}",
            )
        yield names, read


def prove(wrapped: Any, fit: Fit, *, key: str = KEY, where: Path) -> None:
    """Raise ModelError where a weight of the adapter in the model is not the one of the files."""
    state = _as_transformers_calls_them(wrapped, fit.state, key)
    for name, weight in saved(wrapped, key).items():
        if name not in state or not _same(weight, state[name]):
            raise ModelError(
                f"the adapter in {where} does not fit {_name(wrapped)}: PEFT did not take {name} as it is in the file",
                hint="save the adapter again with this version of PEFT",
            )


def _same(weight: Tensor, saved: Tensor) -> bool:
    if weight.shape != saved.shape:
        return False
    one, two = weight.detach().float().cpu(), saved.to(weight.dtype).float().cpu()
    return not one.numel() or bool((one - two).abs().max() <= SAME * two.abs().max())


def saved(wrapped: Any, key: str = KEY) -> dict[str, Tensor]:
    """What PEFT would save of the adapter as it is on the model, by name: all that its config asks for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Adapter .* LoRA tensor\(s\) have invalid shape")  # ranks of 0
        found: dict[str, Tensor] = get_peft_model_state_dict(wrapped, adapter_name=key, save_embedding_layers=False)
    return found


def _as_transformers_calls_them(wrapped: Any, state: Mapping[str, Tensor], key: str) -> dict[str, Tensor]:
    """The tensors by the names of transformers 5, which holds the experts of a layer in one; as PEFT loads them."""
    try:
        with warnings.catch_warnings():
            found: dict[str, Tensor] = convert_peft_adapter_state_dict_for_transformers(
                wrapped, wrapped.peft_config[key], dict(state), key
            )
    except FAILURES:
        return dict(state)  # no names that transformers knows
    return found


def _without_copies(wrapped: Any, state: dict[str, Tensor], known: Shapes) -> dict[str, Tensor]:
    """Of a resized embedding layer PEFT saves some weights under two names, one of which it does not read."""
    base = wrapped.get_base_model()
    layers = [layer for layer in (base.get_input_embeddings(), base.get_output_embeddings()) if layer is not None]
    places = [f"{name}." for name, layer in wrapped.named_modules() if any(layer is one for one in layers)]
    held = {name: weight for name, weight in state.items() if name.startswith(tuple(places))}
    placed = [weight for name, weight in held.items() if name in known]
    copies = {
        name
        for name, weight in held.items()
        if name not in known and any(one.shape == weight.shape and torch.equal(one, weight) for one in placed)
    }
    return {name: weight for name, weight in state.items() if name not in copies}


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in state.items()}


def _name(wrapped: Any) -> str:
    base = wrapped.get_base_model()
    return f"{type(base).__name__} {getattr(base, 'name_or_path', '') or ''}".rstrip()
