"""The page at the root of a server: what is served, how to ask it, and a box to try it."""

from __future__ import annotations

import ipaddress
import json
import shlex
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from mlflow_ft.engine.serving import guard
from mlflow_ft.engine.serving.loaded_models import BASE, Served
from mlflow_ft.values import Serving

ENDPOINTS = {
    "/v1/chat/completions": "OpenAI's chat completions, with streaming",
    "/v1/models": "the names of the models",
    "/invocations": "MLflow's scoring route",
    "/ping": "status 200 if the server answers; as /health",
}
SCORING = ("/invocations", "/v1/models", "/ping")
"""Those of a reward model."""


def add(app: FastAPI, served: Served, serving: Serving) -> None:
    """Add the page to the server's routes, and refuse requests that pages of other sites send; see `guard.Guard`."""
    app.add_middleware(guard.Guard, hosts=_names(serving.listener.getsockname()[0]))

    @app.get("/")
    def page(request: Request) -> Response:
        return guard.page("served.html", _values(served, serving, url=str(request.base_url).rstrip("/")))


def _names(address: str) -> frozenset[str] | None:
    """The names of an address of this machine alone; None for one that others reach, by names of their own."""
    return guard.HERE | {address} if ipaddress.ip_address(address).is_loopback else None


def _values(served: Served, serving: Serving, *, url: str) -> dict[str, Any]:
    about = {model.name: dict(model.about) for model in serving.models}
    models = [{"name": name, "facts": about.get(name) or _of_base(serving)} for name in served.names]
    return {
        "models": models,
        "names": list(served.names),
        "chats": not served.scores,
        "endpoints": {path: words for path, words in ENDPOINTS.items() if not served.scores or path in SCORING},
        "curl": _curl(served, url),
    }


def _of_base(serving: Serving) -> Mapping[str, str]:
    """What is known of the shared base, which is served as `base`."""
    base = serving.models[0].base
    return {"model": base.whole_name, "form": f"the base, without an adapter ({BASE})"} if base else {}


def _curl(served: Served, url: str) -> str:
    route = "invocations" if served.scores else "v1/chat/completions"
    body = {"model": served.names[0], "messages": [{"role": "user", "content": "Hello"}]}
    if served.scores:
        body["messages"] = [*body["messages"], {"role": "assistant", "content": "Good morning."}]
    command = f"curl -s {shlex.quote(f'{url}/{route}')} -H 'Content-Type: application/json'"
    return f"{command} \\\n  -d {shlex.quote(json.dumps(body))}"
