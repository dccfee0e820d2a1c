"""Commands for `mlflow run`, which passes every declared parameter, with an empty text if it was not given."""

from __future__ import annotations

import re

import click

from mlflow_ft.cli.pairs import PairsCommand
from mlflow_ft.errors import ConfigError


class OptionsCommand(PairsCommand):
    """Options, switches and positional words; a value may begin with a dash, and an empty one counts as not given.

    The command gets the words as `arguments`; an unknown `--key` is refused.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        super().parse_args(ctx, args)
        words = [word for word in ctx.params["arguments"] if word]
        unknown = [word for word in words if word.startswith("--")]
        if unknown:
            known = ", ".join(f"--{name}" for name in (*self.options, *self.switches))
            raise ConfigError(f"unknown option {unknown[0]}", hint=f"options: {known}")
        ctx.params["arguments"] = tuple(words)
        return []

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Options"):
            options = [(f"--{shown}", text) for shown, text in self.options.values()]
            formatter.write_dl([*options, *((f"--{name}", text) for name, text in self.switches.items())])


def divergence(text: str) -> float | None:
    """The value of `--max_kl`; None if it was not given.

    Raises:
        ConfigError: it is not a number.
    """
    try:
        return float(text) if text else None
    except ValueError as error:
        raise ConfigError(f"--max_kl: {text!r} is not a number", hint="write --max_kl 0.2") from error


def name_and_version(arguments: tuple[str, ...], version: str, *, usage: str) -> tuple[str, str]:
    """The name of the registered model, and the version that `--version` or the name itself says.

    Without `--version`, the name may be written as for other commands: `NAME@alias`, `NAME/3`, `models:/NAME/3`.

    Raises:
        ConfigError: no name is given, or several are.
    """
    if len(arguments) != 1:
        message = f"{len(arguments)} names were given, not one" if arguments else "no registered model given"
        raise ConfigError(message, hint=f"write {usage}")
    name = arguments[0].removeprefix("models:/")
    both = None if version else re.fullmatch("([^@/]+)[@/]([^@/]+)", name)
    return (both[1], both[2]) if both else (name, version)
