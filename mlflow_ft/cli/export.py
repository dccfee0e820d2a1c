"""mlflow-ft export: a model in another form, in a folder of its own."""

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
@click.option("--to", default="", help="The form: see `mlflow-ft show exporters`.")
@click.option("--out", default="", help="The folder to write; it is there whole at the end, or not at all.")
@click.option("--max_kl", default="", help="Mean KL per token (nats) that is let pass, in place of the form's own.")
@click.option("--log/--no-log", default=True, help="Keep the files with the version's run (where MODEL is a version).")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON on stdout.")
@click.option("--quiet", is_flag=True, help="Tell nothing but errors.")
def command(*, named: str, model: str, to: str, out: str, max_kl: str, log: bool, as_json: bool, quiet: bool) -> None:
    """Write a whole model in another form: in fewer bits, or for another program.

    \b
    mlflow-ft export NAME@champion --to gguf-q8_0 --out exported
    mlflow-ft export ./merged --to nf4 --out exported

    What was written is loaded again by the program that will run it, and compared with the trained model, token by
    token; one that is not the same, within what its rounding may cost, is refused.
    """
    from mlflow_ft.operations import export
    from mlflow_ft.progress import Progress

    for value, words in ((named or model, "no model was named; mlflow-ft export MODEL"), (to, "no form: --to FORM")):
        if not value:
            raise ConfigError(words, hint="see `mlflow-ft export --help` and `mlflow-ft show exporters`")
    progress = Progress(quiet=quiet)
    request = export.ExportRequest(model=named or model, to=to, out=Path(out or to), max_kl=divergence(max_kl), log=log)
    done = export.export(request, plugins.load(), progress)
    if as_json:
        shown = {"folder": str(done.folder), "already": done.already, "logged": done.logged, **done.record}
        click.echo(json.dumps(shown, indent=2))
        return
    parity = done.record["parity"]
    facts = {
        "exported": str(done.folder) + (" (was there already)" if done.already else ""),
        "compared": done.record.get("compared_with", ""),
        "mean KL": f"{parity['kl_mean']:.3g} nats per token",
        "top token": f"the same in {parity['top1_agreement']:.1%} of {parity['tokens']:.0f} places",
    }
    progress.facts(facts | ({"kept in": done.logged} if done.logged else {}))
