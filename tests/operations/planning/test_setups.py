"""What a plan answers for the cases of the guide, and for other people's set-ups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mlflow_ft.operations.planning import deciding
from mlflow_ft.operations.planning.candidates import Planner

PLANS: dict[str, tuple[tuple[Any, ...], dict[str, Any], str | None]] = {
    "7B, 20,000 rows, a 24 GB card": ((20_000, "conversation", 1, 24, 7), {}, "lora"),
    "7B, 20,000 rows, a 16 GB card": ((20_000, "conversation", 1, 16, 7), {}, "qlora"),
    "3B, 5,000 rows, a 12 GB card": ((5_000, "conversation", 1, 12, 3), {}, "qlora"),
    "13B, 20,000 rows, a 24 GB card": ((20_000, "conversation", 1, 24, 13), {}, "qlora"),
    "13B, 20,000 rows, four 24 GB cards": ((20_000, "conversation", 4, 24, 13), {}, "qlora ddp"),
    "7B, 20,000 rows, eight 24 GB cards": ((20_000, "conversation", 8, 24, 7), {}, "lora ddp"),
    "70B, 20,000 rows, two 24 GB cards": ((20_000, "conversation", 2, 24, 70), {}, None),
    "70B, 20,000 rows, an 80 GB card": ((20_000, "conversation", 1, 80, 70), {}, "qlora"),
    "70B, 20,000 rows, two 80 GB cards": ((20_000, "conversation", 2, 80, 70), {}, "qlora ddp"),
    "1B, 20,000 rows, an 80 GB card": ((20_000, "conversation", 1, 80, 1), {}, "lora"),
    "1B, 200,000 rows, an 80 GB card": ((200_000, "conversation", 1, 80, 1), {}, "full"),
    "7B, 200,000 rows, a 24 GB card": ((200_000, "conversation", 1, 24, 7), {}, "lora"),
    "7B, 2 million rows, eight 80 GB cards": ((2_000_000, "conversation", 8, 80, 7), {}, "full fsdp"),
    "7B, 500 rows, a 24 GB card": ((500, "conversation", 1, 24, 7), {}, "prompt"),
    "7B, 500 rows, an 8 GB card": ((500, "conversation", 1, 8, 7), {}, "qlora"),
    "7B, 500 rows, eight 80 GB cards": ((500, "conversation", 8, 80, 7), {}, "prompt"),
    "135M, 20,000 rows, no GPU": ((20_000, "conversation", 0, 16, 0.135), {}, "lora"),
    "7B, 20,000 rows, no GPU and 16 GB": ((20_000, "conversation", 0, 16, 7), {}, "qlora"),
    "7B, 10,000 pairs, a 24 GB card": ((10_000, "preference", 1, 24, 7), {}, "dpo with lora"),
    "7B, 10,000 pairs, a 16 GB card": ((10_000, "preference", 1, 16, 7), {}, "dpo with qlora"),
    "7B, 10,000 pairs to score, a 24 GB card": (
        (10_000, "preference", 1, 24, 7),
        {"aim": "reward"},
        "reward with lora",
    ),
    "3B, 5,000 labelled answers, a 24 GB card": ((5_000, "unpaired", 1, 24, 3), {}, "kto with lora"),
    "7B, 5,000 prompts, an 80 GB card": ((5_000, "prompt", 1, 80, 7), {}, "grpo with lora"),
    "1B, 50,000 texts, a 24 GB card": ((50_000, "text", 1, 24, 1), {}, "sft with lora"),
    "7B, 300,000 texts, eight 80 GB cards": ((300_000, "text", 8, 80, 7), {}, "sft with full fsdp"),
}
"""By set-up (rows, kind, GPUs, GB of each, billions of weights): method, what trains, strategy. None: nothing fits."""


def said(planned: Any) -> str | None:
    if planned is None:
        return None
    words = planned.command
    words += "" if planned.command == planned.choice.weights else f" with {planned.choice.weights}"
    return words + ("" if planned.choice.strategy == "local" else f" {planned.choice.strategy}")


@pytest.mark.parametrize("setup", PLANS)
def test_a_setup_gets_the_method_of_the_guide(setup: str, planner_for: Callable[..., Planner]) -> None:
    about, more, wanted = PLANS[setup]
    planned = deciding.first_fit(planner_for(*about, **more))
    assert said(planned) == wanted
