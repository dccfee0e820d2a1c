"""mlflow-ft serve MODEL: serve chat over HTTP, with MLflow's routes and OpenAI's."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from mlflow_ft.errors import ConfigError, StoppedError

if TYPE_CHECKING:
    from mlflow_ft.progress import Progress

BASE = "base"
SECONDS = 10
"""Between two looks at where an alias points."""


@click.command(
    options_metavar="[MODEL] [OPTIONS] [--plugins.NAME.KEY VALUE]...", context_settings={"ignore_unknown_options": True}
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="")
@click.option("--adapter", "adapters", multiple=True, metavar="NAME=ADAPTER", help="An adapter; repeat for more.")
@click.option("--base", envvar="MLFLOW_FT_BASE_MODEL", help="The base model; default: the recorded one.")
@click.option("--engine", default="transformers", show_default=True, help="See `mlflow-ft show serving_engines`.")
@click.option("--follow", is_flag=True, help="Change the model without a restart when its alias moves.")
@click.option(
    "--every", default=SECONDS, show_default=True, type=click.FloatRange(0.1), help="Seconds between two looks at it."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=5001, show_default=True, type=click.IntRange(0, 65535), help="0: any free port.")
@click.option("--timeout", default=600, show_default=True, type=click.IntRange(1), help="Time limit per request, in s.")
@click.option("--json", "as_json", is_flag=True, help="Print url and models as a line of JSON on stdout.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
def command(
    arguments: tuple[str, ...],
    *,
    adapters: tuple[str, ...],
    base: str | None,
    engine: str,
    follow: bool,
    every: float,
    host: str,
    port: int,
    timeout: int,
    as_json: bool,
    quiet: bool,
) -> int:
    """Serve MODEL: NAME@alias, NAME/3, models:/..., runs:/RUN_ID/merged, a folder or a Hub model.

    \b
    mlflow-ft serve NAME@champion
    mlflow-ft serve --adapter json=NAME-adapter@champion --adapter prose=OTHER-adapter/2
    mlflow-ft serve ./base --adapter mine=./adapter --port 8000
    mlflow-ft serve NAME@champion --engine vllm --follow

    /invocations, /ping and /version work as in `mlflow models serve`; /v1/chat/completions (with streaming) and
    /v1/models as in OpenAI's API. With --adapter, MODEL is the base: it is loaded once, and a request's `model` selects
    an adapter by name, or `base`.
    """
    from mlflow_ft import plugins
    from mlflow_ft.config import pairs, resolve
    from mlflow_ft.operations.serving import serve
    from mlflow_ft.progress import Progress
    from mlflow_ft.registry import Registry

    model, settings = split(arguments)
    loaded = plugins.load()
    progress = Progress(quiet=quiet)
    request = serve.ServeRequest(
        model=model,
        adapters=named(adapters),
        base=base or None,
        host=host,
        port=port,
        timeout=timeout,
        engine=engine,
        follow=every if follow else None,
        config=resolve("serve", defaults={}, command_line=pairs(settings), options=Registry(loaded).option_types),
    )

    def ready(url: str, names: Sequence[str], route: str) -> None:
        if as_json:
            click.echo(json.dumps({"url": url, "models": names}))
        report(url, names, route, progress)

    try:
        serve.serve(request, loaded, progress, ready)
    except StoppedError as error:  # a signal is the normal end
        return error.exit_code
    return 0


def named(adapters: tuple[str, ...]) -> dict[str, str]:
    """Adapters by name.

    Raises:
        ConfigError: an adapter has no name, or its name is taken.
    """
    uris: dict[str, str] = {}
    for argument in adapters:
        name, equals, uri = argument.partition("=")
        if not (name and equals and uri):
            raise ConfigError(f"--adapter {argument}: an adapter needs a name", hint="write --adapter NAME=ADAPTER")
        if name == BASE or name in uris:
            reason = "is reserved for the model without an adapter" if name == BASE else "is used twice"
            raise ConfigError(f"--adapter {argument}: the name {name!r} {reason}", hint="choose another name")
        uris[name] = uri
    return uris


def split(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The model, and the options of plugins (`--plugins.NAME.key VALUE`).

    Raises:
        ConfigError: two models. NoSuchOption: another option.
    """
    models, settings, words = [], [], iter(arguments)
    for word in words:
        if word.startswith("--plugins."):
            settings.append(word)
            settings += [] if "=" in word else list(itertools.islice(words, 1))
        elif word.startswith("-"):
            raise click.NoSuchOption(word.partition("=")[0])
        else:
            models.append(word)
    if len(models) > 1:
        raise ConfigError(
            f"{len(models)} models: {', '.join(models)}", hint="name one; --adapter NAME=ADAPTER serves several"
        )
    return (models[0] if models else None), settings


def report(url: str, names: Sequence[str], route: str, progress: Progress) -> None:
    """Print the address and an example request."""
    body = {"model": names[0], "messages": [{"role": "user", "content": "Hello"}]}
    progress.say(f"{', '.join(names)}: answering on {url} (stop with Ctrl-C)")
    progress.say(f"  curl -s {url}/{route} -H 'Content-Type: application/json' \\")
    progress.say(f"    -d {shlex.quote(json.dumps(body))}")
