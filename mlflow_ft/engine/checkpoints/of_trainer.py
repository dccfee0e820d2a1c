"""What a checkpoint holds of a transformers Trainer, and how it is put back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mlflow_ft.engine import generators, ranks
from mlflow_ft.engine.checkpoints import tree
from mlflow_ft.engine.checkpoints.order import Order
from mlflow_ft.engine.launching import shards, zero
from mlflow_ft.errors import ModelError

BUFFER = "_buffered_inputs"
"""The trainers' sampled answers that several steps use."""
COUNTERS = (
    "_tr_loss",
    "_total_loss_scalar",
    "_globalstep_last_logged",
    "current_flos",
    "_metrics",
    "_stored_metrics",
    "_pending_metrics",
    "_total_train_tokens",
    "_step",
    BUFFER,
    "entropy_coef",
)
"""What transformers' and TRL's trainers count between two logs, and sampled answers that several steps use."""
OTHERS = "others"
"""The part of a checkpoint with what processes other than rank 0 have of their own."""
WATCH = "watch"
"""The attribute for a trainer's own watch, an object with `state_dict` and `load_state_dict`."""


def weights(trainer: Any) -> dict[str, Tensor]:
    """The weights that training changes, by name."""
    changed = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    if getattr(trainer.args, "sync_ref_model", False):
        changed |= {f"reference/{name}": weight for name, weight in _reference(trainer)}
    return changed


def settle(trainer: Any) -> None:
    """Let an optimizer that trains other weights than those to use (schedule-free) put the latter into the model.

    transformers calls its `train` before each pass of a training, but its `eval` only in an evaluation of its own.
    """
    evaluate = getattr(trainer.optimizer, "eval", None)
    if callable(evaluate):
        evaluate()


def frozen_digest(trainer: Any) -> str:
    """sha256 over the names and bytes of all weights that training does not change."""
    shards.settle(trainer.model_wrapped)
    total, changed = hashlib.sha256(), weights(trainer)
    for name, weight in trainer.model.named_parameters():
        if name not in changed:
            total.update(name.encode())
            total.update(tree.bits(shards.whole_weight(weight)).numpy().data)
    return total.hexdigest()


def _reference(trainer: Any) -> Iterator[tuple[str, Tensor]]:
    """The weights of a reference that follows the trained model."""
    if getattr(trainer, "ref_model", None) is not None:
        yield from trainer.ref_model.named_parameters()
    else:
        yield from ((name, weight) for name, weight in trainer.model.named_parameters() if ".ref." in name)


def collect(trainer: Any, order: Order) -> dict[str, Any]:
    """Everything that decides how training continues, as parts of a checkpoint.

    With several processes, which hold the same weights, rank 0's includes what the others have of their own (`OTHERS`).
    """
    scaler = getattr(trainer.accelerator, "scaler", None)
    shards.settle(trainer.model_wrapped)
    own = _own(trainer, order)
    others = ranks.gather(own)[1:]
    return {
        "weights": {name: shards.whole_weight(weight) for name, weight in weights(trainer).items()},
        "optimizer": shards.optimizer_state(trainer.optimizer),
        "scheduler": trainer.lr_scheduler.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else {},
        **own,
        **({OTHERS: others} if others and ranks.leads() else {}),
    }


def _own(trainer: Any, order: Order) -> dict[str, Any]:
    """What each process has of its own."""
    return {
        "random": generators.collect(),
        "counters": {name: plain(getattr(trainer, name)) for name in COUNTERS if hasattr(trainer, name)},
        "callbacks": {name: keeper.state_dict() for name, keeper in keepers(trainer)},
        "data": order.collect(),
    }


def plain(value: Any) -> Any:
    """Dicts without their defaults, which may be functions that no other process can get."""
    return {name: plain(inner) for name, inner in value.items()} if isinstance(value, dict) else value


