"""The licence of a base model, as far as its own folder tells it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_ft.forms.card.markdown import clean
from mlflow_ft.values import BaseModel

FILES = ("LICENSE*", "LICENCE*", "COPYING*", "license*")
IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+-]*")
"""How the Hub writes a licence: `apache-2.0`."""


@dataclass(frozen=True, kw_only=True)
class Licence:
    """What is known of a licence; nothing of it is known where all is empty."""

    identifier: str = ""
    """As the Hub writes it, `other` among them."""
    name: str = ""
    """Where the Hub has no identifier for it."""
    link: str = ""
    told_by: str = ""
    """Where that is written, in words."""


def of(base: BaseModel) -> Licence:
    """What the base model's README.md says, else what is known of a model with a short name, else a licence file."""
    return _from_readme(base.path / "README.md") or _from_short_name(base) or _from_file(base.path) or Licence()


def _from_readme(file: Path) -> Licence | None:
    from huggingface_hub import metadata_load

    try:
        found: Mapping[str, Any] = metadata_load(file) or {}
    except Exception:  # the file is a stranger's, and says nothing where it cannot be read
        return None
    given = found.get("license")
    texts = [one for one in (given if isinstance(given, list) else [given]) if isinstance(one, str) and one.strip()]
    if not texts:
        return None
    known = len(texts) == 1 and IDENTIFIER.fullmatch(texts[0].strip().lower())
    name = found.get("license_name") if known else ", ".join(texts)
    link = found.get("license_link")
    return Licence(
        identifier=texts[0].strip().lower() if known else "other",
        name=clean(name) if isinstance(name, str) else "",
        link=clean(link) if isinstance(link, str) else "",
        told_by="the base model's README.md",
    )


def _from_short_name(base: BaseModel) -> Licence | None:
    from mlflow_ft.engine.hub import short_name

    known = short_name(base)
    if known is None:
        return None
    return Licence(identifier=known.licence, told_by=f"the page of {known.hub_id} on the Hub")


def _from_file(folder: Path) -> Licence | None:
    for file in sorted({file for pattern in FILES for file in folder.glob(pattern) if file.is_file()}):
        with file.open(encoding="utf-8", errors="replace") as stream:
            first = next((line for line in stream if line.strip()), "")
        if first:
            return Licence(name=clean(first, longest=80), told_by=f"the first line of {file.name} beside its weights")
    return None
