"""The sections that define a method: what may change, what is minimised, how answers are sampled and rewarded."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from mlflow_ft.config.section import Section


class AdapterSection(Section):
    """What may change; names and meanings are PEFT's."""

    kind: str = "none"
    """Name of a registered adapter (`mlflow-ft show adapters`); `none` trains every weight."""
    r: int = Field(default=16, ge=1)
    """Rank of the update."""
    lora_alpha: int | None = Field(default=None, ge=1)
    """The update is scaled by lora_alpha / r; 2r when not given."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    target_modules: str | list[str] = "all-linear"
    """`all-linear`, a list of module names, or a regular expression. Fused experts are not linear layers."""
    target_parameters: str | list[str] | None = None
    """LoRA on weights outside linear layers, by name; `experts`: all fused weights of a mixture of experts."""
    layers_to_transform: list[int] | None = None
    """Numbers of the layers that get an adapter, from 0; all layers when not given."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) instead."""
    use_dora: bool = False
    """Split the weights into magnitude and direction, and train both (DoRA)."""
    fused: bool = True
    """Compute LoRA's part of a layer, and a gated MLP, in one step, with the same values and gradients; false: by the
    model's and PEFT's own layers."""
    init_lora_weights: str | None = None
    """LoRA's initialisation: pissa, olora, gaussian, eva, corda, loftq ...; PEFT's own, which changes nothing, when
    not given."""
    modules_to_save: list[str] | None = None
    """Modules that are trained in full and saved with the adapter."""
    trainable_token_indices: list[int] | None = None
    """Ids of tokens whose embeddings are also trained."""
    num_virtual_tokens: int = Field(default=20, ge=1)
    """Length of a learned prompt, in tokens."""
    init_text: str | None = None
    """Text whose embeddings a learned prompt starts from; random tokens when not given."""
    options: dict[str, str] | None = None
    """Further fields of the adapter's PEFT config, as `name=value`: `rank_pattern={q_proj: 8}`."""

    @field_validator("target_modules")
    @classmethod
    def _names_layers(cls, names: str | list[str]) -> str | list[str]:
        if isinstance(names, list):
            return names
        if names.lower().replace("_", "-") == "all-linear":
            return "all-linear"
        if re.fullmatch(r"[\w.]+", names):  # as an expression it would have to be a layer's whole path
            return [names]
        try:
            re.compile(names)
        except re.error as error:
            raise ValueError(f"write a list of names, all-linear, or a regular expression: {error}") from error
        return names

    @field_validator("layers_to_transform", "trainable_token_indices")
    @classmethod
    def _are_counted_from_0(cls, numbers: list[int] | None) -> list[int] | None:
        if numbers is not None and (not numbers or min(numbers) < 0):
            raise ValueError("write numbers of 0 or more")
        return numbers


class ObjectiveSection(Section):
    """What is minimised; names and meanings are TRL's."""

    beta: float | None = Field(default=None, ge=0)
    """How strongly the trained model is kept close to the reference model; the method's own when not given."""
    loss_type: str | list[str] | None = None
    """Form of the loss: for dpo sigmoid, ipo, hinge, robust ...; the method's own when not given."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of preferences that are assumed to be the wrong way round."""
    precompute_ref_log_probs: bool = False
    """Run the reference model once before training instead of at every step."""
    remember_ref_log_probs: bool = True
    """Keep what the reference model gives each answer (dpo, kto), and use it again in later epochs, held-out losses and
    runs with the same base."""
    desirable_weight: float = Field(default=1.0, ge=0)
    """Weight of good answers (kto)."""
    undesirable_weight: float = Field(default=1.0, ge=0)
    """Weight of bad answers (kto)."""
    packing: bool = False
    """Pack short rows together, up to `data.max_length` (sft). Refused where the model lets them see each other."""
    options: dict[str, str] | None = None
    """Further fields of the method's own settings (TRL's config class), as `name=value`."""


class RolloutSection(Section):
    """How answers are sampled and rewarded, for methods that learn from sampled answers (grpo, rloo, ppo)."""

    reward_funcs: list[str] | None = None
    """Reward functions: `FILE.py:function`, `module.function`, or registered ones (`mlflow-ft show rewards`)."""
    reward_weights: list[float] | None = None
    """Weight of each reward function and, last, of the reward model; 1 each when not given."""
    reward_model: str | None = None
    """A model that scores answers: a folder, `models:/NAME@alias`, `runs:/...` or a Hub id."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What samples the answers: the trainer itself, or vLLM on the same GPU, which is faster (grpo, rloo)."""
    num_generations: int = Field(default=4, ge=1)
    """Answers to sample for each prompt."""
    max_completion_length: int = Field(default=128, ge=1)
    """Longest sampled answer, in tokens."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the most likely tokens that together have this probability."""
    num_iterations: int = Field(default=1, ge=1)
    """How many times each batch of sampled answers is learned from."""
    epsilon: float = Field(default=0.2, gt=0)
    """The ratio of new to old probability is clipped to 1 plus or minus this."""
