"""mlflow-ft promote NAME: move an alias to a version if every gate passes."""

from __future__ import annotations

import getpass
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlflow_ft.cli.options import OptionsCommand, name_and_version
from mlflow_ft.errors import RefusedError

if TYPE_CHECKING:
    from mlflow_ft.operations.promoting.decision import Decision, Judged
    from mlflow_ft.progress import Progress

SWITCHES = {
    "dry-run": "Report the result of every gate and write nothing.",
    "json": "Print the decision as JSON on stdout.",
    "quiet": "Print errors only.",
}
OPTIONS = {
    "name NAME": "The registered model; the same as the first argument.",
    "version N": "The version's number or one of its aliases [candidate]; NAME/N and NAME@alias say the same.",
    "to ALIAS": "The alias to move [champion].",
    "gates FILE": "A YAML file of gates [those stored by the version's run, else the defaults].",
    "by WHO": "Who decides [the user's name].",
    "copy-to NAME": "Copy the version's files to another registered model and move that model's alias.",
    "registry URI": "The tracking server to copy to [the current one].",
}
RESULTS = {"pass": "pass", "fail": "FAIL", "abstain": "abstains", "waived": "waived"}
DONE = ("promoted", "would be promoted", "champion already")


@click.command(cls=OptionsCommand, options_metavar="NAME [--KEY VALUE]...", switches=SWITCHES, options=OPTIONS)
def command(
    arguments: tuple[str, ...],
    *,
    name: str | None,
    version: str | None,
    to: str | None,
    gates: str | None,
    by: str | None,
    copy_to: str | None,
    registry: str | None,
    dry_run: bool,
    json: bool,
    quiet: bool,
) -> int:
    """Check a version of the registered model NAME against every gate, and move the alias if all pass.

    \b
    mlflow-ft promote NAME --version 3
    mlflow-ft promote NAME --gates gates.yaml --dry-run
    mlflow-ft promote staging.NAME --copy-to prod.NAME

    The exit code is 1 if a gate does not pass or another promotion finished first.
    """
    from mlflow_ft import plugins, tracking
    from mlflow_ft.config.gates import gates_file
    from mlflow_ft.operations.promoting import promote
    from mlflow_ft.operations.promoting.decision import PromotionRequest, dumps
    from mlflow_ft.progress import Progress
    from mlflow_ft.stages.preflight import reporting_to_run

    progress = Progress(quiet=quiet)
    with reporting_to_run():
        words = (*arguments, *([name] if name else []))
        name, version = name_and_version(words, version or "", usage="mlflow-ft promote NAME --version N")
        asked = PromotionRequest(
            name=name,
            version=version or "candidate",
            to=to or "champion",
            gates=gates_file(Path(gates).expanduser()) if gates else None,
            gates_from=gates or "",
            by=by or who(),
            now_ms=int(time.time() * 1000),
            dry_run=dry_run,
            copy_to=copy_to or "",
            registry=registry or "",
            open_run=os.environ.get("MLFLOW_RUN_ID", ""),
        )
        decision = promote.promote(asked, plugins=plugins.load(), progress=progress)
    if json:
        click.echo(dumps(decision))
    else:
        report(decision, progress)
    if decision.outcome in DONE:
        return 0
    why = decision.error or RefusedError(f"not passed: {', '.join(decision.failed)}")
    tracking.refuse(why, stage="promote")  # only if `mlflow run` opened a run
    return 1


def who() -> str:
    """The operating system's name for the user."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user may have none
        return "unknown"


def report(decision: Decision, progress: Progress) -> None:
    """Print every verdict in a table, then the outcome."""
    rows = [[judged.name, RESULTS[judged.result], judged.verdict.found, _wanted(judged)] for judged in decision.judged]
    if rows:
        progress.table(f"Gates ({decision.gates_from})", ["gate", "result", "found", "wanted"], rows, text=(0, 1, 2, 3))
    for note in decision.notes:
        progress.say(note)
    model = decision.target or decision.name
    before = f"it was version {decision.champion}" if decision.champion is not None else "there was none before"
    version = f"{decision.name} version {decision.version}"
    if decision.copied is not None:
        version += f", copied as {decision.target} version {decision.copied},"
    sentences = {
        "promoted": f"{version} is now the {decision.alias}; {before}",
        "champion already": f"{version} is already the {decision.alias} of {model}; nothing was moved",
    }
    progress.say(sentences.get(decision.outcome, f"{version}: {decision.outcome}"))
    if decision.reason:
        progress.say(decision.reason)
    if decision.failed and decision.outcome in ("refused", "would be refused"):
        progress.say(f"not passed: {', '.join(decision.failed)}; {decision.alias} of {model} is unchanged")
        for line in remedies(decision):
            progress.say(line)
    if decision.error:
        progress.say(str(decision.error))
    if decision.artifact:
        progress.facts({"decision": decision.artifact})


def _wanted(judged: Judged) -> str:
    return f"{judged.verdict.wanted}; waived: {judged.waived}" if judged.result == "waived" else judged.verdict.wanted


def remedies(decision: Decision) -> list[str]:
    """Remedies for the gates that failed."""
    failed = [judged for judged in decision.judged if judged.result == "fail"]
    lines = []
    numbers = [judged.verdict.numbers for judged in failed]
    if any(
        measured.get("rows", math.inf) < measured.get("min_rows", 0) and "needed" in measured for measured in numbers
    ):
        lines.append(
            "  hold out more rows (data.test_size, data.eval_path) and train again, or lower the gate's min_rows"
        )
    if any(judged.gate == "beats-base" for judged in failed):
        lines.append(
            '  the first champion must beat its base; to waive it: `waive: {beats-base: "WHY"}` in a gates file'
        )
    return lines
