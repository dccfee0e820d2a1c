"""Whole runs on a tiny model, by each built-in method, read back with MLflow's own client."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
import yaml
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelStatus, Run
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from mlflow_ft import pipeline, plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.errors import DataError, FineTuneError, RefusedError
from mlflow_ft.progress import Progress
from mlflow_ft.stages import done
from mlflow_ft.testing import copy_store, make_rows, write_jsonl
from mlflow_ft.tracking import run_list
from mlflow_ft.values import Package, Scores

pytestmark = pytest.mark.slow  # the three runs that all of these read

METHODS = ("full", "lora", "qlora")
FORMS = {"full": ("model",), "lora": ("merged", "adapter"), "qlora": ("merged", "adapter")}
SUFFIX = {"model": "", "merged": "", "adapter": "-adapter"}
PICKLES = {".pkl", ".pickle", ".bin", ".pt", ".pth", ".ckpt", ".joblib", ".npy"}


@dataclass(frozen=True, kw_only=True)
class Shop:
    """A store, and what is needed to run jobs in it."""

    client: MlflowClient
    model: Path
    rows: Path
    folder: Path

    def run(self, method: str, **settings: Any) -> pipeline.Outcome:
        loaded = plugins.load({"MLFLOW_FT_PLUGINS": ""})
        given = {
            "model": self.model,
            "data": self.rows,
            "output_dir": self.folder / "outputs",
            "max_steps": 3,
            "eval_steps": 1,
            "max_new_tokens": 8,
            "package.round_trip": "false",
            "evaluation.max_rows": 4,
            "registry.model_name": f"tiny-{method}",
            **settings,
        }
        config = asked([method, *(f"--{key}={value}" for key, value in given.items())], loaded)
        return pipeline.run(config, loaded, progress=Progress(quiet=True))

    def refused(self, error: type[FineTuneError], method: str, **settings: Any) -> tuple[FineTuneError, Run]:
        """Run a job that must fail; its error and its run."""
        with pytest.raises(error) as caught:
            self.run(method, **({"registry.model_name": "refused"} | settings))
        (latest, *_) = self.client.search_runs(["0"], order_by=["attributes.start_time DESC"], max_results=1)
        assert not self.client.search_registered_models(filter_string="name LIKE 'refused%'")
        assert mlflow.active_run() is None
        return caught.value, latest


@pytest.fixture(scope="module")
def shop(empty_store: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    uri = copy_store(empty_store, folder)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_FT_BASE_MODEL"):
            patch.delenv(name, raising=False)
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.chdir(folder)
        rows = write_jsonl(folder / "rows.jsonl", make_rows())
        yield Shop(client=MlflowClient(uri), model=tiny_model, rows=rows, folder=folder)


@pytest.fixture(scope="module")
def runs(shop: Shop) -> dict[str, pipeline.Outcome]:
    """One run of each method."""
    return {method: shop.run(method) for method in METHODS}


@pytest.fixture(params=METHODS)
def outcome(request: pytest.FixtureRequest, runs: dict[str, pipeline.Outcome]) -> tuple[str, pipeline.Outcome]:
    return request.param, runs[request.param]


@pytest.fixture(scope="module")
def downloaded(shop: Shop, runs: dict[str, pipeline.Outcome]) -> dict[str, dict[str, Path]]:
    """The folder of every logged model, as it comes out of MLflow, by method and form."""
    return {
        method: {
            form: Path(mlflow.artifacts.download_artifacts(f"models:/{version.model_id}"))
            for form, version in zip(FORMS[method], run.versions, strict=True)
        }
        for method, run in runs.items()
    }


def logged_models(shop: Shop, run_id: str) -> dict[str, LoggedModel]:
    models = shop.client.search_logged_models(["0"], filter_string=f"source_run_id = '{run_id}'")
    return {model.name: model for model in models}


# --- what the run says


def test_the_run_is_finished_and_says_what_was_asked(shop: Shop, outcome: tuple[str, pipeline.Outcome]) -> None:
    method, result = outcome
    run = shop.client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    params = run.data.params
    assert params["cfg.method"] == method
    assert params["cfg.model.name"] == str(shop.model)
    assert params["cfg.model.quantize"] == ("nf4" if method == "qlora" else "none")
    assert params["cfg.adapter.kind"] == ("none" if method == "full" else "lora")
    assert params["cfg.training.max_steps"] == "3"
    tags = run.data.tags
    assert tags["mlflow_ft.method"] == method
    assert tags["mlflow_ft.base_model"] == str(shop.model)
    assert tags["mlflow_ft.base_revision"].startswith("sha256:")
    assert tags["mlflow_ft.data_format"] == "messages"
    assert "mlflow_ft.trust_remote_code" not in tags  # only of a run that was allowed to run a model's code
    assert "mlflow_ft.error" not in tags


def test_the_data_are_inputs_of_the_run(shop: Shop, outcome: tuple[str, pipeline.Outcome]) -> None:
    run = shop.client.get_run(outcome[1].run_id)
    inputs = {dataset.tags[0].value: dataset.dataset for dataset in run.inputs.dataset_inputs}
    assert inputs.keys() == {"train", "eval"}
    assert inputs["train"].digest == run.data.tags["mlflow_ft.data_digest"] != inputs["eval"].digest
    rows = {name: json.loads(dataset.profile)["num_rows"] for name, dataset in inputs.items()}
    assert sum(rows.values()) == 48
    assert json.loads(inputs["eval"].source) == {"uri": str(shop.rows)}


def test_the_curves_have_a_point_for_every_step(shop: Shop, outcome: tuple[str, pipeline.Outcome]) -> None:
    run_id = outcome[1].run_id
    train = shop.client.get_metric_history(run_id, "train/loss")
    held_out = shop.client.get_metric_history(run_id, "eval/loss")
    assert sorted(point.step for point in train) == [1, 2, 3]
    assert {point.step for point in held_out} == {0, 1, 2, 3}
    assert all(math.isfinite(point.value) for point in (*train, *held_out))


def test_base_and_tuned_are_scored_side_by_side(shop: Shop, outcome: tuple[str, pipeline.Outcome]) -> None:
    method, result = outcome
    metrics = shop.client.get_run(result.run_id).data.metrics
    for name in ("loss", "perplexity", "exact_match", "finished"):
        assert {f"eval/base/{name}", f"eval/tuned/{name}"} <= metrics.keys()
    assert metrics["eval/base/loss"] != metrics["eval/tuned/loss"]
    history = {point.step: point.value for point in shop.client.get_metric_history(result.run_id, "eval/loss")}
    assert metrics["eval/base/loss"] == pytest.approx(history[0], abs=1e-4)
    assert metrics["eval/tuned/loss"] == pytest.approx(history[3], abs=1e-4)
    for form in FORMS[method]:
        assert metrics[f"parity/{form}/kl_mean"] < 1e-6
        assert metrics[f"parity/{form}/top1_agreement"] == 1


def test_artifacts(shop: Shop, outcome: tuple[str, pipeline.Outcome]) -> None:
    method, result = outcome
    folder = Path(shop.client.download_artifacts(result.run_id, "", str(shop.folder)))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["method"] == method
    assert config["data"]["path"] == str(shop.rows)
    modules = {info["module"] for info in json.loads((folder / "plugins.json").read_text())}
    assert {"mlflow_ft.builtin.trainers", "mlflow_ft.builtin.packagers"} <= modules
    assert "<|im_start|>assistant\n[[" in (folder / "data" / "mask.txt").read_text()
    table = json.loads((folder / "eval" / "answers.json").read_text())
    assert {"row", "prompt", "expected", "base", "tuned"} <= set(table["columns"])
    assert len(table["data"]) == 4
    view = shop.client.get_experiment(shop.client.get_run(result.run_id).info.experiment_id).tags[run_list.TAG]
    assert "`eval/tuned/loss`" in view


def test_every_stage_is_marked_complete_on_disk(outcome: tuple[str, pipeline.Outcome]) -> None:
    method, result = outcome
    folder = Path(result.folder)
    assert done.result(folder / "train")["metrics"]["train/steps"] == 3  # type: ignore[index]  # None fails here
    assert done.result(folder / "evaluate" / "base") != done.result(folder / "evaluate" / "tuned")
    assert done.kept(folder / "evaluate", Scores) == result.scores
    packaged = done.kept(folder / "package", Package)
    assert packaged is not None
    assert tuple(model.name for model in packaged.models) == FORMS[method]
    assert [model.model_id for model in packaged.models] == [version.model_id for version in result.versions]


# --- the models


def test_logged_models_are_ready_and_their_metrics_know_the_data(
    shop: Shop, outcome: tuple[str, pipeline.Outcome]
) -> None:
    method, result = outcome
    run = shop.client.get_run(result.run_id)
    held_out = next(dataset.dataset for dataset in run.inputs.dataset_inputs if dataset.tags[0].value == "eval")
    models = logged_models(shop, result.run_id)
    assert tuple(sorted(models)) == tuple(sorted(FORMS[method]))
    assert {output.model_id for output in run.outputs.model_outputs} == {model.model_id for model in models.values()}
    for form, model in models.items():
        assert model.status == LoggedModelStatus.READY
        assert model.model_type == f"{method}-{form}"
        assert model.params["cfg.method"] == method
        metrics = {metric.key: metric for metric in model.metrics}
        assert {"eval/tuned/loss", f"parity/{form}/kl_mean"} <= metrics.keys()
        assert {metric.dataset_digest for metric in metrics.values()} == {held_out.digest}


def test_versions_carry_the_alias_and_know_each_other(shop: Shop, outcome: tuple[str, pipeline.Outcome]) -> None:
    method, result = outcome
    assert [version.name for version in result.versions] == [f"tiny-{method}{SUFFIX[form]}" for form in FORMS[method]]
    registered = {}
    for form, version in zip(FORMS[method], result.versions, strict=True):
        candidate = registered[form] = shop.client.get_model_version_by_alias(version.name, "candidate")
        assert (int(candidate.version), candidate.run_id) == (version.version, result.run_id)
        assert candidate.tags["mlflow_ft.form"] == form
        assert candidate.tags["mlflow_ft.model_id"] == version.model_id
        assert candidate.tags["mlflow_ft.method"] == method
        assert float(candidate.tags["mlflow_ft.parity.kl_mean"]) < 1e-6
    if method != "full":
        merged, adapter = registered["merged"], registered["adapter"]
        assert merged.tags["mlflow_ft.adapter_version"] == f"models:/{adapter.name}/{adapter.version}"
        assert adapter.tags["mlflow_ft.merged_version"] == f"models:/{merged.name}/{merged.version}"


def test_a_registered_model_answers_a_chat_completion(outcome: tuple[str, pipeline.Outcome]) -> None:
    _, result = outcome
    request = {"messages": [{"role": "user", "content": "red green blue"}], "max_tokens": 6}
    answers = []
    for version in result.versions:
        prediction = mlflow.pyfunc.load_model(f"models:/{version.name}@candidate").predict(request)
        assert prediction["object"] == "chat.completion"
        assert 1 <= prediction["usage"]["completion_tokens"] <= 6
        answers.append(prediction["choices"][0]["message"]["content"])
    assert len(set(answers)) == 1  # the adapter and the merged model say the same


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_peft_reads_the_adapter(shop: Shop, downloaded: dict[str, dict[str, Path]], method: str) -> None:
    folder = downloaded[method]["adapter"] / "artifacts" / "model"
    base = AutoModelForCausalLM.from_pretrained(shop.model)
    weight = base.model.layers[0].self_attn.q_proj.weight.clone()
    merged = PeftModel.from_pretrained(base, str(folder)).merge_and_unload()
    assert not weight.equal(merged.model.layers[0].self_attn.q_proj.weight)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(shop.model)


def test_transformers_reads_the_merged_model(downloaded: dict[str, dict[str, Path]]) -> None:
    for method, form in (("full", "model"), ("lora", "merged"), ("qlora", "merged")):
        model = AutoModelForCausalLM.from_pretrained(downloaded[method][form] / "artifacts" / "model")
        assert not hasattr(model.config, "quantization_config")
        assert model.num_parameters() == 139_584


def test_no_pickle_and_no_base_weights_with_an_adapter(downloaded: dict[str, dict[str, Path]]) -> None:
    for forms in downloaded.values():
        for form, folder in forms.items():
            files = [file for file in folder.rglob("*") if file.is_file()]
            assert not [file for file in files if file.suffix.lower() in PICKLES]
            assert [file.name for file in files if file.suffix == ".py"] == ["chat_model.py"]
            assert (folder / "artifacts" / "model" / "manifest.json") in files
            weights = [file for file in files if file.suffix == ".safetensors"]
            assert [file.name for file in weights] == [
                "adapter_model.safetensors" if form == "adapter" else "model.safetensors"
            ]
            if form == "adapter":
                with safe_open(weights[0], "pt") as tensors:
                    assert all("lora_" in name for name in tensors.keys())  # noqa: SIM118  # it is no dict


def test_requirements_are_exact_and_without_mlflow_ft(downloaded: dict[str, dict[str, Path]]) -> None:
    lines = {
        form: (downloaded["qlora"][form] / "requirements.txt").read_text().split() for form in ("adapter", "merged")
    }
    assert all("==" in line and "mlflow-ft" not in line for pins in lines.values() for line in pins)
    names = {form: {line.partition("==")[0] for line in pins} for form, pins in lines.items()}
    assert {"mlflow", "torch", "transformers", "peft", "bitsandbytes"} <= names["adapter"]


def test_a_second_run_makes_a_second_version(shop: Shop, runs: dict[str, pipeline.Outcome]) -> None:
    (first,) = runs["full"].versions
    (second,) = shop.run("full", **{"evaluation.evaluators": "loss", "max_steps": 1}).versions
    assert (second.name, second.version) == (first.name, first.version + 1)
    assert int(shop.client.get_model_version_by_alias(first.name, "candidate").version) == second.version


# --- what is refused


def test_a_nan_or_infinite_loss_ends_the_run(shop: Shop) -> None:
    error, run = shop.refused(RefusedError, "lora", learning_rate=1e30, max_steps=8)
    assert "training stopped" in error.message
    assert "learning_rate" in error.hint
    assert run.info.status == "FAILED"
    assert run.data.tags["mlflow_ft.error"] == str(error)
    assert run.data.tags["mlflow_ft.stage"] == "train"
    assert not logged_models(shop, run.info.run_id)
    assert done.result(shop.folder / "outputs" / run.info.run_id / "train") is None


def test_a_packaged_model_that_is_not_the_trained_one_ends_the_run(shop: Shop) -> None:
    error, run = shop.refused(RefusedError, "lora", **{"package.dtype": "bfloat16", "package.max_kl": 1e-30})
    assert "'merged' is not the model that was trained" in error.message
    assert run.info.status == "FAILED"
    assert run.data.tags["mlflow_ft.error"] == str(error)
    assert run.data.tags["mlflow_ft.stage"] == "package"
    assert run.data.metrics["parity/merged/kl_mean"] > 1e-30  # the evidence is kept
    assert not logged_models(shop, run.info.run_id)
    assert done.result(shop.folder / "outputs" / run.info.run_id / "train") is not None


def test_a_mask_that_cannot_be_proved_ends_the_run_before_training(shop: Shop) -> None:
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    error, run = shop.refused(DataError, "lora", **{"data.chat_template": template})
    assert "cannot be proved" in error.message
    assert error.problems[0].place.startswith(str(shop.rows))
    assert (run.info.status, run.data.tags["mlflow_ft.stage"]) == ("FAILED", "data")
    assert not [key for key in run.data.metrics if key.startswith("train/")]


def test_full_tuning_of_a_bfloat16_base_loses_nothing_to_rounding(shop: Shop, tmp_path: Path) -> None:
    """A step changes a weight by about the learning rate, which bfloat16 rounds away for most of them."""
    base = tmp_path / "bfloat16"
    AutoModelForCausalLM.from_pretrained(shop.model).to(torch.bfloat16).save_pretrained(base)
    AutoTokenizer.from_pretrained(shop.model).save_pretrained(base)
    outcome = shop.run("full", model=base, **{"registry.model_name": "fine", "learning_rate": 1e-4})
    metrics = shop.client.get_run(outcome.run_id).data.metrics
    assert metrics["parity/model/kl_mean"] < 1e-9
    with safe_open(Path(outcome.folder, "package", "model", "model.safetensors"), "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in list(weights.keys())} == {torch.float32}
