"""Adapters that rotate or scale the weights, train other parts, or add something that no weight can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlflow_ft import Adapter
from mlflow_ft.builtin.adapters.tuners import (
    FLOAT,
    LIKE_LORA,
    NAMED,
    RANK,
    RATE,
    TARGETS,
    TINY,
    Tuner,
    divide,
    given,
    record,
)

if TYPE_CHECKING:
    from mlflow_ft import Config, Job, Model

FEEDFORWARD = ("down_proj", "fc2", "fc_out", "wo", "w2", "c_proj", "dense_4h_to_h")
"""Names of the last layer of a feed-forward block."""
KEYS_AND_VALUES = ("k_proj", "v_proj", "kv_b_proj", "key", "value", "query_key_value", "qkv_proj", "c_attn", "Wqkv")
"""Names of the layers that compute keys and values."""


def fit_ia3(job: Job, model: Model, values: Mapping[str, Any]) -> dict[str, Any]:
    """The named layers that belong to a feed-forward block: their inputs are scaled, not their outputs.

    Where no layers are named and PEFT knows none for this model type, they are found by their usual names.
    """
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as KNOWN

    from mlflow_ft.engine.models import linear

    names = values.get("target_modules")
    if names is None and model.module.config.model_type not in KNOWN:
        names = [name for name in linear.names(model.module) if name in (*KEYS_AND_VALUES, *FEEDFORWARD)]
    if not isinstance(names, list) or values.get("feedforward_modules") is not None:
        return {}
    fields = {"feedforward_modules": [name for name in names if name.rpartition(".")[2] in FEEDFORWARD]}
    return fields | ({"target_modules": names} if values.get("target_modules") is None and names else {})


def fit_beft(job: Job, model: Model, values: Mapping[str, Any]) -> dict[str, Any]:
    """The layers that compute values, where none are named and PEFT knows none for this model type."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_BEFT_TARGET_MODULES_MAPPING as KNOWN

    from mlflow_ft.engine.models import linear

    if values.get("target_modules") or model.module.config.model_type in KNOWN:
        return {}
    names = [name for name in linear.names(model.module) if name in ("v_proj", "value", "kv_b_proj")]
    return {"target_modules": names} if names else {}


def fit_norms(job: Job, model: Model, values: Mapping[str, Any]) -> dict[str, Any]:
    """The normalisation layers, where none are named."""
    from mlflow_ft.engine.models import linear

    return {} if values.get("target_modules") else {"target_modules": linear.norms(model.module)}


def fit_tokens(job: Job, model: Model, values: Mapping[str, Any]) -> dict[str, Any]:
    """The named tokens and the new ones; PEFT finds the embeddings."""
    from mlflow_ft.engine.tokens import tokenizers, vocabulary

    new = tokenizers.load(job.config, model.base).new_tokens
    layers = vocabulary.token_layers(model.module, []) if new else {}  # an untied output layer has rows for them too
    fields = {"token_indices": [*values.get("token_indices", ()), *new]}
    return fields | ({"target_modules": list(layers)} if layers else {})


def needs_tokens(config: Config) -> str | None:
    """Trainable tokens without a token train nothing."""
    if not (config.adapter.trainable_token_indices or config.model.add_tokens):
        return "name the tokens: --adapter.trainable_token_indices [5, 6], or new ones with --model.add_tokens"
    return None


def by_regular_expression(config: Config) -> str | None:
    """IA3 must know which layers belong to the feed-forward block."""
    modules = config.adapter.target_modules
    if given(config, "target_modules") and isinstance(modules, str) and modules != "all-linear":
        return "give adapter.target_modules as a list: it must know which layers belong to the feed-forward block"
    return None


def records() -> list[Adapter]:
    """All adapters of this module."""
    return [*rotating(), *scaling(), *whole(), *unmerged()]


