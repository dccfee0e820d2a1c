"""The tracking server: whether it answers, how its URI is written, and its errors in the user's terms."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.entities import PagedList
from mlflow.utils.workspace_context import get_request_workspace
from mlflow.utils.workspace_utils import DEFAULT_WORKSPACE_NAME

from mlflow_ft.errors import ConfigError, FineTuneError, TrackingError
from mlflow_ft.tracking import local_store
from mlflow_ft.tracking.asking import asked, has_experiments
from mlflow_ft.tracking.faults import REMEDIES, Fault, UnacceptedError, fault_of, words

VARIABLE = "MLFLOW_TRACKING_URI"
PROBE_SECONDS = 5.0
HEALTH = "/health"
ELSEWHERE = (200, 404)
"""What a proxy in front of an MLflow server answers if /health is its own, or is not forwarded."""
PATIENCE = "MLFLOW_FT_PATIENCE"
"""The environment variable with the seconds that a call waits for a server that is away."""
PATIENCE_SECONDS = 300.0
FIRST_DELAY = 0.5
UPLOADS = "/mlflow-artifacts/"
"""In the address of every artifact that an MLflow server receives."""
T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Service:
    """One of MLflow's services, as messages name it."""

    name: str
    variable: str
    """The environment variable that holds its URI."""


TRACKING = Service(name="tracking server", variable="MLFLOW_TRACKING_URI")
REGISTRY = Service(name="registry server", variable="MLFLOW_REGISTRY_URI")


def check_server(
    uri: str | None = None, *, timeout: float = PROBE_SECONDS, service: Service = TRACKING, create: bool = True
) -> None:
    """Raise if the URI of a service cannot work, before any model is loaded; create a new local store.

    `uri` defaults to MLflow's own (MLFLOW_TRACKING_URI); Databricks is not probed. `create` makes a new store.

    Raises:
        TrackingError: nothing answers, it is not an MLflow server, it refuses, the folder is not writable, or the
        store is damaged.
    """
    uri = uri or mlflow.get_tracking_uri()
    if is_http(uri):
        _check_http(uri, timeout, service)
    elif uri.startswith("sqlite:"):
        _check_sqlite(uri, service, create=create)


def connect(uri: str | None = None) -> MlflowClient:
    """MLflow's client for a tracking server that answers and its registry, or for a local store that is ready.

    Raises:
        TrackingError: as `check_server`.
    """
    check_server(uri)
    return MlflowClient(uri, registry_uri=uri) if uri else MlflowClient(mlflow.get_tracking_uri())


def every(search: Callable[[str | None], PagedList[T]]) -> Iterator[T]:
    """The results of all pages of one of MLflow's searches; `search` takes the token of a page."""
    token = None
    while True:
        page = search(token)
        yield from page
        token = page.token
        if not token:
            return


def answers(uri: str, *, timeout: float = PROBE_SECONDS) -> bool:
    """Whether `uri` answers requests; always True for a URI that is not http(s)."""
    if not is_http(uri):
        return True
    try:
        status = asked(uri, HEALTH, timeout=timeout).status_code
    except (requests.RequestException, MlflowException):
        return False
    return status < 500  # a proxy answers 502, 503 or 504 for a server that is down


def absolute(uri: str) -> str:
    """The URI with a store's relative path made absolute, so that it works from any folder."""
    path = sqlite_file(uri)
    if path is not None:
        return f"sqlite:///{path.resolve()}" + uri.partition("?")[1] + uri.partition("?")[2]
    return uri if ":" in uri or uri == "databricks" else str(Path(uri).resolve())


@contextmanager
def pinned_store(environ: MutableMapping[str, str] = os.environ) -> Iterator[None]:
    """Keep a relative address of the tracking store where it points to now, whatever the current folder becomes."""
    before = environ.get(VARIABLE)
    environ[VARIABLE] = absolute(mlflow.get_tracking_uri())
    try:
        yield
    finally:
        if before is None:
            environ.pop(VARIABLE, None)
        else:
            environ[VARIABLE] = before


def shown(uri: str) -> str:
    """The URI without user name and password."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def page(uri: str, experiment_id: str, run_id: str) -> str | None:
    """Address of the run's page in the UI; None for a store without a server."""
    if not is_http(uri):
        return None
    workspace = get_request_workspace() or DEFAULT_WORKSPACE_NAME
    within = "" if workspace == DEFAULT_WORKSPACE_NAME else f"?workspace={quote(workspace, safe='')}"
    return f"{shown(uri).rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}{within}"


@contextmanager
def told(what: str) -> Iterator[None]:
    """Turn errors of MLflow, the network and artifact stores into a TrackingError: `could not <what>: ...`."""
    try:
        yield
    except FineTuneError:
        raise
    except Exception as error:  # artifact stores raise errors of their own clients; what is not known is raised again
        fault = fault_of(error)
        message, where = f"could not {what}: {words(error)}", f"the tracking URI is {shown(mlflow.get_tracking_uri())}"
        if fault is not Fault.OTHER:
            hint = "; ".join(filter(None, (REMEDIES[fault], where)))
            raise UnacceptedError(message, fault=fault, hint=hint) from error
        if isinstance(error, MlflowException | OSError):  # includes the errors of requests
            missing = isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST"
            raise TrackingError(message, hint=f"check the name or the id; {where}" if missing else where) from error
        raise


