"""Jobs in a row, each on what the one before left in the registry: sft -> dpo, and sft -> reward -> ppo.

Every stage is a job of its own: a process, a nested MLflow run, versions in the registry. The run around them keeps
what each stage left (`chain/STAGE.json`), so that a chain that was interrupted goes on with the first unfinished one.
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
"""Stands for the model of a stage that has not run yet."""
ASKED_FILE = f"{FOLDER}/asked.json"
Left = Mapping[str, Any]
"""What a stage left: the JSON that `mlflow-ft train --json` prints."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One job of a chain: its method, and which stage's model it takes for what."""

    method: str
    defaults: Mapping[str, str]
    """Settings below those that the user gives."""
    init_from: str = ""
    """The stage whose model is trained further: its adapter, or the whole model where it has none."""
    whole: bool = False
    """Begin with the whole (merged) model, since what is trained is of another kind."""
    reward_from: str = ""
    """The stage whose model scores answers."""


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
class Done:
    """What a finished chain has to show."""

    run_id: str
    tracking_uri: str
    url: str | None
    stages: Mapping[str, Left]


def split(arguments: Sequence[str], stages: Sequence[Stage]) -> dict[str, list[str]]:
    """Which `--key value` pairs each stage gets: `--sft.data F` is one stage's, all others are every stage's.

    Raises:
        ConfigError: something is no pair, or a stage is named that the chain does not have.
    """
    from mlflow_ft.config import pairs

    names = [stage.method for stage in stages]
    found: dict[str, list[str]] = {name: [] for name in names}
    for one in pairs(arguments):
        stage, dot, key = one.key.partition(".")
        for name in [stage] if dot and stage in names else names:
            found[name].append(f"--{key if dot and stage in names else one.key}={one.value}")
    return found


def unless_given(before: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """The settings of before, without those that are given anew."""
    from mlflow_ft.config import pairs

    anew = {one.key for one in pairs(arguments)}
    return [f"--{one.key}={one.value}" for one in pairs(before) if one.key not in anew]


def dated(arguments: Sequence[str], today: date) -> list[str]:
    """The settings, with the day on which the chain began, unless they say which day it is."""
    from mlflow_ft.config import pairs

    given = any(one.key.rpartition(".")[2] == "date" for one in pairs(arguments))
    return [*arguments, *([] if given else [f"--data.date={today.isoformat()}"])]


def settings(stage: Stage, given: Sequence[str], left: Mapping[str, Left]) -> list[str]:
    """All arguments of a stage's job; a setting that the user gave is not given twice."""
    own = dict(stage.defaults)
    if stage.init_from in left:
        own["model.init_from"] = version_of(left[stage.init_from], whole=stage.whole)
    if stage.reward_from in left:
        own["rollout.reward_model"] = version_of(left[stage.reward_from], whole=True)
    keys = {one.removeprefix("--").partition("=")[0] for one in given}
    extra = [
        f"--{path}={value}" for path, value in own.items() if path not in keys and path.rpartition(".")[2] not in keys
    ]
    return [*extra, *given]


def version_of(left: Left, *, whole: bool) -> str:
    """The URI of the version to go on from: the adapter, or the whole model where there is none or it is wanted."""
    names = {one["name"].endswith("-adapter"): one for one in reversed(left["versions"])}
    one = names.get(not whole) or names[whole]
    return f"models:/{one['name']}/{one['version']}"


def check(
    chain: str, arguments: Sequence[str], loaded: Plugins, *, finished: Collection[str] = ()
) -> tuple[dict[str, list[str]], Config]:
    """Resolve every stage's settings before the first one starts; the first stage's config is the run's.

    What the `finished` stages read need not be there any more.

    Raises:
        FineTuneError: a stage's method is not there, its settings cannot work, or name what is not there.
    """
    from mlflow_ft.cli.asked import asked
    from mlflow_ft.registry import Registry
    from mlflow_ft.stages import data, preflight

    stages, registry = CHAINS[chain], Registry(loaded)
    given = split(arguments, stages)
    configs = []
    for stage in stages:
        placeholder = {name: {"versions": [{"name": "before", "version": 1}]} for name in given}
        accept = partial(data.fits, stage.method, registry)
        try:
            config = asked([stage.method, *settings(stage, given[stage.method], placeholder)], loaded)
            if stage.method not in finished:
                preflight.check(config, plugins=loaded, registry=registry, accept=accept, later=[LATER])
        except FineTuneError as error:
            raise type(error)(
                f"stage {stage.method} of {chain}: {error.message}", hint=error.hint, problems=error.problems
            ) from error
        configs.append(config)
    return given, configs[0]


def run(
    chain: str,
    arguments: Sequence[str],
    loaded: Plugins,
    *,
    resume: str | None = None,
    progress: Progress,
    today: date | None = None,
    environ: MutableMapping[str, str] = os.environ,
) -> Done:
    """Run every stage that is not done yet, each in a nested run of its own.

    `resume` is the run of a chain that was interrupted: its settings are taken, and its finished stages too. `today`
    is the day that chat templates are given in every stage, also where one is resumed later.

    Raises:
        FineTuneError: a stage failed; the stages before it are kept, and the hint says how to go on.
    """
    from mlflow_ft import tracking

    tracking.check_server()
    before = tracking.read_json(resume, ASKED_FILE) if resume else None
    if resume and (before is None or before["chain"] != chain):
        raise ConfigError(f"run {resume} is no run of {chain}", hint="name the run that `mlflow-ft` told at its end")
    everything = [*unless_given(before["arguments"] if before else (), arguments), *arguments]
    everything = dated(everything, today or datetime.now().astimezone().date())
    done_before = {
        stage.method: kept
        for stage in CHAINS[chain]
        if resume and (kept := tracking.read_json(resume, f"{FOLDER}/{stage.method}.json")) is not None
    }
    given, config = check(chain, everything, loaded, finished=done_before)
    if resume:
        environ.setdefault("MLFLOW_RUN_ID", resume)
    left: dict[str, Left] = {}
    with tracking.open_run(config.run, plugins=loaded, environ=environ) as active:
        active.artifact_text(dumps({"chain": chain, "arguments": everything}, indent=2), ASKED_FILE)
        active.set_tags({"mlflow_ft.method": chain})
        for number, stage in enumerate(CHAINS[chain], start=1):
            active.begin(stage.method)
            known = done_before.get(stage.method)
            if known is not None:
                progress.say(f"stage {number}, {stage.method}: done before, in run {known['run_id']}")
            else:
                progress.say(f"stage {number} of {len(CHAINS[chain])}: {stage.method}")
                known = _stage(active, stage, settings(stage, given[stage.method], left), progress, environ)
            active.artifact_text(dumps(known, indent=2), f"{FOLDER}/{stage.method}.json")
            left[stage.method] = known
    return Done(run_id=active.run_id, tracking_uri=active.tracking_uri, url=active.url, stages=left)


def _stage(
    active: ActiveRun, stage: Stage, arguments: Sequence[str], progress: Progress, environ: Mapping[str, str]
) -> Left:
    """Run one job in a process of its own, whose memory is free when it ends, and read what it left."""
    child = active.nested_run(stage.method)
    command = [sys.executable, "-m", "mlflow_ft", "train", stage.method, "--json", *arguments]
    command += ["--quiet"] if progress.quiet else []
    variables = {**environ, "MLFLOW_RUN_ID": child, "MLFLOW_TRACKING_URI": active.tracking_uri}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables, start_new_session=True)
    with active.deferring_stop():
        output = _output(process, active)
    if process.returncode:
        raise failed(stage, process.returncode, child, active.run_id)
    found: Left = loads(output)
    return found


