"""Loads logged models as a stranger would; run by its path, in a process of its own, and imported by nothing.

`python -P fresh_process.py TASK` reads a JSON object: `models` (a list of `name`, `folder`, `requests`), `reference`
(a safetensors file), `out` (a folder), and `clock` (what templates are told of the time, or null). Only what a model's
own requirements bring can be imported. It writes `NAME.json` with the answers, and `NAME.safetensors` with the logits
`N` of each row of the reference.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

INSTALLERS = {"pip", "setuptools", "wheel"}
"""What an environment has without being asked."""


class OnlyWhatIsNeeded:
    """A finder of modules that does not find those of distributions that nobody asked for."""

    def __init__(self, finder: Any, hidden: set[str]) -> None:
        self.finder = finder
        self.hidden = hidden

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] in self.hidden or not hasattr(self.finder, "find_spec"):
            return None
        return self.finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


def canonical(name: str) -> str:
    """A distribution's name as it is compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(requirements: Iterable[str]) -> Iterator[str]:
    """Every distribution that these bring along, by what is installed here."""
    from packaging.requirements import Requirement

    waiting, seen = [Requirement(line) for line in requirements], set()
    while waiting:
        requirement = waiting.pop()
        key = (canonical(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        yield key[0]
        try:
            lines = metadata.requires(requirement.name) or []
        except metadata.PackageNotFoundError:
            continue
        extras = {"", *requirement.extras}
        waiting += [
            one
            for one in map(Requirement, lines)
            if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras)
        ]


def hidden(requirements: Iterable[str]) -> set[str]:
    """Top-level modules that belong to other distributions alone."""
    wanted = INSTALLERS | set(needed(requirements))
    owners = metadata.packages_distributions()
    return {name for name, found in owners.items() if not any(canonical(one) in wanted for one in found)}


def main(file: str) -> None:
    """Do what the task says."""
    task = json.loads(Path(file).read_text(encoding="utf-8"))
    if task.get("clock"):
        hold_clock(datetime.fromisoformat(task["clock"]))
    finders = list(sys.meta_path)
    for model in task["models"]:
        lines = Path(model["folder"], "requirements.txt").read_text(encoding="utf-8").splitlines()
        names = {"mlflow_ft"} | hidden(line for line in lines if line.strip())  # it may lie in the path, not installed
        sys.meta_path[:] = [OnlyWhatIsNeeded(finder, names) for finder in finders]
        answer(model, task)


def hold_clock(moment: datetime) -> None:
    """Tell chat templates one moment, as the process that began this one does (`mlflow_ft.engine.tokens.clock`)."""
    from transformers.utils import chat_template_utils

    class Held:
        @staticmethod
        def now() -> datetime:
            return moment

    vars(chat_template_utils)["datetime"] = Held


def answer(model: dict[str, Any], task: dict[str, Any]) -> None:
    """Ask one model, as anybody may who has MLflow."""
    import mlflow
    import torch
    from safetensors.torch import load_file, save_file

    loaded = mlflow.pyfunc.load_model(model["folder"])
    answers = [loaded.predict(request) for request in model["requests"]]
    held = loaded.unwrap_python_model().model
    kept, logits = load_file(task["reference"]), {}
    for name in (name for name in kept if name.endswith(".input_ids")):
        ids = kept[name][None].to(held.device)
        with torch.no_grad():
            found = held(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        logits[name.partition(".")[0]] = found.float().cpu().contiguous()
    out = Path(task["out"])
    save_file(logits, out / f"{model['name']}.safetensors")
    (out / f"{model['name']}.json").write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
