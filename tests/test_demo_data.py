"""The demo data is what its script makes, its answers are strict JSON, and nothing held out occurs in training."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from mlflow_ft.examples.demo import make_demo
from mlflow_ft.examples.demo.make_demo import HELDOUT, HERE, KEYS, SYSTEM, TRAIN, Side, words

SIDES = {"train": TRAIN, "heldout": HELDOUT}
BLANK = "___"
SWITCHED = {"on", "off"}


def read(name: str) -> list[tuple[str, str]]:
    """The (request, answer) pairs of a file, its shape checked on the way."""
    pairs = []
    for line in (HERE / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        system, user, assistant = json.loads(line)["messages"]
        assert [system["role"], user["role"], assistant["role"]] == ["system", "user", "assistant"]
        assert system["content"] == SYSTEM
        pairs.append((user["content"], assistant["content"]))
    return pairs


def entities(side: Side) -> dict[str, set[str]]:
    """What a request of this side can name, by key of the answer."""
    return {
        "device": {device for devices, _ in side.devices for device in words(devices)},
        "room": set(words(side.rooms)),
        "value": {value for _, values in side.devices for value in words(values)},
    }


def phrasing(request: str, reply: str) -> str:
    """The request with its entities blanked, read from the row alone: what is left is how it was put."""
    for entity in sorted(set(json.loads(reply).values()) - SWITCHED, key=len, reverse=True):
        request = re.sub(rf"\b{re.escape(entity)}", BLANK, request, flags=re.IGNORECASE)
    return request.lower()


def names(text: str, entity: str) -> bool:
    """Whether the text holds the entity as whole words, whatever the case."""
    return re.search(rf"(?<!\w){re.escape(entity)}(?!\w)", text, flags=re.IGNORECASE) is not None


def test_files_are_what_the_script_makes(tmp_path: Path) -> None:
    make_demo.main(tmp_path)
    for name in SIDES:
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (HERE / f"{name}.jsonl").read_bytes()


@pytest.mark.parametrize("name", SIDES)
def test_every_answer_is_strict_json_with_the_same_keys_in_order(name: str) -> None:
    for _, reply in read(name):
        command = json.loads(reply)
        assert tuple(command) == KEYS
        assert reply == json.dumps(command, separators=(",", ":"))
        assert all(isinstance(value, str) and value for value in command.values())


@pytest.mark.parametrize("name", SIDES)
def test_every_entity_is_the_same_in_the_request_and_in_the_answer(name: str) -> None:
    for request, reply in read(name):
        command = json.loads(reply)
        for key in ("device", "room", "value"):
            if command[key] not in SWITCHED:
                assert command[key] in entities(SIDES[name])[key]
                assert names(request, command[key]), (request, reply)


@pytest.mark.parametrize("name", SIDES)
def test_no_request_occurs_twice_and_the_actions_are_balanced(name: str) -> None:
    pairs = read(name)
    assert len({request for request, _ in pairs}) == len(pairs)
    values = [json.loads(reply)["value"] for _, reply in pairs]
    actions = Counter(value if value in SWITCHED else "set" for value in values)
    assert set(actions.values()) == {SIDES[name].rows_per_action}


def test_rows_are_disjoint() -> None:
    train, heldout = read("train"), read("heldout")
    assert not {request for request, _ in train} & {request for request, _ in heldout}
    assert not {reply for _, reply in train} & {reply for _, reply in heldout}


def test_phrasings_are_disjoint() -> None:
    train, heldout = ({phrasing(*pair) for pair in read(name)} for name in SIDES)
    assert len(train) == sum(map(len, TRAIN.phrasings.values()))
    assert len(heldout) == sum(map(len, HELDOUT.phrasings.values()))
    assert not train & heldout


def test_no_heldout_entity_is_ever_named_in_training() -> None:
    text = "\n".join(f"{request}\n{reply}" for request, reply in read("train"))
    for key, held in entities(HELDOUT).items():
        assert held
        assert not held & entities(TRAIN)[key]
        assert [entity for entity in sorted(held) if names(text, entity)] == []


def test_the_check_for_entities_can_fail() -> None:
    assert names("Set the Attic lamp to 35%.", "attic")
    assert names("Set the lamp to 35%.", "35%")
    assert not names("Set the lamps to 135%.", "35%")
