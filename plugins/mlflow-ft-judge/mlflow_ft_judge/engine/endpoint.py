"""One OpenAI-compatible chat endpoint: requests with retries, and every failure with its reason."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.response import BaseHTTPResponse
from urllib3.util import Retry

from mlflow_ft_judge.settings import JudgeAt, JudgeOptions

RETRIED = (408, 425, 429, 500, 502, 503, 504, 529)
LONGEST_WAIT = 60.0
"""Seconds; a server that asks for a longer wait is asked again after this."""
CONNECT_SECONDS = 10.0
HOPELESS = (401, 402, 403, 404, 405, 410)
"""The next request would be refused, too."""
LONGEST_REASON = 160


class NotJudgedError(Exception):
    """A request that failed for good."""

    def __init__(self, reason: str, *, hopeless: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hopeless = hopeless
        """Whether the next request would fail, too: the key is wrong, the model unknown."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the judge wrote, and what it cost."""

    text: str
    tokens_in: int = 0
    tokens_out: int = 0
    retried: int = 0
    """How often the request was repeated before it was answered."""


class _Backoff(Retry):
    """urllib3's retries, which wait as long as the server asks, but not for hours."""

    def get_retry_after(self, response: BaseHTTPResponse) -> float | None:
        seconds = super().get_retry_after(response)
        return None if seconds is None else min(seconds, LONGEST_WAIT)


class _Bearer(requests.auth.AuthBase):
    """The key, and nothing from ~/.netrc."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


class Endpoint:
    """A judging model behind HTTP; may be used by several threads."""

    def __init__(self, judge: JudgeAt, options: JudgeOptions) -> None:
        self.judge = judge
        self._options = options
        self._session = requests.Session()
        self._session.auth = _Bearer(judge.key)
        retry = _Backoff(
            total=options.retries,
            status_forcelist=RETRIED,
            allowed_methods=None,  # a POST that asks a model changes nothing
            backoff_factor=options.backoff,
            backoff_max=LONGEST_WAIT,
            backoff_jitter=options.backoff / 2,
            raise_on_status=False,
        )
        adapter = HTTPAdapter(max_retries=retry, pool_maxsize=options.workers)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, adapter)
        self._lock = threading.Lock()
        self._without: frozenset[str] = frozenset()
        """Parameters that this endpoint has refused."""

    def close(self) -> None:
        """Close all connections."""
        self._session.close()

    def models(self) -> list[str] | None:
        """The endpoint's list of models; None if it has none to show.

        Raises:
            NotJudgedError: it does not answer, or refuses the key.
        """
        response = self._send("GET", "models", None)
        if response.status_code in (401, 403):
            raise NotJudgedError(self._refusal(response), hopeless=True)
        try:
            return [str(model["id"]) for model in response.json()["data"]] if response.ok else None
        except (ValueError, KeyError, TypeError):
            return None

    def complete(self, messages: Sequence[Mapping[str, str]], *, schema: Mapping[str, Any] | None = None) -> Reply:
        """The judge's reply; JSON of `schema` if the endpoint can enforce one.

        Raises:
            NotJudgedError: the request failed, and so did every repetition.
        """
        while True:
            without = self._without
            response = self._send("POST", "chat/completions", self._body(messages, schema, without))
            if response.ok:
                return self._reply(response)
            refused = self._refused_parameter(response, without, schema)
            if not refused:
                raise NotJudgedError(self._refusal(response), hopeless=response.status_code in HOPELESS)
            with self._lock:
                self._without |= {refused}

    def _body(
        self, messages: Sequence[Mapping[str, str]], schema: Mapping[str, Any] | None, without: frozenset[str]
    ) -> dict[str, Any]:
        longest = "max_completion_tokens" if "max_tokens" in without else "max_tokens"
        body = {"model": self.judge.model, "messages": list(messages), longest: self._options.max_tokens}
        if "temperature" not in without:
            body["temperature"] = self._options.temperature
        if schema and "response_format" not in without:
            form = {"name": "judgement", "schema": schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        return body

    def _refused_parameter(
        self, response: requests.Response, without: frozenset[str], schema: Mapping[str, Any] | None
    ) -> str:
        """A parameter of ours that the endpoint does not know; "" if it refuses something else."""
        if response.status_code not in (400, 422):
            return ""
        said = response.text.lower()
        sent = {"response_format"} if schema else set()
        sent |= {"temperature", "max_tokens"}
        words = {"response_format": ("response_format", "json_schema", "structured output")}
        for name in ("response_format", "max_tokens", "temperature"):
            if name in sent - without and any(word in said for word in words.get(name, (name,))):
                return name
        return ""

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> requests.Response:
        try:
            return self._session.request(
                method,
                f"{self.judge.endpoint}/{path}",
                json=body,
                timeout=(min(CONNECT_SECONDS, self._options.timeout), self._options.timeout),
                allow_redirects=False,  # a key goes to the endpoint that was named, and nowhere else
            )
        except requests.RequestException as error:
            raise NotJudgedError(self._clean(_in_words(error))) from None  # its text may hold the request's headers

    def _reply(self, response: requests.Response) -> Reply:
        try:
            answer = response.json()
            text = answer["choices"][0]["message"].get("content") or ""
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise NotJudgedError("the endpoint did not answer as OpenAI's API does") from None
        usage = answer.get("usage") or {}
        history = getattr(response.raw.retries, "history", ())
        return Reply(
            text=text if isinstance(text, str) else json.dumps(text),
            tokens_in=_count(usage, "prompt_tokens"),
            tokens_out=_count(usage, "completion_tokens"),
            retried=len(history),
        )

    def _refusal(self, response: requests.Response) -> str:
        """Status and message of a refused request, without the key."""
        try:
            message = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = ""
        return self._clean(f"{response.status_code} {message or response.reason or ''}")

    def _clean(self, text: str) -> str:
        """One line without the key, which some servers repeat."""
        line = " ".join(text.split())
        line = line.replace(self.judge.key, "[key]") if self.judge.key else line
        return line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]} ..."


def _in_words(error: requests.RequestException) -> str:
    reason = str(error).lower()
    if isinstance(error, requests.Timeout) or "timed out" in reason:
        return "the endpoint did not answer in time"
    if isinstance(error, requests.exceptions.SSLError):
        return "the endpoint's certificate cannot be verified"
    if "refused" in reason:
        return "nothing listens at the endpoint"
    if isinstance(error, requests.ConnectionError):
        return "the connection to the endpoint failed"
    return f"the request failed ({type(error).__name__})"


def _count(usage: Any, name: str) -> int:
    value = usage.get(name) if isinstance(usage, Mapping) else None
    return value if type(value) is int and value > 0 else 0
