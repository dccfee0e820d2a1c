"""Runs in Axolotl's environment, where nothing of mlflow-ft is: checks the keys, and trains.

mlflow_ft/engine/tools/inside.py sets the globals `request` and `callback`.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def main(settings: Mapping[str, Any], callback: Callable[[], Any]) -> None:
    """Train as `axolotl train` does, with the callback in every trainer that is made in this process."""
    import transformers.trainer

    transformers.trainer.DEFAULT_CALLBACKS.append(callback())
    from axolotl.cli.train import do_cli
    from axolotl.utils.schemas.config import AxolotlConfigWCapabilities

    unknown = sorted(set(settings) - set(AxolotlConfigWCapabilities.model_fields))
    if unknown:  # Axolotl would ignore them
        sys.exit(f"Axolotl has no setting {', '.join(unknown)}: remove it from objective.options")
    file = Path("axolotl.yml").resolve()
    file.write_text(json.dumps(settings, indent=2), encoding="utf-8")  # JSON is YAML
    do_cli(str(file))


if __name__ == "__main__":  # the processes that prepare rows read this file too
    main(globals()["request"]["settings"], globals()["callback"])
