"""The sections of a card on what the model is, how good it is, and what it was made from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from mlflow_ft.config.gates import lower_is_better
from mlflow_ft.forms.card.facts import About
from mlflow_ft.forms.card.markdown import bullets, code, counted, number, plain, table
from mlflow_ft.plugins import PluginInfo
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
"""Settings that a reader looks for, whether or not they are defaults."""
OF_ADAPTERS = ("r", "lora_alpha", "lora_dropout", "target_modules")
"""Of the kinds that have them."""
NOT_OF_TRAINING = ("run.", "registry.", "method")
PARITY: Mapping[str, str] = {
    "kl_mean": "mean KL divergence (nats per token)",
    "kl_max": "largest KL divergence of one token (nats)",
    "top1_agreement": "share of tokens with the same first choice",
    "perplexity_change": "change of perplexity, relative to the trained model's",
    "greedy_agreement": "share of prompts with the same greedy answer",
    "whole_kl_mean": "mean KL divergence on the whole model (nats per token), without pictures",
    "unstopped": "prompts behind which it does not stop where the trained model does",
    "kl_share": "share of the way back to the base model (0 is the trained model)",
    "tokens": "tokens that were compared",
}
OF_SCORES: Mapping[str, str] = {
    "kl_mean": "mean KL divergence of the chance that an answer is preferred (nats)",
    "kl_max": "largest KL divergence of one answer (nats)",
    "top1_agreement": "share of answers that both find good, or bad",
    "tokens": "answers that were compared",
}
"""The same of a model that scores."""


def opening(about: About) -> str:
    """What it is, of what, by whom, when: one paragraph."""
    base, run = about.base, about.run
    facts = [] if base.origin == f"folder {base.path}" else [plain(base.origin)]
    facts += [f"revision {code(base.revision)}"] if base.revision else []
    method = about.job.registry.trainers[about.config.method]
    user = f" by {code(about.tags['mlflow.user'])}" if about.tags.get("mlflow.user") else ""
    place = about.job.run.url or about.job.run.tracking_uri
    loaded = f" MLflow loads it as {code(about.uri)}." if about.served else ""
    return (
        f"{code(base.name)} ({', '.join(facts)}), trained further with the method {code(method.name)}: "
        f"{plain(method.summary)}. This is the form {code(about.form.name)}: {plain(about.form.summary)}. "
        f"It was trained on {about.day}{user}, in the MLflow run {code(run.info.run_id)} "
        f"({code(run.info.run_name)}) of {code(place)}.{loaded}"
    )


# --- scores and parity


def scores(about: About) -> str:
    """Both models on the held-out rows, side by side."""
    base = {one.name: one for one in about.scores.base}
    names = list(dict.fromkeys([*(one.name for one in about.scores.tuned), *base]))
    tuned = {one.name: one for one in about.scores.tuned}
    partly = any(one.coverage < 1 for one in (*about.scores.base, *about.scores.tuned))
    columns = ["score", "base", "tuned", "rows", *(["coverage, base", "coverage, tuned"] if partly else [])]
    rows = []
    for name in names:
        pair = base.get(name), tuned.get(name)
        told = code(name) + (" (lower is better)" if lower_is_better(name) else "")
        row = [told, *(number(one.value if one else None) for one in pair), _rows(*pair)]
        rows.append([*row, *(percent(one.coverage) if one else "" for one in pair)] if partly else row)
    evaluation, held = about.config.evaluation, about.data.eval
    said = (
        f"On {counted(held.counts['rows'], 'held-out row')} (digest {code(held.digest)}). "
        "`base` is the model as it was before this training, `tuned` the trained one, with which Parity compares these "
        "files."
    )
    for name, guard in about.data.guards.items():
        rows_of = f"{counted(guard.eval.counts['rows'], 'row')} (digest {code(guard.eval.digest)})"
        said += f" Scores {code(name + '/...')} are of the guard set {code(name)}: {rows_of}."
    if about.scores.answers:
        said += (
            f" Answers were generated greedily, to {counted(len(about.scores.answers), 'prompt')}, with at most "
            f"{evaluation.max_new_tokens:,} tokens each; all of them are in {code('eval/answers.json')} of the run."
        )
    if not rows:
        return "It was not scored: no evaluator applied to the held-out rows."
    return f"{said}\n\n{table(columns, rows, numbers=range(1, len(columns)))}"


def _rows(*pair: Score | None) -> str:
    return next((f"{len(one.rows):,}" for one in pair if one and one.rows), "")


def parity(about: About) -> str:
    """How near the files are to the model that was trained."""
    if not about.parity:
        return "It was not measured."
    limits = about.limits
    words = {**PARITY, **(OF_SCORES if about.scores_answers else {})}
    limit = {
        "kl_mean": f"at most {number(limits.max_kl)}",
        "whole_kl_mean": f"at most {number(limits.max_kl)}",
        "top1_agreement": f"at least {number(limits.min_top1)}",
        "perplexity_change": f"at most {number(limits.max_perplexity_change)}, up or down",
        "unstopped": "none",
        "kl_share": "" if limits.max_kl_share is None else f"at most {number(limits.max_kl_share)}",
    }
    rows = [[words.get(name, code(name)), number(value), limit.get(name, "")] for name, value in about.parity.items()]
    return (
        "These files were loaded back and compared with the model as it was in memory when its training ended, on "
        f"held-out rows.\n\n{table(['', 'measured', 'limit'], rows, numbers=(1,))}"
    )


# --- data


def data(about: About) -> str:
    """Where the rows come from, how many, and what the checks said."""
    found = about.data
    facts = [f"Format {code(found.format)}; fingerprint of sources and preparation {code(found.fingerprint)}."]
    ways = about.tags.get("mlflow_ft.data_mask")
    if ways and found.kind not in ("text", "prompt"):
        facts.append(f"Where the assistant speaks was found by {code(ways)}, and proved in every row.")
    facts.append("The hash of every file and row is in `data/lineage.json` and `data/rows.parquet` of the run.")
    sides = table(["", "train", "held out"], _sides(about), numbers=(1, 2))
    return "\n\n".join([sides, " ".join(facts), _findings(about)])


def _sides(about: About) -> list[list[str]]:
    train, held = about.data.train, about.data.eval
    sides = (train, held)
    kept = f"held out of the same: {code(f'data.test_size {about.config.data.test_size:g}')}"
    rows = [
        ["source", _source(train), kept if about.same_source else _source(held)],
        ["digest", *(code(one.digest) for one in sides)],
        *([name, *(f"{one.counts[key]:,}" for one in sides)] for name, key in (("rows", "rows"), ("tokens", "tokens"))),
    ]
    if about.data.kind != "prompt":
        rows.append(["tokens that are learned", *map(_learned, sides)])
    rows.append([f"cut to {about.config.data.max_length:,} tokens", *(f"{one.counts['truncated']:,}" for one in sides)])
    dropped = [f"{one.counts['dropped']:,}" for one in sides]
    rows.append(["left out of the source", dropped[0], "the same" if about.same_source else dropped[1]])
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
    told = [
        [one.severity, code(one.name), f"{one.count:,}", percent(one.share), plain(one.summary)]
        for one in report.worst("info")
    ]
    ran = f"{counted(len(report.checks), 'check')} of {counted(report.rows, 'row')}"
    if not told:
        return f"Quality: {ran} found nothing."
    columns = ["severity", "check", "rows", "share", "what it looks for"]
    return f"Quality: of {ran}, {len(told):,} found something.\n\n{table(columns, told, numbers=(2, 3))}"


# --- training


def training(about: About) -> str:
    """Every setting that is no default and those that a reader looks for; seed, code, plugins, versions."""
    tags, measured = about.tags, about.trained.metrics
    trainable, total = measured.get("model/trainable_weights"), measured.get("model/weights")
    facts = []
    if trainable and total:
        facts.append(f"{trainable:,.0f} of {counted(int(total), 'weight')} trained ({percent(trainable / total)}).")
    if steps := measured.get("train/steps"):
        loss = measured.get("train/mean_loss")
        facts.append(f"{counted(int(steps), 'optimizer step')}; mean training loss {number(loss)}.")
    if device := tags.get("mlflow_ft.device"):
        facts.append(f"Device: {plain(device)}.")
    return "\n\n".join([" ".join(facts), table(["setting", "value", "from"], _settings(about)), bullets(_code(about))])


def _settings(about: About) -> list[list[str]]:
    config, flat, became = about.config, about.config.flat(), _became(about)
    asked = {path for path in config.origins if path in flat and not path.startswith(NOT_OF_TRAINING)}
    length = "training.num_train_epochs" if config.training.max_steps < 0 else "training.max_steps"
    order = [path for path in flat if path in {*asked, *MAIN, *became, length}]
    rows = []
    for path in order:
        value = _value(flat[path])
        told = code(value) if became.get(path, value) == value else f"{code(value)} ({code(became[path])})"
        rows.append([code(path), told, plain(config.origins.get(path, "default"))])
    return rows


def _became(about: About) -> dict[str, str]:
    """What was made of settings that leave it open, and of those that this kind of adapter has at all."""
    from mlflow_ft.engine import hardware

    config = about.config
    became = {"training.optim": hardware.optimizer(config)}
    became["model.dtype"] = str(hardware.compute_dtype(config.model.dtype)).removeprefix("torch.")
    if about.trained.adapter is not None:
        file = about.trained.adapter / "adapter_config.json"
        made = json.loads(file.read_text(encoding="utf-8"))
        became["adapter.kind"] = config.adapter.kind
        if isinstance(made.get("target_modules"), list) and config.adapter.target_modules == "all-linear":
            made["target_modules"] = list({name.rpartition(".")[2] for name in made["target_modules"]})
        became |= {f"adapter.{name}": _value(made[name]) for name in OF_ADAPTERS if made.get(name) is not None}
    return became


def _value(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {one}" for key, one in value.items())
    return ", ".join(sorted(map(str, value))) if isinstance(value, list) else str(value)


def _code(about: About) -> list[str]:
    tags = about.tags
    lines = []
    if commit := tags.get("mlflow_ft.git_commit"):
        dirty = ", with changes that were not committed" if tags.get("mlflow_ft.git_dirty") == "true" else ""
        lines.append(f"git commit {code(commit)}{dirty}")
    lines += [f"plugin {plugin}" for plugin in _plugins(about.job.plugins.active)]
    prefix = "mlflow_ft.version."
    versions = {key.removeprefix(prefix): value for key, value in tags.items() if key.startswith(prefix)}
    lines.append(", ".join(f"{plain(name)} {plain(versions[name])}" for name in sorted(versions)))
    return [line for line in lines if line]


def _plugins(active: Sequence[PluginInfo]) -> list[str]:
    """Each once; those that ship inside are of one version, and one hash."""
    told: dict[str, None] = {}
    for info in active:
        name = "`built in`" if info.built_in else code(info.name)
        told[f"{name} {plain(info.version)}, sha256 {code(info.sha256[:12] or 'none')}"] = None
    return list(told)
