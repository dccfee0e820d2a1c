"""One-line Python commands that write the rows of a file as JSON lines, ready to paste."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_ft.data.reading import compressed, csv_rows, readers

if TYPE_CHECKING:
    from mlflow_ft.data.sources import Source

OPEN = {".gz": "gzip", ".bz2": "bz2", ".xz": "lzma"}
"""By a file's last suffix, the module that opens it."""
NOT_PLAIN = re.compile(r"[^\w-]+")


def writing(source: Source, expression: str, *, uses: str = "", of_object: bool = False) -> str:
    """The command that writes the rows of `expression`, in which `d` is the values of the first file.

    With `of_object`, `d` is the one object in the file. "" where one line of Python cannot read the file.
    """
    file = source.files[0].path
    loaded = _loading(file, of_object=of_object) if file else None
    if file is None or loaded is None:
        return ""
    read, modules = loaded
    target = f"{NOT_PLAIN.sub('-', file.name.partition('.')[0]) or 'data'}-rows.jsonl"
    names = ", ".join(sorted({"json", *modules, *([uses] if uses else [])}))
    code = (
        f'import {names}; d = {read}; open({json.dumps(target)}, "w", encoding="utf-8").writelines('
        f'json.dumps(row, default=str) + "\\n" for row in {expression})'
    )
    return f"  python -c {shlex.quote(code)}    # then --data {target}"


def _loading(file: Path, *, of_object: bool) -> tuple[str, list[str]] | None:
    """An expression for the contents of a file, and the modules that it needs."""
    last, kind = file.suffix.lower(), compressed.suffix(file)
    module = OPEN.get(last)
    if last in compressed.OPENERS and module is None:
        return None
    modules = [module] if module else []
    opener = f"{module}.open" if module else "open"
    if kind == ".parquet":
        return f"pyarrow.parquet.read_table({json.dumps(str(file))}).to_pylist()", ["pyarrow.parquet"]
    if kind in (".csv", ".tsv"):
        opened = f'{opener}({json.dumps(str(file))}, "rt", encoding="utf-8-sig", newline="")'
        return f"list(csv.DictReader({opened}, delimiter={json.dumps(csv_rows.delimiter(file))}))", [*modules, "csv"]
    if kind not in (".json", ".jsonl", ".ndjson"):
        return None
    opened = f'{opener}({json.dumps(str(file))}, "rt", encoding="utf-8-sig")'
    if readers.has_lines(file):
        return f"[json.loads(line) for line in {opened} if line.strip()]", modules
    whole = f"json.load({opened})"
    return whole if of_object or readers.first_letter(file) == "[" else f"[{whole}]", modules
