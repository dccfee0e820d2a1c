"""Folders from the Hub, whose README.md says which file belongs to which subset and split."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlflow_ft import DataError
from mlflow_ft.config.schema import DataSection
from mlflow_ft.data import cards, sources
from mlflow_ft.testing import write_jsonl

GSM8K = """
- config_name: main
  data_files:
  - {split: train, path: main/train-*}
  - {split: test, path: main/test-*}
- config_name: socratic
  data_files:
  - {split: train, path: socratic/train-*}
"""
GSM8K_FILES = ("main/train-0.jsonl", "main/train-1.jsonl", "main/test-0.jsonl", "socratic/train-0.jsonl")
ULTRACHAT = """
- config_name: default
  data_files:
  - split: train_sft
    path: data/train_sft-*
  - split: train_gen
    path: data/train_gen-*
"""
ULTRACHAT_FILES = ("data/train_gen-0.jsonl", "data/train_sft-0.jsonl")


def folder_of(folder: Path, configs: str, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(folder / name, [{"text": name}])
    (folder / "README.md").write_text(f"---\nlicense: mit\nconfigs:{configs}\n---\n# A data set\n", encoding="utf-8")
    return folder


def names(folder: Path, **settings: str) -> list[str]:
    return [file.name for file in sources.open_source(str(folder), DataSection(**settings)).files]


def test_one_subset_is_read_and_never_several(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, GSM8K, *GSM8K_FILES)
    with pytest.raises(DataError, match=r"has several subsets: main, socratic(.|\n)*--data\.subset"):
        names(folder)
    assert names(folder, subset="main") == ["main/train-0.jsonl", "main/train-1.jsonl"]
    assert names(folder, subset="main", split="test") == ["main/test-0.jsonl"]
    assert names(folder, subset="socratic") == ["socratic/train-0.jsonl"]
    with pytest.raises(DataError, match=r"has no subset 'other'(.|\n)*main, socratic"):
        names(folder, subset="other")
    with pytest.raises(DataError, match=r"has no file of the split 'test'(.|\n)*its splits are train:"):
        names(folder, subset="socratic", split="test")


def test_splits_whose_names_are_alike_are_not_read_as_one(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, ULTRACHAT, *ULTRACHAT_FILES)
    assert names(folder, split="train_sft") == ["data/train_sft-0.jsonl"]
    with pytest.raises(DataError, match=r"has no file of the split 'train'(.|\n)*its splits are train_sft, train_gen:"):
        names(folder)
    sources.check_split(DataSection(path=str(folder), split="train_sft"))


@pytest.mark.parametrize(
    ("configs", "expected"),
    [
        ('\n- config_name: a\n  data_files: "a.jsonl"', ["a.jsonl"]),
        ("\n- data_files: [b.jsonl, a.jsonl]", ["b.jsonl", "a.jsonl"]),
        ("\n- data_files: {train: a.jsonl, test: b.jsonl}", ["a.jsonl"]),
        ("\n- data_files: [{split: train, path: [sub/*, '**/c.jsonl']}]", ["sub/c.jsonl"]),
        ("\n- {data_dir: sub, config_name: x}", ["sub/c.jsonl"]),
        ("\n- {data_dir: sub, data_files: '*.jsonl'}", ["sub/c.jsonl"]),
        (
            "\n- {config_name: x, data_files: b.jsonl}\n- {config_name: y, default: true, data_files: a.jsonl}",
            ["a.jsonl"],
        ),
        ("\n- {config_name: x, data_files: b.jsonl}\n- {config_name: gone, data_files: gone-*}", ["b.jsonl"]),
    ],
)
def test_files_are_named_in_every_way_that_the_hub_knows(tmp_path: Path, configs: str, expected: list[str]) -> None:
    assert names(folder_of(tmp_path, configs, "a.jsonl", "b.jsonl", "sub/c.jsonl")) == expected


@pytest.mark.parametrize(
    "card",
    [
        "# Words only",
        "---\nconfigs: [\n---\n",
        "---\n- a list\n---\n",
        "---\nconfigs: 3\n---\n",
        "---\nconfigs:\n- data_files: other/*.jsonl\n---\n",
        "---\nconfigs:\n- data_files: [1, {split: train}]\n- words\n---\n",
        "---\nconfigs:\n- data_files: ['../*.jsonl', /etc/*.txt]\n---\n",
    ],
)
def test_without_files_in_the_card_their_names_decide(tmp_path: Path, card: str) -> None:
    folder = folder_of(tmp_path / "rows", "", "train.jsonl", "test.jsonl")
    write_jsonl(tmp_path / "outside.jsonl", [{"text": "no"}])
    (folder / "README.md").write_text(card, encoding="utf-8")
    assert cards.subsets(folder) == {}
    assert names(folder) == ["train.jsonl"]


def test_files_that_the_card_does_not_name_are_reported(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, ULTRACHAT, *ULTRACHAT_FILES)
    settings = DataSection(split="train_sft")
    assert sources.open_source(str(folder), settings).remark == ""
    write_jsonl(folder / "more.jsonl", [{"text": "more"}])
    assert sources.open_source(str(folder), settings).remark == (
        "its README.md names the files to read, and not more.jsonl"
    )


def test_a_subset_is_refused_where_no_source_has_one(tmp_path: Path) -> None:
    file = str(write_jsonl(tmp_path / "rows.jsonl", [{"text": "a"}]))
    folder = str(folder_of(tmp_path / "card", GSM8K, *GSM8K_FILES))
    for path in (file, "demo", [file, str(folder_of(tmp_path / "plain", "", "a.jsonl"))]):
        with pytest.raises(DataError, match="chooses nothing: no source has subsets"):
            sources.check_subset(DataSection(path=path, subset="main"))
    for path in (folder, "who/rows", "runs:/0a1b", [file, folder]):
        sources.check_subset(DataSection(path=path, subset="main"))
    sources.check_subset(DataSection(path=file, eval_path=folder, subset="main"))
