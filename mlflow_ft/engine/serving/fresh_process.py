"""Load logged models in a clean process with only their requirements; run by path, and not imported by anything.

`python -P fresh_process.py TASK` reads a JSON object: `models` (a list of `name`, `folder`, `requests`), `reference`
(a safetensors file), `out` (a folder), and `clock` (the time that templates see, or null). Only packages from a model's
own requirements can be imported. It writes `NAME.json` with the answers, and `NAME.safetensors` with the logits `N` of
each row of the reference.
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
"""What every environment has."""


class OnlyWhatIsNeeded:
    """A module finder that hides modules of distributions which are not required."""

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
    """A distribution's name in normalised form."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(requirements: Iterable[str]) -> Iterator[str]:
    """Every distribution that these require, directly or not, according to what is installed."""
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
            dependency
            for dependency in map(Requirement, lines)
            if dependency.marker is None or any(dependency.marker.evaluate({"extra": extra}) for extra in extras)
        ]


def hidden(requirements: Iterable[str]) -> set[str]:
    """Top-level modules that belong only to other distributions."""
    wanted = INSTALLERS | set(needed(requirements))
    owners = metadata.packages_distributions()
    return {
        name
        for name, distributions in owners.items()
        if not any(canonical(distribution) in wanted for distribution in distributions)
    }


def main(file: str) -> None:
    """Run the task."""
    task = json.loads(Path(file).read_text(encoding="utf-8"))
    if task.get("clock"):
        hold_clock(datetime.fromisoformat(task["clock"]))
    finders = list(sys.meta_path)
    for model in task["models"]:
        lines = Path(model["folder"], "requirements.txt").read_text(encoding="utf-8").splitlines()
        names = {"mlflow_ft"} | hidden(
            line for line in lines if line.strip()
        )  # it may be on the path without being installed
        sys.meta_path[:] = [OnlyWhatIsNeeded(finder, names) for finder in finders]
        answer(model, task)


def hold_clock(moment: datetime) -> None:
    """Fix the time that chat templates see, as the parent process does (`mlflow_ft.engine.tokens.clock`)."""
    from transformers.utils import chat_template_utils

    class Fixed:
        @staticmethod
        def now() -> datetime:
            return moment

    vars(chat_template_utils)["datetime"] = Fixed


def answer(model: dict[str, Any], task: dict[str, Any]) -> None:
    """Load one model with MLflow alone, and write its answers and logits."""
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
            output = held(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        logits[name.partition(".")[0]] = output.float().cpu().contiguous()
    out = Path(task["out"])
    save_file(logits, out / f"{model['name']}.safetensors")
    (out / f"{model['name']}.json").write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
