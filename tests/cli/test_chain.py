"""Chains: which settings reach which stage, what a stage starts from, and how a chain resumes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mlflow_ft import plugins
from mlflow_ft.cli import chain, chain_stages
from mlflow_ft.cli.chain_stages import CHAINS, Stage
from mlflow_ft.errors import ConfigError, DataError, FineTuneError, RefusedError, StoppedError, UndeliveredError
from mlflow_ft.progress import Progress
from mlflow_ft.testing import WORDS, make_rows, write_jsonl

MERGED, ADAPTER = {"name": "m", "version": 3}, {"name": "m-adapter", "version": 2}
LEFT = {"versions": [MERGED, ADAPTER]}


def test_a_setting_is_every_stages_or_one_stages() -> None:
    given = ["--model", "M", "--sft.data", "a.jsonl", "--dpo.objective.beta=0.2", "--adapter.r", "8"]
    assert chain_stages.split(given, CHAINS["align"]) == {
        "sft": ["--model=M", "--data=a.jsonl", "--adapter.r=8"],
        "dpo": ["--model=M", "--objective.beta=0.2", "--adapter.r=8"],
    }


def test_a_stage_begins_with_the_adapter_before_it_or_with_the_whole_model() -> None:
    assert chain_stages.version_of(LEFT, whole=False) == "models:/m-adapter/2"
    assert chain_stages.version_of(LEFT, whole=True) == "models:/m/3"
    assert chain_stages.version_of({"versions": [MERGED]}, whole=False) == "models:/m/3"


def test_given_settings_override_a_stages_own() -> None:
    stage = Stage(method="dpo", defaults={"adapter.kind": "lora"}, init_from="sft", reward_from="reward")
    assert chain_stages.settings(stage, ["--kind=dora"], {"sft": LEFT, "reward": LEFT}) == [
        "--model.init_from=models:/m-adapter/2",
        "--rollout.reward_model=models:/m/3",
        "--kind=dora",
    ]
    assert chain_stages.settings(stage, ["--init_from=x"], {"sft": LEFT}) == ["--adapter.kind=lora", "--init_from=x"]


@pytest.mark.parametrize(
    ("code", "kind"), [(1, RefusedError), (2, FineTuneError), (3, UndeliveredError), (-9, FineTuneError)]
)
def test_the_chain_ends_as_its_stage_did(code: int, kind: type[FineTuneError]) -> None:
    error = chain.failed(CHAINS["align"][0], code, "child", "parent")
    assert type(error) is kind
    assert "--resume parent" in str(error)
    assert "child" in str(error)


def test_a_stage_that_was_stopped_stops_the_chain() -> None:
    error = chain.failed(CHAINS["align"][0], 143, "child", "parent")
    assert isinstance(error, StoppedError)
    assert error.exit_code == 143


def test_settings_of_every_stage_are_checked_before_the_first_one_starts(files: dict[str, Path]) -> None:
    data = f"--sft.data={files['chat']}"
    with pytest.raises(ConfigError) as error:
        chain.check("align", ["--dpo.beta", "-1", data], plugins.load(), progress=Progress(quiet=True))
    assert "stage dpo of align" in str(error.value)
    assert "--beta" in str(error.value)
    with pytest.raises(DataError, match=r"stage dpo of align: the data file 'gone\.jsonl' does not exist"):
        chain.check("align", [data, "--dpo.data", "gone.jsonl"], plugins.load(), progress=Progress(quiet=True))


def test_the_input_of_a_finished_stage_may_be_gone(files: dict[str, Path]) -> None:
    arguments = ["--sft.data", "gone.jsonl", f"--dpo.data={files['pairs']}"]
    given, _ = chain.check("align", arguments, plugins.load(), progress=Progress(quiet=True), finished={"sft"})
    assert given["sft"] == ["--data=gone.jsonl"]


def test_settings_given_again_replace_earlier_ones() -> None:
    before = ["--dpo.data", "old", "--model=M"]
    assert chain_stages.unless_given(before, ["--dpo.data=new"]) == ["--model=M"]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    draw = random.Random(0)
    words = [draw.sample(WORDS, 3) for _ in range(20)]
    pairs = [
        {
            "prompt": f"{' '.join(words_of_row)} {n}",
            "chosen": " ".join(reversed(words_of_row)),
            "rejected": " ".join(words_of_row),
        }
        for n, words_of_row in enumerate(words)
    ]
    return {
        "chat": write_jsonl(tmp_path / "chat.jsonl", make_rows(20)),
        "pairs": write_jsonl(tmp_path / "pairs.jsonl", pairs),
        "broken": write_jsonl(
            tmp_path / "broken.jsonl", [*pairs * 6, pairs[0] | {"chosen": None}]
        ),  # not among the first
    }


@pytest.mark.slow
def test_an_interrupted_chain_resumes(
    tracking_store: str, tiny_model: Path, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_FT_PLUGINS", "")
    loaded, progress, client = plugins.load({"MLFLOW_FT_PLUGINS": ""}), Progress(quiet=True), MlflowClient()
    quick: dict[str, Any] = {"max_steps": 1, "eval_steps": 1, "max_new_tokens": 4, "evaluation.samples": 0}
    quick["package.round_trip"] = "false"
    common = [f"--{name}={value}" for name, value in (quick | {"model": tiny_model}).items()]
    with pytest.raises(FineTuneError) as error:
        chain.run(
            "align",
            [*common, f"--sft.data={files['chat']}", f"--dpo.data={files['broken']}"],
            loaded,
            progress=progress,
        )
    (parent,) = client.search_runs(["0"], "tags.mlflow_ft.method = 'align'")
    assert parent.info.status == "FAILED"
    assert parent.info.run_name == "align tiny chat.jsonl"
    assert f"--resume {parent.info.run_id}" in str(error.value)

    outcome = chain.run("align", [f"--dpo.data={files['pairs']}"], loaded, resume=parent.info.run_id, progress=progress)
    assert outcome.run_id == parent.info.run_id
    assert client.get_run(outcome.run_id).info.status == "FINISHED"
    children = client.search_runs(["0"], f"tags.mlflow.parentRunId = '{outcome.run_id}'")
    assert sorted((child.data.tags["mlflow_ft.method"], child.info.status) for child in children) == [
        ("dpo", "FAILED"),
        ("dpo", "FINISHED"),
        ("sft", "FINISHED"),
    ]
    dpo = client.get_run(outcome.stages["dpo"]["run_id"])
    assert dpo.data.params["cfg.model.init_from"] == "models:/tiny-sft-adapter/1"
    assert json.loads(json.dumps(outcome.stages["sft"]))["versions"][0]["name"] == "tiny-sft"

    # the chain was killed before it recorded that its stages had finished
    for stage in ("sft", "dpo"):
        client.log_text(parent.info.run_id, "", f"{chain.FOLDER}/{stage}.json")
    client.update_run(parent.info.run_id, status="KILLED")
    again = chain.run("align", [], loaded, resume=parent.info.run_id, progress=progress)
    assert [stage["run_id"] for stage in again.stages.values()] == [of["run_id"] for of in outcome.stages.values()]
    assert [len(stage["versions"]) for stage in again.stages.values()] == [2, 2]
    assert len(client.search_runs(["0"], f"tags.mlflow.parentRunId = '{outcome.run_id}'")) == len(children)


def test_only_a_run_of_the_chain_can_be_resumed(tracking_store: str) -> None:
    client = MlflowClient()
    other = client.create_run("0").info.run_id
    with pytest.raises(ConfigError, match="is not a run of align"):
        chain.run("align", [], plugins.load({"MLFLOW_FT_PLUGINS": ""}), resume=other, progress=Progress(quiet=True))
    client.log_text(other, json.dumps({"chain": "rlhf", "arguments": []}), chain.ASKED_FILE)
    with pytest.raises(ConfigError, match="is not a run of align"):
        chain.run("align", [], plugins.load({"MLFLOW_FT_PLUGINS": ""}), resume=other, progress=Progress(quiet=True))
