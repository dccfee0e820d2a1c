"""The key of prepared data: everything that decides how the rows come out, and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any
from uuid import uuid4

from mlflow_ft.config.schema import Config
from mlflow_ft.data import fingerprint
from mlflow_ft.hashes import canonical, files_hash
from mlflow_ft.plugins import Plugins
from mlflow_ft.preparing.one_pass import OpenedSource
from mlflow_ft.registry import Registry

PACKAGE = Path(__file__).parents[1]
TOKENS = [
    "clock",
    "determinism",
    "masking",
    "placeholders",
    "places",
    "render",
    "similar_turns",
    "span_types",
    "spans",
    "template_code",
    "thoughts",
    "tool_text",
]
CODE = (
    *("rows.py", "hashes.py", "wording.py", "values/report.py"),
    *(
        f"data/{name}.py"
        for name in (
            "cards",
            "fingerprint",
            "folders",
            "hub",
            "pieces",
            "quality",
            "sources",
            "split_names",
            "store",
            "turns",
        )
    ),
    *("data/reading/*.py", "data/recognising/*.py"),
    *(f"engine/tokens/{name}.py" for name in TOKENS),
    *(f"preparing/{name}.py" for name in ("across", "batches", "on_this_machine", "one_pass", "prepared", "proving")),
)
"""The modules of this package that decide how a row is read, converted, tokenised, proved and stored; a test compares
the list with what they import."""
LIBRARIES = ("transformers", "tokenizers", "jinja2")


def parts(opened: Sequence[OpenedSource], config: Config, tokenizer: Any, registry: Registry) -> dict[str, Any]:
    settings = config.data
    names = ("columns", "system", "split", "subset", "split_by", "max_length", "max_rows", "on_bad_row")
    return {
        "sources": [
            {
                "sha256": [file.sha256 for file in source.source.files],
                "weight": source.weight,
                "format": source.record.name,
                "format_from": registry.formats.provider(source.record.name),
                **({"read_as": list(source.remarks)} if source.remarks else {}),
            }
            for source in opened
        ],
        "settings": {name: getattr(settings, name) for name in names}
        | ({} if settings.turns == "all" else {"turns": settings.turns}),
        "tokenizer": hash_of(tokenizer.backend_tokenizer.to_str(), sorted(tokenizer.special_tokens_map.items())),
        "chat_template": hash_of(tokenizer.chat_template),
    }


def sources(described: Sequence[Mapping[str, Any]], table: Any) -> list[Mapping[str, Any]]:
    """The sources with their hashes; if the Hub gave no commit for one, the hash of its rows."""
    if all(all(source["sha256"]) for source in described):
        return list(described)
    rows_hash = hashlib.sha256(b"".join(table.column("hash").to_pylist())).hexdigest()
    return [{**source, "sha256": [digest or rows_hash for digest in source["sha256"]]} for source in described]


def hash_of(*values: Any) -> str:
    return hashlib.sha256(canonical(values)).hexdigest()


def key(
    parts: Mapping[str, Any],
    opened: Sequence[OpenedSource],
    config: Config,
    plugins: Plugins,
    clock_values: Mapping[str, str],
    *,
    quality: bool,
) -> str:
    """The hash of the fingerprint's parts and of everything else that the entry depends on: names in messages, the
    checks, the code, and the dates that a template which asks for the time writes.
    """
    if not all(file.sha256 for source in opened for file in source.source.files):
        return uuid4().hex
    rest = {
        "parts": parts,
        "clock": clock_values,
        "files": [file.shown for source in opened for file in source.source.files],
        "checks": config.checks.model_dump() if quality else None,
        "plugins": _plugins(plugins, quality=quality),
        "libraries": [metadata.version(name) for name in LIBRARIES],
        "code": _code(quality=quality),
    }
    return fingerprint.fingerprint(rest)


def code_files(*, quality: bool) -> list[Path]:
    """The files of this package that decide the result for a row, and with `quality` those of the checks."""
    patterns = (*CODE, "builtin/formats/*.py", *(["builtin/checks/*.py"] if quality else []))
    return sorted(file for pattern in patterns for file in PACKAGE.glob(pattern))


def _code(*, quality: bool) -> str:
    return files_hash(code_files(quality=quality), within=PACKAGE)


def _plugins(plugins: Plugins, *, quality: bool) -> list[tuple[str, str]]:
    """Name and hash of the plugins with a format, a recogniser or a check; built-ins are part of the code."""
    kinds = ("formats", "checks") if quality else ("formats",)
    names = {registered.provider for registered in plugins.registered if registered.kind in kinds}
    names |= {implementation.plugin_name for implementation in plugins.hook.detect_format.get_hookimpls()}
    return sorted((info.name, info.sha256) for info in plugins.active if info.name in names and not info.built_in)
