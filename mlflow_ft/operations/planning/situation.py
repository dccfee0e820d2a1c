"""From what was asked, and what is found, to the situation that a plan is made for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast, get_args

from mlflow_ft.config.schema import Config
from mlflow_ft.errors import ConfigError, ModelError, Problem, ResourceError
from mlflow_ft.operations.planning import reading, typical
from mlflow_ft.plugins import Plugins
from mlflow_ft.progress import Progress
from mlflow_ft.registry import Registry, suggest
from mlflow_ft.rows import Kind
from mlflow_ft.values import Aim, BaseModel, Hardware, Situation
from mlflow_ft.values.planning import AIMS, TRAINED_ON, USUAL_AIM

USUAL_LENGTH = 400
"""Tokens of a row, where neither data nor a number of tokens is given."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the options say; None where one was not given."""

    rows: int | None = None
    tokens: int | None = None
    kind: str | None = None
    aim: str | None = None
    gpus: int | None = None
    gpu_memory: float | None = None
    """GB of each GPU."""
    model_size: float | None = None
    """Weights of a typical model."""


@dataclass(frozen=True, kw_only=True)
class Understood:
    """The situation, the base model it is about, and what was assumed."""

    situation: Situation
    base: BaseModel
    remarks: tuple[str, ...]


def check(asked: Asked, config: Config) -> None:
    """Raise ConfigError for unknown names and for options that contradict each other, all at once."""
    problems = [*_names(asked), *_contradictions(asked, config)]
    if problems:
        from mlflow_ft.config.given import headline

        raise ConfigError(headline(problems, "on the command line"), problems=problems)


def _names(asked: Asked) -> Iterator[Problem]:
    for option, value, known in (("--kind", asked.kind, get_args(Kind)), ("--aim", asked.aim, tuple(AIMS))):
        if value is not None and value not in known:
            hint = suggest(value, known)
            hint = hint if hint.startswith("known") else f"{hint} known: {', '.join(known)}"
            yield Problem(place=option, message=f"unknown {option.removeprefix('--')} {value!r}", hint=hint)


def _contradictions(asked: Asked, config: Config) -> Iterator[Problem]:
    given = {name for name in ("rows", "tokens", "kind") if getattr(asked, name) is not None}
    if _is_given(config, "data.path") and given:
        options = ", ".join(f"--{name}" for name in ("rows", "tokens", "kind") if name in given)
        yield Problem(place=options, message="the data already says it", hint="leave out either --data or these")
    elif not _is_given(config, "data.path") and asked.rows is None:
        yield Problem(place="--data", message="no data given", hint="give --data FILE; without data, --rows and --kind")
    if asked.rows is not None and asked.tokens is not None and asked.tokens < asked.rows:
        yield Problem(
            place="--tokens",
            message=f"{asked.tokens:,} tokens are fewer than the {asked.rows:,} rows",
            hint="--tokens is the number of tokens of all rows together",
        )
    if _is_given(config, "model.name") and asked.model_size is not None:
        yield Problem(place="--model-size", message="the model already has a size", hint="leave out one of the two")
    elif not _is_given(config, "model.name") and asked.model_size is None:
        yield Problem(
            place="--model", message="no model given", hint="give --model MODEL, or the size of one: --model-size 7B"
        )
    if asked.gpus == 0 and asked.gpu_memory is not None:
        yield Problem(place="--gpu-memory", message="there is no memory of 0 GPUs", hint="leave it out, or --gpus 1")


def _is_given(config: Config, path: str) -> bool:
    return path in config.origins


def check_aim(aim: Aim, kind: Kind) -> None:
    """Raise ConfigError if rows of this kind do not serve the aim."""
    if kind not in TRAINED_ON[aim]:
        fitting = " or ".join(name for name, kinds in TRAINED_ON.items() if kind in kinds)
        raise ConfigError(
            f"--aim {aim} needs rows of the kind {' or '.join(TRAINED_ON[aim])}; these are of the kind {kind}",
            hint=f"aims for {kind} rows: {fitting}; or use other data",
        )


@contextmanager
def understand(
    asked: Asked, config: Config, *, plugins: Plugins, registry: Registry, progress: Progress
) -> Iterator[Understood]:
    """Read the data, find hardware and model, and describe the situation; a typical model is a temporary folder.

    Raises:
        ConfigError: options contradict each other or the data. DataError: the data cannot be read. ModelError: the
        model cannot be found. ResourceError: a GPU was asked for, but its memory is not known.
    """
    check(asked, config)
    hardware = find_hardware(asked)
    with _model(asked, config, progress) as base:
        measured, remarks = _data(asked, config, base, plugins=plugins, registry=registry)
        kind = measured.kind
        aim = cast("Aim", asked.aim or USUAL_AIM[kind])
        check_aim(aim, kind)
        parameters, positions = _sizes(base)
        situation = Situation(
            aim=aim,
            kind=kind,
            rows=measured.rows,
            row_tokens=measured.row_tokens,
            long_row=measured.long_row,
            columns=measured.columns,
            hardware=hardware,
            parameters=parameters,
            positions=positions,
            chats=None if asked.model_size is not None else _chats(base, config),
        )
        yield Understood(situation=situation, base=base, remarks=remarks)


