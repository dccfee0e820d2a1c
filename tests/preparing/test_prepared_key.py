"""The key of prepared data: a change of what decides the rows makes them anew, and no other change does."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from mlflow_ft import plugins
from mlflow_ft.preparing import on_this_machine, prepared_key
from tests.preparing.test_turns import Make, talks
from tests.preparing.test_turns import make as make
from tests.preparing.test_turns import model as model

PACKAGE = prepared_key.PACKAGE
STARTS = ("preparing/prepared.py", "preparing/proving.py", "builtin/formats", "builtin/checks")
ELSEWHERE = {
    "builtin": "the plugins of a run have their part of the key",
    "candidacy.py": "of promotions",
    "config": "the settings are in the key by their values",
    "data/benchmarks.py": "read by the checks that compare, after the pass",
    "data/cache.py": "finds entries by their key",
    "errors.py": "what it says is not kept",
    "hookspecs.py": "declares the hooks",
    "engine/tokens/room.py": "refuses rows after they were read",
    "engine/hub.py": "finds models",
    "plugins": "finds the plugins, which have their part of the key",
    "preparing/prepared_key.py": "the key itself",
    "processes.py": "counts processes",
    "progress": "shows progress",
    "records": "declares the records",
    "registry.py": "finds records by name",
    "tracking": "fetches sources, whose bytes are hashed",
    "values": "what is handed on",
}
"""What the deciding modules import without rows depending on it, each with the reason."""


def module_file(name: str) -> Path | None:
    place = PACKAGE.parent / name.replace(".", "/")
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def imported(file: Path) -> Iterator[Path]:
    """The files of this package that a file imports when it runs, in functions too."""
    tree = ast.parse(file.read_text())
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mlflow_ft") and node not in for_types:
            for alias in node.names:
                imported_file = module_file(f"{node.module}.{alias.name}") or module_file(str(node.module))
                if imported_file:
                    yield imported_file


def reached(starts: Iterable[Path]) -> set[str]:
    """The paths below the package of everything that is imported, but for packages that hold nothing."""
    files, todo = set[Path](), list(starts)
    while todo:
        file = todo.pop()
        if file not in files:
            files.add(file)
            todo += [] if elsewhere(file.relative_to(PACKAGE).as_posix()) else imported(file)
    return {file.relative_to(PACKAGE).as_posix() for file in files if file != PACKAGE / "__init__.py"}


def elsewhere(path: str) -> bool:
    return path not in paths() and any(path == place or path.startswith(f"{place}/") for place in ELSEWHERE)


def paths() -> set[str]:
    return {file.relative_to(PACKAGE).as_posix() for file in prepared_key.code_files(quality=True)}


def test_the_key_covers_what_the_pass_over_the_rows_imports_and_nothing_else() -> None:
    starts = [file for place in STARTS for file in PACKAGE.glob(place if place.endswith(".py") else f"{place}/*.py")]
    needed = {path for path in reached(starts) if not elsewhere(path)}
    held = {path for path in paths() if not path.endswith("__init__.py") or path in needed}
    assert held == needed, "put the module into prepared_key.CODE, or say in ELSEWHERE why rows do not depend on it"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of this package, which the key is taken of."""
    copy = shutil.copytree(PACKAGE, tmp_path / "mlflow_ft", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(prepared_key, "PACKAGE", copy)
    return copy


@pytest.mark.parametrize(
    ("changed", "made_anew"),
    [
        ("preparing/proving.py", {"with checks", "without"}),
        ("preparing/one_pass.py", {"with checks", "without"}),
        ("engine/tokens/masking.py", {"with checks", "without"}),
        ("data/reading/csv_rows.py", {"with checks", "without"}),
        ("builtin/formats/turns.py", {"with checks", "without"}),
        ("builtin/checks/lengths.py", {"with checks"}),
        ("builtin/gates/__init__.py", set()),
        ("engine/serving/http_server.py", set()),
        ("engine/training/sft.py", set()),
        ("tracking/journal.py", set()),
    ],
)
def test_only_code_that_decides_the_rows_changes_the_key(package: Path, changed: str, made_anew: set[str]) -> None:
    ways = {"with checks": True, "without": False}
    before = {name: prepared_key._code(quality=quality) for name, quality in ways.items()}
    change(package / changed)
    after = {name: prepared_key._code(quality=quality) for name, quality in ways.items()}
    assert {name for name in ways if before[name] != after[name]} == made_anew


def change(file: Path) -> None:
    file.write_text(file.read_text() + "# changed\n")


def test_labels_are_made_anew_after_a_change_of_the_proof_and_kept_after_one_of_the_server(
    package: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, run = [], on_this_machine.run
    monkeypatch.setattr(on_this_machine, "run", lambda *given, **named: (passes.append(1), run(*given, **named))[1])
    make(talks(8))
    count = len(passes)
    assert count
    change(package / "engine" / "serving" / "http_server.py")
    make(talks(8))
    assert len(passes) == count
    change(package / "preparing" / "proving.py")
    make(talks(8))
    assert len(passes) == 2 * count


def test_a_plugin_counts_where_it_has_a_format_or_a_check() -> None:
    loaded = plugins.load({"MLFLOW_FT_PLUGINS": "template,gguf"})
    assert {"template", "gguf"} <= {info.name for info in loaded.active}
    assert [name for name, _ in prepared_key._plugins(loaded, quality=True)] == ["template"]
