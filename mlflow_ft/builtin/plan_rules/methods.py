"""Rules that choose the method by the aim and the kind of the rows."""

from __future__ import annotations

from mlflow_ft import Advice, PlanRule, Situation

ANSWER_COLUMNS = frozenset({"answer", "solution", "ground_truth", "target", "expected"})
"""Columns that the reward `exact-answer` reads."""
RLHF = "three trainings (sft, a reward model, ppo) and sampling in the last: many times the cost of dpo, for a reward"
RLHF += " that judges new answers"


def imitation(situation: Situation) -> Advice:
    """Instruction tuning."""
    return Advice(methods=("sft",), reason="the rows show what to answer: imitate the answers")


def continued(situation: Situation) -> Advice:
    """Continued pre-training."""
    return Advice(
        methods=("sft",),
        settings={"objective.packing": True},
        reason="plain texts are learned token by token (continued pre-training), packed so that no step pads",
        elsewhere={
            "retrieval": "nothing to train: put the passages that matter into the prompt; facts stay up to date"
        },
    )


def pairs(situation: Situation) -> Advice:
    """Direct preference optimisation, before RLHF."""
    return Advice(
        methods=("dpo", "simpo"),
        reason="pairs of a better and a worse answer: dpo learns them directly, without a reward model or sampling",
        elsewhere={"rlhf": RLHF},
    )


def labelled(situation: Situation) -> Advice:
    """Labels instead of pairs."""
    return Advice(methods=("kto",), reason="single answers labelled good or bad: kto needs no pairs")


def untuned(situation: Situation) -> Advice:
    """Preferences on a base that was not instruction-tuned."""
    return Advice(
        methods=("orpo",) if situation.kind == "preference" else (),
        reason="without a chat template the base is hardly instruction-tuned, and dpo and kto start from its answers",
        before="tune it on good answers first (mlflow-ft align does both), or start from an instruction-tuned model",
    )


def scored(situation: Situation) -> Advice:
    """A reward model."""
    return Advice(methods=("reward",), reason="pairs teach a model to score answers")


def sampled(situation: Situation) -> Advice:
    """Learning from rewards for sampled answers."""
    return Advice(
        methods=("grpo", "rloo"),
        reason="prompts whose answers can be scored: grpo compares several sampled answers, without a value model",
        elsewhere={"ppo": "a value model beside the policy: more memory and more to tune; where rewards are noisy"},
    )


def checkable(situation: Situation) -> Advice:
    """A reward from a column with the right answers."""
    column = min(situation.columns & ANSWER_COLUMNS)
    return Advice(
        settings={"rollout.reward_funcs": ["exact-answer"]},
        reason=f"the rows have the right answer in the column {column}",
    )


def unscored(situation: Situation) -> Advice:
    """Nothing in the rows scores an answer."""
    return Advice(
        reason="no column has the right answer",
        before="name what scores the answers: --reward_funcs FILE.py:function, or --reward_model MODEL",
    )


RULES = (
    PlanRule(
        name="imitate",
        summary="rows with good answers: supervised fine-tuning",
        source="https://arxiv.org/abs/2203.02155",
        applies=lambda situation: situation.aim == "instruct",
        advise=imitation,
    ),
    PlanRule(
        name="continue-pretraining",
        summary="plain texts: continued pre-training with packing; retrieval as the alternative",
        source="https://arxiv.org/abs/2004.10964, https://arxiv.org/abs/2312.05934",
        applies=lambda situation: situation.aim == "domain",
        advise=continued,
    ),
    PlanRule(
        name="dpo-before-rlhf",
        summary="pairs of answers: dpo before RLHF",
        source="https://arxiv.org/abs/2305.18290",
        applies=lambda situation: situation.aim == "preference" and situation.kind == "preference",
        advise=pairs,
    ),
    PlanRule(
        name="labels",
        summary="answers labelled good or bad: kto",
        source="https://arxiv.org/abs/2402.01306",
        applies=lambda situation: situation.aim == "preference" and situation.kind == "unpaired",
        advise=labelled,
    ),
    PlanRule(
        name="tune-before-preferences",
        summary="preferences on a base without a chat template: instruction tuning first, or orpo",
        source="https://arxiv.org/abs/2310.16944, https://arxiv.org/abs/2403.07691",
        applies=lambda situation: situation.aim == "preference" and situation.chats is False,
        advise=untuned,
    ),
    PlanRule(
        name="reward-model",
        summary="pairs of answers, to score new ones: a reward model",
        source="https://arxiv.org/abs/2203.02155",
        applies=lambda situation: situation.aim == "reward",
        advise=scored,
    ),
    PlanRule(
        name="rewards",
        summary="prompts whose answers can be scored: grpo",
        source="https://arxiv.org/abs/2402.03300",
        applies=lambda situation: situation.aim == "verifiable",
        advise=sampled,
    ),
    PlanRule(
        name="right-answers",
        summary="a column with the right answer is the reward (exact-answer)",
        source="https://arxiv.org/abs/2411.15124",
        applies=lambda situation: situation.aim == "verifiable" and bool(situation.columns & ANSWER_COLUMNS),
        advise=checkable,
    ),
    PlanRule(
        name="name-a-reward",
        summary="without such a column, a reward must be named",
        source="https://arxiv.org/abs/2402.03300",
        applies=lambda situation: situation.aim == "verifiable" and not situation.columns & ANSWER_COLUMNS,
        advise=unscored,
    ),
)
"""The rules of this module, in the order in which they are asked."""
