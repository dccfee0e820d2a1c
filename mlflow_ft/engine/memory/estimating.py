"""The estimate of a setting's memory: what is held, and what its passes take, phase by phase."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from mlflow_ft.engine.memory import passes
from mlflow_ft.engine.memory.fake import Fake
from mlflow_ft.engine.memory.live import GRADIENTS, LOGITS
from mlflow_ft.engine.memory.passes import Pass
from mlflow_ft.engine.memory.sharding import Held, spread
from mlflow_ft.engine.memory.values import Estimate, Phase, Setting
from mlflow_ft.engine.models import skeleton

OF_OPTIMIZER = {"sgd": 0, "adafactor": 0, "lion": 4}
EIGHT_BITS, USUAL = 2, 8
"""Bytes of the optimizer's state for each trained weight: of AdamW in 8 bits, and in 32."""
IN_A_MERGE = 4
"""A merge holds a weight as stored, in float32, merged, and in its final type."""


def estimate(setting: Setting) -> Estimate:
    """The memory that a setting needs, in seconds, without a weight.

    Raises:
        UnsuitedError: the model cannot be built, or run, without weights.
    """
    fake = Fake(setting)
    try:
        with fake.mode:
            return _estimated(setting, fake.model)
    except skeleton.FAILURES as error:
        raise skeleton.UnsuitedError(f"the model cannot be run without weights: {error}") from error


def _estimated(setting: Setting, model: Any) -> Estimate:
    held = _held(setting, model)
    sampled = setting.method in passes.SAMPLED
    whole = replace(setting, length=setting.length + setting.new_tokens) if sampled else setting
    step = passes.step(whole, model)
    others = [passes.evaluated(setting, model)]
    generates = setting.task == "generate"
    if generates and setting.method not in passes.TILED:
        others.append(passes.first_row(setting, model))
    if sampled:
        others.append(passes.generated(setting, model, rows=setting.batch * setting.accumulation))
    shared = spread(held, setting)
    still = {"adapter": shared.adapter, "optimizer": shared.optimizer, "reference": shared.reference}
    candidates = [_parts(step.at_peak), {GRADIENTS: shared.gradients}, *(_parts(other.at_peak) for other in others)]
    training = {"weights": shared.weights, **still} | max(candidates, key=lambda parts: sum(parts.values()))
    training["communication"] = shared.communication
    judged = [passes.evaluated(setting, model)]
    if generates:
        judged.append(passes.generated(setting, model, rows=setting.eval_batch))
    most = max(judged, key=lambda judged: judged.total)
    evaluation = {"weights": held.weights, "adapter": held.adapter} | _parts(most.at_peak)
    phases = [Phase(name="training", parts=_without_zeros(training))]
    phases.append(Phase(name="evaluation", parts=_without_zeros(evaluation)))
    if setting.adapter is not None and setting.merges:
        phases.append(Phase(name="merge", parts=_merge(setting, held, judged[0])))
    return Estimate(phases=phases, activations=_layers(step))


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


def _merge(setting: Setting, held: Held, judged: Pass) -> dict[str, int]:
    """The merge, one weight at a time, and then the merged model in memory while it is compared."""
    plain = Fake(replace(setting, adapter=None, quantize="none")).model
    count = sum(weight.numel() for weight in plain.parameters())
    largest = max(weight.numel() for weight in plain.parameters())
    whole = count * (4 if setting.dtype == "float32" else 2)
    merging = IN_A_MERGE * 4 * largest + held.adapter
    comparing = whole + judged.total // max(1, setting.eval_batch)
    if merging > comparing:
        return {"adapter": held.adapter, "temporary": IN_A_MERGE * 4 * largest}
    return {"weights": whole, "activations": comparing - whole}
