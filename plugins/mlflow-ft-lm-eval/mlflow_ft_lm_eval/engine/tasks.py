"""Finds and loads the tasks, before training, so that a typing error or data out of reach costs nothing."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from lm_eval.tasks import TaskManager

from mlflow_ft import ConfigError, brief
from mlflow_ft_lm_eval.options import LmEvalOptions

FILES = (".yaml", ".yml")
GROUP = re.compile(r"^group:", re.MULTILINE)
"""A file of a group, which may have tasks of the harness."""
NEAR = 3


def wrong(options: LmEvalOptions) -> str | None:
    """What is wrong with the tasks, in a sentence; None if all of them can be run. Fetches their data."""
    try:
        loaded = load(wanted(options))
    except ConfigError as error:
        return f"{error.message}; {error.hint}" if error.hint else error.message
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            return f"the task {name} runs code that the model writes, which is not supported; leave it out"
        if getattr(task, "MULTIMODAL", False):
            return f"the task {name} asks about more than text; leave it out"
    return None


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What decides the loaded tasks."""

    names: tuple[str, ...]
    num_fewshot: int | None
    max_new_tokens: int | None


def wanted(options: LmEvalOptions) -> Wanted:
    """What the options say about the tasks."""
    names = tuple(options.tasks or ())
    return Wanted(names=names, num_fewshot=options.num_fewshot, max_new_tokens=options.max_new_tokens)


@lru_cache(maxsize=1)
def load(wanted: Wanted) -> dict[str, Any]:
    """The tasks with their data, as `lm_eval.evaluator.evaluate` takes them; loaded once for both models.

    Raises:
        ConfigError: a name is unknown, there is no such file, or a task cannot be loaded.
    """
    loaded: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in dict.fromkeys(expanded(wanted.names)):
        for part, members in _load(name).items():
            loaded[part] |= members
    for task in loaded["tasks"].values():
        _configure(task, wanted)
    return loaded


def _configure(task: Any, wanted: Wanted) -> None:
    """Set what is wanted of a task, as `lm_eval.simple_evaluate` does.

    A task that says 0 examples stays so: its question has no place for them.
    """
    if wanted.max_new_tokens is not None and task.OUTPUT_TYPE == "generate_until":
        task.set_config(key="generation_kwargs", value={"max_gen_toks": wanted.max_new_tokens}, update=True)
    own = task.get_config("num_fewshot")
    if own is None or (wanted.num_fewshot is not None and own != 0):
        task.set_config(key="num_fewshot", value=wanted.num_fewshot or 0)


def expanded(names: Sequence[str]) -> Iterator[str]:
    """Every name, with patterns expanded, and every file as an absolute path.

    Raises:
        ConfigError: a name is unknown, or there is no such file.
    """
    for name in names:
        if not name.endswith(FILES):
            found = manager(with_names=True).match_tasks([name])
            if not found:
                raise ConfigError(f"the harness has no task {name!r}", hint=near(name))
            yield from found
        elif (file := Path(name).expanduser()).is_file():
            yield str(file.resolve())
        else:
            raise ConfigError(
                f"there is no task file {name}",
                hint=f"looked in {Path.cwd()}; under `mlflow run`, relative paths start at the project's folder",
            )


def near(name: str) -> str:
    """The nearest names, as a hint."""
    known = manager(with_names=True).all_tasks
    if close := difflib.get_close_matches(name, known, n=NEAR, cutoff=0.7):
        return f"did you mean {' or '.join(close)}?"
    return f"it has {len(known):,}, which `lm-eval ls tasks` lists; the name of a file of your own ends in .yaml"


@lru_cache(maxsize=2)
def manager(*, with_names: bool) -> TaskManager:
    """The harness's index of its tasks, which takes ten seconds to make; an empty one if only files are used."""
    return TaskManager(include_defaults=with_names)


def _load(name: str) -> Mapping[str, Any]:
    of_names = not name.endswith(FILES) or GROUP.search(Path(name).read_text(encoding="utf-8"))
    try:
        return cast("Mapping[str, Any]", manager(with_names=bool(of_names)).load([name]))
    except Exception as error:  # the harness and `datasets` raise all sorts of errors
        hint = "check the file" if name.endswith(FILES) else "its data comes from the Hub: is that reachable?"
        raise ConfigError(f"the task {name} cannot be loaded: {brief(error, with_type=True)}", hint=hint) from error
