"""mlflow-ft merge: an adapter folded into its base, in a folder of its own."""

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
"""Also where `mlflow run` hands on an empty text."""
WORDS = ("adapter", "base", "data", "dtype", "into", "quantize", "combination", "pad_token")


@click.command()
@click.option("--adapter", default="", help="A folder, runs:/RUN_ID, models:/NAME@alias, models:/NAME/3, models:/m-ID.")
@click.option("--base", default="", help="The base: a folder, a Hub id, models:/...; the recorded one when not given.")
@click.option("--out", default="", help="The folder to write; it is there whole at the end, or not at all.")
@click.option("--dtype", default="auto", help="float32, bfloat16, float16; auto: the type of the base's files.")
@click.option(
    "--into", default="dequantised", help="dequantised: what a quantised base stood for in training; or original."
)
@click.option("--quantize", default="", help="nf4, int8: how the base was held, where the adapter does not record it.")
@click.option("--max_shard_size", default="5GB", help="Size of a file, at most: 500MB, 5GB.")
@click.option("--weights", default="", help="Of several adapters (with commas between them), one for each: 0.7,0.3.")
@click.option("--combination", default="cat", help=f"How several become one: {', '.join(COMBINATIONS)}.")
@click.option("--rank", default="", help="Rank of what several become; the sum of theirs when not given.")
@click.option("--density", default="0.5", help="Share of each that TIES, DARE and pruning keep.")
@click.option("--pad_token", default="", help="Token to pad with, where the tokenizer's own has no embedding.")
@click.option("--data", default="", help="Rows to tell the loss on; this takes the whole model in memory.")
@click.option("--register", "name", default="", help="Log the merged model, compare it, and register it as this.")
@click.option("--max_kl", default="", help="With --register: mean KL per token (nats) that is let pass.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON on stdout.")
@click.option("--quiet", is_flag=True, help="Tell nothing but errors.")
def command(*, out: str, name: str, max_kl: str, as_json: bool, quiet: bool, **given: Any) -> None:
    """Merge an adapter into its base, tensor by tensor: memory for one layer, whatever the model's size.

    \b
    mlflow-ft merge --adapter models:/NAME-adapter@champion --out merged
    mlflow-ft merge --adapter ./adapter --base ./base --dtype bfloat16 --out merged
    mlflow-ft merge --adapter models:/NAME-adapter/3 --out merged --register NAME
    mlflow-ft merge --adapter ./first,./second --weights 0.7,0.3 --out merged

    An adapter that was trained beside a quantised base belongs to what that base stood for: it is merged into the
    dequantised weights, never into 4 or 8 bits. A merge that was stopped goes on when it is called again.
    """
    from mlflow_ft import plugins
    from mlflow_ft.operations.merging import merge_adapter, merged_version
    from mlflow_ft.progress import Progress

    if not out:
        raise ConfigError("no folder to write was named", hint="--out FOLDER")
    values: dict[str, Any] = {name: given[name] or DEFAULTS.get(name) for name in WORDS}
    request = merge_adapter.MergeRequest(out=Path(out), **values, **_numbers(given))
    progress = Progress(quiet=quiet)
    done, version = merged_version.merge(request, name, plugins.load(), progress, max_kl=divergence(max_kl))
    kept = _registered(version) if version else {}
    if as_json:
        click.echo(json.dumps({"folder": str(done.folder), "already": done.already, **done.record, **kept}, indent=2))
        return
    if done.already:
        progress.say(f"already done: {done.folder} holds this merge")
    facts = {
        "merged": str(done.folder),
        "base": f"{done.record['base']['name_or_path']} ({done.record['into']} weights)",
        "type": done.record["dtype"],
    }
    losses = done.record.get("loss", {})
    facts |= {f"loss, {name}": f"{loss:.4f}" for name, loss in losses.items()}
    if kept:
        facts |= {
            "mean KL": f"{kept['parity']['kl_mean']:.3g} nats per token from the adapter on its base",
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


def _numbers(given: dict[str, Any]) -> dict[str, Any]:
    try:
        return {
            "shard": _bytes(given["max_shard_size"] or "5GB"),
            "weights": tuple(float(one) for one in given["weights"].split(",") if one.strip()),
            "rank": int(given["rank"]) if given["rank"] else None,
            "density": float(given["density"] or 0.5),
        }
    except ValueError as error:
        raise ConfigError(
            f"--weights, --rank or --density: {error}", hint="write --weights 0.7,0.3 --rank 16"
        ) from error


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+)\s*([KMG]B)", text.strip().upper())
    if not found or not int(found[1]):
        raise ConfigError(f"--max_shard_size: {text!r} is no size", hint="write 500MB or 5GB")
    return int(found[1]) * SIZES[found[2]]
