"""Another tool's configuration as keys with values and places: from YAML, JSON, or a command in a shell script."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mlflow_ft.config.given import syntax_error
from mlflow_ft.errors import ConfigError
from mlflow_ft.operations.importing.draft import Key, number

SCRIPTS = (".sh", ".bash", ".txt", ".slurm", ".sbatch", ".cmd")
REFERENCE = re.compile(r"\$\{([\w.]+)\}")
ENDS = re.compile(r"[|&;]+|\d?>>?.*|\d?>&\d")
"""Where a command ends in the shell."""
KNOWN_COMMANDS = (
    "unsloth-cli.py",
    "llamafactory-cli",
    "train_bash.py",
    "src/train.py",
    "axolotl",
    "tune",
    "trl",
)
METHOD_SCRIPTS = ("sft", "dpo", "kto", "orpo", "cpo", "simpo", "reward", "reward_modeling", "grpo", "rloo", "ppo")
"""TRL's example scripts: `trl/scripts/dpo.py`, `examples/scripts/orpo.py`."""


@dataclass(frozen=True, kw_only=True)
class Read:
    """What was read."""

    keys: list[Key]
    folder: Path
    command: tuple[str, ...] = ()
    """The words of a command before its first option: `trl sft`, `python unsloth-cli.py`."""
    name: str = ""
    """The name of the file."""
    overridden: tuple[Key, ...] = ()
    """Keys that are given again later, which wins."""


def read(file: Path) -> Read:
    """Read a configuration, or the command in a script.

    Raises:
        ConfigError: it cannot be read, is not YAML, or has no keys.
    """
    try:
        text = file.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"cannot read {file}: {reason}", hint="name a configuration of another tool") from error
    if file.suffix in SCRIPTS or text.startswith("#!"):
        return read_command(text, place=file.name, folder=file.parent)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            if _words(text):
                return read_command(text, place=file.name, folder=file.parent)
            raise ConfigError(f"{file} is not a mapping of keys to values", hint="name a configuration, or a script")
        keys = list(_flat(node, loader, file=file.name))
    except yaml.YAMLError as error:
        if _words(text):
            return read_command(text, place=file.name, folder=file.parent)
        raise syntax_error(str(file), text, error) from error
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read as YAML: {error}") from error
    return _read(keys, folder=file.parent, name=file.name)


def _read(keys: Sequence[Key], *, folder: Path, name: str, command: tuple[str, ...] = ()) -> Read:
    last = {key.name: key for key in keys}
    again = tuple(key for key in keys if last[key.name] is not key)
    kept = [_substituted(key, last) for key in keys if last[key.name] is key]
    return Read(keys=kept, folder=folder, name=name, command=command, overridden=again)


def _flat(node: yaml.MappingNode, loader: yaml.SafeLoader, *, file: str, section: str = "") -> Iterator[Key]:
    """The leaves, with sections joined by dots; lists of mappings are numbered."""
    loader.flatten_mapping(node)
    for key_node, value_node in node.value:
        name = f"{section}{loader.construct_object(key_node)}"
        place = f"{file} line {key_node.start_mark.line + 1}"
        yield from _leaves(name, value_node, loader, file=file, place=place)


def _leaves(name: str, node: yaml.Node, loader: yaml.SafeLoader, *, file: str, place: str) -> Iterator[Key]:
    if isinstance(node, yaml.MappingNode) and node.value:
        yield from _flat(node, loader, file=file, section=f"{name}.")
    elif isinstance(node, yaml.SequenceNode) and any(isinstance(item, yaml.MappingNode) for item in node.value):
        for index, item in enumerate(node.value):
            yield from _leaves(f"{name}[{index}]", item, loader, file=file, place=place)
    else:
        value = loader.construct_object(node, deep=True)
        plain = isinstance(node, yaml.ScalarNode) and node.style is None
        yield Key(name=name, value=number(value) if plain else value, place=place)


def _substituted(key: Key, keys: dict[str, Key]) -> Key:
    """`${output_dir}/logs`, as OmegaConf reads it."""
    value = key.value
    for _ in range(len(keys)):
        if not isinstance(value, str) or not (found := REFERENCE.search(value)):
            break
        other = keys.get(found[1])
        if other is None or other is key:
            break
        whole = found[0] == value
        value = other.value if whole else value.replace(found[0], str(other.value))
    return Key(name=key.name, value=value, place=key.place)


