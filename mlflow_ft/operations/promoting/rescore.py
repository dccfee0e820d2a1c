"""Score the champion on the candidate's held-out rows, if its own scores are on different rows."""

from __future__ import annotations

import tempfile
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mlflow_ft.candidacy import Contender
from mlflow_ft.config.gates import Gates
from mlflow_ft.config.schema import Config, ModelSection
from mlflow_ft.errors import FineTuneError, ModelError
from mlflow_ft.job import Job
from mlflow_ft.operations import recorded_run
from mlflow_ft.plugins import Plugins
from mlflow_ft.preparing import dataset, guards
from mlflow_ft.progress import Progress
from mlflow_ft.registry import Registry
from mlflow_ft.rows import Encoded
from mlflow_ft.stages import evaluate, init_from
from mlflow_ft.values import Answer, BaseModel, Data, Score

if TYPE_CHECKING:
    from mlflow_ft.tracking import Store

BY_TOKEN = ("loss", "perplexity", "preference_margin", "label_margin")
"""Endings of the names of scores that depend on the tokenizer: they compare only models with the same one."""
REWARD = "reward/"
"""Prefix of the names of single rewards."""


def needed(candidate: Contender, champion: Contender, gates: Gates) -> bool:
    """Whether a gate compares the two, and their scores are on different rows, or from different judges."""
    own = set(candidate.digests)
    guarded = [name for name in gates.max_regression if candidate.score(name) is not None and name not in own]
    compared = [*guarded, *(gates.beats_champion.metrics if gates.beats_champion else ())]
    if any(candidate.measured_by.get(name) != champion.measured_by.get(name) for name in compared):
        return True
    others = {name.partition("/")[0] for name in guarded} & set(candidate.guards)
    if any(candidate.guards[name] != champion.guards.get(name) for name in others):
        return True
    known = champion.eval_digest and champion.rows
    tested = gates.beats_champion and not own.issuperset(gates.beats_champion.metrics)
    return bool(tested or guarded) and not (known and champion.eval_digest == candidate.eval_digest)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The candidate and the champion, with their stores."""

    candidate: Contender
    champion: Contender
    store: Store
    """Has the candidate and the runs of both."""
    champion_store: Store


def champion(pair: Pair, *, plugins: Plugins, progress: Progress) -> tuple[Contender, str]:
    """The champion with its scores on the candidate's held-out rows, and a note about it.

    If it cannot be scored, it has no scores and the reason: the gates that need them do not pass.
    """
    from mlflow_ft.engine.tokens import clock

    candidate, champion = pair.candidate, pair.champion
    subject = f"the champion (version {champion.version})"
    try:
        with clock.held(moment_of(pair.store, candidate)):
            scores, rows, answers = _scores(pair, plugins=plugins, progress=progress)
    except FineTuneError as error:
        reason = f"{subject} has no scores on these rows and could not be scored on them: {error.message}"
        unscored = replace(champion, rows=_own(champion), metrics=_others(champion), answers=(), unscored=reason)
        return unscored, reason
    metrics = _others(champion) | evaluate.as_metrics("tuned", scores)
    rows |= _own(champion)
    same_rows = champion.rows and champion.eval_digest == candidate.eval_digest
    other_judge = same_rows and candidate.measured_by != champion.measured_by
    lacking = "scores by the same judge" if other_judge else "scores on these rows"
    note = f"{subject} had no {lacking}: it was loaded and scored on them"
    if any(name.startswith(REWARD) for name in set(candidate.rows) - set(rows)):
        note += "; its rewards are unknown, because their code is not run again (hold out the same rows for both)"
    rescored = replace(
        champion,
        rows=rows,
        metrics=metrics,
        answers=answers,
        measured_by={score.name: score.measured_by for score in scores if score.measured_by},
        eval_digest=candidate.eval_digest,
    )
    return rescored, note


def _others(champion: Contender) -> dict[str, float]:
    """The metrics that do not depend on the held-out rows."""
    tuned = "eval/tuned/"
    return {
        name: value
        for name, value in champion.metrics.items()
        if not name.startswith(tuned) or name.removeprefix(tuned) in champion.digests
    }


def _own(champion: Contender) -> dict[str, tuple[float | None, ...]]:
    """The row values of the scores that are on rows of their own."""
    return {name: rows for name, rows in champion.rows.items() if name in champion.digests}


def _scores(
    pair: Pair, *, plugins: Plugins, progress: Progress
) -> tuple[Sequence[Score], dict[str, tuple[float | None, ...]], tuple[Mapping[str, str], ...]]:
    """The scores, for each the row values as a version's run records them, and the answers."""
    from mlflow_ft.engine.judging import judge
    from mlflow_ft.engine.models import loading

    registry, champion = Registry(plugins), pair.champion
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(pair.store, pair.candidate, registry)
        data = _held_out(config, pair.candidate, plugins=plugins, registry=registry, progress=progress)
        files = pair.champion_store.download(champion.name, champion.version, Path(folder, "champion"))
        start = init_from.read(str(files))
        # an adapter is loaded on its base as in its training, a whole model as the candidate is
        own = config if start.base is None else config_of(pair.store, champion, registry)
        base = _base(own, start, registry.trainers[config.method].task, progress)
        tokenizer = start.folder if (start.folder / "tokenizer_config.json").is_file() else base.path
        theirs = in_tokens_of(data, tokenizer)
        guarded = {name: in_tokens_of(guard, tokenizer) for name, guard in data.guards.items()}
        same_tokens = theirs is data
        theirs = replace(theirs, guards=guarded)
        module = loading.load_saved(own, base, start.folder, say=progress.say)
        loading.agree(module if start.base is None else module.get_base_model(), theirs)
        job = Job(
            config=config,
            plugins=plugins,
            registry=registry,
            run=cast(Any, None),  # nothing is logged
            folder=Path(folder),
            progress=progress,
        )
        known: dict[str, Sequence[Answer]] = {}
        subject = judge.JudgedModel(name="tuned", module=module, job=job, data=theirs, base_answers=known)
        known[theirs.eval.digest] = answers_of_base(pair.candidate, subject.answers)
        scores: Sequence[Score] = evaluate.of_champion(job, theirs, subject)
    scores = [score for score in scores if same_tokens or not score.name.endswith(BY_TOKEN)]
    rows = {score.name: evaluate.by_conversation(score, theirs, config) for score in scores if score.rows}
    return scores, rows, kept_answers(subject.answers)


