"""The section on what the run did not show: each sentence follows from a fact of the run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain

from mlflow_ft.forms.card.facts import About
from mlflow_ft.forms.card.markdown import bullets, code, counted, number, plain
from mlflow_ft.values import Score
from mlflow_ft.values.report import percent

HIGHER = (
    *("exact_match", "valid_json", "preference_accuracy", "preference_margin", "finished"),
    *("label_margin", "bad_loss", "weighted_reward"),
)
"""Endings of the names of built-in scores for which higher is better; for a plugin's scores this is unknown."""


def limits(about: About) -> str:
    """All limits, as a list."""
    sections = (scored_rows, worse, not_learned, template_date, check_findings, base_parts, quantisation, code_run)
    return bullets([*chain.from_iterable(section(about) for section in sections)])


def scored_rows(about: About) -> Iterator[str]:
    """How many rows the scores are based on."""
    rows = about.data.eval.counts["rows"]
    where = "split off from the same source as the training rows" if about.same_source else "from a separate source"
    yield f"The model was scored on {counted(rows, 'held-out row')} {where}. Other text was not tested."
    if about.trained.chosen:
        yield "The checkpoint was chosen by its loss on these rows, so its scores on them are a little too good."
    share = next((score for score in about.scores.tuned if score.rows and set(score.rows) <= {0.0, 1.0, None}), None)
    known = sum(row is not None for row in share.rows) if share else 0
    if share and known:
        margin = 98 / math.sqrt(known)  # 1.96 standard errors of a share of one half, the widest
        yield (
            f"A share such as {code(share.name)}, measured on {counted(known, 'row')}, "
            + (
                f"may be off by up to {margin:.0f} percentage points (95 % confidence)."
                if margin < 50
                else "rests on too few rows to tell."
            )
        )
    answers = [tuned for _, tuned in about.scores.answers]
    if cut := sum(not answer.finished for answer in answers):
        limit = about.config.evaluation.max_new_tokens
        yield f"{cut:,} of {counted(len(answers), 'answer')} from the tuned model did not end within {limit:,} tokens."
    yield (
        "Only what the scores measure was tested. Unless a score covers it, nothing is known about safety, bias, other "
        "languages or other tasks. The base model may have seen the held-out rows before."
    )


def worse(about: About) -> Iterator[str]:
    """Scores that training made worse, and scores that could not be measured."""
    base = {score.name: score for score in about.scores.base}
    for score in about.scores.tuned:
        before = base.get(score.name)
        if before and _is_worse(about, score, before):
            change = f"{number(before.value)} before, {number(score.value)} after"
            yield f"Training made {code(score.name)} worse: {change}."
        if score.coverage < 1:
            share = percent(1 - score.coverage)
            yield f"{code(score.name)} has no value for {share} of the rows; the score leaves them out."
        if not math.isfinite(score.value):
            yield f"{code(score.name)} could not be measured."


def _is_worse(about: About, after: Score, before: Score) -> bool:
    if about.lower(after):
        return after.value > before.value
    known = after.lower_is_better is not None or after.name.endswith(HIGHER)
    return known and after.value < before.value


def not_learned(about: About) -> Iterator[str]:
    """What the model was not trained on, and what its training cannot have taught it."""
    data, config = about.data, about.config
    length = f"{config.data.max_length:,} tokens"
    used = f"no prompts longer than {length}" if data.kind == "prompt" else f"at most {length} of each row"
    yield f"Training used {used} ({code('data.max_length')})."
    for side, split in (("training", data.train), ("held-out", data.eval)):
        if count := split.counts["truncated"]:
            share = percent(count / split.counts["rows"])
            yield f"{counted(count, f'{side} row')} ({share}) {'was' if count == 1 else 'were'} cut at that length."
    if count := data.train.counts["dropped"]:
        yield f"Left out of training (bad rows, or nothing to learn): {counted(count, 'row')}."
    for finding in about.trained.findings:
        yield f"{finding[0].upper()}{plain(finding[1:])}."
    if experts := about.tags.get("mlflow_ft.experts"):
        yield f"It is {plain(experts)}."
    if rewards := about.tags.get("mlflow_ft.reward_funcs"):
        yield f"It was trained to maximise these rewards and nothing else: {plain(rewards)}."
    if reward_model := about.tags.get("mlflow_ft.reward_model"):
        yield f"It was trained to please the reward model {code(reward_model)}, including that model's mistakes."
    if about.scores_answers:
        yield (
            "It is a reward model: it generates no answers. Its scores have no unit; they rank answers to the same "
            "prompt and cannot be compared between prompts."
        )


