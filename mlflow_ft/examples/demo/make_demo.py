"""Writes the demo data set: smart-home requests in plain English, answered by one strict JSON command.

One exchange of `train.jsonl` or `heldout.jsonl`, beside this file (every line holds one, in the chat shape):

    system     Answer in JSON.
    user       Set the ceiling fan in the bedroom to high.
    assistant  {"action":"set","device":"ceiling fan","room":"bedroom","value":"high"}

The held-out rows share only the task with the training rows: their phrasings, devices, rooms and values never occur
there. Getting one right therefore means having learnt to read a request, not having seen it.

Run `python -m mlflow_ft.examples.demo.make_demo` to write both files again; the result is always the same.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
SEED = 20
# Without a system message SmolLM2's template adds a longer one of its own to every row.
SYSTEM = "Answer in JSON."
KEYS = ("action", "device", "room", "value")


@dataclass(frozen=True)
class Side:
    """All that one file is made of; the two sides have nothing in common."""

    rows_per_action: int
    phrasings: Mapping[str, Sequence[str]]
    devices: Mapping[str, tuple[Sequence[str], Sequence[str]]]
    """Kind of device -> (devices, values that such a device can be set to)."""
    rooms: Sequence[str]


TRAIN = Side(
    rows_per_action=104,
    phrasings={
        "on": [
            "Turn on the {device} in the {room}.",
            "Switch the {device} in the {room} on, please.",
            "I need the {device} on in the {room}.",
            "{Room}: start the {device}.",
            "Could you power up the {device} in the {room}?",
            "In the {room}, please activate the {device}.",
            "We are in the {room} now, so get the {device} running.",
            "The {device} should be running in the {room}.",
        ],
        "off": [
            "Turn off the {device} in the {room}.",
            "Switch the {device} in the {room} off, please.",
            "I want the {device} off in the {room}.",
            "{Room}: stop the {device}.",
            "Could you power down the {device} in the {room}?",
            "In the {room}, please deactivate the {device}.",
            "We have left the {room}, so shut the {device} off.",
            "Nobody needs the {device} in the {room} any more.",
        ],
        "set": [
            "Set the {device} in the {room} to {value}.",
            "Put the {room} {device} at {value}, please.",
            "I want {value} on the {device} in the {room}.",
            "{Room}: {device} to {value}.",
            "Could you change the {device} to {value} in the {room}?",
            "In the {room}, please adjust the {device} to {value}.",
            "We are in the {room} now and would like {value} for the {device}.",
            "The {device} in the {room} should be at {value}.",
        ],
    },
    devices={
        "light": (
            ["desk lamp", "ceiling light", "string lights", "floor lamp", "reading light", "chandelier"],
            ["10%", "25%", "40%", "75%", "90%", "red", "warm white", "purple", "orange"],
        ),
        "climate": (
            ["thermostat", "oven", "radiator", "electric blanket", "air conditioner"],
            ["18 degrees", "21 degrees", "24 degrees", "60 degrees", "180 degrees"],
        ),
        "motor": (
            ["ceiling fan", "air purifier", "humidifier", "robot vacuum", "washing machine", "coffee machine"],
            ["low", "high", "turbo", "night mode", "speed 2", "level 5"],
        ),
        "media": (
            ["television", "radio", "projector", "smart speaker"],
            ["volume 3", "volume 12", "jazz", "channel 4", "the news"],
        ),
    },
    rooms=[
        "kitchen", "bedroom", "living room", "garage", "bathroom", "hallway", "office", "dining room", "basement",
        "guest room", "laundry room", "balcony", "home gym", "entrance",
    ],
)  # fmt: skip

HELDOUT = Side(
    rows_per_action=16,
    phrasings={
        "on": [
            "Please turn the {device} on for me, the one in the {room}.",
            "Can you start up the {device} in the {room}?",
            "Go to the {room} and switch on the {device}.",
            "It would be nice to have the {device} running in the {room}.",
        ],
        "off": [
            "Please turn the {device} off for me, the one in the {room}.",
            "Can you shut down the {device} in the {room}?",
            "Go to the {room} and switch off the {device}.",
            "It is time to stop the {device} in the {room}.",
        ],
        "set": [
            "Please bring the {device} in the {room} to {value} for me.",
            "Can you set {value} for the {device} in the {room}?",
            "Go to the {room} and turn the {device} to {value}.",
            "{value} would be nice on the {device} in the {room}.",
        ],
    },
    devices={
        "light": (["night light", "spotlight", "candle lamp"], ["15%", "35%", "80%", "blue", "soft pink"]),
        "climate": (["floor heating", "wine cooler", "heat pump"], ["16 degrees", "23 degrees", "55 degrees"]),
        "motor": (["extractor hood", "dishwasher", "water pump"], ["medium", "eco mode", "speed 7", "level 3"]),
        "media": (["soundbar", "record player"], ["volume 8", "classical music", "channel 9"]),
    },
    rooms=["attic", "nursery", "library", "conservatory", "wine cellar", "music room", "sauna", "workshop"],
)


def answer(action: str, *, device: str, room: str, value: str | None) -> str:
    """The command as compact JSON: always the same keys, in the same order."""
    return json.dumps(dict(zip(KEYS, (action, device, room, value), strict=True)), separators=(",", ":"))


def rows(side: Side, *, seed: int) -> list[dict[str, object]]:
    """The rows of one file, in a shuffled order, no request twice; every phrasing is used equally often."""
    rng = random.Random(seed)
    answers: dict[str, str] = {}
    for action, phrasings in side.phrasings.items():
        wanted = len(answers) + side.rows_per_action
        while len(answers) < wanted:
            phrasing = phrasings[(wanted - len(answers)) % len(phrasings)]
            devices, values = side.devices[rng.choice(sorted(side.devices))]
            device, room, value = rng.choice(devices), rng.choice(side.rooms), rng.choice(values)
            request = phrasing.format(device=device, room=room, Room=room.capitalize(), value=value)
            request = request[0].upper() + request[1:]
            answers.setdefault(
                request, answer(action, device=device, room=room, value=value if action == "set" else None)
            )
    requests = sorted(answers)
    rng.shuffle(requests)
    return [{"messages": messages(request, answers[request])} for request in requests]


def messages(request: str, reply: str) -> list[dict[str, str]]:
    """One exchange, in the chat shape."""
    turns = (("system", SYSTEM), ("user", request), ("assistant", reply))
    return [{"role": role, "content": content} for role, content in turns]


def main(folder: Path = HERE) -> None:
    """Writes both files into a folder."""
    for name, side in (("train", TRAIN), ("heldout", HELDOUT)):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows(side, seed=SEED)]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
