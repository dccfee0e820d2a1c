from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from mlflow_ft.config.schema import DataSection
from mlflow_ft.data import hub, sources, split_names
from mlflow_ft.data.reading import readers
from mlflow_ft.data.reading.readers import Unreadable
from mlflow_ft.errors import DataError
from mlflow_ft.rows import Row


def read(asked: Path | str, **about: Any) -> list[Row | Unreadable]:
    return list(sources.open_source(str(asked), DataSection(**about)).rows())


def values(rows: list[Row | Unreadable]) -> list[Any]:
    return [next(iter(row.values.values())) if isinstance(row, Row) else None for row in rows]


def write(file: Path, *numbers: int) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"a": number}) + "\n" for number in numbers))
    return file


def folder_of(root: Path, *names: str) -> Path:
    """A folder whose files hold one row each, with the number of the file."""
    for number, name in enumerate(names):
        write(root / name, number)
    return root


# --- one file


@pytest.mark.parametrize(
    "name",
    [
        "rows.jsonl",
        "with spaces and 'quotes' and \"more\".jsonl",
        "daten-übung-数据-🙂.jsonl",
        "%41 #?&*[x]$HOME;.jsonl",
        "-rows.jsonl",
        "a\nb\\c.jsonl",
        "UPPER.JSONL",
        "sub folder/rows.jsonl",
    ],
)
def test_a_file_is_named_as_the_user_wrote_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / name, 1, 2)
    for asked in (name, f"./{name}", str(file)):
        source = sources.open_source(asked, DataSection())
        rows = list(source.rows())
        assert values(rows) == [1, 2]
        assert rows[1].place == f"{asked}:2"
        assert (source.asked, source.kind, source.uri) == (asked, "local", str(file))
        (source_file,) = source.files
        assert (source_file.name, source_file.path) == (file.name, Path(asked))
        assert source_file.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_home_folder_is_meant_by_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "my rows" / "rows.jsonl", 7)
    assert read("~/my rows/rows.jsonl")[0].place == "~/my rows/rows.jsonl:1"
    assert read("~/my rows")[0].place == "~/my rows/rows.jsonl:1"
    assert sources.open_source("~/my rows", DataSection()).uri == str(tmp_path / "my rows")


def test_a_link_to_a_file_is_named_as_it_is_asked_for(tmp_path: Path) -> None:
    target = write(tmp_path / "store" / "0123abcd.jsonl", 1)
    link = tmp_path / "rows.jsonl"
    link.symlink_to(target)
    source = sources.open_source(str(link), DataSection())
    assert [row.place for row in source.rows()] == [f"{link}:1"]
    assert source.files[0].name == "rows.jsonl"
    assert source.uri == str(target)


@pytest.mark.parametrize("name", ["rows.xlsx", "rows", "rows.gz", "rows.tar.gz", ".jsonl"])
def test_a_file_of_an_unknown_kind_is_reported(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, 1)
    with pytest.raises(DataError, match=rf"{name}' is of an unknown kind\n.*known: \.jsonl, "):
        sources.open_source(str(tmp_path / name), DataSection())


def test_what_is_no_file_is_reported_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match=r"pipe\.jsonl' is of an unknown kind"):
        read(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match="null' is of an unknown kind"):
        read("/dev/null")


def test_a_bad_row_is_reported_with_its_place_as_the_user_wrote_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"a": 1}\n{"a" 2}\n{"a": 3}')
    bad = read("rows.jsonl")[1]
    assert isinstance(bad, Unreadable)
    assert bad.place == "rows.jsonl:2"
    assert values(read("rows.jsonl")) == [1, None, 3]


def test_a_broken_file_is_reported_with_its_place_as_the_user_wrote_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "folder", "a.jsonl", "b.json")
    (tmp_path / "folder" / "b.json").write_text("[\n{]")
    with pytest.raises(DataError, match=r"^folder/b\.json:2: malformed JSON"):
        read("folder")
    with pytest.raises(DataError, match=r"^\./folder/b\.json:2: malformed JSON"):
        read("./folder/")
    (tmp_path / "folder" / "b.json").write_text("")
    with pytest.raises(DataError, match=r"'folder/b\.json' is empty \(0 bytes\)"):
        read("folder")