def processes(parts: Mapping[str, Any]) -> int:
    """How many processes trained when a checkpoint was written."""
    return 1 + len(parts.get(OTHERS, ()))


def of_this_process(parts: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's parts for this process.

    If another number of processes trains now, all take those of rank 0, without random generators and without its place
    in the rows.
    """
    number, others = processes(parts), parts.get(OTHERS, [])
    shared = {name: part for name, part in parts.items() if name != OTHERS}
    if number == ranks.size():
        return shared if ranks.leads() else shared | others[ranks.rank() - 1]
    counters = {name: value for name, value in parts["counters"].items() if name != BUFFER}
    return {name: part for name, part in shared.items() if name not in ("random", "data")} | {"counters": counters}


def restore(trainer: Any, parts: Mapping[str, Any]) -> None:
    """Put back weights, optimizer and schedule; the trainer has just made them.

    Raises:
        ModelError: the checkpoint belongs to another model, or to a training that ended here.
    """
    restore_weights(weights(trainer), parts["weights"])
    if parts["optimizer"]:
        shards.restore_optimizer(trainer.optimizer, parts["optimizer"])
    elif trainer.state.global_step < trainer.state.max_steps:
        raise ModelError(
            "the checkpoint of the last step has no optimizer, so a longer training cannot continue from it",
            hint="keep training.max_steps and num_train_epochs as they were",
        )
    trainer.lr_scheduler.load_state_dict(parts["scheduler"])
    if parts["scaler"]:
        trainer.accelerator.scaler.load_state_dict(parts["scaler"])


@torch.no_grad()
def restore_weights(live: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy saved weights into the live ones of the same names.

    Raises:
        ModelError: other weights train now.
    """
    other = sorted(live.keys() ^ saved.keys())
    other += [name for name in live if name in saved and zero.shape(live[name]) != saved[name].shape]
    if other:
        raise ModelError(
            f"the checkpoint belongs to another model or adapter: {len(other)} weights differ, such as {other[0]}",
            hint="resume with the base model and the adapter settings of the run",
        )
    for name, weight in live.items():
        shards.put_weight(weight, saved[name])


def restore_rest(trainer: Any, parts: Mapping[str, Any]) -> None:
    """Put back counters, callbacks and random generators; called when nothing else will happen before the next step."""
    for name, value in parts["counters"].items():
        _fill(trainer, name, value)
    trainer._initial_global_step = 0  # the mean loss is over all steps, not over those of this process
    live = dict(keepers(trainer))
    for name, state in parts["callbacks"].items():
        if name in live:
            live[name].load_state_dict(state)
    if "random" in parts:
        generators.restore(parts["random"])


def _fill(trainer: Any, name: str, value: Any) -> None:
    """Set an attribute; a dict is filled in place, because its values may have defaults."""
    current = getattr(trainer, name, None)
    if isinstance(current, dict) and isinstance(value, dict):
        _fill_dict(current, value)
    elif isinstance(current, Tensor) and isinstance(value, Tensor):
        setattr(trainer, name, value.to(current.device))
    else:
        setattr(trainer, name, value)


def _fill_dict(current: dict[Any, Any], value: dict[Any, Any]) -> None:
    default = getattr(current, "default_factory", None)
    for key, inner in value.items():
        if isinstance(inner, dict):
            if key not in current:
                current[key] = default() if default else {}
            _fill_dict(current[key], inner)
        else:
            current[key] = inner


def keepers(trainer: Any) -> Iterator[tuple[str, Any]]:
    """Callbacks with state, named by class and by their number among those of the class, and the trainer's watch."""
    seen: dict[str, int] = {}
    for callback in trainer.callback_handler.callbacks:
        kind = type(callback).__name__
        seen[kind] = seen.get(kind, 0) + 1
        if hasattr(callback, "state_dict") and hasattr(callback, "load_state_dict"):
            yield f"{kind}.{seen[kind]}", callback
    if hasattr(trainer, WATCH):
        yield WATCH, trainer.watch
