"""mlflow-ft plan: which method, with which settings, for this data on this hardware."""

from __future__ import annotations

import re
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlflow_ft.cli.pairs import PairsCommand
from mlflow_ft.errors import ConfigError

if TYPE_CHECKING:
    from mlflow_ft.values import Plan

SWITCHES = {"json": "Print the plan as JSON on stdout."}
OPTIONS = {
    "rows N": "Without data: how many rows there will be (20000, 20k, 2M).",
    "tokens N": "Without data: how many tokens all rows have together.",
    "kind KIND": "Without data: conversation, text, preference, unpaired or prompt.",
    "aim AIM": "instruct, domain, preference, reward or verifiable; by the kind of the rows when not given.",
    "gpus N": "How many GPUs (0: the CPU); those of this machine when not given.",
    "gpu-memory GB": "Memory of each GPU in GB.",
    "model-size SIZE": "Instead of --model: plan for a typical model of this size (7B, 135M).",
    "out FILE": "Write the configuration to this YAML file, for mlflow-ft train METHOD --config FILE.",
}
UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
NUMBER = re.compile(r"(\d[\d,_]*(?:\.\d+)?|\.\d+)\s*([kmbgt]?)", re.IGNORECASE)


@click.command(
    cls=PairsCommand,
    options_metavar="[DATA] [OPTION VALUE]... [--KEY VALUE]...",
    switches=SWITCHES,
    options=OPTIONS,
)
def command(
    arguments: tuple[str, ...], *, json: bool, out: str | None, kind: str | None, aim: str | None, **sizes: str | None
) -> int:
    """Name the method for your data, hardware and aim, with reasons, numbers, alternatives and the configuration.

    \b
    mlflow-ft plan --data rows.jsonl --model MODEL --out plan.yaml
    mlflow-ft plan --rows 20k --kind preference --model-size 7B --gpus 2 --gpu-memory 24

    It reads the data and the model's config, and trains nothing. Settings that you give are kept. What the estimate of
    memory says does not fit is not recommended; the exit code is 1 if nothing fits. The rules: mlflow-ft show
    plan_rules.
    """
    from mlflow_ft.cli.plan_text import as_dict, show
    from mlflow_ft.cli.train import understand
    from mlflow_ft.operations.planning import making
    from mlflow_ft.operations.planning.situation import Asked
    from mlflow_ft.progress import Progress
    from mlflow_ft.stages.start import PREPARE

    progress = Progress()
    if out:
        check_out(Path(out).expanduser())
    asked = Asked(
        rows=count("rows", sizes["rows"], least=1),
        tokens=count("tokens", sizes["tokens"], least=1),
        kind=kind,
        aim=aim,
        gpus=count("gpus", sizes["gpus"], least=0),
        gpu_memory=number("gpu-memory", sizes["gpu_memory"], unit="gb"),
        model_size=number("model-size", sizes["model_size"]),
    )
    config, loaded = understand(arguments, progress, method=PREPARE)
    plan = making.make(asked, config, plugins=loaded, progress=progress)
    file = out or "plan.yaml"
    if out and plan.recommended:
        write(plan, Path(out).expanduser())
    if json:
        click.echo(dumps(as_dict(plan, file=file), indent=2))
    else:
        show(plan, file=file, is_written=bool(out))
    return 0 if plan.recommended else 1


def number(name: str, text: str | None, *, unit: str = "") -> float | None:
    """The value of an option, above 0; `unit` may follow it, as in `24 GB`.

    Raises:
        ConfigError: it is not such a number.
    """
    if text is None:
        return None
    plain = text.strip().lower().removesuffix(unit).strip() if unit else text.strip()
    match = NUMBER.fullmatch(plain)
    value = float(match[1].replace(",", "").replace("_", "")) * UNITS[match[2].lower()] if match else 0.0
    if value <= 0:
        example = {"gpu-memory": "24", "model-size": "7B"}.get(name, "20000")
        raise ConfigError(f"--{name}: {text!r} is not a number above 0", hint=f"write --{name} {example}")
    return value


def count(name: str, text: str | None, *, least: int) -> int | None:
    """The value of an option that counts something.

    Raises:
        ConfigError: it is not a whole number, or below `least`.
    """
    if text is not None and text.strip() == "0" and least == 0:
        return 0
    if text is not None and text.strip() == "0":
        raise ConfigError(f"--{name} is 0: there is nothing to plan for", hint=f"give the number of {name}")
    value = number(name, text)
    if value is not None and not value.is_integer():
        raise ConfigError(f"--{name}: {text!r} is not a whole number", hint=f"write --{name} 20000")
    return None if value is None else int(value)


def check_out(file: Path) -> None:
    """Raise ConfigError if a file cannot be written there, before the plan is made."""
    if file.is_dir() or not file.parent.is_dir():
        reason = "it is a folder" if file.is_dir() else f"there is no folder {file.parent}"
        raise ConfigError(f"--out {file} cannot be written: {reason}", hint="name a file in a folder that exists")


def write(plan: Plan, file: Path) -> None:
    """Write the configuration of what the plan recommends.

    Raises:
        ConfigError: the file cannot be written.
    """
    from mlflow_ft.operations.planning import recipe

    assert plan.recommended is not None
    try:
        file.write_text(recipe.as_yaml(plan, plan.recommended, file=str(file)), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--out {file} cannot be written: {error.strerror or error}", hint="name a file in a folder that exists"
        ) from error
