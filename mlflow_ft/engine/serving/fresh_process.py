"""Load logged models in a clean process with only their requirements; run by path, and not imported by anything.

`python -P fresh_process.py` reads two lines of JSON from its standard input. The first is a list: requirements that all
models have in common. Their packages are imported at once, while the models are still being packaged. The second is the
task: `models` (a list of `name`, `folder`, `requests`), `reference` (a safetensors file), `out` (a folder), and `clock`
(the time that templates see, or null). Only packages from a model's own requirements can be imported. It writes
`NAME.json` with the answers, and `NAME.safetensors` with the logits `N` of each row of the reference.

Without a second line it ends: there is nothing to load.
"""

import importlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

INSTALLERS = {"pip", "setuptools", "wheel"}
"""What every environment has."""
IMPORTED = (
    "mlflow.pyfunc",
    "safetensors.torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
)
"""What the code of every logged model imports."""


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


def hidden(requirements: Iterable[str], owners: Mapping[str, Sequence[str]]) -> set[str]:
    """Top-level modules that belong only to other distributions; `owners` names the distributions of every module."""
    wanted = INSTALLERS | set(needed(requirements))
    others = {
        name
        for name, distributions in owners.items()
        if not any(canonical(distribution) in wanted for distribution in distributions)
    }
    return others | {"mlflow_ft"}  # which may be on the path without being installed


def main() -> None:
    """Import what all models need, then run the task."""
    finders, owners = list(sys.meta_path), metadata.packages_distributions()

    def hide(requirements: Iterable[str], imported: set[str]) -> None:
        names = hidden(requirements, owners)
        for name in sorted(names & imported):  # which no finder is asked for again
            raise ModuleNotFoundError(f"No module named {name!r}")
        sys.meta_path[:] = [OnlyWhatIsNeeded(finder, names) for finder in finders]

    hide(json.loads(sys.stdin.readline()), set())
    earlier = set(sys.modules)
    import_what_all_need()
    imported = {name.partition(".")[0] for name in set(sys.modules) - earlier}
    line = sys.stdin.readline()
    if not line:
        return
    task = json.loads(line)
    if task.get("clock"):
        hold_clock(datetime.fromisoformat(task["clock"]))
    for model in task["models"]:
        lines = Path(model["folder"], "requirements.txt").read_text(encoding="utf-8").splitlines()
        hide((line for line in lines if line.strip()), imported)
        answer(model, task)


def import_what_all_need() -> None:
    """The imports that every logged model's code begins with, and the setting that it makes before them."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for name in IMPORTED:
        importlib.import_module(name)


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
    main()
