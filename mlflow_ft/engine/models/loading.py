"""Load the base model, quantised or not, with or without an adapter, and read trained ones back."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.boft import layer as boft_layer
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    set_seed,
)

from mlflow_ft.config.schema import Config
from mlflow_ft.engine import hardware, own_code
from mlflow_ft.engine.adapters import fitting
from mlflow_ft.engine.hub import quiet_transformers
from mlflow_ft.engine.loss import causal_model
from mlflow_ft.engine.models import generation, lacking, one_direction, own_quantization, pooling, routers
from mlflow_ft.engine.tokens import vocabulary
from mlflow_ft.errors import ModelError, ResourceError, brief
from mlflow_ft.values import BaseModel, Data, Job, Trained

if not torch.cuda.is_available():  # PEFT would try to compile its CUDA kernel for every layer, and fail
    boft_layer.get_fbd_cuda = lambda: None
PACKING = "support_avx512bf16_for_cpu"
"""The attribute of a bitsandbytes layer that lets it repack its weights."""
NOTES = (
    "Unsupported layer type .* encountered",  # ln-tuning: every normalisation layer of these models
    "Position ids are not supported for parameter efficient tuning",
    "Failed to load the CUDA extension",  # boft, with a GPU but no compiler; PEFT then uses torch
    "Setting boft_n_butterfly_factor to 1",
    "fan_in_fan_out is set to False but the target module is `Conv1D`",  # GPT-2's layers; PEFT sets it
    "Detected that the base layer has no bias term",  # beft cannot be merged; its record says so, too
    "`lora_bias=True` was passed but the targeted layer",  # a merge refuses it, and so does training before one
    "Model (with|has) `tie_word_embeddings=True`",  # `starts` refuses adapters that would untie them
    "Note that `r` is not used in AdaLora",
    "The PEFT config's `base_model_name_or_path` was renamed",  # `prepare` restores its name
    "lora with eva initialization used with low_cpu_mem_usage=False",
    "Full backward hook is firing",  # lora_ga counts batches with one
    # false alarms about keys that adalora and PEFT itself write (fused experts); `starts.attach` checks them
    "The following (rank|alpha)_pattern keys did not match",
    r"target_parameters=.* were set but no parameter was matched",
)
"""Warnings of PEFT about what is handled here."""


def quantization(config: Config, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """How bitsandbytes quantises the base; None if it does not. QLoRA: arXiv 2305.14314."""
    if config.model.quantize == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=config.model.double_quant,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_storage=torch.uint8,
        )
    return BitsAndBytesConfig(load_in_8bit=True) if config.model.quantize == "int8" else None


def note_of_base(config: Config, base: BaseModel) -> dict[str, Any]:
    """How the base is loaded, for an adapter's record: `dtype`, `quantization`, and whether its files have it."""
    dtype = hardware.held_dtype(config)
    own, quantiser = own_quantization.of(base.path), quantization(config, dtype)
    name = str(dtype).removeprefix("torch.")
    settings = quantiser.to_dict() if quantiser else None
    if own:
        settings = own.computed_in(name) if own.held else own.plain()
    return {
        "dtype": name,
        "quantization": settings,
        "quantized_files": bool(own and own.held),  # the base's own files, which transformers reads without settings
    }


