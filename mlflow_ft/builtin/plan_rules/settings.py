"""Rules that set the hyper-parameters of the chosen way to train."""

from __future__ import annotations

from collections.abc import Mapping

from mlflow_ft import Advice, PlanRule, Situation

LORA = ("lora", "qlora", "dora")
LARGE_MODEL = 30e9
"""Weights of a model that learns with lower rates."""
FEW, SOME, MANY = 1_000, 10_000, 100_000
RATES: Mapping[str, tuple[float, float]] = {
    "sft": (2e-4, 1e-5),
    "dpo": (2e-5, 1e-6),
    "simpo": (1e-5, 1e-6),
    "orpo": (5e-5, 5e-6),
    "kto": (2e-5, 1e-6),
    "reward": (1e-4, 1e-5),
    "grpo": (2e-5, 2e-6),
    "rloo": (2e-5, 2e-6),
}
"""By method, the learning rate with an adapter and for all weights."""
PROMPT_RATE = 3e-2
VIRTUAL_TOKENS = 20
PACKED_LENGTH = 2048
LENGTH_STEP = 64
GENERATIONS = 8
HELD_OUT = 1_000
"""Rows that are enough to tell whether a model got better."""


def by_rows(rows: int, values: tuple[int, int, int, int]) -> int:
    """The value for under 1,000 rows, up to 10,000, up to 100,000, and over that."""
    return values[(rows >= FEW) + (rows > SOME) + (rows > MANY)]


def rank(situation: Situation) -> Advice:
    """As much capacity as the data needs."""
    if situation.aim not in ("instruct", "domain"):
        return Advice(
            settings={"adapter.r": 16, "adapter.lora_alpha": 32},
            reason="preferences and rewards teach little per row: a small rank holds it; alpha 2r",
        )
    r = by_rows(situation.rows, (8, 16, 32, 64))
    return Advice(
        settings={"adapter.r": r, "adapter.lora_alpha": 2 * r},
        reason=f"more rows need more capacity: rank {r} for {situation.rows:,} rows; alpha 2r",
    )


def prompt_length(situation: Situation) -> Advice:
    """Between one token and the 100 beyond which nothing is gained."""
    return Advice(
        settings={"adapter.num_virtual_tokens": VIRTUAL_TOKENS},
        reason="beyond 20 virtual tokens a learned prompt gains little",
    )


def rate(situation: Situation) -> Advice:
    """By method, what trains, and the size of the model."""
    assert situation.choice is not None
    if situation.choice.weights == "prompt":
        return Advice(
            settings={"training.learning_rate": PROMPT_RATE}, reason="a learned prompt needs a high rate, 0.03 and more"
        )
    with_adapter, for_all = RATES[situation.choice.method]
    large = situation.parameters >= LARGE_MODEL
    value = (with_adapter if situation.adapter else for_all) / (2 if large else 1)
    what = "an adapter takes ten times and more of the rate" if situation.adapter else "all weights take a low rate"
    return Advice(
        settings={"training.learning_rate": value},
        reason=f"{what}{'; half of it from 30B weights on' if large else ''}",
    )


def epochs(situation: Situation) -> Advice:
    """Small data needs several passes, much data one."""
    by_aim = {
        "instruct": (5, 3, 2, 1),
        "domain": (4, 3, 2, 1),
        "preference": (3, 2, 1, 1),
    }
    count = by_rows(situation.rows, by_aim.get(situation.aim, (1, 1, 1, 1)))
    reason = (
        f"{situation.rows:,} rows gain little from more passes" if count == 1 else "fewer passes leave rows unlearned"
    )
    if situation.aim == "reward":
        reason = "a reward model overfits after one pass"
    if situation.aim == "verifiable":
        reason = "every pass samples new answers; watch the reward and go on if it still rises"
    return Advice(settings={"training.num_train_epochs": count}, reason=reason)


