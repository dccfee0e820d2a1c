"""The hash of a plugin's source, by which a run knows its code."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from mlflow_ft.hashes import files_hash

BUILTIN_FOLDER = Path(__file__).parents[1] / "builtin"


def source_hash(module: ModuleType) -> str:
    """Sha256 over the names and contents of the Python files of the plugin's package; "" where it has none on disk."""
    file = getattr(module, "__file__", None)
    if not file:
        return ""
    path = Path(file)
    folder = _package_folder(path)
    files = sorted(folder.rglob("*.py")) if folder else [path]
    try:
        return files_hash(files, within=folder or path.parent)
    except OSError:  # imported from a zip file
        return ""


def _package_folder(path: Path) -> Path | None:
    """The outermost package that a module is in, which for the built-ins is theirs; None for a module by itself."""
    folder = None
    for parent in path.parents:
        if not (parent / "__init__.py").is_file():
            break
        folder = parent
        if parent == BUILTIN_FOLDER:
            break
    return folder