def template_date(about: About) -> Iterator[str]:
    """The date that the chat template wrote into the rows, if it writes one."""
    if dates := about.data.clock.values():
        written = " and ".join(code(date) for date in dates)
        yield (
            f"The chat template writes the current date. All training and held-out rows have {written}; a server "
            "writes the date of the request, which the model was not trained with. Which tokens of a row are learned "
            "was proved not to depend on the date."
        )


def check_findings(about: About) -> Iterator[str]:
    """What the data checks found and `data.fail_on` allowed."""
    report = about.data.report
    if report is None:
        return
    for severity, plural in (("error", "errors"), ("warn", "warnings")):
        checks = [check for check in report.worst("warn") if check.severity == severity]
        if checks:
            names = ", ".join(f"{code(check.name)} ({counted(check.count, 'row')})" for check in checks)
            allowed = code(f"data.fail_on {about.config.data.fail_on}")
            yield f"The data checks found {plural}, which {allowed} allowed: {names}. See the section Data."


def base_parts(about: About) -> Iterator[str]:
    """What happened to the parts of the base that read more than text."""
    base = about.parts
    if base is None:
        return
    others = " and ".join(base.reads)
    if not base.text_alone:
        yield (
            f"It was trained on text only. Its part for {others} is unchanged from the base; the two were not tested "
            "together."
        )
    elif not about.is_adapter:
        yield (
            f"It is the text part ({code(base.loaded)}) of {code(base.whole)} and does not read {others}: these files "
            "do not include the base's part for that."
        )
    elif about.fits_whole:
        yield (
            f"It was trained on the text part of {code(base.whole)}. It loads onto the whole model, where it was also "
            f"compared with the trained one, without {others}."
        )
    else:
        yield (
            f"It was trained on the text part ({code(base.loaded)}) of {code(base.whole)} and works with that part "
            "only: PEFT cannot load it onto the whole model."
        )


def quantisation(about: About) -> Iterator[str]:
    """How the base was quantised, and on how many tokens the parity was measured."""
    kind, own = about.config.model.quantize, about.tags.get("mlflow_ft.base_quantization")
    if about.exported:
        yield "This form is less precise than the trained model and was not scored; the scores are the trained model's."
    if own:
        which = "this adapter belongs to" if about.is_adapter else "this model was made from"
        yield (
            f"The base's own files are quantised ({own}): {which} the dequantised weights, which differ from the "
            "model that was quantised."
        )
    elif kind != "none" and about.is_adapter:
        yield f"The adapter was trained on a base in {kind}; on the base in full precision it gives different outputs."
    elif kind != "none":
        yield (
            f"The adapter was trained on a base in {kind} and is merged into the dequantised {kind} weights: compared "
            "with the original base model, these weights are rounded."
        )
    if tokens := about.parity.get("tokens"):
        what = counted(int(tokens), "answer" if about.scores_answers else "token")
        yield f"These files were compared with the trained model on {what} only."


def code_run(about: About) -> Iterator[str]:
    """Custom code and uncommitted changes."""
    if about.config.model.trust_remote_code:
        yield (
            f"Training ran Python code that came with the base model ({code('model.trust_remote_code')}). The logged "
            "model has none of it, and loads without it."
        )
    if about.tags.get("mlflow_ft.git_dirty") == "true":
        yield "The repository had uncommitted changes when the model was trained."
