"""What is judged, by whom, and how much may fail."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any
from urllib.parse import urlsplit

from annotated_types import Ge, Gt, Lt

from mlflow_ft import ConfigError, Problem

ENDPOINT = "MLFLOW_FT_JUDGE_ENDPOINT"
"""The environment variable with the endpoint where the settings name none, as in promotions."""
API_KEY = "MLFLOW_FT_JUDGE_API_KEY"
"""The environment variable with the key for that endpoint."""
NAME = re.compile(r"[A-Za-z0-9_-]+")
TAKEN = ("win_rate", "wins", "ties", "losses", "position_bias", "not_judged", "tokens_in", "tokens_out", "cost")
"""Names of other scores, which no rubric may have."""
HELPFULNESS = """How well the answer serves the person who asked: correct, complete, to the point, in the form that was
asked for. 1: useless, wrong or off the question. 2: mostly wrong, or misses the main point. 3: partly right, with gaps
or errors that matter. 4: right, with small flaws. 5: right, complete and to the point."""


@dataclass(frozen=True, kw_only=True)
class Rubric:
    """One question about an answer, judged on a scale."""

    name: str
    """The score is `judge/NAME`."""
    instructions: str
    """What is judged, and what the numbers of the scale mean."""
    scale: tuple[int, int] = (1, 5)
    """The worst and the best mark."""
    reference: bool = True
    """Whether the judge sees the expected answer."""


DEFAULT = Rubric(name="helpfulness", instructions=" ".join(HELPFULNESS.split()))


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """The settings `plugins.judge.*`."""

    endpoint: str = ""
    """Base URL of an OpenAI-compatible API, such as `http://127.0.0.1:5001/v1`; nothing is judged when not given."""
    model: str = ""
    """The judging model, by the endpoint's name for it."""
    api_key_env: str = ""
    """Name of the environment variable that holds the endpoint's key; no key is sent when not given."""
    second_model: str = ""
    """A second judge, whose marks are averaged with the first one's, and compared with them."""
    second_endpoint: str = ""
    """The second judge's endpoint; the first one's when not given."""
    second_api_key_env: str = ""
    """Name of the environment variable that holds the second endpoint's key."""
    rubrics: dict[str, Any] | None = None
    """What is marked: `{NAME: instructions}`, or `{NAME: {instructions: ..., scale: [1, 5], reference: true}}`;
    helpfulness from 1 to 5 when not given, nothing if empty."""
    pairwise: bool = True
    """Compare the tuned model's answers with the base model's, each pair in both orders."""
    repeats: Annotated[int, Ge(1)] = 1
    """How often each answer is marked; the repeats are averaged, and compared with each other."""
    max_rows: Annotated[int, Ge(1)] = 100
    """Held-out answers to judge, at most; each costs a request for each rubric, and two for a comparison."""
    max_failures: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Share of rows that could not be judged above which a score is withheld."""
    temperature: Annotated[float, Ge(0)] = 0.0
    """The judge's sampling temperature."""
    max_tokens: Annotated[int, Ge(1)] = 512
    """Longest reply of the judge, in tokens."""
    workers: Annotated[int, Ge(1)] = 4
    """Requests at the same time."""
    timeout: Annotated[float, Gt(0)] = 120.0
    """Seconds that the endpoint may be silent before a request counts as failed."""
    retries: Annotated[int, Ge(0)] = 5
    """How often a request is repeated after 429, 5xx, a timeout or a lost connection."""
    backoff: Annotated[float, Ge(0)] = 1.0
    """Seconds before the first repetition; doubled for each further one, up to a minute."""
    price_in: Annotated[float, Ge(0)] = 0.0
    """Price of a million tokens read by the judge, in any currency."""
    price_out: Annotated[float, Ge(0)] = 0.0
    """Price of a million tokens written by the judge, in the same currency."""
    cache: bool = True
    """Keep replies in `~/.cache/mlflow-ft/judge`, so that nothing is asked twice."""
    traces: Annotated[int, Ge(0)] = 8
    """Judged answers that MLflow's UI shows as traces with the marks on them, at most."""

    def __post_init__(self) -> None:
        """Raise ValueError for what may hold a key: settings are logged."""
        for name in ("endpoint", "second_endpoint"):
            if (url := getattr(self, name)) and (reason := _unusable(url)):
                raise ValueError(f"{name}: {reason}; write http://HOST:PORT/v1")
        for name in ("api_key_env", "second_api_key_env"):
            if (variable := getattr(self, name)) and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
                raise ValueError(f"{name}: this is not the name of a variable; put the key into one and name it here")

    @property
    def asked(self) -> bool:
        """Whether there is a judge."""
        return bool(self.endpoint or os.environ.get(ENDPOINT))