@pytest.mark.parametrize(
    "name",
    ["rows.jsonl", "rows.txt", "./rows", "~/no-such-rows", "~no-such-user/rows.csv", "x" * 300 + ".csv", "a\0.csv"],
)
def test_a_missing_file_is_reported_with_the_folder_that_was_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"data file '.*' does not exist") as error:
        read(name)
    assert repr(name) in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_link_that_leads_nowhere_or_round_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "never.jsonl")
    (tmp_path / "round.jsonl").symlink_to(tmp_path / "round.jsonl")
    for name in ("gone.jsonl", "round.jsonl"):
        with pytest.raises(DataError, match=r"data file '.*' does not exist"):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["", " ", "\n"])
def test_an_empty_name_is_not_a_source(name: str) -> None:
    with pytest.raises(DataError, match="names no source"):
        read(name)


def test_a_name_that_is_not_utf_8_is_reported(tmp_path: Path) -> None:
    name = os.fsdecode("né.jsonl".encode("latin-1"))
    write(tmp_path / "folder" / name, 1)
    for asked in (tmp_path / "folder" / name, tmp_path / "folder", name):
        with pytest.raises(DataError, match=r"n\\udce9\.jsonl' is not UTF-8 text") as error:
            read(asked)
        str(error.value).encode()


@pytest.mark.parametrize(("max_rows", "expected"), [(2, 2), (3, 3), (9, 3), (None, 3)])
@pytest.mark.parametrize("folder", [False, True])
def test_max_rows(tmp_path: Path, max_rows: int | None, expected: int, *, folder: bool) -> None:
    file = write(tmp_path / "data" / "a.jsonl", 0, 1, 2)
    if folder:
        write(file, 0)
        write(tmp_path / "data" / "b.jsonl", 1, 2)
    assert values(read(file.parent if folder else file, max_rows=max_rows)) == list(range(expected))


def test_what_lies_behind_max_rows_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text('[{"a": 1}, {"a": 2}, broken')
    assert len(read(file, max_rows=2)) == 2
    with pytest.raises(DataError, match="malformed JSON"):
        read(file, max_rows=3)


def test_rows_may_be_read_again(tmp_path: Path) -> None:
    source = sources.open_source(str(write(tmp_path / "rows.jsonl", 1, 2)), DataSection())
    assert list(source.rows()) == list(source.rows())


def test_paths_of_the_demo_are_inside_the_package() -> None:
    asked, held_out = sources.paths(DataSection())
    assert held_out is not None
    assert list(asked.values()) == [None]
    assert all(isinstance(row, Row) for row in read(next(iter(asked))) + read(held_out))
    assert sources.paths(DataSection(eval_path="mine.jsonl"))[1] == "mine.jsonl"
    assert sources.paths(DataSection(path="rows.jsonl")) == ({"rows.jsonl": None}, None)
    assert sources.paths(DataSection(path=["a", "b"])) == ({"a": None, "b": None}, None)
    assert sources.paths(DataSection(path={"a": 0.7, "b": 0.3})) == ({"a": 0.7, "b": 0.3}, None)


# --- folders


def test_the_files_of_a_folder_are_read_in_order_of_their_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["a.jsonl", "b/a.json", "b/c/d e.ndjson", "c.txt"]
    folder_of(tmp_path / "my data", *names)
    for asked in ("my data", "my data/", "./my data", str(tmp_path / "my data")):
        source = sources.open_source(asked, DataSection())
        assert [file.name for file in source.files] == names
        assert [row.place for row in source.rows()] == [f"{asked.rstrip('/')}/{name}:1" for name in names]
        assert source.uri == str(tmp_path / "my data")


def test_a_folder_may_be_named_like_a_file_and_its_file_like_the_folder(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "rows.jsonl", "rows.jsonl")
    assert [row.place for row in read(folder)] == [f"{folder}/rows.jsonl:1"]


