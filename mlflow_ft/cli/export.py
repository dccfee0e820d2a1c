"""mlflow-ft export: write a model in another form to a folder."""

from __future__ import annotations

import json
from pathlib import Path

import click

from mlflow_ft import plugins
from mlflow_ft.cli.options import divergence
from mlflow_ft.errors import ConfigError


@click.command()
@click.argument("named", metavar="MODEL", default="")
@click.option("--model", default="", help="The same as MODEL.")
@click.option("--to", default="", help="The form; `mlflow-ft show exporters` lists them.")
@click.option("--out", default="", help="The folder to write; it appears only when complete.")
@click.option("--max_kl", default="", help="Highest accepted mean KL per token (nats); default: the form's limit.")
@click.option("--log/--no-log", default=True, help="If MODEL is a version, log the files to its run.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON on stdout.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
def command(*, named: str, model: str, to: str, out: str, max_kl: str, log: bool, as_json: bool, quiet: bool) -> None:
    """Write a whole model in another form: fewer bits, or another program's format.

    \b
    mlflow-ft export NAME@champion --to gguf-q8_0 --out exported
    mlflow-ft export ./merged --to nf4 --out exported

    The export is loaded by the program that will run it and compared with the trained model, token by token. If they
    differ by more than rounding explains, it is refused.
    """
    from mlflow_ft.operations import export
    from mlflow_ft.progress import Progress

    for value, message in (
        (named or model, "no model given: mlflow-ft export MODEL"),
        (to, "no form given: --to FORM"),
    ):
        if not value:
            raise ConfigError(message, hint="see `mlflow-ft export --help` and `mlflow-ft show exporters`")
    progress = Progress(quiet=quiet)
    request = export.ExportRequest(model=named or model, to=to, out=Path(out or to), max_kl=divergence(max_kl), log=log)
    done = export.export(request, plugins.load(), progress)
    if as_json:
        shown = {"folder": str(done.folder), "already": done.already, "logged": done.logged, **done.record}
        click.echo(json.dumps(shown, indent=2))
        return
    parity = done.record["parity"]
    facts = {
        "exported": str(done.folder) + (" (already existed)" if done.already else ""),
        "compared": done.record.get("compared_with", ""),
        "mean KL": f"{parity['kl_mean']:.3g} nats per token",
        "top token": f"the same at {parity['top1_agreement']:.1%} of {parity['tokens']:.0f} positions",
    }
    progress.facts(facts | ({"kept in": done.logged} if done.logged else {}))
