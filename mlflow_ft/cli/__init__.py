"""The command `mlflow-ft`: one verb a command, one file a command, each imported only when it is called."""

from __future__ import annotations

import importlib
import os
import sys

import click

from mlflow_ft.errors import FineTuneError
from mlflow_ft.processes import check_single

COMMANDS = {
    "train": "Fine-tune a model by a method, and register what comes of it.",
    "align": "Instruction tuning, then preferences: two jobs in a row.",
    "rlhf": "Instruction tuning, a reward model, and PPO against it: three jobs in a row.",
    "prepare": "Read, check and prove the data in a run of its own; mend what is safe to mend.",
    "data": "Look at the data: show what is learned, check it, find the models trained on it.",
    "show": "List the methods, formats, checks, adapters, evaluators, rewards, exporters, gates there are.",
    "merge": "Merge an adapter into its base, tensor by tensor, into a folder.",
    "package": "Package and register the model of a run that failed after its training.",
    "export": "Write a model in another form (4 bits, GGUF), compared with the trained one.",
    "promote": "Move an alias (champion) to a version, when every gate passes.",
    "rollback": "Make the champion before the champion again.",
    "history": "Tell every move of an alias: who, when, why.",
    "serve": "Answer chat requests over HTTP: a model, or several adapters on one base.",
    "chat": "Talk to a model in the terminal; base and tuned side by side with --compare.",
    "plugins": "List the plugins that were found, and whether they work.",
    "sync": "Deliver to the tracking server what a run could not while it was away.",
}


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"mlflow_ft.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mlflow-ft", prog_name="mlflow-ft")
def cli() -> None:
    """Fine-tuning of language models inside MLflow.

    \b
    mlflow-ft train qlora                                  the demo: built-in model and data
    mlflow-ft train qlora --model MODEL --data FILE        your own
    mlflow-ft data check --data FILE --model MODEL         what is wrong with the data, before training
    mlflow-ft show trainers                                every method and its defaults

    Exit codes: 0 done; 1 refused by evidence; 2 wrong input; 3 complete on disk, not yet delivered to the tracking
    server; 130 and 143 stopped by a signal.
    """
    check_single()


def main() -> None:
    """Run the command; errors that a user can cause are told in a few lines, with the exit code of their kind."""
    # Idle OpenMP threads spin by default, and take the processor from the one that works wherever cores are shared:
    # a training step on two busy cores took 60 s instead of 2. Must be set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # MLflow's own bars would stand between the lines that tell what is done.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        code = cli.main(standalone_mode=False)
    except FineTuneError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:  # whoever reads what is printed has seen enough (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(code if isinstance(code, int) else 0)
