"""The pages that are made from the code are up to date, and every command that a page names exists."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import click
import pytest
import yaml

import mlflow_ft
from mlflow_ft import docs, engine, plugins
from mlflow_ft.cli import COMMANDS, cli
from mlflow_ft.cli.chain import CHAINS
from mlflow_ft.cli.pairs import PairsCommand
from mlflow_ft.config.explain import locate
from mlflow_ft.config.plugin_options import canonical, schema_with
from mlflow_ft.docs import methods
from mlflow_ft.registry import Registry

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    file.relative_to(ROOT)
    for pattern in ("README.md", "CONTRIBUTING.md", "docs/*.md", "kubernetes/README.md", "plugins/*/README.md")
    for file in ROOT.glob(pattern)
)
LISTED = r"(?m)^- `{}`: "


@pytest.mark.parametrize("name", docs.PAGES)
def test_a_page_that_is_made_from_the_code_is_up_to_date(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == docs.PAGES[name](), "run python -m mlflow_ft.docs"


def test_main_writes_every_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    docs.main(tmp_path)
    written = [f"docs/{name}" for name in docs.PAGES] + ["kubernetes/MLproject"]
    assert {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()} == set(written)
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / name) for name in written]


def test_every_hook_has_its_rule_its_docstring_and_an_implementation() -> None:
    page = docs.hooks_page()
    assert len(docs.hooks()) >= 10
    for hook, function in docs.hooks().items():
        section = page.partition(f"\n## {hook}\n")[2].partition("\n## ")[0]
        assert f"`{docs.signature(function)}`" in section
        assert "Called" in section
        assert f"@hookimpl\ndef {hook}(" in section
        assert docs.rule(hook) in page


def test_every_setting_and_every_built_in_is_listed() -> None:
    registry = Registry(plugins.load({}))
    page = docs.methods_page()
    for trainer in methods.own(registry.trainers):
        assert f"\n### `{trainer.name}`\n" in page
        assert f"\n| [`{trainer.name}`](#{trainer.name}) |" in page
    for adapter in methods.own(registry.adapters):
        assert f"`{adapter.name}`" in page.partition("\n## Adapters\n")[2]
    for kind in methods.LISTED:
        for record in methods.own(getattr(registry, kind)):
            assert re.search(LISTED.format(record.name), page)


def test_the_decisions_name_what_there_is() -> None:
    registry = Registry(plugins.load({}))
    named = set(re.findall(r"`([a-z0-9]+)`", methods.DECISIONS))
    there = {record.name for record in (*registry.trainers, *registry.adapters)} | {"align", "rlhf"}
    assert named - there == set()
    assert {"lora", "dpo", "grpo", "ppo", "kto"} <= named


def test_every_method_and_adapter_says_what_it_is_for() -> None:
    registry = Registry(plugins.load({}))
    for record in (*methods.ours(registry.trainers), *methods.own(registry.adapters)):
        assert record.use_for, record.name
        assert record.memory, record.name
    for trainer in methods.ours(registry.trainers):
        assert trainer.ranges, trainer.name
        assert trainer.settings is not None, trainer.name


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    assert docs.table_row("a|b", "c") == "| a\\|b | c |"


def test_a_cell_is_one_line() -> None:
    assert docs.table_row("a\n    b", "c") == "| a b | c |"


def tables(text: str) -> list[list[str]]:
    """The lines of every table outside code blocks: a header, a rule and the rows, up to a blank line."""
    blocks = re.sub(r"(?ms)^```\w*\n.*?^```", "", text).split("\n\n")
    return [block.splitlines() for block in map(str.strip, blocks) if re.search(r"(?m)^\|[ :|-]+\|$", block)]


def cells(line: str) -> int:
    """The number of cells of a row, which a bar ends unless it is escaped."""
    assert line.startswith("|"), line
    assert line.endswith("|"), line
    return len(re.findall(r"(?<!\\)\|", line)) - 1


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_row_of_a_table_has_as_many_cells_as_its_header(page: Path) -> None:
    for header, *rows in tables((ROOT / page).read_text()):
        assert [cells(row) for row in rows] == [cells(header)] * len(rows), header


def test_a_broken_table_is_found() -> None:
    rows = "| a | b |\n|---|---|\n| 1 | 2\n3 |\n"
    [lines_of_table] = tables(f"Text.\n\n{rows}\nText.\n")
    assert len(lines_of_table) == 4
    with pytest.raises(AssertionError):
        cells(lines_of_table[2])


def lines(page: Path) -> Iterator[str]:
    """Every line of a page that may be typed: code blocks of either kind, and spans of code in the text."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    fenced = re.findall(r"(?ms)^```\w*\n(.*?)^```", text)
    rest = re.sub(r"(?ms)^```\w*\n.*?^```", "", text)
    indented = re.findall(r"(?m)^    (.+)$", rest)
    spans = re.findall(r"`([^`\n]+)`", rest)
    for block in (*fenced, *indented, *spans):
        yield from block.splitlines()