def rotating() -> list[Adapter]:
    """Adapters that rotate or reflect the weights, which keeps the angles between them."""
    return [
        record(
            "oft",
            "orthogonal rotations of the weights, in blocks (`oft_block_size`)",
            Tuner(config="OFTConfig", settings=NAMED, fit=divide("oft_block_size", 32)),
            paper="https://arxiv.org/abs/2306.07280",
            use_for="learning a style or a format while keeping what the base knows",
            memory="as LoRA of rank 16, and more time",
            ranges={"adapter.options oft_block_size": "16 to 64", RATE: "1e-4 to 1e-3"},
        ),
        record(
            "boft",
            "orthogonal rotations as a butterfly of sparse ones (`boft_block_size`)",
            Tuner(config="BOFTConfig", settings=NAMED, fit=divide("boft_block_size", 4)),
            paper="https://arxiv.org/abs/2311.06243",
            use_for="as oft, with fewer weights",
            memory="few weights, many activations; slow",
            ranges={"adapter.options boft_block_size": "4 to 16", RATE: "1e-4 to 1e-3"},
        ),
        record(
            "hra",
            "a chain of r reflections (Householder)",
            Tuner(config="HRAConfig", settings=RANK, quantised=FLOAT),
            paper="https://arxiv.org/abs/2405.17484",
            use_for="between LoRA and oft",
            memory="as LoRA of half the rank; slow at high ranks",
            ranges={"adapter.r": "4 to 32", RATE: "1e-4 to 1e-3"},
        ),
        record(
            "road",
            "rotates and scales pairs of outputs, in groups (`group_size`)",
            Tuner(config="RoadConfig", settings=TARGETS, fit=divide("group_size", 64)),
            paper="https://arxiv.org/abs/2409.00119",
            use_for="serving many tiny adapters at once",
            memory=TINY,
            ranges={RATE: "1e-3 to 1e-2"},
        ),
        record(
            "c3a",
            "circular convolutions, in blocks (`block_size`)",
            Tuner(config="C3AConfig", settings=NAMED, fit=divide("block_size", 256)),
            paper="https://arxiv.org/abs/2407.19342",
            use_for="full-rank updates with few weights",
            memory=TINY,
            ranges={RATE: "1e-2 to 1e-1"},
        ),
    ]


def scaling() -> list[Adapter]:
    """Adapters that train only scales, or parameters other than the matrices."""
    return [
        record(
            "ia3",
            "scales keys, values and the feed-forward block by learned vectors",
            Tuner(config="IA3Config", settings=TARGETS, all_linear=False, fit=fit_ia3, refuses=by_regular_expression),
            paper="https://arxiv.org/abs/2205.05638",
            use_for="few rows and many tasks: an adapter of tens of kilobytes",
            memory="the least of all that merge",
            ranges={RATE: "1e-3 to 1e-2"},
        ),
        record(
            "ln-tuning",
            "trains only the normalisation layers",
            Tuner(config="LNTuningConfig", settings=TARGETS, all_linear=False, fit=fit_norms),
            paper="https://arxiv.org/abs/2312.11420",
            use_for="a change of tone or format, as a cheap baseline",
            memory=TINY,
            ranges={RATE: "1e-4 to 5e-3"},
        ),
        record(
            "trainable-tokens",
            "trains only the embeddings of single tokens, including new ones",
            Tuner(
                config="TrainableTokensConfig",
                settings={"trainable_token_indices": "token_indices"},
                fit=fit_tokens,
                new_tokens=True,
                refuses=needs_tokens,
            ),
            use_for="teaching a model what new or rare tokens mean",
            memory=TINY,
            ranges={RATE: "1e-4 to 1e-2"},
        ),
    ]


def whole() -> list[Adapter]:
    """Adapters that train nearly every weight."""
    return [
        record(
            "osf",
            "trains every layer orthogonally to its most important directions (`effective_rank`)",
            Tuner(config="OSFConfig", settings=TARGETS, quantised=FLOAT),
            paper="https://arxiv.org/abs/2504.07097",
            use_for="learning tasks one after another without forgetting the first",
            memory="as full fine-tuning",
            ranges={RATE: "5e-6 to 5e-5"},
        )
    ]


def unmerged() -> list[Adapter]:
    """Adapters that add something that no weight of the base can hold."""
    return [
        record(
            "beft",
            "adds a trained bias to the value projections, or to the named layers",
            Tuner(config="BeftConfig", settings=TARGETS, all_linear=False, fit=fit_beft),
            merges=False,
            paper="https://arxiv.org/abs/2509.15974",
            use_for="a few kilobytes, for little data",
            memory=TINY,
            ranges={RATE: "1e-3 to 1e-2"},
        ),
        record(
            "lily",
            "low-rank updates with factors that layers share, mixed depending on the input",
            Tuner(config="LilyConfig", settings=RANK),
            merges=False,
            paper="https://arxiv.org/abs/2407.09946",
            use_for="several tasks in one adapter",
            memory=LIKE_LORA,
            ranges={"adapter.r": "16 to 64", RATE: "1e-4 to 1e-3"},
        ),
    ]
