"""Chains of jobs, each starting from the model that the previous one registered: sft -> dpo, sft -> reward -> ppo.

Every stage is a separate job: a process, a nested MLflow run, versions in the registry. The parent run keeps the
outcome of each stage (`chain/STAGE.json`), so that an interrupted chain resumes at the first unfinished stage.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from json import dumps, loads
from typing import TYPE_CHECKING

import click

from mlflow_ft import plugins, processes
from mlflow_ft.cli.chain_stages import CHAINS, Outcome, Stage, dated, settings, split, unless_given
from mlflow_ft.cli.pairs import PairsCommand
from mlflow_ft.errors import ConfigError, FineTuneError, RefusedError, StoppedError, UndeliveredError
from mlflow_ft.plugins import Plugins
from mlflow_ft.progress import Progress

if TYPE_CHECKING:
    from mlflow_ft.config import Config
    from mlflow_ft.tracking import ActiveRun

FOLDER = "chain"
LATER = "models:/before/1"
"""Placeholder for the model of a stage that has not run yet."""
ASKED_FILE = f"{FOLDER}/asked.json"


@dataclass(frozen=True, kw_only=True)
class ChainOutcome:
    """The outcome of a finished chain."""

    run_id: str
    tracking_uri: str
    url: str | None
    stages: Mapping[str, Outcome]


def check(
    chain: str, arguments: Sequence[str], loaded: Plugins, *, progress: Progress, finished: Collection[str] = ()
) -> tuple[dict[str, list[str]], Config]:
    """Resolve every stage's settings before the first one starts; the first stage's config is the run's.

    The inputs of `finished` stages need not exist any more.

    Raises:
        FineTuneError: a stage's method does not exist, its settings cannot work, or name something missing.
    """
    from mlflow_ft.cli.asked import asked
    from mlflow_ft.registry import Registry
    from mlflow_ft.stages import preflight

    stages, registry = CHAINS[chain], Registry(loaded)
    arguments_of = split(arguments, stages)
    configs = []
    for stage in stages:
        placeholder = {name: {"versions": [{"name": "before", "version": 1}]} for name in arguments_of}
        try:
            config = asked([stage.method, *settings(stage, arguments_of[stage.method], placeholder)], loaded)
            if config.launch.num_machines > 1 and processes.place().size == 1:
                raise ConfigError(
                    "a later stage starts from files of an earlier one, which only machine 0 has",
                    hint=f"start `mlflow-ft {chain}` with torchrun or srun on every machine, or train stage by stage",
                )
            if stage.method not in finished:
                preflight.check(config, plugins=loaded, registry=registry, progress=progress, later=[LATER])
        except FineTuneError as error:
            raise type(error)(
                f"stage {stage.method} of {chain}: {error.message}", hint=error.hint, problems=error.problems
            ) from error
        configs.append(config)
    return arguments_of, configs[0]


def run(
    chain: str,
    arguments: Sequence[str],
    loaded: Plugins,
    *,
    resume: str | None = None,
    accept_changes: bool = False,
    progress: Progress,
    today: date | None = None,
    environ: MutableMapping[str, str] = os.environ,
) -> ChainOutcome:
    """Run every unfinished stage, each in its own nested run.

    `resume` is the run of an interrupted chain, whose settings and finished stages are reused; a stage that was killed
    continues, with `accept_changes` although something changed since. `today` is the date that chat templates see in
    every stage, even if one is resumed later.

    Raises:
        FineTuneError: a stage failed; earlier stages are kept, and the hint says how to resume.
    """
    from mlflow_ft import tracking
    from mlflow_ft.forms.run_page import renaming

    tracking.check_server()
    before = tracking.read_json(resume, ASKED_FILE) if resume else None
    if resume and (before is None or before["chain"] != chain):
        raise ConfigError(f"run {resume} is not a run of {chain}", hint="pass the run id that `mlflow-ft` printed")
    settings_given = [*unless_given(before["arguments"] if before else (), arguments), *arguments]
    settings_given = dated(settings_given, today or datetime.now().astimezone().date())
    again = {name for name, given in split(arguments, CHAINS[chain]).items() if given}  # they have new settings
    finished, begun = _before(chain, resume, again) if resume else ({}, {})
    arguments_of, config = check(chain, settings_given, loaded, progress=progress, finished=finished)
    if resume:
        environ.setdefault("MLFLOW_RUN_ID", resume)
    outcomes: dict[str, Outcome] = {}
    with tracking.open_run(config.run, plugins=loaded, environ=environ) as active:
        active.artifact_text(dumps({"chain": chain, "arguments": settings_given}, indent=2), ASKED_FILE)
        active.set_tags({"mlflow_ft.method": chain} | renaming(active.read().info.run_name, config, what=chain))
        for number, stage in enumerate(CHAINS[chain], start=1):
            active.begin(stage.method)
            outcome = finished.get(stage.method)
            if outcome is not None:
                progress.say(f"stage {number}, {stage.method}: already done in run {outcome['run_id']}")
            else:
                progress.say(f"stage {number} of {len(CHAINS[chain])}: {stage.method}")
                arguments = settings(stage, arguments_of[stage.method], outcomes)
                child = begun.get(stage.method)
                command = ["resume", child] if child else ["train", stage.method, *arguments]
                command += ["--accept-changes"] if child and accept_changes else []
                outcome = _stage(active, stage, command, progress, environ, child=child)
            active.artifact_text(dumps(outcome, indent=2), f"{FOLDER}/{stage.method}.json")
            outcomes[stage.method] = outcome
    return ChainOutcome(run_id=active.run_id, tracking_uri=active.tracking_uri, url=active.url, stages=outcomes)


def _before(chain: str, run_id: str, again: Collection[str]) -> tuple[dict[str, Outcome], dict[str, str]]:
    """The outcomes of the finished stages of an interrupted chain, and the run ids of those that were killed.

    Stages that are run `again` from their beginning are in neither, unless the chain recorded their outcomes.
    """
    from mlflow_ft import tracking
    from mlflow_ft.tracking import unfinished

    finished: dict[str, Outcome] = {}
    killed: dict[str, str] = {}
    nested = unfinished.children(run_id)
    for name in (stage.method for stage in CHAINS[chain]):
        if outcome := tracking.read_json(run_id, f"{FOLDER}/{name}.json"):
            finished[name] = outcome
        elif name in nested and name not in again:
            if nested[name].info.status == "FINISHED":
                finished[name] = unfinished.outcome(nested[name])
            else:
                killed[name] = nested[name].info.run_id
    return finished, killed


def _stage(
    active: ActiveRun,
    stage: Stage,
    arguments: Sequence[str],
    progress: Progress,
    environ: Mapping[str, str],
    *,
    child: str | None = None,
) -> Outcome:
    """Run one job in its own process, so that its memory is freed at the end, and read its outcome.

    `child` is the nested run of an interrupted attempt, which continues.
    """
    from mlflow_ft.tracking import heartbeat

    child = child or active.nested_run(stage.method)
    command = [sys.executable, "-m", "mlflow_ft", *arguments, "--json", *(["--quiet"] if progress.quiet else [])]
    variables = {**environ, "MLFLOW_RUN_ID": child, "MLFLOW_TRACKING_URI": active.tracking_uri}
    variables |= {heartbeat.CHAIN: str(os.getpid())}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables, start_new_session=True)
    with active.deferring_stop():
        output = _output(process, active)
    if process.returncode:
        raise failed(stage, process.returncode, child, active.run_id)
    outcome: Outcome = loads(output)
    return outcome


def _output(process: subprocess.Popen[str], active: ActiveRun) -> str:
    """What a stage prints; a signal to the chain is forwarded to it once."""
    forwarded = False
    while True:
        try:
            return process.communicate(timeout=0.5)[0]
        except subprocess.TimeoutExpired:
            if active.stopping and not forwarded:
                process.send_signal(signal.SIGTERM)  # it finishes its step and marks its run KILLED
                forwarded = True


def failed(stage: Stage, code: int, child: str, run_id: str) -> FineTuneError:
    """The error of a chain whose stage ended with `code`; it has the same exit code."""
    if code in (130, 143):
        return StoppedError(code - 128)
    kinds = {kind.exit_code: kind for kind in (RefusedError, UndeliveredError)}
    return kinds.get(code, FineTuneError)(
        f"stage {stage.method} ended with exit code {code}; its run is {child}",
        hint=f"earlier stages are kept; fix the problem and continue with --resume {run_id}",
    )


# --- the commands

SWITCHES = {"json": "Print the outcome as JSON on stdout.", "quiet": "Print errors only."}
OPTIONS = {"resume RUN": "Resume the chain of this run, with its settings and its finished stages."}


def of_run(run_id: str) -> str | None:
    """The chain of which this is the parent run; None for any other run."""
    from mlflow_ft import tracking

    asked = tracking.read_json(run_id, ASKED_FILE)
    return asked["chain"] if asked else None


def finish(
    chain: str,
    arguments: Sequence[str],
    *,
    resume: str | None,
    accept_changes: bool = False,
    progress: Progress,
    json: bool,
) -> None:
    """Run a chain, or the rest of it, and print its outcome."""
    from mlflow_ft.stages.preflight import reporting_to_run

    with reporting_to_run():
        outcome = run(chain, arguments, plugins.load(), resume=resume, accept_changes=accept_changes, progress=progress)
    if json:
        fields = {"run_id": outcome.run_id, "tracking_uri": outcome.tracking_uri, "stages": dict(outcome.stages)}
        click.echo(dumps(fields, indent=2))
        return
    facts = {"run": outcome.run_id, "tracking": outcome.url or outcome.tracking_uri}
    for name, stage in outcome.stages.items():
        facts[name] = ", ".join(f"{version['name']} version {version['version']}" for version in stage["versions"])
    progress.facts(facts)


def command_of(chain: str, about: str) -> click.Command:
    """The command that runs a chain."""

    def command(arguments: tuple[str, ...], *, json: bool, quiet: bool, resume: str | None) -> None:
        finish(chain, arguments, resume=resume, progress=Progress(quiet=quiet), json=json)

    decorate = click.command(
        chain, cls=PairsCommand, options_metavar="[--KEY VALUE]...", switches=SWITCHES, options=OPTIONS, help=about
    )
    chain_command: click.Command = decorate(command)
    return chain_command
