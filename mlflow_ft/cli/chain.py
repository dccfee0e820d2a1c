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
from functools import partial
from json import dumps, loads
from typing import TYPE_CHECKING, Any

import click

from mlflow_ft import plugins
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
Outcome = Mapping[str, Any]
"""The outcome of a stage: the JSON that `mlflow-ft train --json` prints."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One job of a chain: its method, and which stages' models it uses."""

    method: str
    defaults: Mapping[str, str]
    """Settings that the user's own settings override."""
    init_from: str = ""
    """The stage whose model is trained further: its adapter, or the whole model if it has none."""
    whole: bool = False
    """Start from the whole (merged) model, because another kind of model is trained."""
    reward_from: str = ""
    """The stage whose model scores the answers."""


ADAPTER = {"adapter.kind": "lora"}
CHAINS: Mapping[str, tuple[Stage, ...]] = {
    "align": (Stage(method="sft", defaults=ADAPTER), Stage(method="dpo", defaults=ADAPTER, init_from="sft")),
    "rlhf": (
        Stage(method="sft", defaults=ADAPTER),
        Stage(method="reward", defaults=ADAPTER, init_from="sft", whole=True),
        Stage(method="ppo", defaults=ADAPTER, init_from="sft", reward_from="reward"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class ChainOutcome:
    """The outcome of a finished chain."""

    run_id: str
    tracking_uri: str
    url: str | None
    stages: Mapping[str, Outcome]


def split(arguments: Sequence[str], stages: Sequence[Stage]) -> dict[str, list[str]]:
    """The `--key value` pairs of each stage: `--sft.data F` goes to one stage, all others to every stage.

    Raises:
        ConfigError: something is not a pair.
    """
    from mlflow_ft.config import pairs

    names = [stage.method for stage in stages]
    arguments_of: dict[str, list[str]] = {name: [] for name in names}
    for setting in pairs(arguments):
        stage, dot, key = setting.key.partition(".")
        for name in [stage] if dot and stage in names else names:
            arguments_of[name].append(f"--{key if dot and stage in names else setting.key}={setting.value}")
    return arguments_of


def unless_given(before: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """The earlier settings, without those that are given again."""
    from mlflow_ft.config import pairs

    keys = {setting.key for setting in pairs(arguments)}
    return [f"--{setting.key}={setting.value}" for setting in pairs(before) if setting.key not in keys]


def dated(arguments: Sequence[str], today: date) -> list[str]:
    """The settings plus the date on which the chain started, unless they set a date."""
    from mlflow_ft.config import pairs

    has_date = any(setting.key.rpartition(".")[2] == "date" for setting in pairs(arguments))
    return [*arguments, *([] if has_date else [f"--data.date={today.isoformat()}"])]


def settings(stage: Stage, arguments: Sequence[str], outcomes: Mapping[str, Outcome]) -> list[str]:
    """All arguments of a stage's job; a stage's own setting is left out if the user gave it."""
    defaults = dict(stage.defaults)
    if stage.init_from in outcomes:
        defaults["model.init_from"] = version_of(outcomes[stage.init_from], whole=stage.whole)
    if stage.reward_from in outcomes:
        defaults["rollout.reward_model"] = version_of(outcomes[stage.reward_from], whole=True)
    keys = {argument.removeprefix("--").partition("=")[0] for argument in arguments}
    extra = [
        f"--{path}={value}"
        for path, value in defaults.items()
        if path not in keys and path.rpartition(".")[2] not in keys
    ]
    return [*extra, *arguments]


def version_of(outcome: Outcome, *, whole: bool) -> str:
    """The URI of the version to continue from: the adapter, or the whole model if `whole` or without an adapter."""
    versions = {version["name"].endswith("-adapter"): version for version in reversed(outcome["versions"])}
    version = versions.get(not whole) or versions[whole]
    return f"models:/{version['name']}/{version['version']}"


def check(
    chain: str, arguments: Sequence[str], loaded: Plugins, *, finished: Collection[str] = ()
) -> tuple[dict[str, list[str]], Config]:
    """Resolve every stage's settings before the first one starts; the first stage's config is the run's.

    The inputs of `finished` stages need not exist any more.

    Raises:
        FineTuneError: a stage's method does not exist, its settings cannot work, or name something missing.
    """
    from mlflow_ft.cli.asked import asked
    from mlflow_ft.registry import Registry
    from mlflow_ft.stages import data, preflight

    stages, registry = CHAINS[chain], Registry(loaded)
    arguments_of = split(arguments, stages)
    configs = []
    for stage in stages:
        placeholder = {name: {"versions": [{"name": "before", "version": 1}]} for name in arguments_of}
        accept = partial(data.fits, stage.method, registry)
        try:
            config = asked([stage.method, *settings(stage, arguments_of[stage.method], placeholder)], loaded)
            if stage.method not in finished:
                preflight.check(config, plugins=loaded, registry=registry, accept=accept, later=[LATER])
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
    progress: Progress,
    today: date | None = None,
    environ: MutableMapping[str, str] = os.environ,
) -> ChainOutcome:
    """Run every unfinished stage, each in its own nested run.

    `resume` is the run of an interrupted chain, whose settings and finished stages are reused. `today` is the date
    that chat templates see in every stage, even if one is resumed later.

    Raises:
        FineTuneError: a stage failed; earlier stages are kept, and the hint says how to resume.
    """
    from mlflow_ft import tracking

    tracking.check_server()
    before = tracking.read_json(resume, ASKED_FILE) if resume else None
    if resume and (before is None or before["chain"] != chain):
        raise ConfigError(f"run {resume} is not a run of {chain}", hint="pass the run id that `mlflow-ft` printed")
    settings_given = [*unless_given(before["arguments"] if before else (), arguments), *arguments]
    settings_given = dated(settings_given, today or datetime.now().astimezone().date())
    finished = {
        stage.method: outcome
        for stage in CHAINS[chain]
        if resume and (outcome := tracking.read_json(resume, f"{FOLDER}/{stage.method}.json")) is not None
    }
    arguments_of, config = check(chain, settings_given, loaded, finished=finished)
    if resume:
        environ.setdefault("MLFLOW_RUN_ID", resume)
    outcomes: dict[str, Outcome] = {}
    with tracking.open_run(config.run, plugins=loaded, environ=environ) as active:
        active.artifact_text(dumps({"chain": chain, "arguments": settings_given}, indent=2), ASKED_FILE)
        active.set_tags({"mlflow_ft.method": chain})
        for number, stage in enumerate(CHAINS[chain], start=1):
            active.begin(stage.method)
            outcome = finished.get(stage.method)
            if outcome is not None:
                progress.say(f"stage {number}, {stage.method}: already done in run {outcome['run_id']}")
            else:
                progress.say(f"stage {number} of {len(CHAINS[chain])}: {stage.method}")
                outcome = _stage(
                    active, stage, settings(stage, arguments_of[stage.method], outcomes), progress, environ
                )
            active.artifact_text(dumps(outcome, indent=2), f"{FOLDER}/{stage.method}.json")
            outcomes[stage.method] = outcome
    return ChainOutcome(run_id=active.run_id, tracking_uri=active.tracking_uri, url=active.url, stages=outcomes)


def _stage(
    active: ActiveRun, stage: Stage, arguments: Sequence[str], progress: Progress, environ: Mapping[str, str]
) -> Outcome:
    """Run one job in its own process, so that its memory is freed at the end, and read its outcome."""
    child = active.nested_run(stage.method)
    command = [sys.executable, "-m", "mlflow_ft", "train", stage.method, "--json", *arguments]
    command += ["--quiet"] if progress.quiet else []
    variables = {**environ, "MLFLOW_RUN_ID": child, "MLFLOW_TRACKING_URI": active.tracking_uri}
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


def command_of(chain: str, about: str) -> click.Command:
    """The command that runs a chain."""

    def command(arguments: tuple[str, ...], *, json: bool, quiet: bool, resume: str | None) -> None:
        from mlflow_ft.stages.preflight import reporting_to_run

        progress = Progress(quiet=quiet)
        with reporting_to_run():
            finished = run(chain, arguments, plugins.load(), resume=resume, progress=progress)
        if json:
            fields = {"run_id": finished.run_id, "tracking_uri": finished.tracking_uri, "stages": dict(finished.stages)}
            click.echo(dumps(fields, indent=2))
            return
        facts = {"run": finished.run_id, "tracking": finished.url or finished.tracking_uri}
        for name, outcome in finished.stages.items():
            facts[name] = ", ".join(
                f"{version['name']} version {version['version']}" for version in outcome["versions"]
            )
        progress.facts(facts)

    decorate = click.command(
        chain, cls=PairsCommand, options_metavar="[--KEY VALUE]...", switches=SWITCHES, options=OPTIONS, help=about
    )
    chain_command: click.Command = decorate(command)
    return chain_command