# --- commands


def read_command(text: str, *, place: str, folder: Path) -> Read:
    """The options of the first command in a script that starts a training.

    Raises:
        ConfigError: there is none.
    """
    words = _words(text)
    if not words:
        known = ", ".join(KNOWN_COMMANDS)
        raise ConfigError(f"{place} has no command that is known", hint=f"known: {known}, trl/scripts/sft.py")
    tool = _after_tool(words)
    start = next((index for index in range(tool, len(words)) if words[index].startswith("--")), len(words))
    command, options = [word for word in words[:start] if not word.startswith("--")], words[start:]
    launcher = next((index for index in range(tool) if words[index].startswith("--")), tool - 1)
    keys = [_of_launcher(key) for key in _options(words[launcher : tool - 1], place=place)]
    keys += _options(options, place=place)
    assigned = [word for word in command[1:] if re.fullmatch(r"[\w.]+=.*", word)]  # torchtune: epochs=1
    keys += [_key(*word.split("=", 1), place=place) for word in assigned]
    files = [folder / word for word in command if word.endswith((".yaml", ".yml", ".json"))]
    files += [folder / str(key.value) for key in keys if key.name == "config"]
    base: list[Key] = []
    for file in files:
        if file.is_file():
            base += read(file).keys
    keys = [key for key in keys if key.name != "config" or not base]
    return _read([*base, *keys], folder=folder, name=place, command=tuple(command))


def _words(text: str) -> list[str]:
    """The words of the first command of a tool that is known; [] where there is none."""
    text = _with_variables(re.sub(r"\\\s*\n", " ", text))
    for line in text.splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue
        tools = [index for index, word in enumerate(words) if _is_tool(word)]
        if tools:
            end = (index for index, word in enumerate(words) if index > tools[0] and ENDS.fullmatch(word))
            return words[: next(end, len(words))]
    return []


def _with_variables(text: str) -> str:
    """The script with the values of the variables that it sets by itself."""
    for name, value in re.findall(r"^(?:export\s+)?([A-Za-z_]\w*)=([^\s;$()`]+)\s*$", text, re.MULTILINE):
        text = text.replace(f"${{{name}}}", value)
        text = re.sub(rf"\${name}\b", value.replace("\\", r"\\"), text)
    return text


def _is_tool(word: str) -> bool:
    name = word.rpartition("/")[2]
    stem = name.removesuffix(".py")
    is_script = name.endswith(".py") and (stem in METHOD_SCRIPTS or stem in ("unsloth-cli", "train_bash"))
    return is_script or name in KNOWN_COMMANDS or word in KNOWN_COMMANDS or word.endswith("src/train.py")


def _after_tool(words: Sequence[str]) -> int:
    return max(index for index, word in enumerate(words) if _is_tool(word)) + 1


def _options(words: Sequence[str], *, place: str) -> Iterator[Key]:
    """`--key value`, `--key=value`, `--switch`, and several values after one key."""
    name = ""
    values: list[str] = []
    for word in [*words, "--"]:
        if word.startswith("--"):
            if name:
                yield Key(name=name, value=_value(values), place=f"--{name} in {place}")
            name, equals, value = word[2:].partition("=")
            name, values = name.replace("-", "_"), [value] if equals else []
        elif re.fullmatch(r"[A-Za-z_][\w.]*=.*", word) and (not name or values):  # torchtune: --config FILE epochs=1
            yield _key(*word.split("=", 1), place=place)
        else:
            values.append(word)


def _of_launcher(key: Key) -> Key:
    """An option of `accelerate launch` or `torchrun`."""
    return Key(name=f"launcher.{key.name}", value=key.value, place=key.place)


def _key(name: str, value: str, *, place: str) -> Key:
    return Key(name=name.lstrip("~+"), value=_value([value]), place=f"{name} in {place}")


def _value(values: Sequence[str]) -> Any:
    if not values:
        return True
    read = []
    for text in values:
        try:
            read.append(number(yaml.safe_load(text)))
        except yaml.YAMLError:
            read.append(text)
    return read[0] if len(read) == 1 else read
