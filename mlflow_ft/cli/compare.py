"""mlflow-ft compare FIRST SECOND: people choose the better of two answers, without knowing whose they are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from mlflow_ft.errors import ConfigError

if TYPE_CHECKING:
    from mlflow_ft.operations.comparing.compare import Outcome, Ready
    from mlflow_ft.progress import Progress


@click.command(
    options_metavar="[FIRST SECOND] [OPTIONS] [--data.KEY VALUE]...", context_settings={"ignore_unknown_options": True}
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="")
@click.option("--data", metavar="ROWS", help="The rows whose prompts both models answer: a file, a Hub id, a URI.")
@click.option("--resume", metavar="RUN_ID", default="", help="Continue the comparison of this run.")
@click.option("--limit", type=click.IntRange(1), help="Compare this many rows, drawn at random; default: all.")
@click.option("--votes-needed", type=click.IntRange(1), help="End after this many votes, without skips; default: all.")
@click.option("--seed", default=0, show_default=True, help="Seed for the order of the rows and of the two answers.")
@click.option("--temperature", default=0.0, show_default=True, type=click.FloatRange(0), help="0: greedy decoding.")
@click.option("--max-tokens", default=256, show_default=True, type=click.IntRange(1), help="Maximum answer length.")
@click.option("--base", envvar="MLFLOW_FT_BASE_MODEL", help="The base model of adapters; default: the recorded one.")
@click.option("--port", default=0, show_default=True, type=click.IntRange(0, 65535), help="0: any free port.")
@click.option("--by", help="Who votes [the user's name].")
@click.option("--open", "opens", is_flag=True, help="Open the page in the browser of this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print the address, then the result, as lines of JSON on stdout.")
@click.option("--quiet", is_flag=True, help="Print errors, the address and the result only.")
def command(
    arguments: tuple[str, ...],
    *,
    data: str | None,
    resume: str,
    limit: int | None,
    votes_needed: int | None,
    seed: int,
    temperature: float,
    max_tokens: int,
    base: str | None,
    port: int,
    by: str | None,
    opens: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Compare two models by people's votes: NAME@alias, NAME/3, models:/..., runs:/RUN_ID/merged, a folder.

    \b
    mlflow-ft compare NAME@champion NAME@candidate --data rows.jsonl
    mlflow-ft compare NAME/3 OTHER/1 --data rows.jsonl --limit 50 --open
    mlflow-ft compare --resume RUN_ID

    Both answer the rows' prompts; then a page on 127.0.0.1 shows one prompt with two answers in random order, without
    names. Keys: 1 or 2 is better, 0 equal, s skip, u undo. Each vote is kept in MLflow at once: the same command again
    continues. "Finish" or Ctrl-C ends with the win rate of SECOND over FIRST.
    """
    from mlflow_ft import plugins
    from mlflow_ft.cli.promote import who
    from mlflow_ft.config import pairs, resolve
    from mlflow_ft.operations.comparing import compare
    from mlflow_ft.progress import Progress

    models, settings = split(arguments)
    check(models, data=data, resume=resume)
    first, second = models or ("", "")
    progress = Progress(quiet=quiet)
    request = compare.CompareRequest(
        first=first,
        second=second,
        resume=resume,
        config=resolve("compare", defaults={}, command_line=pairs(["--data", data, *settings] if data else settings)),
        limit=limit,
        needed=votes_needed,
        seed=seed,
        temperature=temperature,
        max_tokens=max_tokens,
        base=base or None,
        port=port,
        by=by or who(),
    )

    ready = announcing(progress, as_json=as_json, opens=opens)
    return report(compare.compare(request, plugins.load(), progress, ready), progress, as_json=as_json)


def announcing(progress: Progress, *, as_json: bool, opens: bool) -> Ready:
    """What prints the address of the page when it can be opened, and opens it if that is asked for."""

    def ready(url: str) -> None:
        if as_json:
            click.echo(json.dumps({"url": url}))
        else:
            click.echo(f"vote here: {url}", err=True)
        progress.say("end with Ctrl-C; the votes are kept")
        if opens:
            import webbrowser

            webbrowser.open(url)

    return ready


def split(arguments: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The models, and settings of the data (`--data.format NAME`).

    Raises:
        NoSuchOption: another option.
    """
    models, settings, words = [], [], iter(arguments)
    for word in words:
        if word.startswith("--data."):
            settings += [word] if "=" in word else [word, *([value] if (value := next(words, None)) else [])]
        elif word.startswith("-"):
            raise click.NoSuchOption(word.partition("=")[0])
        else:
            models.append(word)
    return models, settings


def check(models: list[str], *, data: str | None, resume: str) -> None:
    """Raise ConfigError unless two models and rows are named, or a run to continue."""
    usage = "mlflow-ft compare NAME@champion NAME@candidate --data ROWS"
    if resume and (models or data):
        raise ConfigError("--resume continues with the models and rows of its run", hint="leave out the others")
    if resume:
        return
    if len(models) != 2:  # the two to compare
        raise ConfigError(f"two models are compared, not {len(models)}", hint=f"write {usage}")
    if not data:
        raise ConfigError("no rows were named", hint=f"write {usage}")


def report(outcome: Outcome, progress: Progress, *, as_json: bool) -> int:
    """Print the result; the exit code is that of the signal, if it came before everything was voted on."""
    if as_json:
        found = outcome.result.as_dict() if outcome.result else None
        click.echo(json.dumps({"run_id": outcome.run_id, "result": found, "left": outcome.left}))
    elif outcome.result is None:
        click.echo("nobody has voted: no result", err=True)
    else:
        click.echo(outcome.result.sentence(), err=True)
        progress.facts({**outcome.result.facts(), "run": outcome.run_id})
    if outcome.stopped:
        progress.say(f"to continue: mlflow-ft compare --resume {outcome.run_id}")
    return outcome.stopped.exit_code if outcome.stopped else 0