def batch(situation: Situation) -> Advice:
    """Rows per optimizer step over all devices."""
    by_aim = {
        "instruct": (8, 16, 32, 128),
        "domain": (8, 16, 32, 128),
        "verifiable": (32, 64, 128, 128),
    }
    count = by_rows(situation.rows, by_aim.get(situation.aim, (16, 32, 64, 64)))
    what = "sampled answers" if situation.aim == "verifiable" else "rows"
    return Advice(batch=count, reason=f"{count} {what} a step for {situation.rows:,} rows, in parts that fit in memory")


def length(situation: Situation) -> Advice:
    """Long enough for nearly all rows."""
    wanted = -(-situation.long_row // LENGTH_STEP) * LENGTH_STEP
    reason = f"99 of 100 rows have at most {situation.long_row:,} tokens"
    if situation.aim == "domain" and wanted < PACKED_LENGTH:
        wanted, reason = PACKED_LENGTH, f"texts are packed to {PACKED_LENGTH:,} tokens"
    learned = VIRTUAL_TOKENS if situation.choice and situation.choice.weights == "prompt" else 0
    room = (situation.positions or wanted + learned) - learned
    if room < wanted:
        wanted, reason = room, f"the model reads {situation.positions:,} tokens; longer rows are cut"
    return Advice(settings={"data.max_length": wanted}, reason=reason)


def held_out(situation: Situation) -> Advice:
    """A tenth of much data is more than a comparison needs."""
    return Advice(
        settings={"data.test_size": HELD_OUT}, reason=f"{HELD_OUT:,} held-out rows are enough to compare two models"
    )


def groups(situation: Situation) -> Advice:
    """Answers to compare with each other."""
    return Advice(
        settings={"rollout.num_generations": GENERATIONS},
        reason=f"{GENERATIONS} answers to a prompt: enough of them differ in reward",
    )


RULES = (
    PlanRule(
        name="rank",
        summary="rank by the number of rows, alpha 2r",
        source="https://thinkingmachines.ai/blog/lora/",
        applies=lambda situation: situation.choice is not None and situation.choice.weights in LORA,
        advise=rank,
    ),
    PlanRule(
        name="prompt-length",
        summary="20 virtual tokens",
        source="https://arxiv.org/abs/2104.08691",
        applies=lambda situation: situation.choice is not None and situation.choice.weights == "prompt",
        advise=prompt_length,
    ),
    PlanRule(
        name="learning-rate",
        summary="learning rate by method, by what trains, and by the size of the model",
        source="https://arxiv.org/abs/2305.14314, https://arxiv.org/abs/2411.15124",
        applies=lambda situation: situation.choice is not None and situation.choice.method in RATES,
        advise=rate,
    ),
    PlanRule(
        name="epochs",
        summary="passes over the rows: several for little data, one for much",
        source="https://arxiv.org/abs/2305.16264, https://arxiv.org/abs/2411.15124",
        applies=lambda situation: situation.choice is not None,
        advise=epochs,
    ),
    PlanRule(
        name="batch",
        summary="rows per step by the number of rows",
        source="https://arxiv.org/abs/2305.14314, https://arxiv.org/abs/2411.15124",
        applies=lambda situation: situation.choice is not None,
        advise=batch,
    ),
    PlanRule(
        name="length",
        summary="max_length that holds 99 of 100 rows",
        source="https://huggingface.co/docs/trl/reducing_memory_usage",
        applies=lambda situation: situation.choice is not None,
        advise=length,
    ),
    PlanRule(
        name="held-out",
        summary="at most 1,000 held-out rows",
        source="https://arxiv.org/abs/2411.00640",
        applies=lambda situation: situation.choice is not None and situation.rows > SOME,
        advise=held_out,
    ),
    PlanRule(
        name="groups",
        summary="8 answers to a prompt",
        source="https://arxiv.org/abs/2402.03300",
        applies=lambda situation: situation.choice is not None and situation.choice.method in ("grpo", "rloo"),
        advise=groups,
    ),
)
"""The rules of this module, in the order in which they are asked."""