def test_what_holds_no_rows_is_passed_over(tmp_path: Path) -> None:
    folder_of(
        tmp_path, "a.jsonl", ".hidden.jsonl", ".git/b.jsonl", "sub/.cache/c.jsonl", "README.md", "x.py", "d.jsonl~"
    )
    folder_of(tmp_path, "dataset_info.json", "sub/state.json", "config.json")
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    assert [file.name for file in sources.open_source(str(tmp_path), DataSection()).files] == ["a.jsonl"]


def test_a_hidden_folder_that_is_asked_for_is_read(tmp_path: Path) -> None:
    assert values(read(folder_of(tmp_path / ".cache" / "rows", "a.jsonl"))) == [0]


@pytest.mark.parametrize("names", [[], ["README.md"], [".hidden.jsonl"], ["sub/x.bin"]])
def test_a_folder_without_data_is_reported(tmp_path: Path, names: list[str]) -> None:
    folder_of(tmp_path, *names)
    with pytest.raises(DataError, match="contains no data file"):
        read(tmp_path)


def test_links_in_a_folder_are_followed_but_never_round(tmp_path: Path) -> None:
    elsewhere = folder_of(tmp_path / "elsewhere", "in/b.jsonl", "in/c.jsonl")
    folder = folder_of(tmp_path / "folder", "a.jsonl")
    (folder / "file.jsonl").symlink_to(elsewhere / "in" / "b.jsonl")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "again").symlink_to(elsewhere / "in")
    (folder / "round").symlink_to(folder)
    (elsewhere / "in" / "up").symlink_to(tmp_path)
    (folder / "self").symlink_to(folder / "self")
    names = [file.name for file in sources.open_source(str(folder), DataSection()).files]
    assert names[0] == "a.jsonl"
    assert "file.jsonl" in names
    assert sorted(Path(name).name for name in names) == ["a.jsonl", "b.jsonl", "c.jsonl", "file.jsonl"]


def test_a_link_in_a_folder_that_leads_nowhere_is_reported(tmp_path: Path) -> None:
    """So that the files that a tool (git-annex, DVC, the Hub's cache) has not fetched are missed."""
    folder_of(tmp_path, "a.jsonl")
    (tmp_path / "notes.md").symlink_to(tmp_path / "never.md")
    assert values(read(tmp_path)) == [0]
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "never.jsonl")
    with pytest.raises(DataError, match=r"/b\.jsonl is a link to a file that does not exist"):
        read(tmp_path)
    (tmp_path / "b.jsonl").unlink()
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "b.jsonl")
    with pytest.raises(DataError, match=r"/b\.jsonl is a link to a file that does not exist"):
        read(tmp_path)


@pytest.fixture
def private() -> Iterator[Path]:
    """A folder where files and folders with mode 0 cannot be read; root may read everything, so it is not root."""
    is_root = os.geteuid() == 0
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    if is_root:
        os.seteuid(65534)
    yield folder
    if is_root:
        os.seteuid(0)
    subprocess.run(["chmod", "-R", "700", str(folder)], check=True)
    shutil.rmtree(folder)


def test_what_the_user_may_not_read_is_reported(private: Path) -> None:
    file = write(private / "rows.jsonl", 1)
    file.chmod(0)
    with pytest.raises(DataError, match=r"rows\.jsonl cannot be read: Permission denied"):
        read(file)
    with pytest.raises(DataError, match=r"^shown cannot be read: Permission denied"):
        list(readers.read_file(file, shown="shown"))
    file.chmod(0o600)
    inside = write(private / "sub" / "rows.jsonl", 2)
    inside.parent.chmod(0)
    with pytest.raises(DataError, match="sub cannot be read: Permission denied"):
        read(private)
    with pytest.raises(DataError, match=r"data file '.*' does not exist"):
        read(inside)
    with pytest.raises(DataError, match="is of an unknown kind"):
        list(readers.read_file(inside))


