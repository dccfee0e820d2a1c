"""What a page on this machine is protected by: checks of who asks, and headers of what the page may do."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi.datastructures import Headers
from fastapi.responses import HTMLResponse, PlainTextResponse

from mlflow_ft.data import drawings

TEMPLATES = Path(__file__).parent / "templates"
HERE = frozenset(("127.0.0.1", "localhost", "::1"))
"""The names under which a browser reaches a server on its own machine."""


class Guard:
    """Refuses a request with status 403 that another site's page made the browser send.

    Such a request has that site's `Origin`; or its name as `Host`, if the site has pointed its name to this machine
    (DNS rebinding). Programs send no `Origin`.
    """

    def __init__(self, app: Any, *, hosts: Collection[str] | None = HERE) -> None:
        """`hosts` are the names that this server answers to; None: it has names that nobody here knows."""
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass the request on, or answer it."""
        if scope["type"] == "http" and (reason := self._refusal(Headers(scope=scope))):
            await PlainTextResponse(f"{reason}\n", status_code=403)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, headers: Headers) -> str:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._hosts is not None and _name(f"//{host}") not in self._hosts:
            return f"this server does not answer to the name {host!r}; open it by 127.0.0.1 or localhost"
        if origin is not None and urlsplit(origin).netloc != host:
            return f"a page of {origin} may not use this server"
        return ""


def _name(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:  # no address
        return None


def page(template: str, values: Mapping[str, Any], *, status: int = 200) -> HTMLResponse:
    """A page that loads nothing, runs its own script only, and asks nobody but this server."""
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    return HTMLResponse(drawings.page(template, TEMPLATES, nonce=nonce, **values), status_code=status, headers=headers)
