"""What an error of MLflow, the network or an artifact store means: wait, renew the credentials, or make room."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from enum import Enum

import requests
from mlflow.exceptions import MlflowException

from mlflow_ft.errors import TrackingError


class Fault(Enum):
    """Why a request was not carried out."""

    AWAY = "away"
    """No connection, no answer in time, an answer 5xx, or too many requests: it may succeed later."""
    CREDENTIALS = "credentials"
    """401 or 403: it will not succeed until someone renews the credentials or grants the permission."""
    STORE = "store"
    """The artifact store is full, read-only or refuses files."""
    OTHER = "other"
    """The request itself is wrong, or the program is."""


REMEDIES = {
    Fault.AWAY: "",
    Fault.CREDENTIALS: "renew the credentials (MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD) or ask for the permission",
    Fault.STORE: "make room in the artifact store, or make it writable",
    Fault.OTHER: "",
}
NO_ANSWER = ("failed with exception", "failed with timeout exception")
"""MLflow's words for a request without a usable answer, which include `too many 503 error responses`."""
CREDENTIAL_CODES = {"CUSTOMER_UNAUTHORIZED", "UNAUTHENTICATED", "PERMISSION_DENIED"}
BUSY_CODES = {"TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED"}
NOT_WRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
CLOUDS = {"boto3", "botocore", "azure", "google"}
"""Packages of the clients that upload directly to cloud storage; they have repeated the request themselves."""


class UnacceptedError(TrackingError):
    """The request is right, but the server or its artifact store does not accept it now."""

    def __init__(self, message: str, *, fault: Fault, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.fault = fault


def words(error: BaseException) -> str:
    """The error for a user: MLflow's message about a request without an answer has half a page."""
    text = str(error)
    if refused := re.search(
        r"API request to endpoint \S+ failed with error code (\d+) != 200\. Response body: '(.*)'", text
    ):
        return f"the tracking server answers {refused[1]}: {refused[2]}"
    if not any(known in text for known in NO_ANSWER):
        return text
    place = re.search(r"API request to (\w+)://([^/\s]+)", text)
    status = re.search(r"too many (\d+) error responses", text)
    how = f"answers {status[1]}" if status else "does not answer in time" if "timed out" in text else "does not answer"
    return f"{place[1]}://{place[2].rpartition('@')[2]} {how}" if place else f"the tracking server {how}"


def fault_of(error: BaseException) -> Fault:
    """Classify an error by the first exception in its chain of causes that says something."""
    return next((fault for cause in _causes(error) if (fault := _fault(cause)) is not Fault.OTHER), Fault.OTHER)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _fault(error: BaseException) -> Fault:
    if isinstance(error, UnacceptedError):
        return error.fault
    if isinstance(error, MlflowException):
        return _of_mlflow(error)
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return _of_status(error.response.status_code)
    if isinstance(error, requests.RequestException):
        return Fault.OTHER if isinstance(error, ValueError) else Fault.AWAY  # ValueError: a malformed URL or body
    if isinstance(error, ConnectionError | TimeoutError):
        return Fault.AWAY
    if isinstance(error, OSError) and error.errno in NOT_WRITABLE:
        return Fault.STORE
    return Fault.STORE if type(error).__module__.partition(".")[0] in CLOUDS else Fault.OTHER


def _of_mlflow(error: MlflowException) -> Fault:
    if error.error_code in CREDENTIAL_CODES:
        return Fault.CREDENTIALS
    if error.error_code in BUSY_CODES or any(words in str(error) for words in NO_ANSWER):
        return Fault.AWAY
    return Fault.OTHER


def _of_status(status: int) -> Fault:
    if status in (401, 403):
        return Fault.CREDENTIALS
    if status == 507:  # insufficient storage
        return Fault.STORE
    return Fault.AWAY if status >= 500 or status in (408, 429) else Fault.OTHER
