"""Initialise an adapter, and save one whose initialisation changed the base so that it fits the original base.

PiSSA, OLoRA, CorDA and LoRA-GA move a part of each weight into the adapter: W = W_rest + s B0 A0. The trained adapter
belongs to W_rest, which exists only in this run. So it is saved as the difference from its initial weights, a LoRA of
twice the rank on the original base (as in PEFT's `subtract_mutated_init`):

    s B A - s B0 A0 = s [B  -B0] [A; A0]
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraModel, get_peft_model, get_peft_model_state_dict, initialize_lora_eva_weights
from peft.tuners.lora import Linear4bit
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mlflow_ft.engine import batches
from mlflow_ft.engine.loss import full_token_loss
from mlflow_ft.engine.models import linear
from mlflow_ft.engine.tokens import vocabulary
from mlflow_ft.engine.training import named_layers
from mlflow_ft.errors import ConfigError, ModelError, brief
from mlflow_ft.rows import Encoded
from mlflow_ft.values import BaseModel, Data, Job

CHANGE_THE_BASE = ("pissa", "olora", "corda", "lora_ga")
"""Initialisations that move a part of the base into the adapter."""
SEEN = 256
"""At most so many training rows are used by initialisations from the data."""
BEGINNING = "beginning.safetensors"
WEIGHTS = "adapter_model.safetensors"


def attach(module: Any, peft_config: Any, *, job: Job, data: Data, base: BaseModel) -> Any:
    """Attach a new adapter to the base, initialised as `adapter.init_lora_weights` or `init_text` says.

    Raises:
        ModelError, ConfigError: the adapter does not fit the model.
    """
    begin = str(getattr(peft_config, "init_lora_weights", ""))
    if begin in ("corda", "lora_ga") and peft_config.target_modules == "all-linear":
        peft_config.target_modules = set(linear.names(module))  # they need the layers before PEFT resolves the name
    # CorDA's hooks take one row at a time
    look = _batches(data, 1 if begin == "corda" else job.config.training.batch_size)
    tied = vocabulary.tied(module)
    narrowest = linear.narrowest(module)
    if begin == "olora" and any(linear.transposed(module)):
        raise ConfigError(
            "adapter.init_lora_weights olora: PEFT takes the weights of this model's layers, which are transposed, the "
            "wrong way round",
            hint="use pissa, or leave it out",
        )
    if begin == "corda":
        preprocess_corda(module, peft_config, run_model=lambda: _run(module, look))
    elif begin == "lora_ga":
        preprocess_loraga(module, peft_config, train_step=lambda: _gradients(module, look))
    names = named_layers.Names(module, peft_config)
    wrapped: Any = get_peft_model(module, peft_config)
    names.check(wrapped, job.config.adapter.target_modules)
    if begin == "eva":
        initialize_lora_eva_weights(wrapped, _large_enough(wrapped, data, narrowest=narrowest), show_progress_bar=False)
    elif job.config.adapter.init_lora_weights == "loftq":
        _correct_rounding(wrapped, base.path)
    elif job.config.adapter.init_text and peft_config.is_prompt_learning and hasattr(peft_config, "prompt_tuning_init"):
        _from_text(wrapped, job.config.adapter.init_text, data.tokenizer)
    _merges_once(wrapped, tied=tied)
    if begin.startswith(CHANGE_THE_BASE):
        job.folder.mkdir(parents=True, exist_ok=True)
        save_file(_adapter_weights(wrapped), job.folder / BEGINNING)
        # an adapter added later, TRL's frozen reference, must not move a part of the base again
        wrapped.peft_config["default"].init_lora_weights = True
    return wrapped


def save(module: Any, folder: Path, *, beginning: Path | None = None, last: bool = True) -> None:
    """Save an adapter so that it fits the original base.

    `beginning` is the job's folder, where `attach` wrote the initial weights if they changed the base; they are removed
    with the `last` save. A second adapter that a trainer has added is not saved.
    """
    # embeddings are not copied: the base and the rule for new tokens restore them
    with warnings.catch_warnings():
        if isinstance(module.base_model, AdaLoraModel):  # it may reduce the rank of a layer to 0
            warnings.filterwarnings("ignore", message=r"Adapter .* LoRA tensor\(s\) have invalid shape")
        module.save_pretrained(folder, save_embedding_layers=False, selected_adapters=["default"])
    if beginning is None or not (beginning / BEGINNING).is_file():
        return
    first, trained = load_file(beginning / BEGINNING), load_file(folder / WEIGHTS)
    for name, weight in trained.items():
        if ".lora_A." in name:
            trained[name] = torch.cat([weight, first[name].to(weight)], dim=0)
        elif ".lora_B." in name:
            trained[name] = torch.cat([weight, -first[name].to(weight)], dim=1)
    save_file(trained, folder / WEIGHTS, metadata={"format": "pt"})
    doubled(module.peft_config["default"]).save_pretrained(folder)
    if last:
        (beginning / BEGINNING).unlink()


def doubled(peft_config: Any) -> Any:
    """The config of the same LoRA with twice the rank, the same scale, and no special initialisation."""
    config = copy.deepcopy(peft_config)
    factor = 2**0.5 if config.use_rslora else 2  # the scale is alpha / sqrt(r), or alpha / r
    config.init_lora_weights, config.inference_mode = True, True
    config.corda_config = config.lora_ga_config = None
    config.r, config.lora_alpha = 2 * config.r, factor * config.lora_alpha
    config.rank_pattern = {name: 2 * rank for name, rank in (config.rank_pattern or {}).items()}
    alphas = dict(config.alpha_pattern or {})
    config.alpha_pattern = {name: factor * alpha for name, alpha in alphas.items()}
    return config


def _merges_once(wrapped: Any, *, tied: bool) -> None:
    """Refuse an adapter on tied layers: it would be merged into their weight twice."""
    inside, outside = wrapped.get_input_embeddings(), wrapped.get_base_model().get_output_embeddings()
    over = [layer for layer in (inside, outside) if isinstance(layer, BaseTunerLayer)]
    if tied and any(not isinstance(layer, TrainableTokensLayer) for layer in over):
        raise ConfigError(
            "this model's output layer is its embedding layer, and an adapter on them cannot be merged",
            hint="remove both from adapter.target_modules; adapter.modules_to_save trains them in full",
        )


def _adapter_weights(wrapped: Any) -> dict[str, Tensor]:
    state = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    return {name: weight.detach().float().clone().contiguous() for name, weight in state.items() if ".lora_" in name}


def _batches(data: Data, batch_size: int) -> Iterator[dict[str, Tensor]]:
    rows = list(itertools.islice(data.train.encoded, SEEN))
    pad = data.tokenizer.pad_token_id
    for start in range(0, len(rows), batch_size):
        yield batches.padded(rows[start : start + batch_size], pad_token_id=pad)


def _large_enough(wrapped: Any, data: Data, *, narrowest: int) -> list[dict[str, Tensor]]:
    """Batches with at least as many learned tokens as EVA needs components; PEFT skips smaller ones, endlessly."""
    settings = wrapped.peft_config["default"]
    needed = round(max([settings.r, *settings.rank_pattern.values()]) * settings.eva_config.rho)
    large: list[dict[str, Tensor]] = []
    rows: list[Encoded] = []
    for row in itertools.islice(data.train.encoded, SEEN):
        rows.append(row)
        if sum(row.supervised for row in rows) >= needed + len(rows):
            large.append(batches.padded(rows, pad_token_id=data.tokenizer.pad_token_id))
            rows = []
    if needed > narrowest or not large:
        raise ConfigError(
            f"eva needs {needed} components (adapter.r times rho), but the {narrowest} dimensions and the learned "
            f"tokens of at most {SEEN} rows have fewer",
            hint="lower adapter.r, or use another initialisation",
        )
    return large


@torch.no_grad()
def _correct_rounding(wrapped: Any, folder: Path) -> None:
    """LoftQ (arXiv 2310.08659), one step: initialise B A to the best low-rank approximation of the quantisation error.

    The base is not changed, so the adapter fits any copy of it.

    Raises:
        ModelError: the folder does not contain the weights under the layers' names.
    """
    places: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as content:
            places |= dict.fromkeys(content.keys(), file)
    for name, layer in wrapped.get_base_model().named_modules():
        if not isinstance(layer, Linear4bit):
            continue
        if f"{name}.weight" not in places:
            raise ModelError(f"loftq: {folder} has no weight {name}.weight", hint="use another initialisation")
        with safe_open(places[f"{name}.weight"], framework="pt") as content:
            exact = content.get_tensor(f"{name}.weight").float()
        first, second = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        lost = exact.to(first.device) - dequantize_module_weight(layer.get_base_layer()).float()
        left, sizes, right = torch.linalg.svd(lost / layer.scaling["default"], full_matrices=False)
        rank = min(len(first), len(sizes))
        root = sizes[:rank].sqrt()
        first.zero_()[:rank] = root[:, None] * right[:rank]
        second.zero_()[:, :rank] = left[:, :rank] * root


@torch.no_grad()
def _run(module: Any, look: Iterator[dict[str, Tensor]]) -> None:
    for batch in look:
        module(input_ids=batch["input_ids"].to(module.device), attention_mask=batch["attention_mask"].to(module.device))


def _gradients(module: Any, look: Iterator[dict[str, Tensor]]) -> None:
    for batch in look:
        losses = full_token_loss(module, {name: value.to(module.device) for name, value in batch.items()})
        losses.nll.mean().backward()


@torch.no_grad()
def _from_text(wrapped: Any, text: str, tokenizer: Any) -> None:
    """Initialise a learned prompt with a text's embeddings, repeated if the text is shorter than the prompt."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ConfigError("adapter.init_text has no tokens", hint="give a sentence, such as an instruction")
    weight = wrapped.prompt_encoder["default"].embedding.weight
    if len(ids) > len(weight):
        raise ConfigError(
            f"adapter.init_text has {len(ids)} tokens, but the prompt has {len(weight)}",
            hint=f"make the prompt longer (--adapter.num_virtual_tokens {len(ids)}), or shorten the text",
        )
    tiled = torch.tensor(list(itertools.islice(itertools.cycle(ids), len(weight))))
    weight.copy_(wrapped.word_embeddings(tiled.to(weight.device)).to(weight))


def refused(error: Exception) -> ModelError:
    """The error for an adapter that PEFT or torch cannot attach to the model's layers."""
    return ModelError(
        f"the adapter does not fit the model: {brief(error)}", hint="check adapter.target_modules and adapter.options"
    )
