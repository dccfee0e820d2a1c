"""When a training ends by the held-out loss, and which weights are kept: as the tool does it, or refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.operations.importing.conftest import Import

BASE = {
    "trl": "model_name_or_path: m\ndataset_name: a.jsonl\n",
    "llamafactory": "model_name_or_path: m\nstage: {stage}\ntemplate: qwen\n",
    "axolotl": "base_model: m\nadapter: lora\nval_set_size: 0.1\ndatasets:\n  - path: a.jsonl\n    type: alpaca\n",
}


@pytest.mark.parametrize(
    ("tool", "keys", "patience", "best"),
    [
        ("trl", "early_stopping_patience: 3", 3, False),  # without the other, the last weights are kept there
        ("trl", "early_stopping_patience: 3\nload_best_model_at_end: true", 3, True),
        ("trl", "load_best_model_at_end: true\nmetric_for_best_model: eval_loss\ngreater_is_better: false", None, True),
        ("trl", "load_best_model_at_end: false\nmetric_for_best_model: loss", None, None),
        ("trl", "early_stopping_patience: 0", None, None),
        ("llamafactory", "early_stopping_steps: 2\nload_best_model_at_end: true", 2, True),
        ("axolotl", "early_stopping_patience: 4", 4, False),
        ("axolotl", "early_stopping_patience: 4\nevals_per_epoch: 4\nsaves_per_epoch: 2", 4, True),
        ("axolotl", "eval_steps: 10\nsave_steps: 20", None, True),  # its default where these fit together
        ("axolotl", "eval_steps: 10\nsave_steps: 15", None, None),
        ("axolotl", "eval_steps: 10\nsave_steps: 20\nload_best_model_at_end: false", None, None),
        ("axolotl", "load_best_model_at_end: true", None, True),
    ],
)
def test_what_means_the_same(imports: Import, tool: str, keys: str, patience: int | None, best: Any) -> None:
    result = imports(BASE[tool].format(stage="sft") + keys + "\n", tool=tool)
    assert (result.flat["training.early_stopping"], result.flat["training.load_best"]) == (patience, best)
    assert {result.status[line.partition(":")[0]] for line in keys.splitlines()} <= {
        "mapped",
        "approximated",
        "not needed",
    }


@pytest.mark.parametrize(
    ("tool", "keys", "refused", "why"),
    [
        (
            "trl",
            "load_best_model_at_end: true\nmetric_for_best_model: accuracy",
            "load_best_model_at_end",
            "not accuracy",
        ),
        ("trl", "early_stopping_patience: 2\nmetric_for_best_model: f1", "early_stopping_patience", "not f1"),
        ("trl", "load_best_model_at_end: true\ngreater_is_better: true", "greater_is_better", "the lowest held-out"),
        ("trl", "early_stopping_patience: 2\nearly_stopping_threshold: 0.1", "early_stopping_threshold", "any loss"),
        ("trl", "early_stopping_patience: soon", "early_stopping_patience", "not a number"),
        ("llamafactory", "early_stopping_steps: 2", "early_stopping_steps", "no held-out loss"),
    ],
)
def test_what_does_not_is_refused(imports: Import, tool: str, keys: str, refused: str, why: str) -> None:
    text = BASE[tool].format(stage="ppo") if tool == "llamafactory" else BASE[tool]
    result = imports(f"{text}{keys}\n", tool=tool)
    assert (result.status[refused], why in result.note[refused]) == ("refused", True)
    if refused != "early_stopping_threshold":
        assert (result.flat["training.early_stopping"], result.flat["training.load_best"]) == (None, None)
