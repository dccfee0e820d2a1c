"""The command `mlflow-ft`: one file per subcommand, imported only when it is called."""

from __future__ import annotations

import difflib
import importlib
import os
import sys

import click

from mlflow_ft import processes
from mlflow_ft.errors import FineTuneError, FollowedError

COMMANDS = {
    "train": "Fine-tune a model and register the result.",
    "sweep": "Search the settings of a method, and register the best model.",
    "align": "Instruction tuning, then preference tuning: two jobs in sequence.",
    "rlhf": "Instruction tuning, a reward model, then PPO against it: three jobs in sequence.",
    "plan": "Name the method for your data, hardware and aim, with reasons, costs and configuration.",
    "import": "Turn a configuration of Axolotl, LLaMA-Factory, torchtune, TRL or Unsloth into one of ours.",
    "preflight": "Check in seconds whether a training could run here: stores, model, data, device, disk.",
    "prepare": "Read, check and tokenise the data without training; --fix writes a cleaned copy.",
    "data": "Inspect data: show what is learned, check it, find the models trained on it.",
    "show": "List the available methods, formats, checks, adapters, rewards, exporters and so on.",
    "merge": "Merge an adapter into its base, tensor by tensor.",
    "resume": "Continue a run that was killed, stopped or failed, where it stopped.",
    "package": "Package and register the model of a run that failed after training.",
    "reproduce": "Train a run again from its record and compare curves, scores and weights.",
    "export": "Write a model in another form (4-bit, GGUF) and compare it with the trained one.",
    "compare": "Let people choose between the answers of two models, without knowing whose they are.",
    "promote": "Move an alias (champion) to a version if every gate passes.",
    "rollback": "Restore the previous champion.",
    "history": "List every move of an alias: who, when and why.",
    "report": "Write the report of a run, or of several side by side, as one HTML page.",
    "runs": "List the latest runs, and mark KILLED those whose process is gone.",
    "serve": "Serve chat requests over HTTP: one model, or several adapters on one base.",
    "chat": "Chat with a model in the terminal; --compare shows the base model's answers too.",
    "plugins": "List the installed plugins and whether they work; `plugins new` writes one.",
    "project": "Write a project for `mlflow run`, with the plugins that it needs.",
    "hooks": "List the hooks that plugins implement, and which plugin implements which.",
    "sync": "Deliver what a run could not send while the tracking server was away, and finish it.",
}
MODULES = {"import": "importing"}
"""Commands whose module has another name, because theirs is a keyword of Python."""
STARTED_BY_US = ("trial",)
"""Commands that other commands start in processes of their own; not listed."""
IN_SEVERAL = ("train", "align", "rlhf", "resume", "reproduce")
"""Commands that torchrun, accelerate, srun or mpirun may start in several processes."""


class LazyGroup(click.Group):
    """A group that lists its commands by name and imports one only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS and cmd_name not in STARTED_BY_US:
            return of_plugin(cmd_name)
        command: click.Command = importlib.import_module(f"mlflow_ft.cli.{MODULES.get(cmd_name, cmd_name)}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise click.UsageError(error.message + meant(args[0]), ctx=ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))
        if theirs := commands_of_plugins():
            with formatter.section("Commands of plugins"):
                formatter.write_dl(theirs)


def commands_of_plugins() -> list[tuple[str, str]]:
    """The commands of plugins with their summaries; a built-in command is not replaced by one of its name."""
    from mlflow_ft import plugins

    try:
        loaded = plugins.load()
    except FineTuneError as error:  # help must be available whatever the environment says
        return [("(none)", error.message)]
    found = [registered for registered in loaded.registered if registered.kind == "commands"]
    return [
        (
            registered.record.name,
            f"{registered.record.summary} ({registered.provider})"
            if registered.record.name not in COMMANDS
            else f"Not available: a built-in command has this name ({registered.provider}).",
        )
        for registered in found
    ]


def meant(name: str) -> str:
    """What to add to the error about an unknown command: how a method is trained, or the command of a similar name."""
    from mlflow_ft import plugins
    from mlflow_ft.registry import Registry

    registry = Registry(plugins.load())
    if name in registry.trainers:
        return f" It is a method: mlflow-ft train {name}"
    near = difflib.get_close_matches(name, [*COMMANDS, *(record.name for record in registry.commands)], n=1)
    return f" Did you mean {near[0]}?" if near else ""


def of_plugin(name: str) -> click.Command | None:
    """A plugin's command; None if no active plugin has it."""
    from mlflow_ft import plugins
    from mlflow_ft.registry import Registry

    commands = Registry(plugins.load()).commands
    return commands[name].load() if name in commands else None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mlflow-ft", prog_name="mlflow-ft")
@click.pass_context
def cli(context: click.Context) -> None:
    """Fine-tune language models inside MLflow.

    \b
    mlflow-ft train qlora                                  the demo: built-in model and data
    mlflow-ft train qlora --model MODEL --data FILE        your own model and data
    mlflow-ft data check --data FILE --model MODEL         find problems in the data before training
    mlflow-ft show trainers                                every method and its defaults

    Exit codes: 0 success; 1 refused by a check, a comparison or a gate; 2 invalid input; 3 complete on disk but not yet
    delivered to the tracking server; 130 or 143 stopped by a signal.
    """
    if context.invoked_subcommand not in IN_SEVERAL:
        processes.check_single()
    elif not (place := processes.settle()).leads:
        context.exit(follow(place))


def follow(place: processes.Place) -> int:
    """Work for the process with rank 0, which was started with this one and has the run; returns the exit code.

    What this process prints goes to a file, from which rank 0 reports an error.
    """
    import traceback

    from mlflow_ft import plugins
    from mlflow_ft.stages import following

    try:
        following.follow(place, plugins.load())
    except FineTuneError as error:
        click.echo(f"Error: {error}", err=True)
        return error.exit_code
    except Exception:  # whatever it is, rank 0 reports it
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    """Run the command; print errors that a user can cause in a few lines and exit with the code of their kind."""
    # Idle OpenMP threads spin by default and starve the working thread on shared cores: a training step on two busy
    # cores took 60 s instead of 2. Must be set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # MLflow's own progress bars would break up our output.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # TRL warns, at every start, that the classes of cpo, simpo and orpo may change: their version is pinned.
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    try:
        code = cli.main(standalone_mode=False)
        if processes.place().size > 1:
            from mlflow_ft.stages import following

            following.release()
    except FollowedError as done:
        click.echo(done.message)
        sys.exit(done.exit_code)
    except FineTuneError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has closed it (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(code if isinstance(code, int) else 0)
