"""mlflow-ft chat MODEL: a conversation in the terminal; with --compare base and tuned model side by side."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from mlflow_ft.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from mlflow_ft.operations.serving.conversation import Conversation

NARROW = 80
"""Below so many columns two answers stand one under another."""
COMMANDS = "/reset forgets what was said, /exit or Ctrl-D ends"


@click.command()
@click.argument("model")
@click.option("--compare", is_flag=True, help="Ask the model that it was before its training, too.")
@click.option("--base", envvar="MLFLOW_FT_BASE_MODEL", help="Where the base is; the recorded one when not given.")
@click.option("--system", metavar="TEXT", help="The system prompt.")
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="Ask this, and end; repeat it for more turns.")
@click.option(
    "--temperature",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0),
    help="0: the likeliest token, always the same answer.",
)
@click.option("--max-tokens", default=256, show_default=True, type=click.IntRange(1), help="Of an answer, at most.")
@click.option("--json", "as_json", is_flag=True, help="Print each answer as a line of JSON on stdout.")
@click.option("--quiet", is_flag=True, help="Tell nothing but answers and errors.")
def command(
    model: str,
    *,
    compare: bool,
    base: str | None,
    system: str | None,
    prompts: tuple[str, ...],
    temperature: float,
    max_tokens: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Talk to MODEL: NAME@alias, NAME/3, models:/..., runs:/RUN_ID/merged, a folder, a model on the Hub.

    \b
    mlflow-ft chat NAME@candidate
    mlflow-ft chat NAME-adapter@candidate --compare
    mlflow-ft chat NAME@candidate --prompt "First question" --prompt "And then?" --json

    Prompts come from --prompt, else from the terminal, else a line each from stdin. The answers go to stdout.
    """
    from rich.console import Console

    from mlflow_ft.operations.serving import served_models
    from mlflow_ft.operations.serving.conversation import Conversation
    from mlflow_ft.progress import Progress

    load = served_models.compared if compare else served_models.alone
    models = load(model, base=base or None, progress=Progress(quiet=quiet))
    talk = Conversation(models, system=system, options={"temperature": temperature, "max_tokens": max_tokens})
    console = Console(highlight=False, soft_wrap=not compare)
    asked = iter(prompts) if prompts else typed(console) if sys.stdin.isatty() else piped()
    for prompt in asked:
        if prompt == "/reset":
            talk.reset()
        elif prompt == "/exit":
            return
        elif prompt:
            turn(talk, prompt, console, as_json=as_json, goes_on=not prompts and sys.stdin.isatty())


def piped() -> Iterator[str]:
    """The lines of stdin."""
    for line in sys.stdin:
        yield line.strip()


def typed(console: Console) -> Iterator[str]:
    """What is typed, until Ctrl-D."""
    console.print(COMMANDS, style="dim")
    while True:
        try:
            yield console.input("[bold]> [/bold]").strip()
        except EOFError:
            console.print()
            return


def turn(talk: Conversation, prompt: str, console: Console, *, as_json: bool, goes_on: bool) -> None:
    """Ask, and show. In a terminal what goes wrong, and Ctrl-C, end this answer alone."""
    try:
        if as_json:
            click.echo(json.dumps(line(prompt, talk.ask(prompt)), ensure_ascii=False))
        elif len(talk.said) == 1:
            grow(talk, prompt, console)
        else:
            beside(talk.ask(prompt), console)
    except ConfigError as error:
        if not goes_on:
            raise
        console.print(f"{error}", style="yellow", markup=False)
    except KeyboardInterrupt:
        if not goes_on:
            raise
        console.print("\n(stopped)", style="dim")


def line(prompt: str, answers: dict[str, str]) -> dict[str, str]:
    """A turn for a machine: a model by itself is `tuned` too."""
    first, *others = answers
    return {"prompt": prompt, "tuned": answers[first]} | {name: answers[name] for name in others}


def grow(talk: Conversation, prompt: str, console: Console) -> None:
    """One answer, on a terminal while it is written."""
    shown = ""

    def written(text: str) -> None:
        nonlocal shown
        if console.is_terminal and text.startswith(shown):
            console.out(text[len(shown) :], end="")
            shown = text

    (answer,) = talk.ask(prompt, written=written).values()
    console.out(answer.removeprefix(shown))


def beside(answers: dict[str, str], console: Console) -> None:
    """In boxes, side by side where there is room; plain, a name in front, where there is no terminal."""
    if not console.is_terminal:
        for name, answer in answers.items():
            console.out(f"{name}: {answer}")
        return
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    boxes = [Panel(Text(answer), title=name, title_align="left") for name, answer in reversed(answers.items())]
    if console.width < NARROW:
        console.print(*boxes, sep="\n")
        return
    grid = Table.grid(expand=True)
    for _ in boxes:
        grid.add_column(ratio=1)
    grid.add_row(*boxes)
    console.print(grid)