def typed(command: str) -> list[tuple[Path, list[str]]]:
    """Every call of `command` that a page shows, as its arguments; a comment behind it is none."""
    calls = []
    for page in PAGES:
        for line in lines(page):
            words = [word for word in line.split() if not re.fullmatch(r"[A-Z_]+=\S+", word)]
            if words[: len(command.split())] == command.split():
                calls.append((page, shlex.split(line, comments=True)[len(line.split()) - len(words) :]))
    return [(page, words[len(command.split()) :]) for page, words in calls]


def settings_exist(given: list[str], prefix: str = "--") -> bool:
    keys = [word.removeprefix(prefix).partition("=")[0] for word in given if word.startswith(prefix)]
    return all(is_setting(key) or key == "config" for key in keys)


def is_setting(key: str) -> bool:
    """Whether it is one of ours, of a plugin in this repository, or of the plugin that docs/plugins.md writes."""
    if key.startswith("plugins.cards."):
        return True
    schema = schema_with(registry().option_types)
    return len(locate(canonical(of_any_stage(key)), schema)) == 1


def of_any_stage(key: str) -> str:
    """A setting without the stage of a chain that may stand in front of it: `dpo.data` is `data`."""
    stage, dot, rest = key.partition(".")
    return rest if dot and stage in {link.method for chain in CHAINS.values() for link in chain} else key


@cache
def registry() -> Registry:
    return Registry(plugins.load({}))


def known_methods() -> set[str]:
    return {trainer.name for trainer in registry().trainers} | {"gentle-lora", "quiz", "METHOD"}


def test_the_pages_name_commands() -> None:
    assert len(typed("mlflow-ft")) > 10
    assert len(typed("mlflow run .")) > 5


@pytest.mark.parametrize(("page", "arguments"), typed("mlflow-ft"), ids=lambda value: " ".join(map(str, [value]))[:60])
def test_a_command_that_a_page_names_exists(page: Path, arguments: list[str]) -> None:
    name, *given = arguments or ["--help"]
    if name == "import" and given[:1] == ["--"]:  # then comes the command line of another tool
        given = []
    if name.startswith("-"):
        assert name in ("--help", "-h", "--version")
        return
    if name == "NAME":
        return
    assert name in COMMANDS, f"{page} names mlflow-ft {name}"
    if name == "train":
        assert not given or given[0].startswith("--") or given[0] in known_methods()
    command = cli.get_command(click.Context(cli), name)
    if isinstance(command, click.Group) and given and not given[0].startswith("-"):
        command = command.get_command(click.Context(command), given.pop(0))
    assert command, f"{page} names mlflow-ft {' '.join(arguments)}"
    if isinstance(command, PairsCommand):
        own = {f"--{option}" for option in (*command.switches, *command.options)}
        assert settings_exist([word for word in given if word not in own])
        return
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in given if word.startswith("-")} <= options
    if name == "show" and given:
        assert given[0] in (*plugins.KINDS, "KIND")


@pytest.mark.parametrize(
    ("page", "arguments"), typed("mlflow run ."), ids=lambda value: " ".join(map(str, [value]))[:60]
)
def test_a_project_run_that_a_page_names_exists(page: Path, arguments: list[str]) -> None:
    entry_points = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
    own = entry_points[arguments[arguments.index("-e") + 1]]["parameters"] if "-e" in arguments else {}
    for option, value in itertools.pairwise(arguments):
        if option == "-e":
            assert value in entry_points, f"{page} names the entry point {value}"
        if option == "-P":
            key, _, method = value.partition("=")
            assert (
                key in ("config", *own) or is_setting(key) or (key == "method" and method in {*known_methods(), "NAME"})
            )
    assert {word for word in arguments if word.startswith("-")} <= {"-e", "-P", "--env-manager"}


