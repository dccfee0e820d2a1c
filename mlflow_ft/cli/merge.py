"""mlflow-ft merge: merge an adapter into its base and write the result to a folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_ft.cli.options import divergence
from mlflow_ft.errors import ConfigError

if TYPE_CHECKING:
    from mlflow_ft.operations.merging.merged_version import Registered

SIZES = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
COMBINATIONS = ("cat", "svd", "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd")
DEFAULTS = {"adapter": "", "dtype": "auto", "into": "dequantised", "combination": "cat"}
"""Used for an empty text too, which `mlflow run` passes for a parameter that was not given."""
WORDS = ("adapter", "base", "data", "dtype", "into", "quantize", "combination", "pad_token")


@click.command()
@click.option("--adapter", default="", help="A folder, runs:/RUN_ID, models:/NAME@alias, models:/NAME/3, models:/m-ID.")
@click.option("--base", default="", help="A folder, a Hub id or models:/...; default: the recorded base.")
@click.option("--out", default="", help="The folder to write; it appears only when complete.")
@click.option("--dtype", default="auto", help="float32, bfloat16, float16; auto: the type of the base's files.")
@click.option(
    "--into", default="dequantised", help="dequantised: the values of the quantised base in training; or original."
)
@click.option("--quantize", default="", help="nf4, int8: how the base was quantised, if the adapter has no record.")
@click.option("--max_shard_size", default="5GB", help="Largest size of a file: 500MB, 5GB.")
@click.option("--weights", default="", help="For several adapters, separated by commas, one weight each: 0.7,0.3.")
@click.option("--combination", default="cat", help=f"How to combine several adapters: {', '.join(COMBINATIONS)}.")
@click.option("--rank", default="", help="Rank of the combined adapter; default: the sum of their ranks.")
@click.option("--density", default="0.5", help="Fraction of each adapter that TIES, DARE and pruning keep.")
@click.option("--pad_token", default="", help="Padding token, if the tokenizer's own has no embedding.")
@click.option("--data", default="", help="Rows to report the loss on; loads the whole model into memory.")
@click.option("--register", "name", default="", help="Log the merged model, compare it, and register it by this name.")
@click.option("--max_kl", default="", help="With --register: highest accepted mean KL per token (nats).")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON on stdout.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
def command(*, out: str, name: str, max_kl: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Merge an adapter into its base, tensor by tensor: it needs memory for one layer, whatever the model's size.

    \b
    mlflow-ft merge --adapter models:/NAME-adapter@champion --out merged
    mlflow-ft merge --adapter ./adapter --base ./base --dtype bfloat16 --out merged
    mlflow-ft merge --adapter models:/NAME-adapter/3 --out merged --register NAME
    mlflow-ft merge --adapter ./first,./second --weights 0.7,0.3 --out merged

    An adapter trained on a quantised base fits that base's dequantised weights: it is merged into those, never into 4
    or 8 bits. To resume an interrupted merge, run the same command again.
    """
    from mlflow_ft import plugins
    from mlflow_ft.operations.merging import merge_adapter, merged_version
    from mlflow_ft.progress import Progress

    if not out:
        raise ConfigError("no output folder given", hint="add --out FOLDER")
    values: dict[str, Any] = {name: options[name] or DEFAULTS.get(name) for name in WORDS}
    request = merge_adapter.MergeRequest(out=Path(out), **values, **_numbers(options))
    progress = Progress(quiet=quiet)
    done, version = merged_version.merge(request, name, plugins.load(), progress, max_kl=divergence(max_kl))
    kept = _registered(version) if version else {}
    if as_json:
        click.echo(json.dumps({"folder": str(done.folder), "already": done.already, **done.record, **kept}, indent=2))
        return
    if done.already:
        progress.say(f"already done: {done.folder} contains this merge")
    facts = {
        "merged": str(done.folder),
        "base": f"{done.record['base']['name_or_path']} ({done.record['into']} weights)",
        "type": done.record["dtype"],
    }
    losses = done.record.get("loss", {})
    facts |= {f"loss, {name}": f"{loss:.4f}" for name, loss in losses.items()}
    if kept:
        facts |= {
            "mean KL": f"{kept['parity']['kl_mean']:.3g} nats per token, compared with the adapter on its base",
            "registered": f"{kept['registered']} "
            + (f"@{kept['alias']}" if kept["alias"] else "without an alias: the adapter is worse than its base"),
        }
    progress.facts(facts)


def _registered(version: Registered) -> dict[str, Any]:
    return {
        "registered": f"models:/{version.name}/{version.version}",
        "alias": version.alias,
        "model_id": version.model_id,
        "run_id": version.run_id,
        "parity": dict(version.parity),
    }


def _numbers(options: dict[str, Any]) -> dict[str, Any]:
    try:
        return {
            "shard": _bytes(options["max_shard_size"] or "5GB"),
            "weights": tuple(float(weight) for weight in options["weights"].split(",") if weight.strip()),
            "rank": int(options["rank"]) if options["rank"] else None,
            "density": float(options["density"] or 0.5),
        }
    except ValueError as error:
        raise ConfigError(
            f"--weights, --rank or --density: {error}", hint="write --weights 0.7,0.3 --rank 16"
        ) from error


def _bytes(text: str) -> int:
    size = re.fullmatch(r"(\d+)\s*([KMG]B)", text.strip().upper())
    if not size or not int(size[1]):
        raise ConfigError(f"--max_shard_size: {text!r} is not a size", hint="write 500MB or 5GB")
    return int(size[1]) * SIZES[size[2]]
