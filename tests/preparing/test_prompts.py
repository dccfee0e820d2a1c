"""A whole run over prompts: what is kept of the reward functions, and where a sampled answer stops."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest

from mlflow_ft import plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.engine import hub
from mlflow_ft.engine.tokens import tokenizers
from mlflow_ft.errors import ConfigError
from mlflow_ft.preparing import dataset
from mlflow_ft.progress import Progress
from mlflow_ft.registry import Registry
from mlflow_ft.testing import CHATML, make_rows, write_jsonl

LENGTH = "def length(completions, n):\n    return [len(one[-1]['content']) / 100 for one in completions]\n"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    rows = [{"prompt": row["messages"][0]["content"], "answer": "red", "n": n} for n, row in enumerate(make_rows(24))]
    return write_jsonl(tmp_path / "prompts.jsonl", rows)


def test_a_run_keeps_its_reward_functions(
    fine_tune: Callable[..., Any], tiny_model: Path, prompts: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(LENGTH)
    outcome = fine_tune(
        "grpo",
        model=tiny_model,
        data=prompts,
        reward_funcs=f"[{file}:length, exact-answer]",
        max_completion_length=8,
    )
    client = mlflow.MlflowClient()
    run = client.get_run(outcome.run_id)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert (
        f"length = {file}:length sha256:{digest}; exact-answer = exact-answer"
        in run.data.tags["mlflow_ft.reward_funcs"]
    )
    assert [artifact.path for artifact in client.list_artifacts(outcome.run_id, "rewards")] == ["rewards/length.py"]
    assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/rewards/length.py") == LENGTH
    scores = {score.name: score for score in outcome.scores.tuned}
    assert set(scores) == {"reward/length", "reward/exact-answer", "weighted_reward"}
    assert scores["weighted_reward"].value == pytest.approx(
        scores["reward/length"].value + scores["reward/exact-answer"].value
    )
    assert {"train/reward", "eval/reward", "eval/tuned/reward/length", "train/rewards/length/mean"} <= set(
        run.data.metrics
    )
    samples = mlflow.load_table("samples/step_000002.json", run_ids=[outcome.run_id])
    assert set(samples["expected"]) == {"red"}
    assert samples["reward/length"].tolist() == [len(text) / 100 for text in samples["answer"]]


def test_a_reward_function_that_is_not_there_is_told_before_anything_is_loaded(
    fine_tune: Callable[..., Any], tmp_path: Path, prompts: Path
) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        fine_tune("grpo", model=tmp_path / "no model", data=prompts, reward_funcs="gone.py:f")


@pytest.mark.parametrize("end", ["<|im_end|>", "<unk>"])
def test_an_answer_stops_where_the_template_ends_it(tiny_model: Path, prompts: Path, end: str) -> None:
    loaded = plugins.load({"MLFLOW_FT_PLUGINS": ""})
    config = asked([f"--data={prompts}", f"--model={tiny_model}"], loaded, method="prepare")
    progress = Progress(quiet=True)
    tokenizer = tokenizers.load(config, hub.find(config.model, progress, weights=False))
    tokenizer.chat_template = CHATML.replace("<|im_end|>", end)
    checked = dataset.prepare(config, tokenizer, plugins=loaded, registry=Registry(loaded), progress=progress)
    assert checked.data.kind == "prompt"
    assert checked.data.stop_token_ids == (tokenizer.convert_tokens_to_ids(end),)
