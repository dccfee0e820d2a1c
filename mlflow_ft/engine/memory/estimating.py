"""The estimate of a setting's memory: what is held, and what its passes take, phase by phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from mlflow_ft.engine import hardware
from mlflow_ft.engine.memory import passes
from mlflow_ft.engine.memory.depth import Depth
from mlflow_ft.engine.memory.fake import Fake
from mlflow_ft.engine.memory.live import GRADIENTS, LOGITS
from mlflow_ft.engine.memory.passes import Pass
from mlflow_ft.engine.memory.sharding import Held, spread
from mlflow_ft.engine.memory.values import Estimate, Phase, Setting
from mlflow_ft.engine.models import architecture

OF_OPTIMIZER = {"sgd": 0, "adafactor": 0, "lion": 4}
EIGHT_BITS, USUAL = 2, 8
"""Bytes of the optimizer's state for each trained weight: of AdamW in 8 bits, and in 32."""
FLOAT32 = 4
IN_A_MERGE = 4
"""A merge holds a weight as stored, in float32, merged, and in its final type."""
REMEMBERED = 64
_latest: dict[Any, Estimate] = {}


def estimate(setting: Setting) -> Estimate:
    """The memory that a setting needs, in seconds, without a weight. The latest estimates are remembered.

    Raises:
        UnsuitedError: the model cannot be built, or run, without weights.
    """
    key = (repr(setting), (setting.model / "config.json").read_bytes())
    if key not in _latest:
        while len(_latest) >= REMEMBERED:
            _latest.pop(next(iter(_latest)))
        _latest[key] = _estimated(setting)
    return _latest[key]


def _estimated(setting: Setting) -> Estimate:
    depth = Depth(setting)
    held = _held(setting, depth.whole.model)
    sampled = setting.method in passes.SAMPLED
    generates = setting.task == "generate"
    longer = replace(setting, length=setting.length + setting.new_tokens) if sampled else setting
    step = depth.taken(partial(passes.step, longer))
    evaluated = depth.taken(partial(passes.evaluated, setting))
    others, judged = [evaluated], [evaluated]
    if generates and setting.method not in passes.TILED:
        others.append(depth.taken(partial(passes.first_tokens, setting)))
    if sampled:
        rows = setting.batch * setting.accumulation
        others.append(depth.taken(partial(passes.generated, setting, rows=rows)))
    if generates:
        rows = hardware.answers_at_once(setting.eval_batch, setting.length + setting.new_tokens, gpu=setting.gpu)
        judged.append(depth.taken(partial(passes.generated, setting, rows=rows)))
    phases = [_training(setting, held, step, others), _evaluation(held, judged)]
    if setting.adapter is not None and setting.merges:
        phases.append(_merge(setting, held, evaluated))
    return Estimate(phases=phases, activations=_layers(step))


def _training(setting: Setting, held: Held, step: Pass, others: Sequence[Pass]) -> Phase:
    mine = spread(held, setting)
    passing = [{GRADIENTS: mine.gradients}, *(_parts(one_pass.at_peak) for one_pass in (step, *others))]
    parts = {"weights": mine.weights, "adapter": mine.adapter, "optimizer": mine.optimizer, "reference": mine.reference}
    parts |= _most(passing)
    return Phase(name="training", parts=_without_zeros(parts | {"communication": mine.communication}))


def _evaluation(held: Held, judged: Sequence[Pass]) -> Phase:
    most = max(judged, key=lambda judged: judged.total)
    return Phase(
        name="evaluation",
        parts=_without_zeros({"weights": held.weights, "adapter": held.adapter} | _parts(most.at_peak)),
    )


def _most(several: Sequence[dict[str, int]]) -> dict[str, int]:
    return max(several, key=lambda parts: sum(parts.values()))


def _parts(at_peak: Mapping[str, int]) -> dict[str, int]:
    """The peak of a pass as parts: what layers take is activations."""
    own = {name: at_peak.get(name, 0) for name in (GRADIENTS, LOGITS, passes.CACHE)}
    return own | {"activations": sum(at_peak.values()) - sum(own.values())}


def _without_zeros(parts: Mapping[str, int]) -> dict[str, int]:
    return {name: size for name, size in parts.items() if size}


def _layers(step: Pass) -> dict[str, int]:
    return {kind: size for kind, size in sorted(step.kept.items(), key=lambda item: -item[1]) if kind != LOGITS}


def _held(setting: Setting, model: Any) -> Held:
    """What is in memory all the time, on one device that holds everything."""
    weights = {id(weight): weight for weight in (*model.parameters(), *model.buffers())}.values()
    trained = [weight for weight in weights if weight.requires_grad]
    size, count = _bytes(trained), sum(weight.numel() for weight in trained)
    frozen = _bytes([weight for weight in weights if not weight.requires_grad])
    full = setting.adapter is None
    needs_copy = full and setting.reference and setting.method in (*passes.WITH_REFERENCE, "ppo")
    reference = (size + frozen) if needs_copy else 0
    if setting.reward_model:
        rewarding = Setting(model=setting.reward_model, task="score", dtype=setting.dtype)
        reference += _bytes(list(Fake(rewarding).model.parameters()))
    return Held(
        weights=frozen + (size if full else 0),
        adapter=0 if full else size,
        gradients=size,
        optimizer=count * _of_optimizer(setting.optimizer),
        reference=reference,
        largest_layer=_largest(model),
        outside=_outside(model),
    )


def _of_optimizer(name: str) -> int:
    if "8bit" in name:
        return EIGHT_BITS
    return next((size for start, size in OF_OPTIMIZER.items() if name.startswith(start)), USUAL)


def _bytes(tensors: list[Any]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _largest(model: Any) -> int:
    """Bytes of the largest of the model's repeated layers, which FSDP and ZeRO-3 gather one at a time."""
    lists = [layer for layer in model.modules() if isinstance(layer, nn.ModuleList)]
    return max((_bytes(list(layer.parameters())) for several in lists for layer in several), default=0)


def _outside(model: Any) -> int:
    """Bytes of the weights outside the repeated layers, which stay gathered during a pass."""
    lists = [layer for layer in model.modules() if isinstance(layer, nn.ModuleList)]
    inside = {id(weight) for several in lists for weight in several.parameters()}
    return _bytes([weight for weight in model.parameters() if id(weight) not in inside])


def _merge(setting: Setting, held: Held, evaluated: Pass) -> Phase:
    """The merge, one weight at a time, and then the merged model in memory, compared on a row at a time."""
    plain = architecture.build(setting.model, task=setting.task)
    sizes = [weight.numel() for weight in plain.parameters()]
    weights = sum(sizes) * (4 if setting.dtype == "float32" else 2)
    merging = {"adapter": held.adapter, "temporary": IN_A_MERGE * FLOAT32 * max(sizes)}
    comparing = {"weights": weights, "activations": evaluated.total // setting.eval_batch}
    return Phase(name="merge", parts=_most([merging, comparing]))