def patience(environ: Mapping[str, str] = os.environ) -> float:
    """Seconds that a call waits for a server that is away: MLFLOW_FT_PATIENCE, or 300.

    Raises:
        ConfigError: the variable is not a number of seconds.
    """
    text = environ.get(PATIENCE) or str(PATIENCE_SECONDS)
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ConfigError(f"{PATIENCE}={text} is not a number of seconds", hint=f"for example {PATIENCE}=300")
    return seconds


def insist(
    what: str,
    call: Callable[[], T],
    *,
    uri: str,
    seconds: float | None = None,
    stopping: Callable[[], bool] = lambda: False,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """Call until the server has answered; calling `call` twice must be safe.

    Between two calls it asks whether the server answers at all, because a call to a server that hangs takes minutes.

    Args:
        seconds: How long to wait for a server that is away; `patience()` if not given. With 0 there is one call.
        stopping: If true, a server that is away is not waited for.

    Raises:
        UnacceptedError: the server does not come back in time, or it or its artifact store accepts nothing.
        TrackingError: the request is wrong.
    """
    seconds = patience() if seconds is None else seconds
    deadline, delay = clock() + seconds, FIRST_DELAY
    if not seconds and not answers(uri):
        raise UnacceptedError(f"could not {what}: no tracking server answers at {shown(uri)}", fault=Fault.AWAY)
    while True:
        try:
            with told(what):
                return call()
        except UnacceptedError as error:
            if error.fault is not Fault.AWAY:
                raise
            if delay == FIRST_DELAY:
                log.warning("%s; waiting up to %.0f s for the server", error.message, seconds)
            while True:
                if clock() >= deadline or stopping():
                    raise _of_store(error, uri) from error.__cause__
                sleep(min(delay, deadline - clock()))
                delay = min(2 * delay, PROBE_SECONDS)
                if answers(uri):
                    break


def _of_store(error: UnacceptedError, uri: str) -> UnacceptedError:
    """The error, about the artifact store if only uploads fail: a server answers 500 when its disk is full."""
    if UPLOADS not in str(error.__cause__) or not answers(uri):
        return error
    message = f"{error.message} to uploads only: its artifact store is full or read-only"
    return UnacceptedError(message, fault=Fault.STORE, hint=f"{REMEDIES[Fault.STORE]}; {error.hint}")


def is_http(uri: str) -> bool:
    """Whether a URI is that of a server."""
    return uri.startswith(("http://", "https://"))


def _check_http(uri: str, timeout: float, service: Service) -> None:
    try:
        response = asked(uri, HEALTH, timeout=timeout)
        healthy = response.status_code == 200 and response.text.strip() == "OK"
        works = healthy or (response.status_code in ELSEWHERE and has_experiments(uri, timeout=timeout))
    except requests.exceptions.SSLError as error:
        raise TrackingError(
            f"the certificate of {shown(uri)} is not trusted: {error}",
            hint="set MLFLOW_TRACKING_SERVER_CERT_PATH to the file of its certificate authority",
        ) from error
    except requests.RequestException as error:
        raise UnacceptedError(
            f"no {service.name} answers at {shown(uri)} ({type(error).__name__})",
            fault=Fault.AWAY,
            hint=f"start it (`mlflow server`), or set {service.variable} to another server or to sqlite:///mlflow.db",
        ) from error
    except MlflowException as error:
        raise TrackingError(
            f"{shown(uri)} cannot be asked: {error}", hint="correct or unset the variables that it names"
        ) from error
    if response.status_code == 403:
        raise UnacceptedError(
            f"{shown(uri)} refuses this host name or user (403: {response.text[:200].strip()})",
            fault=Fault.CREDENTIALS,
            hint=f"start the server with `mlflow server --allowed-hosts {urlsplit(uri).hostname}`, or check the user",
        )
    if response.status_code == 401:
        raise UnacceptedError(
            f"{shown(uri)} requires authentication (401)",
            fault=Fault.CREDENTIALS,
            hint="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
        )
    if not works:
        raise UnacceptedError(
            f"the server at {shown(uri)} is not an MLflow server (/health: {response.status_code})",
            fault=Fault.AWAY if response.status_code >= 500 else Fault.OTHER,
            hint=f"check the host, port and path of {service.variable}",
        )


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite store; None for another store, or one in memory."""
    path = uri.partition("?")[0].partition(":///")[2]
    return Path(path) if uri.startswith("sqlite:///") and path and path != ":memory:" else None


def _check_sqlite(uri: str, service: Service, *, create: bool) -> None:
    path = sqlite_file(uri)
    if path is None:
        return
    elsewhere = f"or set {service.variable} to another file"
    if not path.absolute().parent.is_dir():
        raise TrackingError(f"{shown(uri)}: no folder {path.absolute().parent}", hint=f"create it, {elsewhere}")
    # SQLite writes its journal next to the file, so the folder must be writable too
    for place in (path.absolute().parent, path.absolute()):
        if place.exists() and not os.access(place, os.W_OK):
            what = "folder" if place.is_dir() else "file"
            raise TrackingError(
                f"{shown(uri)}: the {what} {place} is not writable", hint=f"make it writable, {elsewhere}"
            )
    if create:
        local_store.prepare(path.absolute(), uri)
