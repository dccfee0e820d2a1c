"""A folder's manifest (sha256 and size of every file), and the files that a weights folder must not contain."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlflow_ft.errors import ModelError, Problem, RefusedError
from mlflow_ft.hashes import file_hash

MANIFEST = "manifest.json"
BASE_RECORD = "base.json"
"""What an adapter's folder says of its base, with the digest of that one's weights."""
FORBIDDEN = {**dict.fromkeys((".bin", ".pt", ".pth", ".pkl", ".pickle"), "a pickle"), ".py": "code"}
REMEDIES = {
    "a pickle": "save weights as safetensors",
    "code": "remove the code: a packaged model runs none, so its classes must be those of transformers",
}


def write_manifest(folder: Path, *, about: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Write `manifest.json`, covering every other file of the folder, and return it.

    `about` are facts about the files, kept beside them: the step and the held-out loss of a chosen checkpoint.

    Raises:
        RefusedError: a file is a pickle or Python code, which could run when the folder is loaded.
    """
    _refuse_forbidden(folder)
    files = {name: _facts(path) for name, path in _files(folder)}
    manifest = {**(about or {}), "files": files}
    aside = folder / (MANIFEST + ".new")
    aside.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    aside.replace(folder / MANIFEST)
    return manifest


def verify_manifest(folder: Path) -> dict[str, Any]:
    """Verify the folder against its `manifest.json`, and return the manifest.

    Raises:
        ModelError: the manifest is missing or cannot be read.
        RefusedError: a file is missing, changed, not listed, a pickle or code.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        wanted = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder / MANIFEST} cannot be read ({type(error).__name__})", hint="the folder is incomplete"
        ) from error
    _refuse_forbidden(folder)
    files = dict(_files(folder))
    problems = [Problem(place=name, message="is missing") for name in sorted(wanted.keys() - files.keys())]
    problems += [Problem(place=name, message="is not in the manifest") for name in sorted(files.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & files.keys()):
        if _facts(files[name]) != wanted[name]:
            problems.append(Problem(place=name, message="has changed"))
    if problems:
        raise RefusedError(f"{folder} does not match its manifest", problems=problems)
    return dict(manifest)


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in (MANIFEST, MANIFEST + ".new"):
            yield name, path


def _refuse_forbidden(folder: Path) -> None:
    found = {name: kind for name, path in _files(folder) if (kind := FORBIDDEN.get(path.suffix.lower()))}
    if found:
        raise RefusedError(
            f"{folder} contains files that are never loaded here",
            problems=[
                Problem(place=name, message=f"is {kind}, which can run code when it is loaded")
                for name, kind in found.items()
            ],
            hint="; ".join(remedy for kind, remedy in REMEDIES.items() if kind in found.values()),
        )


def _facts(path: Path) -> dict[str, Any]:
    return {"sha256": file_hash(path), "bytes": path.stat().st_size}


def weights_digest(folder: Path) -> str:
    """Sha256 over the weights of a folder, and the record of their base if they are an adapter's; "" without weights.

    It is read from the manifest if there is one, so that a store need not give the weights away.
    """
    if (folder / MANIFEST).is_file():
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return digest_of({name: facts["sha256"] for name, facts in listed.items()})
    return digest_of({name: file_hash(path) for name, path in _files(folder) if _is_weights(name)})


def digest_of(hashes: Mapping[str, str]) -> str:
    """Sha256 over the names and hashes of those files that are weights, or the record of an adapter's base."""
    lines = [f"{name}:{hashed}\n" for name, hashed in sorted(hashes.items()) if _is_weights(name)]
    return hashlib.sha256("".join(lines).encode()).hexdigest() if lines else ""


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors") or name == BASE_RECORD
