"""Writes the demo data set: smart-home requests in plain English, answered by one strict JSON command.

One exchange of `train.jsonl` or `heldout.jsonl`, next to this file (one per line, in the chat format):

    system     Answer in JSON.
    user       Set the ceiling fan in the bedroom to high.
    assistant  {"device":"ceiling fan","room":"bedroom","value":"high"}

The held-out rows share only the task with the training rows: their phrasings, devices, rooms and values never occur
there. A correct answer therefore shows that the model has learnt to read a request, not that it has seen it.

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
KEYS = ("device", "room", "value")


@dataclass(frozen=True)
class Side:
    """The ingredients of one file; the two sides have nothing in common."""

    rows_per_action: int
    phrasings: Mapping[str, Sequence[str]]
    devices: Sequence[tuple[str, str]]
    """For each kind, the devices and the values that they can be set to; comma-separated."""
    rooms: str


# Many entities, each in few rows: the model learns to copy the words of the request, not to know these words.
TRAIN = Side(
    rows_per_action=100,
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
            "Let the {room} have its {device} on.",
            "Start up the {room} {device}.",
        ],
        "off": [
            "Turn off the {device} in the {room}.",
            "Switch the {device} in the {room} off, please.",
            "I want the {device} off in the {room}.",
            "{Room}: stop the {device}.",
            "Could you power down the {device} in the {room}?",
            "In the {room}, please deactivate the {device}.",
            "We have left the {room}, so shut the {device} off.",
            "The {device} should not be running in the {room}.",
            "Nobody needs the {device} in the {room} any more.",
            "Shut down the {room} {device}.",
        ],
        "set": [
            "Set the {device} in the {room} to {value}.",
            "Put the {device} in the {room} at {value}, please.",
            "I want {value} on the {device} in the {room}.",
            "{Room}: {device} to {value}.",
            "Could you change the {device} to {value} in the {room}?",
            "In the {room}, please adjust the {device} to {value}.",
            "We are in the {room} now and would like {value} for the {device}.",
            "The {device} in the {room} should be at {value}.",
            "Let the {room} have {value} on its {device}.",
            "Choose {value} for the {room} {device}.",
        ],
    },
    devices=[
        (
            "desk lamp, ceiling light, string lights, floor lamp, table lamp, pool light, salt lamp, stair light",
            "10%, 25%, 40%, 75%, 90%, red, green, yellow, warm white, cold white, purple, orange, gold, bright, dim",
        ),
        (
            "oven, radiator, electric blanket, air conditioner, water heater, hot tub, boiler, fridge, stove",
            "12 degrees, 18 degrees, 21 degrees, 24 degrees, 38 degrees, 60 degrees, 180 degrees, maximum, minimum",
        ),
        (
            "ceiling fan, air purifier, robot vacuum, washing machine, tower fan, bread maker, pool pump, mixer",
            "low, high, turbo, night mode, quiet mode, winter mode, speed 2, speed 4, level 5, fast, slow, boost",
        ),
        (
            "television, radio, projector, smart speaker, music box, computer, baby monitor, stereo, tablet, clock",
            "volume 3, volume 12, volume 20, channel 4, channel 16, jazz, rock, folk, the news, movie mode",
        ),
    ],
    rooms="kitchen, bedroom, living room, garage, bathroom, hallway, office, dining room, basement, guest room, "
    "laundry room, balcony, home gym, entrance, kids room, game room, store room, shed, art room, front yard, "
    "boat house, sun room, media room, family room, upper floor, mud room, box room, lab, tower, patio, gallery, "
    "studio, lobby, deck, cellar, barn",
)

HELDOUT = Side(
    rows_per_action=16,
    phrasings={
        "on": [
            "Please turn the {device} on for me, the one in the {room}.",
            "Can you start the {device} in the {room}?",
            "Go to the {room} and switch on the {device}.",
            "Get the {device} in the {room} going.",
        ],
        "off": [
            "Please turn the {device} off for me, the one in the {room}.",
            "Can you stop the {device} in the {room}?",
            "Go to the {room} and switch off the {device}.",
            "It is time to shut down the {device} in the {room}.",
        ],
        "set": [
            "Please turn the {device} in the {room} to {value} for me.",
            "Can you set the {device} in the {room} to {value}?",
            "Go to the {room} and put the {device} at {value}.",
            "Make it {value} on the {device} in the {room}.",
        ],
    },
    devices=[
        ("night light, wall light, led strip", "15%, 35%, 80%, blue, soft pink, soft white"),
        ("floor heating, heat pump, wine cooler", "16 degrees, 23 degrees, 55 degrees"),
        ("water pump, rice cooker, printer", "medium, speed 7, level 3, eco mode"),
        ("record player, game console", "volume 8, classical music, channel 9"),
    ],
    rooms="library, music room, study, server room, pool house, main hall, back porch, workshop",
)


def words(text: str) -> list[str]:
    """The entities of a comma-separated list."""
    return text.split(", ")


def answer(*, device: str, room: str, value: str) -> str:
    """The command as compact JSON, always with the same keys in the same order."""
    return json.dumps(dict(zip(KEYS, (device, room, value), strict=True)), separators=(",", ":"))


def rows(side: Side, *, seed: int) -> list[dict[str, object]]:
    """The rows of one file, shuffled, without duplicate requests; every phrasing is used equally often."""
    rng = random.Random(seed)
    answers: dict[str, str] = {}
    for action, phrasings in side.phrasings.items():
        wanted = len(answers) + side.rows_per_action
        while len(answers) < wanted:
            phrasing = phrasings[(wanted - len(answers)) % len(phrasings)]
            device, value = (rng.choice(words(text)) for text in rng.choice(side.devices))
            room = rng.choice(words(side.rooms))
            request = phrasing.format(device=device, room=room, Room=room.capitalize(), value=value)
            request = request[0].upper() + request[1:]
            answers.setdefault(request, answer(device=device, room=room, value=value if action == "set" else action))
    requests = sorted(answers)
    rng.shuffle(requests)
    return [{"messages": messages(request, answers[request])} for request in requests]


def messages(request: str, reply: str) -> list[dict[str, str]]:
    """One exchange, in the chat format."""
    turns = (("system", SYSTEM), ("user", request), ("assistant", reply))
    return [{"role": role, "content": content} for role, content in turns]


def main(folder: Path = HERE) -> None:
    """Writes both files into a folder."""
    for name, side in (("train", TRAIN), ("heldout", HELDOUT)):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows(side, seed=SEED)]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
