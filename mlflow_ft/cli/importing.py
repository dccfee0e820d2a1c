"""mlflow-ft import: another tool's configuration becomes ours, and every key of it is reported."""

from __future__ import annotations

import shlex
from json import dumps
from pathlib import Path

import click

from mlflow_ft.cli.options import OptionsCommand
from mlflow_ft.errors import ConfigError

USAGE = "mlflow-ft import FILE [--out FILE]"
SWITCHES = {"json": "Print the report as JSON on stdout: what became of each key, and the settings."}
OPTIONS = {
    "out FILE": "Write the configuration to this YAML file; on stdout if not given.",
    "from NAME": "The tool: axolotl, llamafactory, torchtune, trl or unsloth; recognised if not given.",
    "method NAME": "The method, where the tool has it in its command and not in the file (trl).",
    "dataset-info FILE": "LLaMA-Factory's dataset_info.json, if it is not in the folder that dataset_dir names.",
}


class ImportCommand(OptionsCommand):
    """Words after `--` are a command of the tool, not options of ours."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own, words = args, list[str]()
        if "--" in args:
            own, words = args[: args.index("--")], args[args.index("--") + 1 :]
        rest = super().parse_args(ctx, own)
        ctx.params["words"] = tuple(words)
        return rest


@click.command(
    cls=ImportCommand, options_metavar="FILE [OPTION VALUE]... [-- COMMAND]", switches=SWITCHES, options=OPTIONS
)
def command(
    arguments: tuple[str, ...], *, words: tuple[str, ...], json: bool, out: str | None, **options: str | None
) -> int:
    """Turn a configuration of Axolotl, LLaMA-Factory, torchtune, TRL or Unsloth's script into one of ours.

    \b
    mlflow-ft import axolotl.yml --out config.yaml
    mlflow-ft import train.sh                                   a script with the command of a tool
    mlflow-ft import -- trl sft --model_name_or_path MODEL --dataset_name DATA
    mlflow-ft train --config config.yaml

    Every key is mapped, approximated, not needed, or refused, with the reason; the tool's own defaults are written out.
    The configuration is written in any case; the exit code is 1 if a key was refused or is unknown.
    """
    from mlflow_ft import plugins
    from mlflow_ft.operations.importing import reading, tools, writing
    from mlflow_ft.registry import Registry

    if bool(words) == bool(arguments) or len(arguments) > 1:
        raise ConfigError(f"{len(arguments)} files were given, not one", hint=f"write {USAGE}")
    extra = {name: text for name in ("method", "dataset_info") if (text := options[name])}
    if words:
        read = reading.read_command(shlex.join(words), place="the command", folder=Path.cwd())
    else:
        read = reading.read(Path(arguments[0]).expanduser())
    source = arguments[0] if arguments else shlex.join(words)
    imported = tools.import_read(read, Registry(plugins.load()), tool=options["from"], extra=extra)
    text = writing.as_yaml(imported, source=source)
    if out:
        _write(Path(out).expanduser(), text)
    if json:
        click.echo(dumps(writing.as_dict(imported, source=source), indent=2, default=str))
    elif not out:
        click.echo(text, nl=False)
    for line in writing.report(imported):
        click.echo(line, err=True)
    click.echo(writing.summary(imported, out=out), err=True)
    return 1 if imported.those("refused", "unknown") else 0


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"--out {file} cannot be written: {reason}", hint="name a file in a folder that exists"
        ) from error
