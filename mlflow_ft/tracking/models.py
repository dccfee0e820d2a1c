"""LoggedModels and registered versions: models from code, with folders as artifacts and without pickle."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.llm import CHAT_MODEL_INPUT_SCHEMA, CHAT_MODEL_OUTPUT_SCHEMA
from mlflow.types.schema import AnyType, Array, Map
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from mlflow_ft.errors import ModelError, RefusedError
from mlflow_ft.tracking import contenders, created_once
from mlflow_ft.tracking.faults import Fault, fault_of
from mlflow_ft.tracking.server import connect

LONGEST_MODEL_PARAM = 250
MESSAGES = Array(Map(AnyType()))
"""Objects with any keys: MLflow's own type refuses keys that OpenAI's API has, and tools with nested parameters."""
EXTRA_INPUTS = {"model": "string", "seed": "long", "max_completion_tokens": "long"}
PARAMS = {"temperature": "double", "top_p": "double", "top_k": "long", "max_tokens": "long"} | EXTRA_INPUTS
"""What a request may also give as one of MLflow's `params`, for all rows of a table. MLflow takes these from plain chat
JSON as well, and none of several types, such as `stop`."""
LONGEST_VERSION_TAG = 5000


def chat_signature() -> ModelSignature:
    """OpenAI's chat completion as an MLflow signature: `mlflow models serve` accepts and returns plain chat JSON.

    With it a `PythonModel.predict` receives a pandas DataFrame of one row, with the request's columns (`messages` is a
    list of dicts), and returns one dict; what is in `PARAMS` may arrive as its `params` instead. Keys outside the
    schema, and `params` outside `PARAMS`, are dropped. MLflow's own schema lacks `model`, `seed` and
    `max_completion_tokens`. The types are left to the model, which checks them: MLflow would not accept a `stop` that
    is a single text, a temperature of 2 for 2.0, or two requests of which one has no `max_tokens`.
    """
    settings = [column.name for column in CHAT_MODEL_INPUT_SCHEMA if column.name != "messages"] + [*EXTRA_INPUTS]
    inputs = Schema([ColSpec(MESSAGES, "messages"), *(ColSpec(AnyType(), name, required=False) for name in settings)])
    params = [ParamSpec(name, DataType[kind], None) for name, kind in PARAMS.items()]
    return ModelSignature(inputs=inputs, outputs=CHAT_MODEL_OUTPUT_SCHEMA, params=ParamSchema(params))


@dataclass(frozen=True, kw_only=True)
class ModelToLog:
    """A model from code: `code` calls `mlflow.models.set_model`; `artifacts` are files and folders by name.

    An artifact folder is `context.artifacts[name]`; a file is inside it under its own name. No pickle and no inference
    of requirements; the code is imported once and the model is not loaded.
    """

    name: str
    code: Path
    artifacts: Mapping[str, Path]
    signature: ModelSignature
    pip_requirements: Sequence[str]
    model_type: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    model_config: Mapping[str, Any] = field(default_factory=dict)
    """Keys that `mlflow.pyfunc.load_model(model_config=...)` may override; MLflow ignores any other."""
    input_example: Any = None
    step: int = 0


def log_model(client: MlflowClient, wanted: ModelToLog, *, run_id: str, experiment_id: str) -> str:
    """Log the model as an output of the run and return its id; it is READY, or FAILED if this raises.

    An attempt that a lost connection ended is continued, so that the model exists once.

    `mlflow.pyfunc.log_model` would copy the artifacts to a temporary folder first, link every metric of the run's
    step to the model, and load the model again if there is an input example.
    """
    params = {key: value[:LONGEST_MODEL_PARAM] for key, value in client.get_run(run_id).data.params.items()}
    model = created_once.logged_model(
        client,
        experiment_id=experiment_id,
        run_id=run_id,
        name=wanted.name.translate(str.maketrans("/:.", "---")),
        artifacts=wanted.artifacts,
        params={key: value for key, value in params.items() if key.startswith("cfg.")},
        model_type=wanted.model_type,
    )
    try:
        created_once.output(client, run_id=run_id, model_id=model.model_id, step=wanted.step)
        if model.status == LoggedModelStatus.READY:  # only the answer to its last request was lost
            return str(model.model_id)
        with tempfile.TemporaryDirectory() as folder:
            skeleton = Path(folder, "model")
            _save_skeleton(skeleton, wanted, model, run_id=run_id)
            for name, path in wanted.artifacts.items():
                _upload(client, model.model_id, name, path)
            client.log_model_artifacts(model.model_id, str(skeleton))  # MLmodel last: it marks the model complete
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    except BaseException as error:  # a signal too leaves a model that is not complete; it is raised again
        if fault_of(error) is Fault.AWAY:  # it stays PENDING, and the next attempt continues it
            raise
        with _quietly():
            client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)
        raise
    return str(model.model_id)


def _save_skeleton(folder: Path, wanted: ModelToLog, model: LoggedModel, *, run_id: str) -> None:
    """Save everything of an MLflow model except its artifacts: MLmodel, code, requirements."""
    description = Model(
        artifact_path=model.artifact_location,
        model_uuid=model.model_id,
        model_id=model.model_id,
        run_id=run_id,
        metadata=dict(wanted.metadata),
    )
    # MLflow warns about missing type hints and sets its own filters, which recording the warnings overrides
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("ignore", UserWarning)
        mlflow.pyfunc.save_model(
            path=str(folder),
            python_model=str(wanted.code),
            signature=wanted.signature,
            input_example=wanted.input_example,
            model_config=dict(wanted.model_config) or None,
            pip_requirements=list(wanted.pip_requirements),
            mlflow_model=description,
        )
    description.flavors["python_function"]["artifacts"] = {
        name: {"path": f"artifacts/{name}/{path.name}" if path.is_file() else f"artifacts/{name}", "uri": path.name}
        for name, path in wanted.artifacts.items()
    }
    description.flavors["python_function"]["model_code_path"] = wanted.code.name  # without the local folder
    description.model_size_bytes = _size(folder) + sum(_size(path) for path in wanted.artifacts.values())
    description.save(str(folder / "MLmodel"))


def _upload(client: MlflowClient, model_id: str, name: str, path: Path) -> None:
    if path.is_file():
        client.log_model_artifact(model_id, str(path), artifact_path=f"artifacts/{name}")
    else:
        client.log_model_artifacts(model_id, str(path), artifact_path=f"artifacts/{name}")


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def register(
    client: MlflowClient,
    *,
    name: str,
    model_id: str,
    run_id: str,
    tags: Mapping[str, str],
    alias: str,
    description: str | None = None,
) -> int:
    """Register a LoggedModel as the next version of `name`, move `alias` to it, and return the version's number.

    An empty alias moves nothing.

    Raises:
        RefusedError: the model is not READY, or has no MLmodel file; MLflow itself would register it.
    """
    model = _ready(client, model_id)
    ensure_registered_model(client, name, description=_about(name, tags))
    version = created_once.version(
        client,
        name=name,
        model_id=model_id,
        run_id=run_id,
        tags={key: value[:LONGEST_VERSION_TAG] for key, value in tags.items()},
        description=description,
    )
    earlier = json.loads(model.tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
    here = {"name": name, "version": int(version.version)}
    listed = earlier if here in earlier else [*earlier, here]
    client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: json.dumps(listed)})
    if alias:
        set_alias(client, name=name, alias=alias, version=str(version.version))
    return int(version.version)


def _about(name: str, tags: Mapping[str, str]) -> str:
    """What the page of a new registered model says; what users write there later stays."""
    base, form = tags.get("mlflow_ft.base_model"), tags.get("mlflow_ft.form")
    return (
        f"{base or 'A language model'}, fine-tuned with mlflow-ft{f' (form: {form})' if form else ''}.\n\n"
        "The page of each version is its model card: data, method, scores before and after training, how close its "
        f"files are to the trained model, and limits. `mlflow-ft promote {name}` makes the candidate the champion if "
        f"its gates pass; `mlflow-ft history {name}` lists every move."
    )


def pinned(uri: str) -> str:
    """`models:/NAME@alias` and `models:/NAME/latest` as `models:/NAME/VERSION`; any other URI unchanged.

    Raises:
        ModelError: the registry has no such model or alias.
    """
    name, at, alias = uri.removeprefix("models:/").partition("@")
    latest = uri.endswith("/latest")
    if not uri.startswith("models:/") or not (at or latest):
        return uri
    client = connect()
    if latest:
        name = name.removesuffix("/latest")
        versions = contenders.numbers(client, name)
        if not versions:
            raise ModelError(f"the registry has no version of {name!r}", hint="check the names in the MLflow UI")
        return f"models:/{name}/{max(versions)}"
    try:
        version = client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        raise ModelError(
            f"the registry has no model {name!r} with the alias {alias!r}",
            hint=f"check MLFLOW_TRACKING_URI ({mlflow.get_tracking_uri()}) and the names in the MLflow UI",
        ) from error
    return f"models:/{name}/{version.version}"


def find(client: MlflowClient, uri: str) -> None:
    """Raise if what `models:/...` names does not exist.

    Raises:
        ModelError: the registry has no such model, version or alias. MlflowException: there is no such logged model.
    """
    name, _, version = pinned(uri).removeprefix("models:/").partition("/")
    if name.startswith("m-") and not version.isdecimal():
        client.get_logged_model(name)
    else:
        contenders.find_version(client, name, version.partition("/")[0])


def _ready(client: MlflowClient, model_id: str) -> LoggedModel:
    model = client.get_logged_model(model_id)
    if model.status != LoggedModelStatus.READY:
        raise RefusedError(f"model {model_id} is {model.status}, not READY", hint="log it again; nothing is registered")
    if "MLmodel" not in {file.path for file in client.list_logged_model_artifacts(model_id)}:
        raise RefusedError(f"model {model_id} has no MLmodel file", hint="log it again; nothing is registered")
    return model


def ensure_registered_model(client: MlflowClient, name: str, *, description: str | None = None) -> None:
    """Create the registered model unless it exists; of several processes exactly one creates it.

    It is looked up first: each attempt to create an existing model holds two server connections at once, and 20 of
    them exhaust a pool of 15 (MLflow 3.17).
    """
    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    else:
        return
    try:
        client.create_registered_model(name, description=description)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
            raise


def set_alias(client: MlflowClient, *, name: str, alias: str, version: str) -> None:
    """Move the alias; it points to a version at every moment."""
    try:
        client.set_registered_model_alias(name, alias, version)
    except MlflowException:  # when several runs create an alias at once, all but one fail on PostgreSQL
        client.set_registered_model_alias(name, alias, version)


@contextmanager
def _quietly() -> Iterator[None]:
    """Suppress errors while another error is on its way to the user."""
    try:
        yield
    except Exception:  # see above
        return
