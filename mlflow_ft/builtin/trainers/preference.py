"""The methods that learn from preferences and labels: dpo, cpo, simpo, orpo, kto, and the reward model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_ft import Adapter, Trainer

if TYPE_CHECKING:
    from mlflow_ft.config.schema import Config
    from mlflow_ft.values import Data, Job, Model, Trained

LORA = {"adapter.kind": "lora", "adapter.r": 16}
PREFERRED = ("preference_accuracy",)
"""Not the margin: it has the unit of a tokenizer, and grows where one of two likely answers is made unlikely."""
PAIRS = "preferences: a prompt with a chosen and a rejected answer"
LEARNING_RATE = "5e-7 to 5e-6 for all weights, 5e-6 to 5e-5 with an adapter"


def train_dpo(job: Job, data: Data, model: Model) -> Trained:
    """Direct preference optimisation."""
    from mlflow_ft.engine.training import preference

    return preference.dpo(job, data, model)


def train_cpo(job: Job, data: Data, model: Model) -> Trained:
    """Preference optimisation without a reference: CPO and SimPO."""
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


def no_learned_prompt(config: Config, adapter: Adapter) -> str | None:
    """What CPO and ORPO, as TRL has them, cannot do: they compare logits with labels position by position."""
    if adapter.learned_prompt:
        return "its loss cannot leave out the positions of a learned prompt; take lora, or dpo as the method"
    return None


def no_second_adapter(config: Config, adapter: Adapter) -> str | None:
    """What the reference of dpo and kto, a frozen copy of the adapter at first, and TRL's own head cannot do."""
    if adapter.name in ("adalora", "adaption-prompt"):
        return "TRL cannot put its reference beside it, or its head on it; take lora, or another adapter"
    return None


DPO = Trainer(
    name="dpo",
    summary="prefer chosen answers to rejected ones, held to the model that training began with",
    train=train_dpo,
    defaults=LORA | {"training.learning_rate": 2e-5, "objective.beta": 0.1},
    paper="https://arxiv.org/abs/2305.18290",
    scores=PREFERRED,
    needs=PAIRS,
    kinds=("preference",),
    settings=("beta", "loss_type", "label_smoothing", "precompute_ref_log_probs", "options"),
    refuses=no_second_adapter,
    use_for="aligning a model that was instruction-tuned on similar prompts, where pairs of answers are there",
    memory="as sft with the same adapter, for rows twice as many; without an adapter a second model beside it",
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
    needs=PAIRS,
    kinds=("preference",),
    settings=("beta", "loss_type", "label_smoothing", "options"),
    refuses=no_learned_prompt,
    use_for="the same as dpo where a reference costs too much; the chosen answers must be good by themselves",
    memory="as sft, for rows twice as many; the logits of whole rows are held",
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
    needs=PAIRS,
    kinds=("preference",),
    settings=("beta", "loss_type", "label_smoothing", "options"),
    refuses=no_learned_prompt,
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
    needs=PAIRS,
    kinds=("preference",),
    settings=("beta", "options"),
    refuses=no_learned_prompt,
    use_for="a base model that was not instruction-tuned before, where pairs of answers are there",
    memory="as cpo",
    ranges={
        "objective.beta": "0.05 to 0.5",
        "training.learning_rate": "5e-6 for all weights, to 1e-4 with an adapter",
    },
)
KTO = Trainer(
    name="kto",
    summary="learn from answers that are called good or bad one by one, held to the model training began with",
    train=train_kto,
    defaults=LORA | {"training.learning_rate": 2e-5, "objective.beta": 0.1},
    paper="https://arxiv.org/abs/2402.01306",
    scores=("label_margin", *PREFERRED),
    needs="answers with a label (true or false), or preferences, of which both answers are taken",
    kinds=("unpaired", "preference"),
    settings=(
        "beta",
        "loss_type",
        "desirable_weight",
        "undesirable_weight",
        "precompute_ref_log_probs",
        "options",
    ),
    refuses=no_second_adapter,
    use_for="thumbs up and down from users; weigh the rarer label higher, so that both weigh alike",
    memory="as dpo",
    ranges={
        "objective.beta": "0.01 to 0.5",
        "training.learning_rate": LEARNING_RATE,
        "training.per_device_train_batch_size": "4 and more: the KL is estimated within a batch",
    },
)
REWARD = Trainer(
    name="reward",
    summary="a model that scores answers, for ppo, grpo, rloo, or to rank",
    train=train_reward,
    task="score",
    defaults=LORA | {"training.learning_rate": 1e-4, "training.num_train_epochs": 1},
    paper="https://arxiv.org/abs/2203.02155",
    scores=PREFERRED,
    needs=PAIRS,
    kinds=("preference",),
    settings=("options",),
    use_for="the middle step of RLHF: what people prefer, as a number",
    memory="as sft, for rows twice as many",
    ranges={
        "training.learning_rate": "1e-5 for all weights, 5e-5 to 5e-4 with an adapter",
        "training.num_train_epochs": "1",
    },
)


def records() -> list[Trainer]:
    """The records, for `builtin.trainers`."""
    return [DPO, CPO, SIMPO, ORPO, KTO, REWARD]
