"""The methods that learn from preferences and labels: dpo, cpo, simpo, orpo, kto, and the reward model."""

from __future__ import annotations

from functools import partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from mlflow_ft import Adapter, Trainer

if TYPE_CHECKING:
    from mlflow_ft import Config, Data, Job, Model, Trained

LORA = {"adapter.kind": "lora", "adapter.r": 16}
PREFERRED = ("preference_accuracy",)
"""Not the margin: it depends on the tokenizer, and grows when one of two likely answers becomes unlikely."""
PAIRS = "preferences: a prompt with a chosen and a rejected answer"
LEARNING_RATE = "5e-7 to 5e-6 for all weights, 5e-6 to 5e-5 with an adapter"


def train_dpo(job: Job, data: Data, model: Model) -> Trained:
    """Direct preference optimisation."""
    from mlflow_ft.engine.training import preference

    return preference.dpo(job, data, model)


def train_cpo(job: Job, data: Data, model: Model) -> Trained:
    """Preference optimisation without a reference model: CPO and SimPO."""
    from mlflow_ft.engine.training import preference

    return preference.cpo(job, data, model)


def train_orpo(job: Job, data: Data, model: Model) -> Trained:
    """SFT and a preference in one step."""
    from mlflow_ft.engine.training import preference

    return preference.orpo(job, data, model)


def train_kto(job: Job, data: Data, model: Model) -> Trained:
    """Preference optimisation from answers with a label."""
    from mlflow_ft.engine.training import unpaired

    return unpaired.kto(job, data, model)


def train_reward(job: Job, data: Data, model: Model) -> Trained:
    """A model that scores answers."""
    from mlflow_ft.engine.training import reward

    return reward.train(job, data, model)


def no_beta(config: Config) -> str | None:
    """A beta of 0, by which the losses of these methods multiply, or divide, what they compare."""
    if config.objective.beta == 0:
        return "objective.beta must be above 0: with 0 the loss is the same for all answers"
    return None


def no_learned_prompt(config: Config, adapter: Adapter) -> str | None:
    """A limit of TRL's CPO and ORPO: they compare logits with labels position by position."""
    if adapter.learned_prompt:
        return "its loss cannot leave out the positions of a learned prompt; use lora, or the method dpo"
    return None


def no_second_adapter(config: Config, adapter: Adapter) -> str | None:
    """Adapters that cannot have the reference of dpo and kto, a frozen copy of the initial adapter, or TRL's head."""
    if adapter.name in ("adalora", "adaption-prompt"):
        return "TRL cannot add its reference or its head to it; use lora or another adapter"
    return None


def refuses_cpo(config: Config, adapter: Adapter) -> str | None:
    """Like `no_learned_prompt`, and a beta of 0."""
    return no_beta(config) or no_learned_prompt(config, adapter)


def refuses_dpo(config: Config, adapter: Adapter) -> str | None:
    """Like `no_second_adapter`, and a beta of 0, and losses that TRL does not have, or cannot compute."""
    asked = losses(config)
    if unknown := sorted(asked - BY_PAIR - OF_BATCH):
        return f"objective.loss_type {unknown[0]} is not one of {', '.join(sorted(BY_PAIR | OF_BATCH))}"
    if "exo_pair" in asked and not config.objective.label_smoothing:
        return "the loss exo_pair needs an objective.label_smoothing above 0, such as 0.001"
    return no_beta(config) or no_second_adapter(config, adapter)


def refuses_kto(config: Config, adapter: Adapter) -> str | None:
    """Like `no_second_adapter`, a beta of 0, and a batch of one answer, which has nothing to estimate the KL from."""
    if config.training.per_device_train_batch_size == 1 and config.objective.loss_type != "apo_zero_unpaired":
        return "training.per_device_train_batch_size must be 2 or more: the KL is estimated from the answers of a batch"
    return no_beta(config) or no_second_adapter(config, adapter)


BY_PAIR = {
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "discopop",
}
"""TRL's losses that are a mean over pairs."""
OF_BATCH = {"aot", "aot_unpaired", "sft"}
"""Those that compare the pairs of a batch, or count tokens."""


def losses(config: Config) -> set[str]:
    """The losses that dpo adds up, as `objective.loss_type` or `objective.options` name them."""
    from mlflow_ft.engine import options

    given = config.objective.loss_type or options.value((config.objective.options or {}).get("loss_type", "sigmoid"))
    return set(map(str, given)) if isinstance(given, list) else {str(given)}


def by_pair(config: Config) -> bool:
    """Whether the loss of a batch is the mean of its pairs' losses."""
    return losses(config) <= BY_PAIR


