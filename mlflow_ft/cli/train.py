"""mlflow-ft train METHOD: the whole job, from rows to registered versions."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlflow_ft.cli.pairs import PairsCommand

if TYPE_CHECKING:
    from mlflow_ft.config import Config
    from mlflow_ft.pipeline import Outcome
    from mlflow_ft.plugins import Plugins
    from mlflow_ft.progress import Progress

SWITCHES = {"json": "Print the outcome as JSON on stdout.", "quiet": "Print errors only."}


@click.command(cls=PairsCommand, options_metavar="METHOD [--KEY VALUE]...", switches=SWITCHES)
def command(arguments: tuple[str, ...], *, json: bool, quiet: bool) -> None:
    """Fine-tune a model with METHOD and register the result.

    \b
    mlflow-ft train qlora
    mlflow-ft train lora --model ./my-model --data rows.jsonl --learning_rate 1e-4
    mlflow-ft train qlora --config my.yaml --training.max_steps 100
    """
    from mlflow_ft import pipeline
    from mlflow_ft.progress import Progress

    progress = Progress(quiet=quiet)
    config, loaded = understand(arguments, progress)
    outcome = pipeline.run(config, loaded, progress=progress)
    if json:
        click.echo(dumps(as_dict(outcome), indent=2))
    else:
        report(outcome, progress)


def understand(arguments: Sequence[str], progress: Progress, *, method: str | None = None) -> tuple[Config, Plugins]:
    """Load the plugins and resolve the command line; an error is also recorded on the open MLflow run."""
    from mlflow_ft.cli.asked import asked, load_plugins
    from mlflow_ft.stages.preflight import reporting_to_run

    with reporting_to_run():
        loaded = load_plugins(arguments)
        for info in loaded.infos:
            if info.faulty:
                progress.warn(f"plugin {info.name} is broken and ignored: {info.error}")
        return asked(arguments, loaded, method=method), loaded


def as_dict(outcome: Outcome) -> dict[str, object]:
    """The outcome as JSON: where it is, the scores of both models, the registered versions."""
    return {
        "run_id": outcome.run_id,
        "tracking_uri": outcome.tracking_uri,
        "folder": outcome.folder,
        "scores": {
            # JSON has no NaN, which is the mean over no rows
            name: {score.name: score.value if math.isfinite(score.value) else None for score in scores}
            for name, scores in (("base", outcome.scores.base), ("tuned", outcome.scores.tuned))
        },
        "worse": outcome.scores.worse.sentence if outcome.scores.worse else None,
        "versions": [
            {"name": version.name, "version": version.version, "alias": version.alias, "model_id": version.model_id}
            for version in outcome.versions
        ],
    }


def report(outcome: Outcome, progress: Progress) -> None:
    """Print the summary: scores before and after, where the results are, and what to run next."""
    from mlflow_ft.stages.worse import side_by_side

    progress.table("Held-out rows", ["score", "base", "tuned"], side_by_side(outcome.scores))
    if outcome.scores.worse:
        (progress.warn if outcome.scores.worse.sure else progress.say)(outcome.scores.worse.sentence)
    facts = {"run": outcome.run_id, "tracking": outcome.url or outcome.tracking_uri, "files": outcome.folder}
    facts |= {
        "registered": ", ".join(
            f"{version.name} version {version.version} @{version.alias}" for version in outcome.versions
        )
    }
    progress.facts(facts)
    for line in next_commands(outcome):
        progress.say(line)


def next_commands(outcome: Outcome) -> list[str]:
    """Shell commands to run next: serve the main version and ask it a held-out prompt, promote it, open the UI."""
    uri = shlex.quote(outcome.tracking_uri)
    # `mlflow models serve` calls uvicorn by name, so the environment must be on PATH even if it is not activated.
    path = f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH " if sys.prefix != sys.base_prefix else ""
    lines = []
    if outcome.versions:
        first = outcome.versions[0]
        prompt = [dict(turn) for turn in outcome.scores.answers[0][1].prompt] if outcome.scores.answers else []
        turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello to you"}]
        body = dumps({"messages": prompt or turns})  # a model without answers scores a conversation
        model = f"models:/{first.name}@{first.alias}"
        lines += [
            "",
            "Next, serve the model and query it from another terminal:",
            f"  {path}MLFLOW_TRACKING_URI={uri} mlflow models serve -m {model} --env-manager local -p 5001",
            "  curl -s http://127.0.0.1:5001/invocations -H 'Content-Type: application/json' \\",
            f"    -d {shlex.quote(body)}",
        ]
        if first.alias:
            promote = f"mlflow-ft promote {shlex.quote(first.name)} --version {first.version}"
            lines += ["Or make it the champion, if its gates pass:", f"  {path}MLFLOW_TRACKING_URI={uri} {promote}"]
    if outcome.url is None:
        lines += ["Or open the run in the browser:", f"  {path}mlflow ui --backend-store-uri {uri}"]
    return lines
