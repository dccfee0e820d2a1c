"""What is reported as changed between a run's record and now."""

from __future__ import annotations

from typing import Any

from mlflow_ft import plugins
from mlflow_ft.config.schema import Config
from mlflow_ft.operations import changes

TAGS = {
    "mlflow_ft.data_fingerprint": "rows",
    "mlflow_ft.base_revision": "sha256:base",
    "mlflow_ft.start": "/one/machine/adapter sha256:start",
    "mlflow.mlflow_ft.code": "sha256:code",
    "mlflow_ft.plugins": "built in 1.0 sha256:in, acme 1.2 sha256:acme",
    "mlflow.mlflow_ft.versions": "torch 2.9.0",
    "mlflow.mlflow_ft.processor": "Xeon, AVX512",
    "mlflow.mlflow_ft.threads": "4",
    "mlflow_ft.device": "CPU, 4 threads",
    "mlflow_ft.git_commit": "the user's own repository",
}


def config(**sections: Any) -> Config:
    return Config.model_validate({"method": "lora", **sections})


def changed(tags: dict[str, str], now: Config | None = None) -> list[str]:
    """What a second record with other tags or another configuration reports."""
    then, later = changes.of_run(TAGS, config()), changes.of_run({**TAGS, **tags}, now or config())
    return [str(change) for change in changes.differences(then, later)]


def test_the_same_record_has_no_changes() -> None:
    assert changed({}) == []


def test_every_kind_of_change_is_named_with_both_values() -> None:
    other = config(training={"learning_rate": 0.5}, run={"seed": 7})
    assert changed({"mlflow.mlflow_ft.code": "sha256:new"}) == ["code mlflow-ft: sha256:code, now sha256:new"]
    assert changed({"mlflow_ft.data_fingerprint": "new"}) == ["data fingerprint: rows, now new"]
    assert changed({"mlflow_ft.base_revision": "new"}) == ["base revision: sha256:base, now new"]
    assert changed({"mlflow.mlflow_ft.versions": "torch 3"}) == ["library torch: 2.9.0, now 3"]
    assert changed({"mlflow_ft.plugins": "acme 1.3 sha256:new"}) == ["plugin acme: 1.2 sha256:acme, now 1.3 sha256:new"]
    assert changed({"mlflow.mlflow_ft.processor": "EPYC, AVX2"}) == ["machine processor: Xeon, AVX512, now EPYC, AVX2"]
    assert changed({}, other) == ["seed run.seed: 42, now 7", "config training.learning_rate: 0.0002, now 0.5"]


def test_the_threads_of_a_cpu_and_the_place_of_an_adapter_are_not_reported_twice() -> None:
    assert changed({"mlflow_ft.device": "CPU, 2 threads", "mlflow.mlflow_ft.threads": "2"}) == [
        "machine threads: 4, now 2"
    ]
    assert changed({"mlflow_ft.start": "/another/adapter sha256:start"}) == []
    assert changed({"mlflow_ft.start": "/one/machine/adapter sha256:new"}) != []


def test_settings_without_an_effect_on_the_result_are_no_change() -> None:
    elsewhere = config(run={"name": "x", "output_dir": "/x"}, registry={"alias": "x"}, package={"round_trip": False})
    assert changed({"mlflow_ft.git_commit": "x"}, elsewhere) == []


def test_what_one_side_does_not_know() -> None:
    then = changes.of_run(TAGS, config())
    old = {key: value for key, value in then.items() if key[0] not in ("code", "plugin")}
    unread = {key: value for key, value in then.items() if key[0] not in ("data", "base", "library")}
    assert [str(change) for change in changes.differences(old, then)] == [
        "code mlflow-ft: not recorded, now sha256:code",
        "plugin acme: not recorded, now 1.2 sha256:acme",
    ]
    without = {key: value for key, value in then.items() if key[0] != "plugin"}
    (added,) = changes.differences(without, then)
    assert str(added) == "plugin acme: not loaded, now 1.2 sha256:acme"
    (missing,) = changes.differences(then, unread)
    assert str(missing) == "library torch: 2.9.0, now not installed"
    assert changes.differences(then, unread, kinds=("seed", "config")) == []


def test_this_process_has_the_facts_of_a_run_that_it_would_start() -> None:
    now = changes.current(config(), plugins.load({"MLFLOW_FT_PLUGINS": ""}))
    kinds = {kind for kind, _ in now}
    assert kinds == {"config", "seed", "code", "plugin", "library", "machine"}
    assert not any(name == "builtin" for kind, name in now if kind == "plugin")