DPO = Trainer(
    name="dpo",
    summary="prefer chosen answers to rejected ones, while staying close to the starting model",
    train=train_dpo,
    defaults=LORA | {"training.learning_rate": 2e-5, "objective.beta": 0.1},
    paper="https://arxiv.org/abs/2305.18290",
    scores=PREFERRED,
    held_out_loss=True,
    needs=PAIRS,
    kinds=("preference",),
    settings=("beta", "loss_type", "label_smoothing", "precompute_ref_log_probs", "remember_ref_log_probs", "options"),
    options=partial(resolve_name, "trl:DPOConfig"),
    in_parts=by_pair,
    refuses=refuses_dpo,
    use_for="aligning a model that was instruction-tuned on similar prompts, given pairs of answers",
    memory="as sft with the same adapter and twice as many rows; without an adapter, a second model",
    ranges={
        "objective.beta": "0.01 to 0.5",
        "training.learning_rate": LEARNING_RATE,
        "training.num_train_epochs": "1 to 3",
    },
)
CPO = Trainer(
    name="cpo",
    summary="prefer chosen answers, and imitate them, without a reference model",
    train=train_cpo,
    defaults=LORA | {"training.learning_rate": 2e-5, "objective.beta": 0.1},
    paper="https://arxiv.org/abs/2401.08417",
    scores=PREFERRED,
    held_out_loss=True,
    needs=PAIRS,
    kinds=("preference",),
    settings=("beta", "loss_type", "label_smoothing", "options"),
    options=partial(resolve_name, "trl.experimental.cpo:CPOConfig"),
    refuses=refuses_cpo,
    use_for="the same as dpo where a reference model costs too much; the chosen answers must be good in themselves",
    memory="as sft with twice as many rows; the logits of whole rows are kept",
    ranges={
        "objective.beta": "0.1 to 0.5",
        "training.learning_rate": LEARNING_RATE,
    },
)
SIMPO = Trainer(
    name="simpo",
    summary="prefer chosen answers by their mean likelihood per token and a margin, without a reference model",
    train=train_cpo,
    defaults=LORA
    | {
        "training.learning_rate": 1e-5,
        "objective.loss_type": "simpo",
        "objective.beta": 2.0,
        "objective.options": {"cpo_alpha": "0.0", "simpo_gamma": "0.5"},
    },
    paper="https://arxiv.org/abs/2405.14734",
    scores=PREFERRED,
    held_out_loss=True,
    needs=PAIRS,
    kinds=("preference",),
    settings=("beta", "loss_type", "label_smoothing", "options"),
    options=partial(resolve_name, "trl.experimental.cpo:CPOConfig"),
    refuses=refuses_cpo,
    use_for="the same as dpo, where long answers are preferred for being long",
    memory="as cpo",
    ranges={
        "objective.beta": "2 to 10",
        "objective.options simpo_gamma": "0.3 to 0.5 of beta",
        "training.learning_rate": LEARNING_RATE,
    },
)
ORPO = Trainer(
    name="orpo",
    summary="instruction tuning and preference in one step, without a reference model",
    train=train_orpo,
    defaults=LORA | {"training.learning_rate": 5e-5, "objective.beta": 0.1},
    paper="https://arxiv.org/abs/2403.07691",
    scores=PREFERRED,
    held_out_loss=True,
    needs=PAIRS,
    kinds=("preference",),
    settings=("beta", "options"),
    options=partial(resolve_name, "trl.experimental.orpo:ORPOConfig"),
    refuses=no_learned_prompt,
    use_for="a base model that was not instruction-tuned before, given pairs of answers",
    memory="as cpo",
    ranges={
        "objective.beta": "0.05 to 0.5",
        "training.learning_rate": "5e-6 to 1e-5 for all weights, 1e-5 to 1e-4 with an adapter",
    },
)
KTO = Trainer(
    name="kto",
    summary="learn from answers that are each labelled good or bad, while staying close to the starting model",
    train=train_kto,
    defaults=LORA | {"training.learning_rate": 2e-5, "objective.beta": 0.1},
    paper="https://arxiv.org/abs/2402.01306",
    scores=("label_margin", *PREFERRED),
    held_out_loss=True,
    needs="answers with a label (true or false), or preferences, both of whose answers are used",
    kinds=("unpaired", "preference"),
    settings=(
        "beta",
        "loss_type",
        "desirable_weight",
        "undesirable_weight",
        "precompute_ref_log_probs",
        "remember_ref_log_probs",
        "options",
    ),
    options=partial(resolve_name, "trl:KTOConfig"),
    refuses=refuses_kto,
    use_for="thumbs up and down from users; give the rarer label more weight, so that both count equally",
    memory="as dpo",
    ranges={
        "objective.beta": "0.01 to 0.5",
        "training.learning_rate": LEARNING_RATE,
        "training.per_device_train_batch_size": "4 or more: the KL is estimated within a batch",
    },
)
REWARD = Trainer(
    name="reward",
    summary="a model that scores answers, for ppo, grpo, rloo, or for ranking",
    train=train_reward,
    task="score",
    defaults=LORA | {"training.learning_rate": 1e-4, "training.num_train_epochs": 1},
    paper="https://arxiv.org/abs/2203.02155",
    scores=PREFERRED,
    held_out_loss=True,
    needs=PAIRS,
    kinds=("preference",),
    settings=("options",),
    options=partial(resolve_name, "trl:RewardConfig"),
    use_for="the middle step of RLHF: what people prefer, as a number",
    memory="as sft with twice as many rows",
    ranges={
        "training.learning_rate": "5e-6 to 2e-5 for all weights, 5e-5 to 5e-4 with an adapter",
        "training.num_train_epochs": "1",
    },
)


def records() -> list[Trainer]:
    """The records, for `builtin.trainers`."""
    return [DPO, CPO, SIMPO, ORPO, KTO, REWARD]
