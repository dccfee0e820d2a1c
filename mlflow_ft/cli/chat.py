"""mlflow-ft chat MODEL: a conversation in the terminal; --compare shows base and tuned model side by side."""

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
"""Below this many columns the two answers are printed one under the other."""
COMMANDS = "/reset clears the conversation; /exit or Ctrl-D quits"


@click.command()
@click.argument("model")
@click.option("--compare", is_flag=True, help="Also ask the model as it was before training.")
@click.option("--base", envvar="MLFLOW_FT_BASE_MODEL", help="The base model; default: the recorded one.")
@click.option("--system", metavar="TEXT", help="The system prompt.")
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="Ask this and exit; repeat for more turns.")
@click.option(
    "--temperature",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0),
    help="0: greedy decoding, always the same answer.",
)
@click.option("--max-tokens", default=256, show_default=True, type=click.IntRange(1), help="Maximum answer length.")
@click.option("--json", "as_json", is_flag=True, help="Print each answer as a line of JSON on stdout.")
@click.option("--quiet", is_flag=True, help="Print answers and errors only.")
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
    """Chat with MODEL: NAME@alias, NAME/3, models:/..., runs:/RUN_ID/merged, a folder or a Hub model.

    \b
    mlflow-ft chat NAME@candidate
    mlflow-ft chat NAME-adapter@candidate --compare
    mlflow-ft chat NAME@candidate --prompt "First question" --prompt "And then?" --json

    Prompts come from --prompt, else from the terminal, else from stdin, one per line. Answers go to stdout.
    """
    from rich.console import Console

    from mlflow_ft.operations.serving import served_models
    from mlflow_ft.operations.serving.conversation import Conversation
    from mlflow_ft.progress import Progress

    load = served_models.compared if compare else served_models.alone
    models = load(model, base=base or None, progress=Progress(quiet=quiet))
    talk = Conversation(models, system=system, options={"temperature": temperature, "max_tokens": max_tokens})
    console = Console(highlight=False, emoji=False, soft_wrap=not compare)
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
    """Prompts typed in the terminal, until Ctrl-D."""
    console.print(COMMANDS, style="dim")
    while True:
        try:
            yield console.input("[bold]> [/bold]").strip()
        except EOFError:
            console.print()
            return


def turn(talk: Conversation, prompt: str, console: Console, *, as_json: bool, goes_on: bool) -> None:
    """Ask and print the answer. In a terminal, an error or Ctrl-C ends this answer only."""
    try:
        if as_json:
            click.echo(json.dumps(line(prompt, talk.ask(prompt)), ensure_ascii=False))
        elif len(talk.turns) == 1:
            print_answer(talk, prompt, console)
        else:
            side_by_side(talk.ask(prompt), console)
    except ConfigError as error:
        if not goes_on:
            raise
        console.print(f"{error}", style="yellow", markup=False)
    except KeyboardInterrupt:
        if not goes_on:
            raise
        console.print("\n(stopped)", style="dim")


def line(prompt: str, answers: dict[str, str]) -> dict[str, str]:
    """A turn as JSON fields; a single model is `tuned` too."""
    first, *others = answers
    return {"prompt": prompt, "tuned": answers[first]} | {name: answers[name] for name in others}


def print_answer(talk: Conversation, prompt: str, console: Console) -> None:
    """Print one answer; in a terminal, as it is generated."""
    shown = ""

    def written(text: str) -> None:
        nonlocal shown
        if console.is_terminal and text.startswith(shown):
            console.out(text[len(shown) :], end="")
            shown = text

    (answer,) = talk.ask(prompt, written=written).values()
    console.out(answer.removeprefix(shown))


def side_by_side(answers: dict[str, str], console: Console) -> None:
    """Print answers in boxes, side by side if there is room; outside a terminal as `NAME: ANSWER`."""
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
