"""The kinds of extensions that a new plugin may have; each is a folder of `templates/plugin/kinds`."""

from __future__ import annotations

from collections.abc import Mapping

KINDS: Mapping[str, str] = {
    "format": "rows of your own columns become conversations, preferences ...",
    "check": "looks for faults in the data before training",
    "trainer": "a method: a training function and its defaults",
    "adapter": "which weights are added and trained",
    "evaluator": "scores of the base model and the tuned one",
    "guard-set": "rows on which no training may make a model worse",
    "reward": "how good a sampled answer is, for grpo, rloo and ppo",
    "packager": "a form of the model that every run keeps and registers",
    "exporter": "a form for fewer bits or another program, on request",
    "gate": "a condition for a promotion",
    "launcher": "where the processes of a run are started",
    "plan-rule": "knowledge for `mlflow-ft plan`",
    "engine": "where rows are tokenised and checked",
    "serving-engine": "a program that answers requests to models",
    "command": "a command of its own: `mlflow-ft NAME`",
    "options": "settings of the plugin's own",
    "callbacks": "called at every step of a training; watches the scores",
}
"""By name, in the order in which they are listed: what it is for."""


def catalogue(kind: str) -> str:
    """The kind as `mlflow-ft show` names it: `plan_rules`."""
    if kind == "guard-set":
        return "guards"
    return kind if kind.endswith("s") else f"{kind.replace('-', '_')}s"
