"""The configuration of a plan as YAML, each setting with its reason: `mlflow-ft train METHOD --config plan.yaml`."""

from __future__ import annotations

from typing import Any

from mlflow_ft.config.explain import FIELDS, written
from mlflow_ft.values import Plan
from mlflow_ft.values.planning import Planned


def settings(planned: Planned) -> dict[str, Any]:
    """Method and settings by full path, in the schema's order."""
    return {"method": planned.command} | {path: planned.settings[path] for path in FIELDS if path in planned.settings}


def as_yaml(plan: Plan, planned: Planned, *, file: str) -> str:
    """The configuration, with the plan in a comment at its head."""
    comments = {path: reason.text for path, reason in planned.reasons.items()}
    situation = plan.situation
    head = f"# Planned for {situation.rows:,} {situation.kind} rows on {situation.hardware.shown}.\n"
    head += f"#   {command(plan, planned, file=file)}\n"
    return head + written(settings(planned), comments=comments)


def command(plan: Plan, planned: Planned, *, file: str) -> str:
    """The command that trains; it names what the configuration leaves open."""
    given = planned.settings
    words = f"mlflow-ft train {planned.command} --config {file}"
    words += "" if "model.name" in given else " --model MODEL"
    words += "" if "data.path" in given else " --data FILE"
    rewarded = given.keys() & {"rollout.reward_funcs", "rollout.reward_model"}
    needs_reward = plan.situation.aim == "verifiable" and not rewarded
    return words + (" --reward_funcs FILE.py:function" if needs_reward else "")
