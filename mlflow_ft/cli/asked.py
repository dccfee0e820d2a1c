"""Resolve the command line (METHOD, --config FILE and --key value pairs) to a config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mlflow_ft.config import Config, Given, pairs, read_yaml, resolve
from mlflow_ft.errors import ConfigError
from mlflow_ft.plugins import Plugins, load
from mlflow_ft.registry import Registry

EXAMPLES = Path(__file__).parent.parent / "examples"
ALLOW = ("plugins.allow", "allow")
DEMO = "demo"
"""Prefix of the place of settings that come with the built-in data."""


def asked(arguments: Sequence[str], plugins: Plugins, *, method: str | None = None) -> Config:
    """Resolve `METHOD --key value ...`; the method may also come from the file or from `--method`.

    If `method` is given, the command line needs none: a first word without `--` names the data.

    Raises:
        ConfigError: no method, an unknown one, or problems in the file or on the command line, all reported together.
    """
    registry = Registry(plugins)
    trainers = registry.trainers
    first, from_file, command_line = _layers(arguments)
    if method and first:
        command_line = [Given(key="data", value=first[0], place=f"{first[0]} (command line)"), *command_line]
        first = []
    methods = [*first, *(str(setting.value) for setting in (*command_line, *from_file) if setting.key == "method")]
    if method and not methods:
        methods = [method]
    if not methods:
        known = ", ".join(trainer.name for trainer in trainers)
        raise ConfigError("no method given", hint=f"mlflow-ft train METHOD; methods: {known}")
    return resolve(
        methods[0],
        defaults={} if methods[0] == method else trainers[methods[0]].defaults,
        presets=demo_settings([*from_file, *command_line], methods[0]),
        file=from_file,
        command_line=command_line,
        options=registry.option_types,
    )


def load_plugins(arguments: Sequence[str]) -> Plugins:
    """Load the plugins that `plugins.allow` permits, which must be known before one is imported.

    Raises:
        ConfigError: the file or the command line cannot be read.
    """
    _, from_file, command_line = _layers(arguments)
    lists = [[given for given in layer if given.key in ALLOW] for layer in (from_file, command_line)]
    allow = resolve("", defaults={}, file=lists[0], command_line=lists[1]).plugins.allow
    return load(allow=allow)


def _layers(arguments: Sequence[str]) -> tuple[list[str], list[Given], list[Given]]:
    """The method, if it comes first; the settings of the file; and those of the command line."""
    first = [] if not arguments or arguments[0].startswith("--") else [arguments[0]]
    settings = pairs(arguments[len(first) :])
    files = [setting for setting in settings if setting.key == "config"]
    command_line = [setting for setting in settings if setting.key != "config"]
    return first, read_yaml(find_file(str(files[-1].value))) if files else [], command_line


def find_file(name: str) -> Path:
    """A YAML file by its path, or an example by its name.

    Raises:
        ConfigError: neither exists.
    """
    for file in (Path(name).expanduser(), EXAMPLES / f"{name}.yaml"):
        if file.is_file():
            return file
    known = ", ".join(sorted(file.stem for file in EXAMPLES.glob("*.yaml")))
    raise ConfigError(f"no config file {name!r}", hint=f"looked in {Path.cwd()}; examples: {known}")


def demo_settings(settings: Sequence[Given], method: str) -> list[Given]:
    """Settings that suit the built-in data, unless other data was requested; a method may have its own."""
    if any(setting.key in ("data", "data.path", "path") and setting.value != "demo" for setting in settings):
        return []
    settings_file = EXAMPLES / "demo" / f"{method}.yaml"
    settings = read_yaml(settings_file if settings_file.is_file() else EXAMPLES / "demo" / "settings.yaml")
    return [replace(setting, place=f"{DEMO} {setting.place}") for setting in settings]
