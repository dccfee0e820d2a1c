"""What is said of an adapter that does not fit its base: which names, of which side, and what would help."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow_ft.engine.adapters.files import INCOMPLETE
from mlflow_ft.engine.adapters.weight_names import PICTURES, Shapes, short
from mlflow_ft.errors import ModelError, brief

SHOWN = 3
"""Names of each side."""
NAME_IT = "name the model that it was trained on (--base; in training --model)"


def refused(error: Exception, folder: Path) -> ModelError:
    """What PEFT or torch says of an adapter that it cannot put on the base."""
    return ModelError(f"the adapter in {folder} does not fit its base model: {brief(error)}", hint=NAME_IT)


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """The names of either side that have no partner on the other, and the partners of different shapes."""

    there: Shapes
    wanted: Shapes
    foreign: Sequence[str]
    """In the file, and without a place on the base."""
    absent: Sequence[str]
    """Asked for by the config, and not in the file."""
    other: Mapping[str, Sequence[int]]
    """In the file with another shape than the one here, which is that on the base."""

    def __len__(self) -> int:
        return len(self.foreign) + len(self.absent) + len(self.other)


def error(tried: Sequence[Shapes], wanted: Shapes, more: Shapes, *, where: Path, base: str) -> ModelError:
    """The error that says what of an adapter's weights does not fit those that are `wanted`, or may be (`more`).

    `tried` are the weights under the names that were tried; the error is about those that are nearest.
    """
    found = [_compared(there, wanted, more) for there in tried]
    found += [_compared(*_shortened(there, wanted, more)) for there in tried]
    misfit = min(found, key=len)
    told = "; ".join(_told(misfit))
    return ModelError(f"the adapter in {where} does not fit {base}: {told}", hint=_hint(misfit))


def _compared(there: Shapes, wanted: Shapes, more: Shapes) -> Misfit:
    known = {**more, **wanted}
    return Misfit(
        there=there,
        wanted=wanted,
        foreign=[name for name in sorted(there) if name not in known],
        absent=[name for name in sorted(wanted) if name not in there],
        other={name: known[name] for name in sorted(there) if name in known and _differ(there[name], known[name])},
    )


def _differ(one: Sequence[int], two: Sequence[int]) -> bool:
    return tuple(one) != tuple(two)


def _shortened(*sides: Shapes) -> list[dict[str, Sequence[int]]]:
    """Each side by the short names, the file's own where they have no partner."""
    partners = {short(name): name for side in reversed(sides[1:]) for name in side}
    return [{partners.get(short(name), name): shape for name, shape in side.items()} for side in sides]


def _told(misfit: Misfit) -> Iterable[str]:
    total = f"of its {len(misfit.there)} weights"
    empty = [name for name in misfit.other if 0 in misfit.there[name]]
    if empty:
        yield f"{len(empty)} {total} have size 0 ({_some(empty)}): {INCOMPLETE}"
    if misfit.foreign:
        yield f"{len(misfit.foreign)} {total} match nothing in it ({_some(misfit.foreign)})"
    if misfit.absent:
        asked = f"{len(misfit.absent)} of the {len(misfit.wanted)} weights that its config requires are not in the file"
        yield f"{asked} ({_some(misfit.absent)})"
    if others := [name for name in misfit.other if name not in empty]:
        in_file, on_base = (tuple(side[others[0]]) for side in (misfit.there, misfit.other))
        yield f"{len(others)} {total} differ in shape ({others[0]} is {in_file} in the file, {on_base} in the base)"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _hint(misfit: Misfit) -> str:
    if any(0 in misfit.there[name] for name in misfit.other):
        return "save the complete adapter again"
    if any(part in name.split(".") for name in misfit.foreign for part in PICTURES):
        return (
            "it also changes the model's part for pictures or sound, which is not loaded here; load it onto the whole "
            "model with PEFT, or train an adapter for the text part"
        )
    if misfit.other and not misfit.foreign and not misfit.absent:
        return f"it was trained on a model of a different size, or its config was changed; {NAME_IT}"
    layers, on_base = _layers(misfit.there), _layers(misfit.wanted)
    if layers - on_base or (misfit.absent and not misfit.foreign and layers < on_base and _are_last(layers, on_base)):
        return f"it was trained on a model with different layers; {NAME_IT}"
    if misfit.absent and not misfit.foreign:
        return f"save the adapter again: {INCOMPLETE}"
    if not misfit.absent and layers <= on_base:
        return f"its config (target_modules, modules_to_save ...) does not include them, or {NAME_IT}"
    return f"the names belong to another model, or to this one in an unknown wrapper; {NAME_IT}"


def _layers(names: Iterable[str]) -> set[int]:
    """The numbers of the layers that the names speak of."""
    return {int(found[1]) for name in names if (found := re.search(r"\.(\d+)\.", name))}


def _are_last(layers: set[int], on_base: set[int]) -> bool:
    return all(number > max(layers, default=-1) for number in on_base - layers)


def renaming(renamed: Mapping[str, str]) -> str:
    """In a sentence, which parts of names were read as which."""
    changes = dict.fromkeys(_change(old, new) for old, new in renamed.items())
    told = ", ".join(changes) if len(changes) <= SHOWN else "{} as {}".format(*next(iter(renamed.items())))
    return f"the adapter's weights have different names from the base's; all match with {told}"


def _change(old: str, new: str) -> str:
    """What is different in two names, the parts around it left out."""
    one, two = old.split("."), new.split(".")
    while one and two and one[-1] == two[-1]:
        one, two = one[:-1], two[:-1]
    while one and two and one[0] == two[0]:
        one, two = one[1:], two[1:]
    gone, come = ".".join(one), ".".join(two)
    if not come:
        return f"`{gone}` removed"
    return f"`{gone}` read as `{come}`" if gone else f"`{come}` inserted"
