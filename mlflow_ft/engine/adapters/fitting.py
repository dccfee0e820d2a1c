"""Load a saved adapter onto a base: refuse it unless every weight is used and every weight of its config is present.

PEFT itself only warns: it drops weights that match nothing, and leaves missing ones at their random initial values.
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
"""What PEFT and torch raise for an adapter that they cannot load onto a model."""
KEY = "default"
"""PEFT's name of the only adapter on a model."""
SAME = 1e-2
"""Largest relative difference between a weight in the model and in the file: rounding to the model's type."""

Say = Callable[[str], object]


def silent(text: str) -> None:
    """Discard it."""


class UnattachedError(ModelError):
    """PEFT cannot attach an adapter with this config to this base."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """An adapter's tensors under the names that PEFT expects on this base."""

    state: dict[str, Tensor]
    renamed: Mapping[str, str]
    """From the file's names to these, where they differ."""


def put_on(module: Any, folder: Path, *, key: str = KEY, trainable: bool = False, say: Say = silent) -> Any:
    """Load the adapter in `folder` onto a base, which may already have other adapters, under the name `key`.

    `say` gets a sentence for each deviation from the files: a renaming, settings of a later PEFT.

    Returns:
        The PeftModel.

    Raises:
        ModelError: the files are broken, or do not fit this base; do not use `module` then.
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
    """A base with a new adapter of the config in `folder`, whose weights are not loaded yet.

    Raises:
        ModelError: the config is broken. UnattachedError: PEFT cannot attach such an adapter to this base.
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
    """The config of an adapter as PEFT reads it, with this base's names of layers.

    Raises:
        ModelError: the config is broken, or names tokens that this base does not have.
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


def fitted(wrapped: Any, state: Mapping[str, Tensor], *, key: str = KEY, where: Path, say: Say = silent) -> Fit:
    """The tensors of an adapter under the names that a base with this adapter (see `attached`) expects.

    They are renamed only if all of them then fit (`weight_names.matched`). `where` is the adapter's folder.

    Raises:
        ModelError: some match nothing in this base, are missing, or differ in shape.
    """
    if later := files.unknown(where):
        ignored = ", ".join(f"{name}={value!r}" for name, value in sorted(later.items()))
        say(f"PEFT {peft.__version__} ignores settings in the adapter's config that it does not support: {ignored}")
    try:
        wanted = _shapes(saved(wrapped, key))
    except FAILURES as error:  # with another adapter present, PEFT may have attached only a part
        raise _unattached(error, where) from error
    more = {name: shape for name, shape in _shapes(wrapped.state_dict()).items() if name not in wanted}
    tried = [_shapes(state)]
    for names, read in _readings(wrapped, state, key, where):
        tensors = _without_copies(wrapped, read, {**more, **wanted})
        tried.append(_shapes(tensors))
        partners = matched(tried[-1], wanted, more=more)
        if partners is not None:
            # where transformers fuses several tensors (experts), PEFT does so again when it loads them
            renamed = partners | {name: partners.get(new, new) for name, new in names.items()}
            renamed = {name: new for name, new in renamed.items() if name != new}
            if not renamed:
                return Fit(state=dict(state), renamed={})
            say(misfits.renaming(renamed))
            return Fit(state={partners[name]: weight.contiguous() for name, weight in tensors.items()}, renamed=renamed)
    raise misfits.error(tried, wanted, more, where=where, base=_name(wrapped))


def _readings(
    wrapped: Any, state: Mapping[str, Tensor], key: str, where: Path
) -> Iterator[tuple[dict[str, str], dict[str, Tensor]]]:
    """Ways to read the tensors: with the names of the file, and without the names of wrappers.

    Each has the new names by the file's, and the tensors as transformers 5 names and fuses them.
    """
    for change in (str, unwrapped):
        names = {name: change(name) for name in state}
        if len(set(names.values())) < len(state):
            continue
        read = _as_transformers_calls_them(wrapped, {names[name]: weight for name, weight in state.items()}, key)
        if len(read) < len(state) and not counted(state):
            raise ModelError(
                f"the adapter in {where} does not fit {_name(wrapped)}: the experts in its file are not numbered from "
                "0 without a gap",
                hint=f"save the adapter again: {files.INCOMPLETE}",
            )
        yield names, read


def prove(wrapped: Any, fit: Fit, *, key: str = KEY, where: Path) -> None:
    """Raise ModelError if a weight of the adapter in the model differs from the files."""
    state = _as_transformers_calls_them(wrapped, fit.state, key)
    for name, weight in saved(wrapped, key).items():
        if name not in state or not _same(weight, state[name]):
            raise ModelError(
                f"the adapter in {where} does not fit {_name(wrapped)}: PEFT changed {name} when it loaded it",
                hint="save the adapter again with this version of PEFT",
            )


def _same(weight: Tensor, saved: Tensor) -> bool:
    if weight.shape != saved.shape:
        return False
    in_model, in_file = weight.detach().float().cpu(), saved.to(weight.dtype).float().cpu()
    return not in_model.numel() or bool((in_model - in_file).abs().max() <= SAME * in_file.abs().max())


def saved(wrapped: Any, key: str = KEY) -> dict[str, Tensor]:
    """What PEFT would save of the adapter on the model, by name: everything that its config requires."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Adapter .* LoRA tensor\(s\) have invalid shape")  # ranks of 0
        state: dict[str, Tensor] = get_peft_model_state_dict(wrapped, adapter_name=key, save_embedding_layers=False)
    return state


def _as_transformers_calls_them(wrapped: Any, state: Mapping[str, Tensor], key: str) -> dict[str, Tensor]:
    """The tensors by the names of transformers 5, which fuses the experts of a layer; as PEFT loads them."""
    try:
        with warnings.catch_warnings():
            renamed: dict[str, Tensor] = convert_peft_adapter_state_dict_for_transformers(
                wrapped, wrapped.peft_config[key], dict(state), key
            )
    except FAILURES:
        return dict(state)  # transformers does not know these names
    return renamed


def _without_copies(wrapped: Any, state: dict[str, Tensor], known: Shapes) -> dict[str, Tensor]:
    """The tensors without duplicates: PEFT saves weights of a resized embedding layer twice, and reads one copy."""
    base = wrapped.get_base_model()
    layers = [layer for layer in (base.get_input_embeddings(), base.get_output_embeddings()) if layer is not None]
    places = [f"{name}." for name, module in wrapped.named_modules() if any(module is layer for layer in layers)]
    held = {name: weight for name, weight in state.items() if name.startswith(tuple(places))}
    placed = [weight for name, weight in held.items() if name in known]
    copies = {
        name
        for name, weight in held.items()
        if name not in known and any(other.shape == weight.shape and torch.equal(other, weight) for other in placed)
    }
    return {name: weight for name, weight in state.items() if name not in copies}


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in state.items()}


def _name(wrapped: Any) -> str:
    base = wrapped.get_base_model()
    return f"{type(base).__name__} {getattr(base, 'name_or_path', '') or ''}".rstrip()
