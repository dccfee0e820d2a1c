"""Useless results: a ruined model promoted, and answers that teach nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mlflow_ft.testing import WORDS, make_rows, write_jsonl
from tests.cli.conftest import Run

QUICK = ("--max_new_tokens", 4, "--package.round_trip", "false", "--evaluation.samples", 0, "--eval_steps", 1000)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in request.node.name)


def latest(client: MlflowClient) -> Any:
    return client.search_runs(["0"], order_by=["attributes.start_time DESC"], max_results=1)[0]


def ruined(run: Run, small: Callable[..., Path], folder: Path, name: str, *more: object) -> Any:
    """A full tuning at a ruinous rate, with three held-out rows."""
    rows = write_jsonl(folder / "rows.jsonl", make_rows(30))
    how = ("--learning_rate", 1, "--max_steps", 8, "--registry.model_name", name)
    return run("train", "full", "--model", small("llama"), "--data", rows, *how, *QUICK, *more)


def test_a_ruined_model_is_said_to_be_gets_no_alias_and_is_not_promoted(
    run: Run, small: Callable[..., Path], client: MlflowClient, tmp_path: Path, name: str
) -> None:
    """Issue 9: held-out loss 6.29 to 30.0, and not a word; registered as `candidate`, and promoted."""
    result = ruined(run, small, tmp_path, name)
    assert result.code == 1
    assert "warning: the tuned model is worse than its base: loss 6." in result.err
    assert f"registered without the alias candidate: {name} version 1. The trained weights are in " in result.err
    assert Path(result.err.partition("The trained weights are in ")[2].partition(". Lower")[0]).is_dir()
    newest = latest(client)
    sentence = newest.data.tags["mlflow_ft.worse"]
    assert (newest.info.status, newest.data.tags["mlflow_ft.stage"]) == ("FAILED", "evaluate")
    assert sentence in newest.data.tags["mlflow.note.content"]
    version = client.get_model_version(name, "1")
    assert client.get_registered_model(name).aliases == {}
    assert (version.tags["mlflow_ft.worse"], version.tags["mlflow_ft.refused"]) == (sentence, "worse than its base")
    assert "**Worse than its base.**" in version.description.split("## ")[0]
    refused = run("promote", name, "--version", 1)
    assert refused.code == 1
    assert "not passed: finished, beats-base loss" in refused.err
    assert client.get_registered_model(name).aliases == {}


def test_who_asks_for_a_warning_gets_the_alias_with_a_warning_everywhere(
    run: Run, small: Callable[..., Path], client: MlflowClient, tmp_path: Path, name: str
) -> None:
    result = ruined(run, small, tmp_path, name, "--evaluation.on_worse", "warn", "--json")
    assert result.code == 0
    assert "warning: the tuned model is worse than its base" in result.err
    assert json.loads(result.out)["worse"].startswith("the tuned model is worse than its base")
    version = client.get_model_version_by_alias(name, "candidate")
    assert "**Worse than its base.**" in version.description
    assert "mlflow_ft.refused" not in version.tags
    assert "mlflow_ft.worse" in latest(client).data.tags
    refused = run("promote", name)
    assert (refused.code, client.get_registered_model(name).aliases) == (1, {"candidate": 1})
    assert "beats-base loss" in refused.err
    # a run that continues from it has it as its base, and says so
    rows = write_jsonl(tmp_path / "rows.jsonl", make_rows(30))
    how = ("--learning_rate", 5e-3, "--max_steps", 8, "--registry.model_name", name, *QUICK)
    assert run("train", "full", "--init_from", f"models:/{name}/1", "--data", rows, *how).code == 0
    gates = json.loads(run("promote", name, "--dry-run", "--json").out)["gates"]
    [value] = [gate["found"] for gate in gates if gate["gate"] == "beats-base"]
    assert value.startswith(f"better than its base models:/{name}/1 by ")


def pair(number: int, *, short_is_chosen: bool) -> dict[str, Any]:
    question = f"{WORDS[number % 13]} {WORDS[(3 * number + 1) % 13]} {number}"
    short, long = WORDS[number * 5 % 13], " ".join(WORDS[number * step % 13] for step in (1, 2, 3))
    answers = [[{"role": "assistant", "content": model}] for model in (short, long)]
    chosen, rejected = answers if short_is_chosen else answers[::-1]
    return {"prompt": [{"role": "user", "content": question}], "chosen": chosen, "rejected": rejected}


def test_preferences_learned_the_wrong_way_round_are_worse(
    run: Run, small: Callable[..., Path], client: MlflowClient, tmp_path: Path, name: str
) -> None:
    """The sibling of the above by another method, on another score, with enough rows for the test."""
    rows = write_jsonl(tmp_path / "rows.jsonl", [pair(number, short_is_chosen=False) for number in range(40)])
    held = write_jsonl(tmp_path / "held.jsonl", [pair(number, short_is_chosen=True) for number in range(40, 76)])
    how = ("--learning_rate", 1e-2, "--max_steps", 20, "--registry.model_name", name, "--adapter.kind", "none")
    result = run("train", "reward", "--model", small("llama"), "--data", rows, "--eval_path", held, *how, *QUICK)
    assert result.code == 1
    assert "worse than its base: preference_accuracy 0." in result.err
    assert client.get_registered_model(name).aliases == {}


REWARD = """
def ends(completions, **_):
    return [1.0 if "hen" in str(turns) else 0.0 for turns in completions]
