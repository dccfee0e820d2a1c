"""Stage 1: rows -> conversations -> split -> tokens with a proved mask -> fingerprint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mlflow_ft.data import convert, sources, split
from mlflow_ft.errors import DataError, Problem
from mlflow_ft.job import BaseModel, Data, Encoded, Job, Split
from mlflow_ft.records import Example, Row

SHOWN = 5
"""Training rows whose mask is kept as an artifact, for a person to read."""


def prepare(job: Job, base: BaseModel) -> Data:
    """Read, recognise, convert, split and tokenise the rows, and prove the mask of every one of them.

    Raises:
        DataError: the rows cannot be read, recognised, converted, or their mask cannot be proved.
        ModelError: the base model has no tokenizer or no chat template.
    """
    from mlflow_ft.engine import masking, tokenizers

    job.run.begin("data")
    settings = job.config.data
    train_path, eval_path = sources.paths(settings)
    rows = sources.read(train_path, settings)
    record = convert.recognise(rows, name=settings.format, plugins=job.plugins, registry=job.registry)
    pairs = list(zip(rows, convert.convert(rows, record), strict=True))
    if eval_path:
        held_rows = sources.read(eval_path, settings)
        held_pairs = list(zip(held_rows, convert.convert(held_rows, record), strict=True))
    else:
        kept, held = split.hold_out(len(rows), test_size=settings.test_size, seed=job.config.run.seed)
        pairs, held_pairs = [pairs[index] for index in kept], [pairs[index] for index in held]
    tokenizer = tokenizers.load(job.config, base)
    train = _side(job, "train", train_path, pairs, tokenizer)
    held_out = _side(job, "eval", eval_path or train_path, held_pairs, tokenizer)
    report = {**_report(train, len(pairs)), **_report(held_out, len(held_pairs))}
    _tell(job, record.name, report)
    job.run.log_inputs([train, held_out])
    job.run.set_tags({"mlflow_ft.data_digest": train.digest, "mlflow_ft.data_format": record.name})
    job.run.metrics({f"data/{name}": float(value) for name, value in report.items()})
    job.run.artifact_text(masking.shown(tokenizer, train.encoded[:SHOWN]), "data/mask.txt")
    return Data(
        train=train,
        eval=held_out,
        format=record.name,
        tokenizer=tokenizer,
        stop_token_ids=masking.end_tokens((*train.encoded, *held_out.encoded)),
        report=report,
    )


def _side(
    job: Job, name: Literal["train", "eval"], path: str, pairs: Sequence[tuple[Row, Example]], tokenizer: Any
) -> Split:
    from mlflow_ft.engine import masking

    rows, examples = [row for row, _ in pairs], [example for _, example in pairs]
    with job.progress.bar(f"tokenise {name}", total=len(rows), unit="rows") as bar:
        encoded = masking.encode(tokenizer, examples, max_length=job.config.data.max_length)
        bar.advance(len(rows))
    problems = [
        Problem(place=row.place, message=str(result))
        for row, result in zip(rows, encoded, strict=True)
        if isinstance(result, masking.MaskError)
    ]
    if problems:
        raise DataError(
            f"the loss mask of {len(problems)} of {len(rows)} rows cannot be proved",
            problems=problems,
            hint="mend these rows, or give a template that fits them with data.chat_template",
        )
    proved = {index: one for index, one in enumerate(encoded) if isinstance(one, Encoded) and one.supervised}
    if not proved:
        raise DataError(
            f"all {len(rows)} rows for {name} are cut before anything is learned",
            hint=f"raise data.max_length (it is {job.config.data.max_length})",
        )
    chosen = tuple(examples[index] for index in proved)
    kept = tuple(proved.values())
    local = sources.is_local(path)
    return Split(
        name=name,
        source=str(Path(path).expanduser().resolve()) if local else path,
        source_type="local" if local else "hugging_face",
        rows=tuple(rows[index] for index in proved),
        examples=chosen,
        encoded=kept,
        digest=split.digest(chosen, kept, template=tokenizer.chat_template),
    )


def _report(side: Split, read: int) -> dict[str, Any]:
    """Counts of one side, as metrics `data/<side>/...` will show them."""
    return {
        f"{side.name}/rows": len(side.rows),
        f"{side.name}/dropped": read - len(side.rows),
        f"{side.name}/truncated": sum(row.truncated for row in side.encoded),
        f"{side.name}/tokens": sum(len(row.input_ids) for row in side.encoded),
        f"{side.name}/supervised_tokens": sum(row.supervised for row in side.encoded),
    }


def _tell(job: Job, name: str, report: Mapping[str, Any]) -> None:
    job.progress.say(
        f"data: {report['train/rows']:,} rows to train on and {report['eval/rows']:,} held out ({name}), "
        f"{report['train/supervised_tokens']:,} of {report['train/tokens']:,} tokens are learned"
    )
    for side in ("train", "eval"):
        if report[f"{side}/dropped"] or report[f"{side}/truncated"]:
            job.progress.warn(
                f"{side}: {report[f'{side}/truncated']} rows were cut to data.max_length and lose their end of turn, "
                f"{report[f'{side}/dropped']} were dropped because nothing to learn was left"
            )
