"""mlflow-ft train METHOD: the whole job, from the rows to the registered versions."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mlflow_ft.pipeline import Outcome
    from mlflow_ft.progress import Progress

SWITCHES = ("--json", "--quiet")


class PairsCommand(click.Command):
    """A command whose options are `--key value` pairs: a value may begin with a dash, and is never taken for a flag."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        switches = set()
        rest: list[str] = []
        waiting = False
        for argument in args:
            if not waiting and argument in SWITCHES:
                switches.add(argument.removeprefix("--"))
                continue
            if not waiting and argument in ctx.help_option_names:
                click.echo(ctx.get_help())
                ctx.exit()
            rest.append(argument)
            waiting = not waiting and argument.startswith("--") and "=" not in argument
        ctx.params = {"arguments": tuple(rest), "as_json": "json" in switches, "quiet": "quiet" in switches}
        return []

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from mlflow_ft.config import describe

        with formatter.section("Options"):
            formatter.write_dl(
                [
                    ("--config FILE", "A YAML file, or the name of an example: qlora, lora, full."),
                    ("--json", "Print the outcome as JSON on stdout."),
                    ("--quiet", "Tell nothing but errors."),
                ]
            )
        with formatter.section("Settings (a name that is unique needs no section: --learning_rate 1e-4)"):
            formatter.write_dl([(f"--{path} {kind}", f"{doc} [{default}]") for path, kind, default, doc in describe()])


@click.command(cls=PairsCommand, options_metavar="METHOD [--KEY VALUE]...")
def command(arguments: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """Fine-tune a model by METHOD, and register what comes of it.

    \b
    mlflow-ft train qlora
    mlflow-ft train lora --model ./my-model --data rows.jsonl --learning_rate 1e-4
    mlflow-ft train qlora --config my.yaml --training.max_steps 100
    """
    from mlflow_ft import pipeline, plugins
    from mlflow_ft.cli.asked import asked
    from mlflow_ft.progress import Progress

    loaded = plugins.load()
    progress = Progress(quiet=quiet)
    for info in loaded.infos:
        if info.status == "broken":
            progress.warn(f"plugin {info.name} is broken and left out: {info.error}")
    config = asked(arguments, loaded)
    outcome = pipeline.run(config, loaded, progress=progress)
    if as_json:
        json.dump(as_dict(outcome), sys.stdout, indent=2)
        click.echo()
    else:
        tell(outcome, progress)


def as_dict(outcome: Outcome) -> dict[str, object]:
    """The outcome as JSON: where it is, the scores of both models, the registered versions."""
    return {
        "run_id": outcome.run_id,
        "tracking_uri": outcome.tracking_uri,
        "folder": outcome.folder,
        "scores": {
            name: {score.name: score.value for score in scores}
            for name, scores in (("base", outcome.scores.base), ("tuned", outcome.scores.tuned))
        },
        "versions": [
            {"name": one.name, "version": one.version, "alias": one.alias, "model_id": one.model_id}
            for one in outcome.versions
        ],
    }


def tell(outcome: Outcome, progress: Progress) -> None:
    """The closing summary: before and after, where it is, and what to type next."""
    tuned = {score.name: score.value for score in outcome.scores.tuned}
    rows = [[one.name, f"{one.value:.4g}", f"{tuned[one.name]:.4g}"] for one in outcome.scores.base]
    progress.table("Held-out rows", ["score", "base", "tuned"], rows)
    facts = {"run": outcome.run_id, "tracking": outcome.url or outcome.tracking_uri, "files": outcome.folder}
    facts |= {"registered": ", ".join(f"{one.name} version {one.version} @{one.alias}" for one in outcome.versions)}
    progress.facts(facts)
    if outcome.versions:
        first = outcome.versions[0]
        uri = f'MLFLOW_TRACKING_URI="{outcome.tracking_uri}"'
        progress.say("\nNext, serve it and ask it something:")
        progress.say(f"  {uri} mlflow models serve -m models:/{first.name}@{first.alias} --env-manager local -p 5001")
        progress.say("  curl -s localhost:5001/invocations -H 'Content-Type: application/json' \\")
        progress.say('    -d \'{"messages": [{"role": "user", "content": "Hello"}]}\'')
    if outcome.url is None:
        progress.say(f'or look at the run: mlflow ui --backend-store-uri "{outcome.tracking_uri}"')