"""


@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_trl_5697_answers_that_are_all_cut_and_earn_nothing(
    run: Run, small: Callable[..., Path], client: MlflowClient, tmp_path: Path, name: str, method: str
) -> None:
    """huggingface/trl#5697 (2026-05): GRPO, every answer is cut at max_completion_length, all rewards are 0."""
    (tmp_path / "reward.py").write_text(REWARD)
    prompts = [{"prompt": [{"role": "user", "content": f"Say hen number {number}"}]} for number in range(16)]
    rows = write_jsonl(tmp_path / "prompts.jsonl", prompts)
    asked = ("--data", rows, "--reward_funcs", f"{tmp_path / 'reward.py'}:ends", "--registry.model_name", name)
    how = ("--max_completion_length", 3, "--temperature", 0.01, "--max_steps", 10)  # greedy, nearly: it never ends
    result = run("train", method, "--model", small("llama"), *asked, *how, *QUICK)
    assert result.code == 0
    assert "warning: in 10 sampled batches in a row the compared answers had equal rewards" in result.err
    assert "every answer was cut at rollout.max_completion_length (3 tokens)" in result.err
    assert "Raise rollout.max_completion_length" in result.err
    findings = latest(client).data.tags["mlflow_ft.training_findings"]
    assert findings.count("in 10 of 10 sampled batches") == 2
    [card] = Path(client.get_model_version_download_uri(name, "1")).rglob("README.md")
    assert "In 10 of 10 sampled batches every answer was cut" in card.read_text()


@pytest.mark.parametrize(
    ("gates", "words"),
    [
        ("options: {brief: {leest: 1}}", "options.brief.leest  unknown option"),
        ("beats_base: {marign: 1}", "did you mean margin?"),
        ("waive: {beats-bas: it is the first of its kind}", "beats-base"),
    ],
)
def test_an_option_of_a_gates_file_that_nobody_reads_stops_a_training_before_it_begins(
    run: Run, small: Callable[..., Path], client: MlflowClient, tmp_path: Path, gates: str, words: str
) -> None:
    """Issue 9: `leest` was ignored in silence."""
    (tmp_path / "gates.yaml").write_text(gates)
    rows = write_jsonl(tmp_path / "rows.jsonl", make_rows(8))
    result = run(
        "train", "full", "--model", small("llama"), "--data", rows, "--registry.gates", tmp_path / "gates.yaml"
    )
    assert result.code == 2
    assert words in result.err
    assert "train ..." not in result.err


def test_a_training_without_a_step_is_refused(
    run: Run, small: Callable[..., Path], client: MlflowClient, tmp_path: Path, name: str
) -> None:
    """transformers: "there seems not to be a single sample in your epoch_iterator", and the training went on."""
    rows = write_jsonl(tmp_path / "rows.jsonl", make_rows(8))
    none = (
        "--objective.options",
        "{dataloader_drop_last: true}",
        "--per_device_train_batch_size",
        64,
        "--max_steps",
        2,
    )
    result = run(
        "train", "lora", "--model", small("llama"), "--data", rows, "--registry.model_name", name, *none, *QUICK
    )
    assert result.code == 1
    assert "Error: the training ended without a step" in result.err
    assert latest(client).info.status == "FAILED"
    assert not client.search_registered_models(f"name = '{name}'")


def test_cuga_agent_629_a_reward_that_exits_is_a_failure(
    run: Run, small: Callable[..., Path], client: MlflowClient, tmp_path: Path, name: str
) -> None:
    """cuga-project/cuga-agent#629 (2026-08): `exit()` in an answer that is executed, and the run was a success."""
    (tmp_path / "reward.py").write_text("def runs(completions):\n    exec('raise SystemExit(0)')\n")
    prompts = [{"prompt": [{"role": "user", "content": f"Say hen number {number}"}]} for number in range(8)]
    rows = write_jsonl(tmp_path / "prompts.jsonl", prompts)
    asked = ("--data", rows, "--reward_funcs", f"{tmp_path / 'reward.py'}:runs", "--registry.model_name", name)
    result = run("train", "grpo", "--model", small("llama"), *asked, "--max_completion_length", 3, *QUICK)
    assert result.code == 1
    assert "the reward function 'runs' raised SystemExit: 0" in result.err
    assert latest(client).info.status == "FAILED"