def kept_answers(answers: Sequence[Answer]) -> tuple[Mapping[str, str], ...]:
    """Answers in the form in which a run keeps them."""
    return tuple(
        {"prompt": answer.asked, "expected": answer.expected, "base": "", "tuned": answer.text} for answer in answers
    )


def answers_of_base(candidate: Contender, answers: Sequence[Answer]) -> tuple[Answer, ...]:
    """What the candidate's base model answered to the same prompts; nothing if its run did not keep that."""
    if [row["prompt"] for row in candidate.answers] != [answer.asked for answer in answers]:
        return ()
    return tuple(replace(answer, text=row["base"]) for answer, row in zip(answers, candidate.answers, strict=True))


def moment_of(store: Store, contender: Contender) -> datetime:
    """The time that the chat template got in a version's run; with it the rows are the same again.

    Old runs did not record it; their templates got the current time.
    """
    if not contender.run_id:
        return datetime.now()  # noqa: DTZ005  # templates get local time
    return recorded_run.moment(store.run(contender.run_id))


def config_of(store: Store, contender: Contender, registry: Registry) -> Config:
    """The configuration of a version's run, without settings that would run code of the run's author.

    Raises:
        ConfigError: the run did not record it, or it names something that is no longer installed.
    """
    return harmless(recorded_run.config(store, contender.run_id, registry), registry.rewards)


def harmless(config: Config, registered: Container[object] = ()) -> Config:
    """The configuration without settings that would run code of the run's author, which was allowed only there.

    Rewards that plugins have `registered` here are kept, if the run had no others.
    """
    model = config.model.model_copy(update={"trust_remote_code": False})
    names = config.rollout.reward_funcs or []
    if config.rollout.reward_model or not all(name in registered for name in names):
        names = []
    rollout = config.rollout.model_copy(update={"reward_funcs": names or None, "reward_model": None})
    return config.model_copy(update={"model": model, "rollout": rollout})


def _held_out(
    config: Config, candidate: Contender, *, plugins: Plugins, registry: Registry, progress: Progress
) -> Data:
    """The candidate's rows, prepared as in its run and compared with the recorded digest."""
    from mlflow_ft.engine.tokens import tokenizers

    base = init_from.find(config, progress)
    tokenizer = tokenizers.load(config, base)
    data = dataset.prepare(config, tokenizer, plugins=plugins, registry=registry, progress=progress).data
    if data.eval.digest != candidate.eval_digest:
        raise ModelError("the candidate's held-out rows have changed since it was scored")
    guard_sets = guards.prepare(config, data, plugins=plugins, registry=registry, progress=progress)
    data = replace(data, guards=guard_sets)
    changed = [name for name, digest in guards.digests(data).items() if digest != candidate.guards.get(name)]
    if changed:
        raise ModelError(f"the rows of {', '.join(changed)} have changed since the candidate was scored on them")
    return data


def _base(config: Config, start: init_from.Start, task: Any, progress: Progress) -> BaseModel:
    from mlflow_ft.engine import hub

    if start.base is None:
        base = hub.find(ModelSection(name=str(start.folder)), progress)
    else:  # the base that the adapter names, whatever its run's configuration says
        base = init_from.base_of(config.model_copy(update={"origins": {}}), start, progress)
    return replace(base, task=task)


def in_tokens_of(data: Data, folder: Path) -> Data:
    """The held-out rows in the tokens of another model; the same object if the tokens are the same."""
    from transformers import AutoTokenizer

    from mlflow_ft.data.store import Column
    from mlflow_ft.engine.tokens import masking, tokenizers

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tokenizers.choose_pad_token(tokenizer)
    length = max((len(row.input_ids) for row in data.eval.encoded), default=1) * 4
    results = masking.encode(tokenizer, list(data.eval.examples), max_length=length)
    encoded = [row for row in results if isinstance(row, Encoded)]
    if len(encoded) < len(results):
        raise ModelError(
            "the champion's chat template renders the candidate's rows in a way in which no mask can be proved"
        )
    pairs = zip(encoded, data.eval.encoded, strict=True)
    if all(new.input_ids == old.input_ids and new.labels == old.labels for new, old in pairs):
        return data
    split = replace(data.eval, encoded=Column.of(encoded))
    return replace(data, tokenizer=tokenizer, eval=split, stop_token_ids=masking.end_tokens(encoded))