def settings_in_spans() -> Iterator[tuple[Path, str]]:
    sections = "run|model|data|checks|adapter|objective|rollout|training|evaluation|package|registry"
    for page in PAGES:
        for line in lines(page):
            if re.fullmatch(rf"(?:{sections})\.\w+", line) and not line.endswith((".jsonl", ".json", ".yaml", ".py")):
                yield page, line


@pytest.mark.parametrize(("page", "setting"), sorted(set(settings_in_spans())), ids=str)
def test_a_setting_that_a_page_names_exists(page: Path, setting: str) -> None:
    assert locate(setting), f"{page} names {setting}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in anchors(ROOT / page), f"{page} links to {target}"
        elif "://" not in target:
            file, _, anchor = target.partition("#")
            linked = (ROOT / page).parent / file
            assert linked.exists(), f"{page} links to {target}"
            assert not anchor or anchor in anchors(linked), f"{page} links to {target}"


def anchors(page: Path) -> set[str]:
    """The headings of a page, as GitHub names them in links."""
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text())
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_the_files_and_folders_that_a_page_names_exist(page: str) -> None:
    named = [
        word for line in lines(Path(page)) for word in re.findall(r"^[\w/-]+(?:\.py|/)$", line) if "NAME" not in word
    ]
    assert len(named) > 20
    assert [name for name in named if not any((place / name).exists() for place in (ROOT, ROOT / "mlflow_ft"))] == []


def test_the_tree_of_the_architecture_is_the_package() -> None:
    tree = (ROOT / "docs" / "architecture.md").read_text().partition("    mlflow_ft/\n")[2].partition("\n\n")[0]
    named = set(re.findall(r"(?m)^ {6}(\w[\w.]*)", tree))
    there = {file.name for file in (ROOT / "mlflow_ft").iterdir() if not file.name.startswith("__")}
    assert named == there - {"py.typed"}


def test_the_plugin_that_a_page_shows_works() -> None:
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```", (ROOT / "docs" / "plugins.md").read_text())
    module = ModuleType("shown")
    for block in blocks[:3]:
        exec(block, vars(module))  # our own page
    loaded = plugins.Plugins()
    info = loaded.add(module, name="shown")
    assert (info.status, info.error) == ("active", "")
    assert {registered.record.name for registered in loaded.registered if registered.provider == "shown"} == {
        "flash-card",
        "shouting",
        "gentle-lora",
    }


def test_the_public_api_is_described_whole() -> None:
    page = docs.PAGES["api.md"]()
    for name in mlflow_ft.__all__:
        assert f"\n### {name}\n" in page or f"\n- `{name}`: " in page, name
    for module, names in engine.PUBLIC.items():
        section = page.partition(f"\n### mlflow_ft.engine.{module.rpartition('.')[2]}\n")[2].partition("\n### ")[0]
        for name in names:
            about = section.partition(f"\n#### {name}\n")[2].partition("\n#### ")[0]
            assert about.rpartition("```")[2].strip(), f"{module}.{name} has no docstring"


def test_public_functions_of_the_engine_are_found_where_it_says() -> None:
    for module, names in engine.PUBLIC.items():
        imported = getattr(engine, module.rpartition(".")[2])
        assert all(callable(getattr(imported, name)) for name in names)


def test_the_modules_of_the_engine_are_listed_as_its_names() -> None:
    assert set(engine.__all__) == {"PUBLIC", *(module.rpartition(".")[2] for module in engine.PUBLIC)}


def test_the_template_imports_the_public_api_alone() -> None:
    files = (ROOT / "plugins" / "mlflow-ft-template" / "mlflow_ft_template").rglob("*.py")
    places = [place for file in files for place in re.findall(r"from (mlflow_ft\b[\w.]*) import", file.read_text())]
    assert set(places) == {"mlflow_ft", "mlflow_ft.engine"}
