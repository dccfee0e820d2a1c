"""A command whose settings are `--key value` pairs, with a few options and switches in addition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from mlflow_ft.errors import ConfigError

SAID = {"true": True, "false": False, "": False}
"""What `mlflow run` may put after a switch; on the command line a switch needs no value."""


class PairsCommand(click.Command):
    """A value may begin with a dash and is never mistaken for a flag.

    `switches` and `options` map names to help; the command gets them as arguments, dashes turned into underscores and
    an option that was not given as None. All other words are passed as `arguments`.
    """

    def __init__(
        self, *args: Any, switches: Mapping[str, str], options: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(*args, **more)
        self.switches = dict(switches)
        self.options = {name.partition(" ")[0]: (name, text) for name, text in (options or {}).items()}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        values: dict[str, Any] = dict.fromkeys(self.switches, False) | dict.fromkeys(self.options)
        rest: list[str] = []
        waiting = ""  # the key whose value comes next
        place = 0
        while place < len(args):
            argument = args[place]
            place += 1
            name, equals, value = argument.removeprefix("--").partition("=")
            name = self._spelled(name)
            if waiting:
                values, rest, waiting = self._taken(values, rest, waiting, argument), rest, ""
            elif argument in ctx.help_option_names:
                click.echo(ctx.get_help())
                ctx.exit()
            elif argument.startswith("--") and name in self.switches:
                if not equals and place < len(args) and args[place].lower() in SAID:
                    value, place = args[place], place + 1
                    equals = "="
                values[name] = _truth(argument, value) if equals else True
            elif argument.startswith("--") and name in self.options and equals:
                values[name] = value or None
            elif argument.startswith("--") and not equals:
                waiting = argument
                if name not in self.options:
                    rest.append(argument)
            else:
                rest.append(argument)
        if self._spelled(waiting.removeprefix("--")) in self.options:
            raise ConfigError(f"{waiting} has no value", hint=f"write {waiting} VALUE")
        ctx.params = {"arguments": tuple(rest)} | {name.replace("-", "_"): value for name, value in values.items()}
        return []

    def _taken(self, values: dict[str, Any], rest: list[str], key: str, value: str) -> dict[str, Any]:
        name = self._spelled(key.removeprefix("--"))
        if name in self.options:
            return values | {name: value or None}
        rest.append(value)
        return values

    def _spelled(self, name: str) -> str:
        """The name of an option as it is declared, for one with underscores instead of dashes, or the reverse."""
        for known in (*self.options, *self.switches):
            if known.replace("-", "_") == name.replace("-", "_"):
                return known
        return name

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from mlflow_ft.config import describe

        with formatter.section("Options"):
            options = [(f"--{shown}", text) for shown, text in self.options.values()]
            options += [(f"--{name}", text) for name, text in self.switches.items()]
            file = ("--config FILE", "A YAML file, or the name of an example: qlora, dpo, grpo ...")
            formatter.write_dl([file, *options])
        with formatter.section("Settings (a unique name needs no section: --learning_rate 1e-4)"):
            formatter.write_dl([(f"--{path} {kind}", f"{doc} [{default}]") for path, kind, default, doc in describe()])


def _truth(argument: str, value: str) -> bool:
    if value.lower() not in SAID:
        raise ConfigError(f"{argument}: {value!r} is not true or false", hint=f"write {argument.partition('=')[0]}")
    return SAID[value.lower()]


def whole_number(name: str, value: str | None, default: int | None) -> int | None:
    """The value of an option that counts something.

    Raises:
        ConfigError: it is not a whole number above 0.
    """
    if value is None:
        return default
    if not value.isdecimal() or int(value) < 1:
        raise ConfigError(f"--{name}: {value!r} is not a whole number above 0", hint=f"write --{name} 10")
    return int(value)


def share(name: str, value: str | None) -> float | None:
    """The value of an option that is a number of devices, or a share of one.

    Raises:
        ConfigError: it is not a whole number, or one above 0 and below 1.
    """
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not ((number.is_integer() and number >= 0) or 0 < number < 1):
        raise ConfigError(f"--{name}: {value!r} is not a number of devices", hint=f"write --{name} 1, or 0.5 of one")
    return number