def test_a_folder_that_cannot_be_looked_into_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its path is too long for the system, which is so for every user."""
    folder_of(tmp_path, "a.jsonl")
    monkeypatch.chdir(tmp_path)
    for _ in range(20):
        Path("x" * 250).mkdir()
        os.chdir("x" * 250)
    os.chdir(tmp_path)
    with pytest.raises(DataError, match="cannot be read: File name too long"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("names", "by_split"),
    [
        (["a.jsonl", "b.jsonl"], {"train": [0, 1], "test": [0, 1], "other": [0, 1]}),
        (["train.jsonl", "test.jsonl"], {"train": [0], "test": [1], "training": [0], "eval": [1]}),
        (["train.jsonl", "dev.jsonl"], {"train": [0], "validation": [1], "dev": [1], "val": [1]}),
        (["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"], {"train": [0, 1]}),
        (["rows_train.jsonl", "rows.test.v2.jsonl"], {"train": [0], "test": [1]}),
        (["data/train/a.jsonl", "data/train/b.jsonl", "data/test/a.jsonl"], {"train": [0, 1], "test": [2]}),
        (["Train.jsonl", "TEST.jsonl"], {"train": [0], "test": [1]}),
        # a file that names no split, beside others that do, is to train on: never the other way round
        (["rows.jsonl", "test.jsonl"], {"train": [0], "test": [1]}),
        (["rows.jsonl", "train.jsonl"], {"train": [0, 1]}),
        (["more.jsonl", "train.jsonl", "valid.jsonl"], {"train": [0, 1], "validation": [2]}),
        # parts of words say nothing
        (["training2.jsonl", "contest.jsonl", "latest.jsonl", "validated.jsonl"], {"train": [0, 1, 2, 3]}),
        (["straining.jsonl", "valéry.jsonl"], {"train": [0, 1], "test": [0, 1]}),
    ],
)
def test_a_split_is_recognised_by_the_names_of_files_and_folders(
    tmp_path: Path, names: list[str], by_split: dict[str, list[int]]
) -> None:
    folder_of(tmp_path / "train and test", *names)
    for split, expected in by_split.items():
        assert sorted(values(read(tmp_path / "train and test", split=split))) == expected


@pytest.mark.parametrize(
    ("names", "split", "told"),
    [
        (["train.jsonl"], "test", "its splits are train: name one with --data.split"),
        (["test.jsonl", "dev.jsonl"], "train", "its splits are test, validation"),
        (["rows.jsonl", "dev.jsonl"], "test", "its splits are train, validation"),
        (["train.jsonl"], "train[:10]", "its splits are train"),
    ],
)
def test_a_split_that_a_folder_lacks_is_reported(tmp_path: Path, names: list[str], split: str, told: str) -> None:
    folder_of(tmp_path, *names)
    with pytest.raises(DataError, match=f"has no file of the split {split!r}".replace("[", r"\[")) as error:
        read(tmp_path, split=split)
    assert told in str(error.value)


def test_a_split_is_refused_where_no_source_has_one(tmp_path: Path, saved: Callable[..., Path]) -> None:
    file = str(write(tmp_path / "rows.jsonl", 1))
    plain = str(folder_of(tmp_path / "plain", "a.jsonl", "b.jsonl"))
    for split in ("nonsense", "train[:10%]", "test"):
        for path, eval_path in ((file, None), (plain, None), ([file, plain], file), ("demo", None)):
            with pytest.raises(DataError, match=r"chooses nothing(.|\n)*data\.max_rows"):
                sources.check_split(DataSection(path=path, eval_path=eval_path, split=split))
    sources.check_split(DataSection(path=file))
    named = str(folder_of(tmp_path / "named", "train.jsonl", "dev.jsonl"))
    lists = tmp_path / "lists.json"
    lists.write_text('{"train": [], "dev": []}')
    for splits in (named, str(saved({"train": 2, "dev": 2}, 1)), str(lists), "who/rows", "runs:/0a1b", "no/such.jsonl"):
        sources.check_split(DataSection(path=splits, split="dev"))
        sources.check_split(DataSection(path=[file, splits], split="dev"))
        sources.check_split(DataSection(path=file, eval_path=splits, split="dev"))


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("test/rows.jsonl", "test"),
        ("rows-test-00.parquet", "test"),
        ("train/test-cases.jsonl", "train"),
        ("test/train.jsonl", "test"),
        ("a/b.jsonl", None),
        ("evaluation.csv", "test"),
        ("x.val.json", "validation"),
        ("test", "test"),
    ],
)
def test_a_folder_says_more_than_a_name(path: str, split: str | None) -> None:
    assert split_names.split_of(Path(path)) == split


def test_a_folder_may_hold_files_of_several_kinds(tmp_path: Path) -> None:
    folder_of(tmp_path, "a.jsonl")
    (tmp_path / "b.csv").write_text("a\n1\n")
    parquet.write_table(pyarrow.table({"a": [2]}), tmp_path / "c.parquet")
    (tmp_path / "d.txt").write_text("three")
    assert values(read(tmp_path)) == [0, "1", 2, "three"]


# --- saved data sets


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """A data set as `save_to_disk` writes it: one, or several by split."""

    def save(splits: dict[str, int] | int, shards: int = 1) -> Path:
        from datasets import Dataset, DatasetDict

        def rows(count: int) -> Any:
            return Dataset.from_list([{"a": number, "m": [{"x": None}]} for number in range(max(count, 1))]).select(
                range(count)
            )

        if isinstance(splits, int):
            rows(splits).save_to_disk(str(tmp_path / "saved"), num_shards=shards)
        else:
            every = DatasetDict({name: rows(count) for name, count in splits.items()})
            every.save_to_disk(str(tmp_path / "saved"), num_shards=dict.fromkeys(splits, shards))
        return tmp_path / "saved"

    return save


@pytest.mark.parametrize("shards", [1, 3, 12])
def test_a_saved_data_set_is_read_in_its_order(saved: Callable[..., Path], shards: int) -> None:
    folder = saved(50, shards)
    source = sources.open_source(str(folder), DataSection())
    rows = list(source.rows())
    assert values(rows) == list(range(50))
    assert isinstance(rows[0], Row)
    assert rows[0].values == {"a": 0, "m": [{}]}
    assert rows[0].place == f"{folder}/data-00000-of-{shards:05}.arrow:1"
    assert len(source.files) == shards


def test_rows_of_a_saved_data_set_are_in_its_order_when_it_was_shuffled(tmp_path: Path) -> None:
    from datasets import Dataset

    shuffled = Dataset.from_list([{"a": number} for number in range(30)]).shuffle(seed=1)
    shuffled.save_to_disk(str(tmp_path / "saved"))
    assert values(read(tmp_path / "saved")) == shuffled["a"][:]


def test_a_split_of_a_saved_data_set_is_read(saved: Callable[..., Path]) -> None:
    folder = saved({"train": 5, "test": 3}, 2)
    assert values(read(folder)) == list(range(5))
    assert values(read(folder, split="test")) == list(range(3))
    assert read(folder, split="test")[0].file == f"{folder}/test/data-00000-of-00002.arrow"
    with pytest.raises(DataError, match=r"has no split 'dev'\n.*it has train, test: name one with --data\.split"):
        read(folder, split="dev")


def test_the_folder_of_one_split_of_a_saved_data_set_is_read(saved: Callable[..., Path]) -> None:
    folder = saved({"train": 5, "test": 3})
    assert values(read(folder / "test")) == list(range(3))


def test_a_saved_data_set_without_rows_has_none(saved: Callable[..., Path]) -> None:
    assert read(saved(0)) == []


@pytest.mark.parametrize(
    "state",
    [
        "",
        "{",
        "[" * 100_000,
        "[]",
        "null",
        "{}",
        '{"_data_files": null}',
        '{"_data_files": 1}',
        '{"_data_files": []}',
        '{"_data_files": [1]}',
        '{"_data_files": [{}]}',
        '{"_data_files": [{"filename": 1}]}',
        '{"_data_files": [{"filename": "gone.arrow"}]}',
        '{"_data_files": [{"filename": "../outside.arrow"}]}',
        '{"_data_files": [{"filename": ".."}]}',
        '{"_data_files": [{"filename": "/dev/null"}]}',
        b"\xff",
    ],
)
def test_a_saved_data_set_whose_description_is_damaged_is_reported(
    tmp_path: Path, saved: Callable[..., Path], state: str | bytes
) -> None:
    folder = saved(3)
    write(tmp_path / "outside.arrow", 1)
    (folder / "state.json").write_bytes(state if isinstance(state, bytes) else state.encode())
    with pytest.raises(DataError, match=r"saved.* (lacks|cannot be read)") as error:
        read(folder)
    assert "save_to_disk" in str(error.value)


@pytest.mark.parametrize(
    "described", ["", "{", "[]", "{}", '{"splits": null}', '{"splits": "train"}', '{"splits": [1, null]}']
)
def test_a_dictionary_of_splits_that_is_damaged_is_reported(saved: Callable[..., Path], described: str) -> None:
    folder = saved({"train": 3})
    (folder / "dataset_dict.json").write_text(described)
    with pytest.raises(DataError, match=r"saved.* (has no split 'train'|cannot be read)"):
        read(folder)


def test_a_split_of_a_saved_data_set_that_was_lost_is_reported(saved: Callable[..., Path]) -> None:
    folder = saved({"train": 3, "test": 3})
    (folder / "train" / "state.json").unlink()
    with pytest.raises(DataError, match=r"train/state\.json cannot be read"):
        read(folder)


def test_a_saved_data_set_with_a_damaged_table_is_reported(saved: Callable[..., Path]) -> None:
    folder = saved(3)
    table = folder / "data-00000-of-00001.arrow"
    table.write_bytes(table.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"saved/data-00000-of-00001\.arrow: not a readable Arrow file"):
        read(folder)


# --- the Hub


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("name", ["owner/no-such-rows", "no-such-rows", "{not a name}", "x" * 300, "a\0b", "a//b/c"])
@pytest.mark.parametrize("max_rows", [None, 2])
def test_a_hub_id_without_the_hub_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, max_rows: int | None
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="is not a file, and the Hub does not provide it") as error:
        read(name, max_rows=max_rows)
    assert repr(name) in str(error.value)
    assert f"looked for the file in {tmp_path}" in str(error.value)


def test_a_hub_id_has_no_hash_where_the_hub_does_not_answer() -> None:
    source = sources.open_source("owner/rows", DataSection(revision="v1"))
    assert (source.kind, source.uri) == ("hugging_face", "owner/rows")
    assert [(file.name, file.path, file.sha256) for file in source.files] == [("owner/rows", None, "")]


def test_the_hub_may_be_out_of_reach(tmp_path: Path) -> None:
    """Where nothing listens, its client raises errors of its own."""
    code = (
        "from mlflow_ft.config.schema import DataSection; from mlflow_ft.data import sources;"
        "print([file.sha256 for file in sources.open_source('owner/rows', DataSection()).files])"
    )
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "['']\n", done.stderr


@pytest.mark.parametrize("max_rows", [None, 2])
def test_rows_of_the_library_are_numbered(tmp_path: Path, max_rows: int | None) -> None:
    """A folder stands for the Hub here: `datasets` takes either."""
    write(tmp_path / "train.jsonl", 0, 1, 2)
    rows = list(hub.rows(str(tmp_path), DataSection(max_rows=max_rows)))
    assert [(row.line, row.values) for row in rows] == [(number + 1, {"a": number}) for number in range(3)]
    assert rows[0].file == str(tmp_path)


def test_streamed_rows_are_yielded_before_what_follows_them_is_read(tmp_path: Path) -> None:
    write(tmp_path / "train-0.jsonl", 0, 1, 2)
    (tmp_path / "train-1.jsonl").write_text('{"a": \n')
    rows = hub.rows(str(tmp_path), DataSection(max_rows=2))
    assert [next(rows).line, next(rows).line] == [1, 2]
    with pytest.raises(DataError, match="the Hub does not provide it"):
        list(hub.rows(str(tmp_path), DataSection()))


def test_a_split_that_the_library_does_not_find_is_reported(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", 0)
    with pytest.raises(DataError, match=r"the Hub does not provide it: .*[Ss]plit"):
        list(hub.rows(str(tmp_path), DataSection(split="nonsense")))
