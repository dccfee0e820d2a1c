"""`mlflow-ft project init`: entry points, pinned packages, and a real run by `mlflow run`."""

from __future__ import annotations

import json
import re
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from mlflow_ft import plugins
from mlflow_ft.config import read_yaml
from mlflow_ft.errors import ConfigError, PluginError
from mlflow_ft.scaffolding import pins
from mlflow_ft.scaffolding.project import new_project
from mlflow_ft.testing import make_tiny_model, write_jsonl
from tests.scaffolding.conftest import ROOT, Environment


def init(folder: Path, *methods: str, packages: tuple[str, ...] = ()) -> dict[str, str]:
    new_project(folder, methods=methods, packages=packages, plugins=plugins.load({}))
    return {file.name: file.read_text() for file in folder.iterdir()}


def pinned(files: dict[str, str]) -> list[str]:
    [pip] = [line["pip"] for line in yaml.safe_load(files["conda.yaml"])["dependencies"] if isinstance(line, dict)]
    return [str(line) for line in pip]


@pytest.mark.parametrize("asked", [{"methods": ("gentle-lora",)}, {"packages": ("mlflow-ft-template",)}], ids=str)
def test_the_methods_of_a_plugin_are_entry_points(asked: dict[str, tuple[str, ...]], tmp_path: Path) -> None:
    files = init(tmp_path / "mine", *asked.get("methods", ()), packages=asked.get("packages", ()))
    project = yaml.safe_load(files["MLproject"])
    assert project["name"] == "mine"
    assert set(project["entry_points"]) == {"main", "gentle-lora", "promote", "resume"}
    assert project["entry_points"]["main"]["parameters"]["method"]["default"] == "gentle-lora"
    for entry in project["entry_points"].values():
        assert set(re.findall(r"\{(\w+)\}", entry["command"])) == set(entry["parameters"])
        assert not re.search(r"""['"`\\$;&|<>]""", entry["command"]), "MLflow quotes the values"


def test_everything_is_pinned_to_what_is_installed(tmp_path: Path) -> None:
    lines = pinned(init(tmp_path / "mine", "gentle-lora"))
    assert [line.partition(" @ ")[0] for line in lines[:2]] == ["mlflow-ft", "mlflow-ft-template"]
    others = dict(line.split("==") for line in lines[2:])
    assert others["transformers"] == metadata.version("transformers")
    assert not [version for version in others.values() if "+" in version], "a local build is on no index"
    assert {"torch", "mlflow", "peft", "trl", "pydantic"} <= set(others)


def test_its_config_can_be_read_and_is_the_same_with_every_comment_removed(tmp_path: Path) -> None:
    init(tmp_path / "mine", "gentle-lora")
    file = tmp_path / "mine" / "config.yaml"
    assert {given.key: given.value for given in read_yaml(file)} == {"model.name": "smollm2-135m"}
    tail = file.read_text().partition("# What gentle-lora sets")[2].partition("\n")[2]
    file.write_text("\n".join(line.removeprefix("# ") for line in tail.splitlines()))
    assert {given.key: given.value for given in read_yaml(file)} == {
        "adapter.kind": "lora",
        "adapter.r": 4,
        "training.learning_rate": 1e-4,
    }


def test_a_package_from_elsewhere_is_pinned_to_its_place() -> None:
    class Distribution(metadata.PathDistribution):
        name = "cards"
        version = "1.2+local"

        def __init__(self, direct: object) -> None:
            self.direct = direct

        def read_text(self, filename: str) -> str | None:
            return json.dumps(self.direct) if self.direct else None

    commit = {"vcs": "git", "commit_id": "abc"}
    assert pins.requirement(Distribution(None)) == "cards==1.2"
    assert pins.requirement(Distribution({"url": "https://x/r.git", "vcs_info": commit, "subdirectory": "p"})) == (
        "cards @ git+https://x/r.git@abc#subdirectory=p"
    )
    assert pins.requirement(Distribution({"url": "file:///p", "dir_info": {}})) == "cards @ file:///p"


def test_what_is_not_there_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean gentle-lora"):
        init(tmp_path / "mine", "gentl-lora")
    with pytest.raises(PluginError, match="nothing-there is no installed plugin"):
        init(tmp_path / "mine", packages=("nothing-there",))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    with pytest.raises(ConfigError, match="is not empty: it has notes"):
        init(tmp_path / "mine", "gentle-lora")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["notes"]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_mlflow_runs_the_method_of_the_plugin(tmp_path: Path, environment: Environment) -> None:
    init(tmp_path / "mine", "gentle-lora")
    cards = [{"front": f"how many are {n} and {n}", "back": f"{2 * n}"} for n in range(24)]
    given = {
        "model": make_tiny_model(tmp_path / "tiny"),
        "data": write_jsonl(tmp_path / "cards.jsonl", cards),
        "training.max_steps": 2,
        "run.output_dir": tmp_path / "outputs",
    }
    settings = [word for key, value in given.items() for word in ("-P", f"{key}={value}")]
    command = ["python", "-m", "mlflow", "run", str(tmp_path / "mine"), "-e", "gentle-lora", "--env-manager", "local"]
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    variables = {"MLFLOW_TRACKING_URI": uri, "PYTHONPATH": f"{ROOT}:{ROOT / 'plugins' / 'mlflow-ft-template'}"}
    done = environment.run(*command, *settings, cwd=tmp_path, timeout=1500, **variables)
    assert done.returncode == 0, done.stderr
    assert "tiny-gentle-lora version 1 @candidate" in done.stdout + done.stderr
