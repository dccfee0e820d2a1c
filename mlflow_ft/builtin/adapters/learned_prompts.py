"""Learned prompts: virtual tokens, or their keys and values, before the text; no weight of the base changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlflow_ft import Adapter
from mlflow_ft.builtin.adapters.tuners import Tuner, record

if TYPE_CHECKING:
    from mlflow_ft import Config, Job, Model

LENGTH = {"num_virtual_tokens": "num_virtual_tokens"}
MEMORY = "the base and its activations, for longer sequences"
RANGES = {"adapter.num_virtual_tokens": "8 to 128", "training.learning_rate": "1e-3 to 3e-1"}


def not_packed(config: Config) -> str | None:
    """What no learned prompt can do."""
    if config.objective.packing:
        return "of packed rows only the first would follow the prompt; leave objective.packing out"
    return None


def as_cache(config: Config) -> str | None:
    """Keys and values are passed as a cache, which recomputed activations do not get."""
    from mlflow_ft.engine import hardware

    if hardware.checkpointing(config):
        return "it cannot recompute activations; add --training.gradient_checkpointing false"
    return not_packed(config)


def fit_prompt(job: Job, model: Model, values: Mapping[str, Any]) -> dict[str, Any]:
    """Without a text the prompt starts as tokens drawn from the vocabulary: far better than noise (section 3.2)."""
    return {"prompt_tuning_init": "SAMPLE_VOCAB"}


def fit_cpt(job: Job, model: Model, values: Mapping[str, Any]) -> dict[str, Any]:
    """The text's tokens, each of which may move a little; all count as content, none as labels."""
    from mlflow_ft.engine.tokens import tokenizers

    text = job.config.adapter.init_text or ""
    ids = tokenizers.load(job.config, model.base)(text, add_special_tokens=False)["input_ids"]
    return {"cpt_token_ids": ids, "cpt_mask": [1] * len(ids), "cpt_tokens_type_mask": [2] * len(ids)}


def with_text(config: Config) -> str | None:
    """CPT refines a text, so it needs one."""
    return not_packed(config) or ("give the text to refine: --adapter.init_text '...'" if not text(config) else None)


def text(config: Config) -> str:
    """The text that a prompt starts from, without white space around it."""
    return (config.adapter.init_text or "").strip()


def fit_adaption(job: Job, model: Model, values: Mapping[str, Any]) -> dict[str, Any]:
    """The upper layers, all but two as in the paper (30 of 32)."""
    layers = int(model.module.config.get_text_config().num_hidden_layers)
    return {"adapter_layers": layers if layers < 8 else layers - 2}


RECORDS: tuple[Adapter, ...] = (
    record(
        "prompt",
        "virtual tokens before the text, starting from your text (adapter.init_text) or from random tokens",
        Tuner(
            config="PromptTuningConfig",
            settings=LENGTH | {"init_text": ""},
            fit=fit_prompt,
            refuses=not_packed,
        ),
        merges=False,
        learned_prompt=True,
        paper="https://arxiv.org/abs/2104.08691",
        use_for="large models and many tasks on one base that is served once",
        memory=MEMORY,
        ranges=RANGES,
    ),
    record(
        "prefix",
        "learned keys and values before the text, in every layer",
        Tuner(config="PrefixTuningConfig", settings=LENGTH, refuses=as_cache),
        merges=False,
        learned_prompt=True,
        paper="https://arxiv.org/abs/2101.00190",
        use_for="as prompt, with more to learn: it reaches every layer",
        memory=MEMORY,
        ranges=RANGES | {"training.learning_rate": "1e-4 to 1e-2"},
    ),
    record(
        "ptuning",
        "virtual tokens from a small network that is used in training only (`encoder_hidden_size`)",
        Tuner(config="PromptEncoderConfig", settings=LENGTH, refuses=not_packed),
        merges=False,
        learned_prompt=True,
        paper="https://arxiv.org/abs/2103.10385",
        use_for="as prompt, where that trains unstably",
        memory=MEMORY,
        ranges=RANGES | {"training.learning_rate": "1e-4 to 1e-2"},
    ),
    record(
        "cpt",
        "a text whose embeddings may move a little (`opt_projection_epsilon`)",
        Tuner(config="CPTConfig", settings={"init_text": ""}, fit=fit_cpt, refuses=with_text),
        merges=False,
        learned_prompt=True,
        paper="https://arxiv.org/abs/2410.17222",
        use_for="refining an instruction or examples that already work, with very few rows",
        memory=MEMORY,
        ranges={"training.learning_rate": "1e-4 to 1e-2"},
    ),
    record(
        "adaption-prompt",
        "prompts in the attention of the upper layers, with a learned gate (Llama and Mistral)",
        Tuner(
            config="AdaptionPromptConfig",
            settings={"num_virtual_tokens": "adapter_len"},
            fit=fit_adaption,
        ),
        merges=False,
        paper="https://arxiv.org/abs/2303.16199",
        use_for="following instructions with about a million weights, starting from no change",
        memory=MEMORY,
        ranges=RANGES | {"adapter.num_virtual_tokens": "8 to 20", "training.learning_rate": "1e-3 to 1e-1"},
    ),
)
"""The learned prompts. None merges: base and adapter are served together."""