def _output(process: subprocess.Popen[str], active: ActiveRun) -> str:
    """What a stage prints; a signal to the chain is handed on to it, once."""
    told = False
    while True:
        try:
            return process.communicate(timeout=0.5)[0]
        except subprocess.TimeoutExpired:
            if active.stopping and not told:
                process.send_signal(signal.SIGTERM)  # it finishes its step, and leaves its run KILLED
                told = True


def failed(stage: Stage, code: int, child: str, run_id: str) -> FineTuneError:
    """The error of a chain whose stage ended with `code`; its exit code is the stage's."""
    if code in (130, 143):
        return StoppedError(code - 128)
    kinds = {kind.exit_code: kind for kind in (RefusedError, UndeliveredError)}
    return kinds.get(code, FineTuneError)(
        f"stage {stage.method} ended with exit code {code}; its run is {child}",
        hint=f"what was done before is kept; mend it and go on with --resume {run_id}",
    )


# --- the commands

SWITCHES = {"json": "Print the outcome as JSON on stdout.", "quiet": "Tell nothing but errors."}
OPTIONS = {"resume RUN": "Go on with the chain of this run: its settings, and its finished stages, are taken."}


def command_of(chain: str, about: str) -> click.Command:
    """The command that runs a chain."""

    def command(arguments: tuple[str, ...], *, json: bool, quiet: bool, resume: str | None) -> None:
        from mlflow_ft.stages.preflight import told_to_run

        progress = Progress(quiet=quiet)
        with told_to_run():
            done = run(chain, arguments, plugins.load(), resume=resume, progress=progress)
        if json:
            outcome = {"run_id": done.run_id, "tracking_uri": done.tracking_uri, "stages": dict(done.stages)}
            click.echo(dumps(outcome, indent=2))
            return
        facts = {"run": done.run_id, "tracking": done.url or done.tracking_uri}
        for name, left in done.stages.items():
            facts[name] = ", ".join(f"{one['name']} version {one['version']}" for one in left["versions"])
        progress.facts(facts)

    made = click.command(
        chain, cls=PairsCommand, options_metavar="[--KEY VALUE]...", switches=SWITCHES, options=OPTIONS, help=about
    )
    found: click.Command = made(command)
    return found
