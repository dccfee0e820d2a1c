"""The sections of a card on what the model is, how good it is, its data and its training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from mlflow_ft.forms.card.facts import About
from mlflow_ft.forms.card.markdown import bullets, code, counted, number, plain, table
from mlflow_ft.plugins import PluginInfo
from mlflow_ft.tracking.environment import versions
from mlflow_ft.values import Score, Split
from mlflow_ft.values.report import percent

MAIN = (
    "training.learning_rate",
    "training.lr_scheduler_type",
    "training.warmup_steps",
    "training.per_device_train_batch_size",
    "training.gradient_accumulation_steps",
    "training.weight_decay",
    "training.optim",
    "model.quantize",
    "model.dtype",
    "data.max_length",
    "run.seed",
)
"""Settings that a reader looks for, even if they are defaults."""
OF_ADAPTERS = ("r", "lora_alpha", "lora_dropout", "target_modules")
"""Shown for adapter kinds that have them."""
NOT_OF_TRAINING = ("run.", "registry.", "plugins.allow", "method")
PARITY: Mapping[str, str] = {
    "kl_mean": "mean KL divergence (nats per token)",
    "kl_max": "largest KL divergence of one token (nats)",
    "top1_agreement": "share of tokens with the same first choice",
    "perplexity_change": "change in perplexity, relative to the trained model's",
    "greedy_agreement": "share of prompts with the same greedy answer",
    "whole_kl_mean": "mean KL divergence on the whole model (nats per token), without images",
    "unstopped": "prompts after which it does not stop where the trained model does",
    "kl_share": "distance to the trained model, relative to the base model's (0: identical, 1: as far as the base)",
    "tokens": "tokens compared",
}
OF_SCORES: Mapping[str, str] = {
    "kl_mean": "mean KL divergence of the probability that an answer is preferred (nats)",
    "kl_max": "largest KL divergence of one answer (nats)",
    "top1_agreement": "share of answers that both rate good, or both bad",
    "tokens": "answers compared",
}
"""The same for a reward model."""


def opening(about: About) -> str:
    """What it is, its base, who trained it and when: one paragraph."""
    base, run = about.base, about.run
    facts = [] if base.origin == f"folder {base.path}" else [plain(base.origin)]
    facts += [f"revision {code(base.revision)}"] if base.revision else []
    method = about.job.registry.trainers[about.config.method]
    user = f" by {code(about.tags['mlflow.user'])}" if about.tags.get("mlflow.user") else ""
    place = about.job.run.url or about.job.run.tracking_uri
    loaded = f" MLflow loads it from {code(about.uri)}." if about.served else ""
    return (
        f"{code(base.name)} ({', '.join(facts)}), fine-tuned with the method {code(method.name)}: "
        f"{plain(method.summary)}. This is the form {code(about.form.name)}: {plain(about.form.summary)}. "
        f"It was trained on {about.day}{user} in the MLflow run {code(run.info.run_id)} "
        f"({code(run.info.run_name)}) at {code(place)}.{loaded}"
    )


# --- scores and parity


def scores(about: About) -> str:
    """Both models on the held-out rows, side by side."""
    base = {score.name: score for score in about.scores.base}
    tuned = {score.name: score for score in about.scores.tuned}
    names = list(dict.fromkeys([*tuned, *base]))
    partly = any(score.coverage < 1 for score in (*about.scores.base, *about.scores.tuned))
    columns = ["score", "base", "tuned", "rows", *(["coverage, base", "coverage, tuned"] if partly else [])]
    rows = []
    for name in names:
        pair = base.get(name), tuned.get(name)
        lower = any(score and about.lower(score) for score in pair)
        label = code(name) + (" (lower is better)" if lower else "")
        row = [label, *(number(score.value if score else None) for score in pair), _rows(*pair)]
        rows.append([*row, *(percent(score.coverage) if score else "" for score in pair)] if partly else row)
    evaluation, held = about.config.evaluation, about.data.eval
    text = (
        f"On {counted(held.counts['rows'], 'held-out row')} (digest {code(held.digest)}). `base` is the model before "
        "this training, `tuned` the trained model; Parity compares these files with the trained model."
    )
    for name, guard in about.data.guards.items():
        rows_of = f"{counted(guard.eval.counts['rows'], 'row')} (digest {code(guard.eval.digest)})"
        text += f" Scores {code(name + '/...')} are on the guard set {code(name)}: {rows_of}."
    if own := [code(score.name) for score in about.scores.tuned if score.digest]:
        text += f" On rows of their own, not the held-out ones: {', '.join(own)}."
    if about.scores.answers:
        text += (
            f" Answers to {counted(len(about.scores.answers), 'prompt')} were generated greedily, with at most "
            f"{evaluation.max_new_tokens:,} tokens each; the run has them all in {code('eval/answers.json')}."
        )
    if not rows:
        return "It was not scored: no evaluator applied to the held-out rows."
    return f"{text}\n\n{table(columns, rows, numbers=range(1, len(columns)))}"


def _rows(*pair: Score | None) -> str:
    return next((f"{len(score.rows):,}" for score in pair if score and score.rows), "")


def parity(about: About) -> str:
    """How close the files are to the model in memory at the end of training."""
    if not about.parity:
        return "It was not measured."
    limits = about.limits
    labels = {**PARITY, **(OF_SCORES if about.scores_answers else {})}
    limit = {
        "kl_mean": f"at most {number(limits.max_kl)}",
        "whole_kl_mean": f"at most {number(limits.max_kl)}",
        "top1_agreement": f"at least {number(limits.min_top1)}",
        "perplexity_change": f"at most {number(limits.max_perplexity_change)}, up or down",
        "unstopped": "none",
        "kl_share": "" if limits.max_kl_share is None else f"at most {number(limits.max_kl_share)}",
    }
    rows = [[labels.get(name, code(name)), number(value), limit.get(name, "")] for name, value in about.parity.items()]
    return (
        "These files were loaded again and compared, on held-out rows, with the model in memory at the end of "
        f"training.\n\n{table(['', 'measured', 'limit'], rows, numbers=(1,))}"
    )


# --- data


def data(about: About) -> str:
    """Where the rows come from, how many there are, and what the checks found."""
    prepared = about.data
    facts = [f"Format {code(prepared.format)}; fingerprint of sources and preparation {code(prepared.fingerprint)}."]
    ways = about.tags.get("mlflow.mlflow_ft.data_mask")
    if ways and prepared.kind not in ("text", "prompt"):
        facts.append(f"The loss mask was derived by {code(ways)} and proved for every row.")
    facts.append("The run has the hash of every file and row in `data/lineage.json` and `data/rows.parquet`.")
    sides = table(["", "train", "held out"], _sides(about), numbers=(1, 2))
    return "\n\n".join([sides, " ".join(facts), _findings(about)])


def _sides(about: About) -> list[list[str]]:
    train, held = about.data.train, about.data.eval
    sides = (train, held)
    split_off = f"split off: {code(f'data.test_size {about.config.data.test_size:g}')}"
    rows = [
        ["source", _source(train), split_off if about.same_source else _source(held)],
        ["digest", *(code(side.digest) for side in sides)],
        *([name, *(f"{side.counts[name]:,}" for side in sides)] for name in ("rows", "tokens")),
    ]
    if about.data.kind != "prompt":
        rows.append(["learned tokens", *map(_learned, sides)])
    length = about.config.data.max_length
    rows.append([f"cut to {length:,} tokens", *(f"{side.counts['truncated']:,}" for side in sides)])
    dropped = [f"{side.counts['dropped']:,}" for side in sides]
    rows.append(["left out of the source", dropped[0], "same source" if about.same_source else dropped[1]])
    return rows


def _source(side: Split) -> str:
    return ", ".join(code(source) for source in side.sources)


def _learned(side: Split) -> str:
    count, tokens = side.counts["supervised_tokens"], side.counts["tokens"]
    return f"{count:,} ({percent(count / tokens)})" if tokens else f"{count:,}"


def _findings(about: About) -> str:
    report = about.data.report
    if report is None:
        return "The rows were not checked."
    cells = [
        [check.severity, code(check.name), f"{check.count:,}", percent(check.share), plain(check.summary)]
        for check in report.worst("info")
    ]
    checks, rows = counted(len(report.checks), "check"), counted(report.rows, "row")
    if not cells:
        return f"Quality: {checks} found nothing in {rows}."
    columns = ["severity", "check", "rows", "share", "what it looks for"]
    return f"Quality: {len(cells):,} of {checks} found something in {rows}.\n\n{table(columns, cells, numbers=(2, 3))}"


# --- training


def training(about: About) -> str:
    """The settings that were changed and those that a reader looks for; seed, code, plugins, versions."""
    tags, measured = about.tags, about.trained.metrics
    trainable, total = measured.get("model/trainable_weights"), measured.get("model/weights")
    facts = []
    if trainable and total:
        facts.append(f"{trainable:,.0f} of {counted(int(total), 'weight')} trained ({percent(trainable / total)}).")
    if steps := measured.get("train/steps"):
        loss = measured.get("train/mean_loss")
        facts.append(f"{counted(int(steps), 'optimizer step')}; mean training loss {number(loss)}.")
    if about.trained.stopped:
        facts.append(f"Training ended early, {plain(about.trained.stopped)}.")
    if chosen := about.trained.chosen:
        facts.append(f"The weights are those of {plain(str(chosen))}; they were chosen by that loss.")
    if device := tags.get("mlflow_ft.device"):
        facts.append(f"Device: {plain(device)}.")
    return "\n\n".join([" ".join(facts), table(["setting", "value", "from"], _settings(about)), bullets(_code(about))])


def _settings(about: About) -> list[list[str]]:
    config, flat, resolved = about.config, about.config.flat(), _resolved(about)
    given = {path for path in config.origins if path in flat and not path.startswith(NOT_OF_TRAINING)}
    length = "training.num_train_epochs" if config.training.max_steps < 0 else "training.max_steps"
    order = [path for path in flat if path in {*given, *MAIN, *resolved, length}]
    rows = []
    for path in order:
        value = _value(flat[path])
        shown = code(value) if resolved.get(path, value) == value else f"{code(value)} ({code(resolved[path])})"
        rows.append([code(path), shown, plain(config.origins.get(path, "default"))])
    return rows


def _resolved(about: About) -> dict[str, str]:
    """The actual values of settings such as `auto`, and the settings that this kind of adapter has."""
    from mlflow_ft.engine import hardware

    config = about.config
    resolved = {"training.optim": hardware.optimizer(config)}
    resolved["model.dtype"] = str(hardware.compute_dtype(config.model.dtype)).removeprefix("torch.")
    if about.trained.adapter is not None:
        file = about.trained.adapter / "adapter_config.json"
        saved = json.loads(file.read_text(encoding="utf-8"))
        resolved["adapter.kind"] = config.adapter.kind
        if isinstance(saved.get("target_modules"), list) and config.adapter.target_modules == "all-linear":
            saved["target_modules"] = list({name.rpartition(".")[2] for name in saved["target_modules"]})
        resolved |= {f"adapter.{name}": _value(saved[name]) for name in OF_ADAPTERS if saved.get(name) is not None}
    return resolved


def _value(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {item}" for key, item in value.items())
    return ", ".join(sorted(map(str, value))) if isinstance(value, list) else str(value)


def _code(about: About) -> list[str]:
    tags = about.tags
    lines = []
    if commit := tags.get("mlflow_ft.git_commit"):
        dirty = ", with uncommitted changes" if tags.get("mlflow_ft.git_dirty") == "true" else ""
        lines.append(f"git commit {code(commit)}{dirty}")
    lines += [f"plugin {plugin}" for plugin in _plugins(about.job.plugins.active)]
    lines.append(", ".join(f"{plain(name)} {plain(version)}" for name, version in sorted(versions(tags).items())))
    return [line for line in lines if line]


def _plugins(active: Sequence[PluginInfo]) -> list[str]:
    """Each plugin once; the built-in ones share one version and one hash."""
    lines: dict[str, None] = {}
    for info in active:
        name = "`built in`" if info.built_in else code(info.name)
        lines[f"{name} {plain(info.version)}, sha256 {code(info.sha256[:12] or 'none')}"] = None
    return list(lines)
