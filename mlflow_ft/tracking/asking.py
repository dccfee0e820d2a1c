"""One request to an MLflow server, as MLflow itself would make it: to see what the server says."""

from __future__ import annotations

from typing import Any

import requests
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

EXPERIMENTS = "/api/2.0/mlflow/experiments/search?max_results=1"


def asked(uri: str, path: str, *, timeout: float, method: str = "GET", **about: Any) -> requests.Response:
    """A server's answer, whatever its status, to a request with MLflow's credentials, certificates and headers.

    Raises:
        requests.RequestException: there is no answer. MlflowException: the credentials contradict each other.
    """
    try:
        answer: requests.Response = http_request(
            get_default_host_creds(uri), path, method, max_retries=0, timeout=timeout, raise_on_status=False, **about
        )
    except MlflowException as error:
        for cause in (error.__cause__, error.__context__):
            if isinstance(cause, requests.RequestException):
                raise cause from None
        raise
    return answer


def has_experiments(uri: str, *, timeout: float) -> bool:
    """Whether a server answers MLflow's API: a proxy may forward nothing else, or have a /health of its own."""
    answer = asked(uri, EXPERIMENTS, timeout=timeout)
    try:
        return answer.ok and isinstance(answer.json(), dict)
    except ValueError:
        return False