def load_base(
    config: Config,
    base: BaseModel,
    *,
    path: Path | None = None,
    dtype: torch.dtype | None = None,
) -> Any:
    """Load the base model onto the device, in evaluation mode.

    `path` is another folder of the same architecture, a fully tuned or merged model, which is not quantised.

    Raises:
        ModelError: transformers cannot read the folder, or it lacks weights. ResourceError: it does not fit in memory.
    """
    own_code.check(path or base.path, trusted=config.model.trust_remote_code, name=base.name, task=base.task)
    dtype = dtype or hardware.held_dtype(config)
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": config.model.trust_remote_code}
    if config.model.attn_implementation:
        options["attn_implementation"] = config.model.attn_implementation
    own = own_quantization.of(base.path) if path is None else None
    if own:
        own_quantization.check(own)
        options |= own.options()
    elif path is None and (quantiser := quantization(config, dtype)):
        options["quantization_config"] = quantiser
    options["device_map"] = {"": hardware.device()}
    kind: Any = AutoModelForCausalLM
    if base.task == "score":
        kind, options["num_labels"] = AutoModelForSequenceClassification, 1
        set_seed(config.run.seed)  # the score head is new, and must be the same in every process of the run
    else:
        one_direction.check(path or base.path, base.name, trust_remote_code=config.model.trust_remote_code)
        options |= generation.for_loading(path or base.path)
    try:
        with quiet_transformers():
            model, report = kind.from_pretrained(path or base.path, **options, **lacking.REPORTED)
    except torch.OutOfMemoryError as error:
        raise ResourceError(
            f"model {base.name!r} does not fit in the device's memory",
            hint="quantise it (--model.quantize nf4), or use a smaller one",
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(f"model {base.name!r} cannot be loaded from {path or base.path}: {brief(error)}") from error
    lacking.check_loaded(model, report, base.name, new_head=base.task == "score" and path is None)
    keep_exact(model, dtype if own else None)
    routers.silence(model.config)
    if own and own.held is None:
        model._weight_conversions = None  # how its files were read; they are not written that way
    if path is None and (tokenizer := vocabulary.grown(config, base)):
        vocabulary.grow(model, tokenizer)
    return model.eval()


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Hide PEFT's false alarms."""
    torch.sparse.check_sparse_tensor_invariants.disable()  # the default; torch warns (shira, frod) until it is explicit
    with warnings.catch_warnings():
        for note in NOTES:
            warnings.filterwarnings("ignore", message=note)
        yield


def keep_exact(model: PreTrainedModel, dtype: torch.dtype | None = None) -> None:
    """Keep bitsandbytes from repacking 4-bit weights for inference, which it does on CPUs with AVX512-BF16.

    The first forward pass in evaluation mode would permanently round the constants of every layer to bfloat16, and
    training would then use a kernel without gradients: a run that is evaluated before training silently learns less
    (bitsandbytes 0.50, `Linear4bit.forward` and `matmul_4bit`). Also make the model compute in `dtype`, whatever types
    the base's own files name: transformers does not change those of quantised files.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, PACKING):
            setattr(module, PACKING, False)
            module.compute_dtype, module.compute_type_is_set = dtype or module.compute_dtype, True
    for weight in model.parameters() if dtype else ():
        if type(weight) is torch.nn.Parameter and weight.is_floating_point():
            weight.data = weight.data.to(dtype)


def as_float32(module: Any) -> None:
    """Convert trainable weights to float32: bfloat16 rounds small updates away."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def agree(module: PreTrainedModel, data: Data) -> None:
    """Set the pad and end tokens of the tokenizer and the template in the model's configuration."""
    if not module.can_generate():
        module.config.pad_token_id = data.tokenizer.pad_token_id  # the score is read at the last token before it
        return
    stops = list(dict.fromkeys((*data.stop_token_ids, *token_ids(module.generation_config.eos_token_id))))
    pad = data.tokenizer.pad_token_id
    module.config.pad_token_id = pad
    defaults = module.generation_config.to_dict()
    module.generation_config = GenerationConfig.from_dict(defaults | {"eos_token_id": stops, "pad_token_id": pad})


def load_trained(job: Job, data: Data, trained: Trained) -> Any:
    """Load what training saved: the base with its adapter as in training, or the fully tuned model."""
    module = load_saved(job.config, trained.base, trained.adapter or trained.model)
    agree(causal_model(module), data)
    return module


def load_saved(config: Config, base: BaseModel, folder: Path, *, say: fitting.Say = fitting.silent) -> Any:
    """Load a folder of weights in the type used in training: an adapter on its base, or a whole model.

    `say` as in `with_adapter`.
    """
    if (folder / "adapter_config.json").is_file():
        module = with_adapter(load_base(config, base), folder, say=say)
        if (settings := generation.read(folder)).settings:  # with the end tokens that it was trained with
            causal_model(module).generation_config = settings.config
        return module
    return load_base(config, base, path=folder)


def with_adapter(base: Any, folder: Path, *, trainable: bool = False, say: fitting.Say = fitting.silent) -> Any:
    """Load a saved adapter onto a base model, in evaluation mode or to be trained further; every weight must match.

    `say` gets a sentence if the adapter's weights had to be renamed.

    Raises:
        ModelError: its files are broken, or it is not an adapter for this model.
    """
    with quiet_peft():
        wrapped = fitting.put_on(base, folder, trainable=trainable, say=say)
    if trainable:
        as_float32(wrapped)
    elif learns_prompt(wrapped) and not causal_model(wrapped).can_generate():
        pooling.read_at_end(wrapped)
    return wrapped.train(trainable)


def learns_prompt(module: Any) -> bool:
    """Whether the adapter is a learned prompt: virtual tokens, or their keys and values, before the text."""
    return isinstance(module, PeftModel) and bool(module.active_peft_config.is_prompt_learning)


def saved_dtype(config: Config, folder: Path) -> torch.dtype:
    """The type to save weights in: `package.dtype`, or for `auto` that of the files in `folder`."""
    if config.package.dtype != "auto":
        return hardware.compute_dtype(config.package.dtype)
    settings = json.loads((folder / "config.json").read_text())
    name = settings.get("dtype") or settings.get("torch_dtype") or "float32"
    dtype: torch.dtype = getattr(torch, str(name).removeprefix("torch."))
    return dtype


def token_ids(value: int | list[int] | None) -> list[int]:
    """The end tokens in a configuration, which may be None, one or a list, as a list."""
    return [] if value is None else list(value) if isinstance(value, list) else [value]
