"""The section on what the model was not shown to be: each sentence follows from a fact of the run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain

from mlflow_ft.config.gates import lower_is_better
from mlflow_ft.forms.card.facts import About
from mlflow_ft.forms.card.markdown import bullets, code, counted, number, plain
from mlflow_ft.values import Score
from mlflow_ft.values.report import percent

HIGHER = (
    *("exact_match", "valid_json", "preference_accuracy", "preference_margin", "finished"),
    *("label_margin", "bad_loss", "weighted_reward"),
)
"""Ends of the names of built-in scores that are better when they are higher; of a plugin's it is not known."""


def limits(about: About) -> str:
    """All of them, as a list."""
    told = (scored, worse, learned, dated, found, parts, held, code_run)
    return bullets([*chain.from_iterable(tell(about) for tell in told)])


def scored(about: About) -> Iterator[str]:
    """On how little the scores stand."""
    rows = about.data.eval.counts["rows"]
    where = "were taken out of the rows it was given to learn from" if about.same_source else "come from a source apart"
    yield f"It was scored on {counted(rows, 'held-out row')}, which {where}; nothing is known of other texts."
    share = next((one for one in about.scores.tuned if one.rows and set(one.rows) <= {0.0, 1.0, None}), None)
    known = sum(row is not None for row in share.rows) if share else 0
    if share and known:
        most = 98 / math.sqrt(known)  # 1.96 standard errors of a share of one half, the widest
        yield (
            f"A share such as {code(share.name)}, measured on {counted(known, 'row')}, may be off by "
            + (f"up to {most:.0f} percentage points (95 %)." if most < 50 else "anything: these are too few rows.")
        )
    answers = [tuned for _, tuned in about.scores.answers]
    if cut := sum(not one.finished for one in answers):
        limit = about.config.evaluation.max_new_tokens
        yield f"{cut:,} of {counted(len(answers), 'tuned answer')} had not ended after {limit:,} tokens."
    yield (
        "Only what the scores show was tested. Unless one of them says otherwise, nothing is known about safety, bias, "
        "other languages or other tasks, nor whether the base model had seen the held-out rows before."
    )


def worse(about: About) -> Iterator[str]:
    """Where the training did not help, and what could not be measured."""
    base = {one.name: one for one in about.scores.base}
    for one in about.scores.tuned:
        before = base.get(one.name)
        if before and _is_worse(one, before):
            told = f"{number(before.value)} before, {number(one.value)} after"
            yield f"The training made {code(one.name)} worse: {told}."
        if one.coverage < 1:
            yield f"{code(one.name)} has no value for {percent(1 - one.coverage)} of the rows; they do not count in it."
        if not math.isfinite(one.value):
            yield f"{code(one.name)} could not be measured at all."


def _is_worse(after: Score, before: Score) -> bool:
    if lower_is_better(after.name):
        return after.value > before.value
    return after.name.endswith(HIGHER) and after.value < before.value


def learned(about: About) -> Iterator[str]:
    """What was not learned."""
    data, config = about.data, about.config
    what = "prompt" if data.kind == "prompt" else "text"
    yield f"No {what} beyond {config.data.max_length:,} tokens was trained on ({code('data.max_length')})."
    for side, split in (("trained on", data.train), ("scored on", data.eval)):
        if count := split.counts["truncated"]:
            share = percent(count / split.counts["rows"])
            yield f"{counted(count, 'row')} ({share}) {side} were cut there, and lost their end."
    if count := data.train.counts["dropped"]:
        yield f"Left out of the source, since nothing could be learned of them: {counted(count, 'row')}."
    for finding in about.trained.findings:
        yield f"{finding[0].upper()}{plain(finding[1:])}."
    if told := about.tags.get("mlflow_ft.experts"):
        yield f"It is {plain(told)}."
    if told := about.tags.get("mlflow_ft.reward_funcs"):
        yield f"It was trained for the rewards of {plain(told)}; what these do not measure was not asked of it."
    if told := about.tags.get("mlflow_ft.reward_model"):
        yield f"It was trained to please the reward model {code(told)}, with whatever that model is wrong about."
    if about.scores_answers:
        yield (
            "It is a reward model: it writes no answers, and its scores have no unit. They rank answers to one prompt; "
            "between prompts they say nothing."
        )


def dated(about: About) -> Iterator[str]:
    """Which date the model saw, where its chat template writes one."""
    if dates := about.data.clock.values():
        told = " and ".join(code(one) for one in dates)
        yield (
            f"The chat template asks the date. Every row it was trained and scored on was written as of {told}; a "
            "server writes the day on which it is asked, which the model was not trained with. What is learned of a "
            "row was proved to be the same on another day."
        )


def found(about: About) -> Iterator[str]:
    """What the checks found, and was let pass."""
    report = about.data.report
    if report is None:
        return
    for severity, words in (("error", "errors"), ("warn", "warnings")):
        names = [one for one in report.worst("warn") if one.severity == severity]
        if names:
            told = ", ".join(f"{code(one.name)} ({counted(one.count, 'row')})" for one in names)
            let = f" by {code(f'data.fail_on {about.config.data.fail_on}')}"
            yield f"The data checks found {words}, which were let pass{let}: {told}. See the section Data."


def parts(about: About) -> Iterator[str]:
    """What became of the parts of the base that read more than text."""
    whole = about.parts
    if whole is None:
        return
    others = " and ".join(whole.reads)
    if not whole.text_alone:
        yield f"It was trained on text alone. Its part for {others} is the base's; both were not tested together."
    elif not about.is_adapter:
        yield (
            f"It is the text part ({code(whole.loaded)}) of {code(whole.whole)}, and does not read {others}: the "
            "base's part for that is not in these files."
        )
    elif about.fits_whole:
        yield (
            f"It was trained on the text part of {code(whole.whole)}. Its weights have the names of the whole model, "
            f"where it was compared with the trained one, too, without {others}."
        )
    else:
        yield (
            f"It was trained on the text part ({code(whole.loaded)}) of {code(whole.whole)}, and is for that part "
            "alone: PEFT does not put it on the whole model."
        )


def held(about: About) -> Iterator[str]:
    """How the base was held, and how little the parity stands on."""
    kind, own = about.config.model.quantize, about.tags.get("mlflow_ft.base_quantization")
    if about.exported:
        yield "This form is rougher than the trained model, and was not scored itself: the scores are that model's."
    if own:
        which = "this adapter belongs to" if about.is_adapter else "this model was made of"
        yield (
            f"The base's own files are quantised ({own}): {which} what they stand for, which is not the model that "
            "they were rounded from."
        )
    elif kind != "none" and about.is_adapter:
        yield f"The adapter was trained beside a base held in {kind}; on the base in full precision it is another one."
    elif kind != "none":
        yield (
            f"The adapter was trained beside a base held in {kind}, and is merged into what those {kind} weights stand "
            "for: beside the original base model these weights are rounded."
        )
    if tokens := about.parity.get("tokens"):
        what = counted(int(tokens), "answer" if about.scores_answers else "token")
        yield f"That these files are the trained model was measured on {what}, no more."


def code_run(about: About) -> Iterator[str]:
    """Whose code ran."""
    if about.config.model.trust_remote_code:
        yield (
            f"Python code that came with the base model was run in training ({code('model.trust_remote_code')}); the "
            "logged model loads without it, or not at all."
        )
    if about.tags.get("mlflow_ft.git_dirty") == "true":
        yield "The repository that it was trained in had changes that were not committed."