def checked(given: Mapping[str, Any]) -> JudgeOptions:
    """Settings from a file that is not the configuration.

    Raises:
        ConfigError: a value has another type, or is out of range; all problems are reported.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(JudgeOptions).validate_python(dict(given))
    except ValidationError as error:
        problems = [
            Problem(place=".".join(map(str, detail["loc"])), message=detail["msg"]) for detail in error.errors()
        ]
        raise ConfigError("the settings of the judge cannot be used", problems=problems) from None


@dataclass(frozen=True, kw_only=True)
class JudgeAt:
    """A judging model and where it is."""

    endpoint: str
    model: str
    key: str = field(default="", repr=False)

    @property
    def name(self) -> str:
        """For messages and tables."""
        return f"{self.model} at {urlsplit(self.endpoint).netloc}"


def from_environment(options: JudgeOptions) -> JudgeOptions:
    """The settings of a run without its endpoints and keys, so that those in the environment are used."""
    return replace(options, endpoint="", api_key_env="", second_endpoint="", second_api_key_env="")


def judges(options: JudgeOptions) -> list[JudgeAt]:
    """The judging models, with their keys from the environment.

    Raises:
        ConfigError: an endpoint is no URL, a model is not named, or a variable is not set; all problems are reported.
    """
    problems = list(_wrong(options))
    if problems:
        first, *more = problems
        if more:
            raise ConfigError(f"{len(problems)} problems in the settings of the judge", problems=problems)
        raise ConfigError(f"{first.place}: {first.message}", hint=first.hint)
    endpoint = options.endpoint or os.environ[ENDPOINT]
    key = os.environ[options.api_key_env] if options.api_key_env else ""
    if not options.endpoint:
        key = os.environ.get(API_KEY, "")
    found = [JudgeAt(endpoint=endpoint.rstrip("/"), model=options.model, key=key)]
    if options.second_model:
        second = options.second_endpoint or endpoint
        if options.second_endpoint:
            key = os.environ[options.second_api_key_env] if options.second_api_key_env else ""
        found.append(JudgeAt(endpoint=second.rstrip("/"), model=options.second_model, key=key))
    return found


def _wrong(options: JudgeOptions) -> Iterator[Problem]:
    endpoint = options.endpoint or os.environ.get(ENDPOINT, "")
    if not endpoint:
        hint = f"name one: --plugins.judge.endpoint http://127.0.0.1:5001/v1, or set {ENDPOINT}"
        yield Problem(place="plugins.judge.endpoint", message="no endpoint is given", hint=hint)
    if not options.model:
        yield Problem(place="plugins.judge.model", message="no model is given", hint="name it as the endpoint does")
    if not options.endpoint and endpoint and (reason := _unusable(endpoint)):
        yield Problem(place=ENDPOINT, message=reason, hint="write http://HOST:PORT/v1")
    for setting in ("api_key_env", "second_api_key_env"):
        variable = getattr(options, setting)
        if variable and not os.environ.get(variable):
            hint = f"export {variable}=..."
            yield Problem(place=f"plugins.judge.{setting}", message=f"{variable} is not set", hint=hint)


def _unusable(url: str) -> str:
    """Why a URL cannot be an endpoint; the URL is not repeated, because it may hold a key."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number
        return "this is not an http URL"
    if not usable:
        return "this is not an http URL"
    if parts.username or parts.password or parts.query or parts.fragment:
        return "it holds a user, a password or a query, and settings are logged"
    return ""


def rubrics(options: JudgeOptions) -> list[Rubric]:
    """The rubrics, or the default one.

    Raises:
        ConfigError: a rubric lacks a name or instructions, or has an unknown key or an empty scale.
    """
    if options.rubrics is None:
        return [DEFAULT]
    problems: list[Problem] = []
    found: list[Rubric] = []
    for name, given in options.rubrics.items():
        try:
            found.append(_rubric(str(name), given))
        except ValueError as error:
            problems.append(Problem(place=f"plugins.judge.rubrics.{name}", message=str(error)))
    if problems:
        example = "for example {polite: {instructions: 'How polite ...', scale: [1, 5]}}"
        raise ConfigError("the rubrics cannot be used", problems=problems, hint=example)
    return found


def _rubric(name: str, written: Any) -> Rubric:
    if not NAME.fullmatch(name):
        raise ValueError("its name has other characters than letters, digits, - and _")
    if name in TAKEN or name.endswith(("_agreement", "_kappa")):
        raise ValueError("this is the name of another score")
    given = _mapping(written)
    if unknown := set(given) - {"instructions", "scale", "reference"}:
        names = ", ".join(sorted(map(str, unknown)))
        raise ValueError(f"unknown: {names}; it takes instructions, scale and reference")
    instructions, reference = given.get("instructions"), given.get("reference", True)
    if not isinstance(instructions, str) or not instructions.strip():
        raise ValueError("it needs instructions: what is judged, and what the marks mean")
    if not isinstance(reference, bool):
        raise ValueError("reference is true or false")
    return Rubric(name=name, instructions=instructions.strip(), scale=_scale(given), reference=reference)


def _mapping(written: Any) -> Mapping[str, Any]:
    """A rubric as a mapping; text is the instructions, or a mapping on one line, as the configuration keeps it."""
    if isinstance(written, str) and written.lstrip().startswith("{"):
        import yaml

        try:
            written = yaml.safe_load(written)
        except yaml.YAMLError:
            raise ValueError("this is not a mapping") from None
    return written if isinstance(written, Mapping) else {"instructions": written}


def _scale(given: Mapping[str, Any]) -> tuple[int, int]:
    scale = given.get("scale", [1, 5])
    bounds = re.fullmatch(r"\s*(-?\d+)\s*(?:-|to)\s*(\d+)\s*", scale) if isinstance(scale, str) else None
    numbers = [int(bound) for bound in bounds.groups()] if bounds else scale
    whole = isinstance(numbers, (list, tuple)) and all(type(number) is int for number in numbers)
    if not whole or len(numbers) != 2 or not numbers[0] < numbers[1]:
        raise ValueError("scale is its worst and its best mark, whole numbers: [1, 5]")
    return numbers[0], numbers[1]


def problem(options: JudgeOptions) -> str | None:
    """Why nothing can be judged with these settings, and the remedies, in a line; None if all is well."""
    try:
        rubrics(options)
        judges(options)
    except ConfigError as error:
        return "; ".join(line.strip() for line in str(error).splitlines())
    return None