def find_hardware(asked: Asked) -> Hardware:
    """The hardware that was asked for, or the one that is here.

    Raises:
        ResourceError: GPUs were asked for without their memory, and there is none here.
    """
    from mlflow_ft.engine import hardware

    here = hardware.installed()
    wanted = 1 if asked.gpus is None and asked.gpu_memory is not None else asked.gpus
    if wanted is None:
        return here
    if wanted == 0:
        return hardware.cpu()
    if asked.gpu_memory is not None:
        return Hardware(gpus=wanted, memory=asked.gpu_memory)
    if not here.gpus:
        raise ResourceError(
            f"--gpus {wanted}: this machine has no GPU whose memory could be read",
            hint="give the memory of each in GB: --gpu-memory 24",
        )
    return Hardware(gpus=wanted, memory=here.memory, name=here.name)


@contextmanager
def _model(asked: Asked, config: Config, progress: Progress) -> Iterator[BaseModel]:
    if asked.model_size is not None:
        with typical.model(asked.model_size, f"a typical model with {in_short(asked.model_size)} weights") as base:
            yield base
        return
    from mlflow_ft.engine import hub

    yield hub.find(config.model, progress, weights=False)


def _data(
    asked: Asked, config: Config, base: BaseModel, *, plugins: Plugins, registry: Registry
) -> tuple[reading.Measured, tuple[str, ...]]:
    if asked.rows is None:
        tokenizer = None if asked.model_size is not None else _tokenizer(config, base)
        measured = reading.measure(config, tokenizer, plugins=plugins, registry=registry)
        remarks = []
        if tokenizer is None:
            remarks.append("lengths are estimated by four characters to a token: no tokenizer can read the rows")
        if measured.bad:
            remarks.append(f"{measured.bad:,} rows cannot be read (mlflow-ft data check lists them)")
        return measured, tuple(remarks)
    aim = cast("Aim | None", asked.aim)
    kind = cast("Kind", asked.kind or (TRAINED_ON[aim][0] if aim else "conversation"))
    mean = asked.tokens / asked.rows if asked.tokens else float(USUAL_LENGTH)
    remarks = [] if asked.kind or aim else ["the rows are taken for conversations (--kind says otherwise)"]
    if not asked.tokens:
        remarks.append(f"a row is taken to have {USUAL_LENGTH} tokens (--tokens gives the number in all rows)")
    measured = reading.Measured(
        kind=kind,
        format="",
        rows=asked.rows,
        bad=0,
        row_tokens=mean,
        long_row=max(1, round(2 * mean)),
        columns=frozenset(),
        measured=0,
    )
    return measured, tuple(remarks)


def _tokenizer(config: Config, base: BaseModel) -> Any:
    """The model's tokenizer; None if it has none that can read the rows."""
    from mlflow_ft.engine.tokens import tokenizers

    try:
        return tokenizers.load(config, base)
    except ModelError:
        return None


def _sizes(base: BaseModel) -> tuple[int, int | None]:
    """The number of weights, and of positions."""
    from mlflow_ft.engine.models import skeleton
    from mlflow_ft.engine.tokens import room

    try:
        model = skeleton.bare_model(base.path)
    except (skeleton.UnsuitedError, *skeleton.FAILURES) as error:
        raise ModelError(
            f"model {base.name!r} cannot be built without its weights, which the estimate needs: {error}",
            hint="plan with the size of the model instead: --model-size 7B",
        ) from error
    return sum(weight.numel() for weight in model.parameters()), room.made_for(base.path)


def _chats(base: BaseModel, config: Config) -> bool:
    """Whether the base brings a chat template, or one is given."""
    if config.data.chat_template or (base.tokenizer / "chat_template.jinja").is_file():
        return True
    described = base.tokenizer / "tokenizer_config.json"
    return described.is_file() and '"chat_template"' in described.read_text(encoding="utf-8", errors="replace")


def in_short(count: float) -> str:
    """A number as people write it: `7B`, `1.5B`, `135M`."""
    unit, size = next(((unit, size) for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)) if count >= size), ("", 1))
    return f"{round(count / size, 1 if count / size < 100 else 0):g}{unit}"
