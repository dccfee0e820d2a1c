"""The command `mlflow-ft decks FILE`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import click

from mlflow_ft import DataError


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def command(file: Path) -> None:
    """Count the cards of each deck in FILE, which has a JSON object on each line."""
    counts: Counter[str] = Counter()
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            counts[json.loads(line).get("deck", "none")] += 1
        except (ValueError, AttributeError) as error:
            raise DataError(f"{file} line {number}: not a card", hint="write a JSON object on each line") from error
    for deck, count in counts.most_common():
        click.echo(f"{count:>6}  {deck}")
