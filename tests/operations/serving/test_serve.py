"""What a serving engine is given, and what is refused before it is started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from mlflow import MlflowClient

from mlflow_ft import ConfigError, RefusedError, Serving, ServingEngine, hookimpl, plugins
from mlflow_ft.engine.judging.reference import Loaded
from mlflow_ft.engine.serving import opening
from mlflow_ft.operations.serving import serve
from mlflow_ft.operations.serving.serve import ServeRequest
from mlflow_ft.progress import Progress
from mlflow_ft.registry import Registry

QUIET = Progress(quiet=True)


def with_engine(**fields: Any) -> plugins.Plugins:
    """The plugins, and one with the engine `mine`."""
    module = ModuleType("mine")

    @hookimpl
    def register_serving_engines() -> list[ServingEngine]:
        return [ServingEngine(name="mine", summary="in a test", **fields)]

    module.register_serving_engines = register_serving_engines  # type: ignore[attr-defined]  # a module made here
    loaded = plugins.load()
    info = loaded.add(module, name="mine")
    assert info.status == "active", info.error
    return loaded


def test_an_engine_gets_models_with_their_files_and_proves_them(
    tiny_model: Path, tiny_rows: Path, fine_tune: Callable[..., Any]
) -> None:
    fine_tune("lora", model=tiny_model, data=tiny_rows, learning_rate=1e-2, **{"registry.model_name": "lamp"})
    seen: list[str] = []

    def engine(serving: Serving) -> None:
        [model] = serving.models
        assert (model.name, model.uri) == ("lamp-adapter@candidate", "models:/lamp-adapter/1")
        assert model.base is not None
        assert model.base.path == tiny_model
        assert serving.listener.getsockname()[1] == int(serving.url.rpartition(":")[2])
        chat = opening.alone(model, QUIET)
        assert serving.prove(model, Loaded(chat.model))["kl_mean"] < 1e-6
        chat.model.base_model.disable_adapter_layers()
        with pytest.raises(RefusedError, match="is not the model that was trained") as refused:
            serving.prove(model, Loaded(chat.model))
        assert "it is not served" in str(refused.value)
        assert serving.look_up(model) is None
        move_alias("lamp-adapter")
        again = serving.look_up(model)
        assert again is not None
        assert (again.name, again.uri) == (model.name, "models:/lamp-adapter/2")
        serving.ready(["lamp"], "v1/chat/completions")
        seen.append("served")

    request = ServeRequest(model="lamp-adapter@candidate", engine="mine", port=0, follow=1.0)
    serve.serve(request, with_engine(serve=engine, follows=True), QUIET, lambda url, names, route: seen.append(route))
    assert seen == ["v1/chat/completions", "served"]


def move_alias(name: str) -> None:
    """Register the same model as version 2, and move the alias to it."""
    client = MlflowClient()
    first = client.get_model_version(name, "1")
    second = client.create_model_version(name, first.source, run_id=first.run_id)
    client.set_registered_model_alias(name, "candidate", second.version)


def test_the_limits_are_those_of_the_models_run(
    tiny_model: Path, tiny_rows: Path, fine_tune: Callable[..., Any], tmp_path: Path
) -> None:
    from mlflow_ft.operations.serving import proof, served_models

    settings = {"registry.model_name": "lamp", "package.max_kl": 0.5, "package.max_perplexity_change": 9}
    fine_tune("lora", model=tiny_model, data=tiny_rows, **settings)
    model = served_models.found("lamp@candidate", base=None, progress=QUIET)
    limits = proof.limits(model)
    assert (limits.max_kl, limits.max_perplexity_change, limits.min_top1) == (0.5, 9.0, 0.75)
    folder = served_models.found(str(model.folder), base=None, progress=QUIET)
    assert proof.limits(folder).max_kl == 0.02


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (ServeRequest(model="m", engine="mien"), "did you mean mine"),
        (ServeRequest(model="m@champion", follow=1.0), "engines that can: .*mine"),
        (ServeRequest(model="models:/m/3", engine="mine", follow=1.0), "no model is named by an alias"),
        (ServeRequest(model="m", engine="mine"), "--engine mine: there is no GPU"),
        (ServeRequest(), "no model was named"),
    ],
)
def test_what_cannot_be_served_is_refused_at_once(request_: ServeRequest, said: str) -> None:
    def refuses(config: Any) -> str:
        return "there is no GPU"

    loaded = with_engine(serve=lambda serving: pytest.fail("it was started"), follows=True, refuses=refuses)
    with pytest.raises(ConfigError, match=said):
        serve.check(request_, Registry(loaded))
