"""What cannot be started in several processes is refused before anything is loaded, and leaves no run."""

from __future__ import annotations

import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mlflow_ft import Launcher, launched, plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.engine import ranks
from mlflow_ft.errors import ConfigError
from mlflow_ft.operations import launching
from mlflow_ft.processes import Place
from mlflow_ft.registry import Registry

ACCELERATE = {"launch.launcher": "accelerate", "launch.num_processes": 2}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"launch.num_processes": 2}, "launch.launcher local is one process, but 2 are asked for"),
        ({"launch.launcher": "accelerat"}, "did you mean accelerate?"),
        ({"launch.launcher": "accelerate"}, "no GPU here; give the number of processes"),
        (ACCELERATE | {"launch.strategy": "fsdp", "model.quantize": "nf4"}, "quantised to nf4 cannot be sharded"),
        (ACCELERATE | {"launch.strategy": "fsdp", "adapter.kind": "prefix"}, "prefix comes before the text and cannot"),
        (ACCELERATE | {"launch.strategy": "fsdp", "method": "grpo"}, "method grpo trains with ddp only, not with fsdp"),
        (
            ACCELERATE | {"launch.strategy": "deepspeed-zero3", "launch.deepspeed_config": "missing.json"},
            "there is no file missing.json",
        ),
        (ACCELERATE | {"launch.num_machines": 2}, "2 machines need the address of machine 0"),
        (ACCELERATE | {"launch.machine_rank": 1}, "machine 1 of 1 does not exist"),
        (
            ACCELERATE | {"launch.num_processes": 3, "launch.num_machines": 2, "launch.main_process_ip": "127.0.0.1"},
            "3 processes cannot be shared out over 2 machines",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_are_refused(
    fine_tune: Callable[..., Any], tiny_model: Path, tiny_rows: Path, settings: dict[str, Any], words: str
) -> None:
    method = settings.get("method", "lora")
    settings = {name: value for name, value in settings.items() if name != "method"}
    with pytest.raises(ConfigError, match=words):
        fine_tune(method, model=tiny_model, data=tiny_rows, **settings)
    assert not MlflowClient().search_runs(["0"])


def test_a_process_that_a_launcher_started_alone_starts_no_other(
    tiny_model: Path, tiny_rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would start one that starts one, until the machine is full."""
    loaded = plugins.load()
    one = ["--launch.launcher=accelerate", "--launch.num_processes=1"]
    config = asked(["lora", f"--model={tiny_model}", f"--data={tiny_rows}", *one], loaded)
    record = launching.launcher(config, Registry(loaded))
    assert record is not None
    found: list[Launcher | None] = []

    def look(request: launching.Request, loaded: plugins.Plugins, **_: Any) -> None:
        found.append(launching.launcher(request.config, Registry(loaded)))
        raise ConfigError("seen")

    monkeypatch.setattr(launched, "requested", look)
    assert "seen" in launched.work(launching.Request(verb="run", settings=config.model_dump_json()).text)
    assert found == [None]
    assert launching.launcher(config, Registry(loaded)) is record


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="DeepSpeed is installed")
def test_deepspeed_that_is_not_installed_is_named(
    fine_tune: Callable[..., Any], tiny_model: Path, tiny_rows: Path
) -> None:
    with pytest.raises(ConfigError, match=r"DeepSpeed is not installed: pip install 'mlflow-ft\[deepspeed\]'"):
        fine_tune("lora", model=tiny_model, data=tiny_rows, **ACCELERATE, **{"launch.strategy": "deepspeed-zero2"})
    assert not MlflowClient().search_runs(["0"])


def test_a_port_in_use_is_refused(fine_tune: Callable[..., Any], tiny_model: Path, tiny_rows: Path) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} is not free"):
            fine_tune("lora", model=tiny_model, data=tiny_rows, **ACCELERATE, **{"launch.main_process_port": port})


def test_a_rank_that_never_comes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    with pytest.raises(ConfigError, match=r"not all 2 processes came within 0\.01 minutes") as refused:
        ranks.join(Place(rank=0, size=2), join_minutes=0.01, timeout_minutes=1)
    assert f"127.0.0.1:{port}" in str(refused.value)
    assert ranks.size() == 1
