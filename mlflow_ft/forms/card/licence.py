"""The licence of a base model, as far as its folder states it."""

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
    """What is known about a licence; all fields are empty if nothing is."""

    identifier: str = ""
    """As the Hub writes it, which includes `other`."""
    name: str = ""
    """Set if the Hub has no identifier for it."""
    link: str = ""
    source: str = ""
    """Where it is stated, for people."""


def of(base: BaseModel) -> Licence:
    """From the base model's README.md, else what is known of a model with a short name, else a licence file."""
    return _from_readme(base.path / "README.md") or _from_short_name(base) or _from_file(base.path) or Licence()


def _from_readme(file: Path) -> Licence | None:
    from huggingface_hub import metadata_load

    try:
        metadata: Mapping[str, Any] = metadata_load(file) or {}
    except Exception:  # the file comes from anywhere; treat an unreadable one as empty
        return None
    value = metadata.get("license")
    texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str) and text.strip()]
    if not texts:
        return None
    known = len(texts) == 1 and IDENTIFIER.fullmatch(texts[0].strip().lower())
    name = metadata.get("license_name") if known else ", ".join(texts)
    link = metadata.get("license_link")
    return Licence(
        identifier=texts[0].strip().lower() if known else "other",
        name=clean(name) if isinstance(name, str) else "",
        link=clean(link) if isinstance(link, str) else "",
        source="the base model's README.md",
    )


def _from_short_name(base: BaseModel) -> Licence | None:
    from mlflow_ft.engine.hub import short_name

    known = short_name(base)
    if known is None:
        return None
    return Licence(identifier=known.licence, source=f"the page of {known.hub_id} on the Hub")


def _from_file(folder: Path) -> Licence | None:
    for file in sorted({file for pattern in FILES for file in folder.glob(pattern) if file.is_file()}):
        with file.open(encoding="utf-8", errors="replace") as stream:
            first = next((line for line in stream if line.strip()), "")
        if first:
            return Licence(name=clean(first, longest=80), source=f"the first line of {file.name} in its folder")
    return None
