"""The built-in data checks; their functions are in this package's other modules."""

from __future__ import annotations

from mlflow_ft import Check, hookimpl
from mlflow_ft.builtin.checks import (
    calls,
    contamination,
    duplicates,
    lengths,
    near_bands,
    near_duplicates,
    preferences,
    private,
    text,
    turns,
)

_LEFT_OUT = "leaves these rows out"

_TURNS = (
    Check(
        name="empty-response",
        summary="empty answers or texts: the model would learn to say nothing",
        severity="error",
        inspect=turns.empty_response,
        kinds=("conversation", "text", "preference", "unpaired"),
        fix=_LEFT_OUT,
        remedy="write the answers, or leave these rows out",
    ),
    Check(
        name="role-order",
        summary="turns in an order that chat templates reject or that never occurs in use",
        severity="error",
        inspect=turns.role_order,
        kinds=("conversation", "preference", "unpaired", "prompt"),
        remedy="alternate user and assistant, user first; a system turn only at the start, a tool turn only after a "
        "call",
    ),
    Check(
        name="special-token",
        summary="texts that contain a special token of the tokenizer: it is read as the token, not as text",
        inspect=turns.special_token,
        remedy="remove the tokens from the texts: the chat template adds them",
    ),
    Check(
        name="unclosed-thought",
        summary="answers cut within their thoughts: the thoughts are learned as the answer, which is missing",
        inspect=turns.unclosed_thought,
        kinds=("conversation", "preference", "unpaired"),
        remedy="complete the answers (generate them with more tokens), or leave these rows out",
    ),
    Check(
        name="null-argument",
        summary="undeclared nulls in calls and tools: a table's padding, written out as JSON?",
        inspect=calls.padded,
        kinds=("conversation", "preference", "unpaired"),
        remedy="read the table itself (Parquet, a saved data set), whose padding is ignored, or remove these nulls",
    ),
    Check(
        name="changed",
        summary="rows from which the conversion left something out",
        severity="info",
        inspect=turns.changed,
        remedy="make sure that nothing the model should learn is missing",
    ),
)

_WORDS = (
    Check(
        name="encoding",
        summary="broken text: read in the wrong encoding, lost or invisible characters; the model learns them too",
        inspect=text.encoding,
        remedy="read the source in its own encoding and write it as UTF-8; ftfy fixes text that is already garbled",
    ),
    Check(
        name="language",
        summary="rows that are mainly in a different script from the rest of the data",
        severity="info",
        collect=text.Language,
        remedy="leave them out if the model should not answer in these languages",
    ),
    Check(
        name="refusal",
        summary="answers that refuse, or say that they come from an AI: the model learns to do the same",
        inspect=text.refusal,
        kinds=("conversation", "text", "preference", "unpaired"),
        remedy="leave them out, or answer them, unless the model should learn to refuse",
    ),
    Check(
        name="secret",
        summary="keys, tokens or passwords that look real: a model can be made to recite them",
        inspect=private.secret,
        remedy="remove them from the data, and revoke those in use",
    ),
    Check(
        name="personal-data",
        summary="e-mail addresses, phone, card or account numbers that look real: a model can be made to recite them",
        inspect=private.personal_data,
        remedy="replace them with invented ones (name@example.com, 555-0100), or leave the rows out",
    ),
)

_DUPLICATES = (
    Check(
        name="exact-duplicate",
        summary="rows identical to an earlier one: they are learned twice, and can be on both sides of a split",
        collect=duplicates.ExactDuplicates,
        fix="keeps the first and leaves the others out",
        remedy="keep one of each",
    ),
    Check(
        name="near-duplicate",
        summary="rows that share most of their three-word sequences with an earlier one: they count more than others",
        collect=near_duplicates.NearDuplicates,
        across=near_bands.found_across,
        remedy="keep one of each cluster, unless the repetition is intended; rows built on one long passage count too",
    ),
    Check(
        name="conflicting-answers",
        summary="rows that answer the same prompt differently from an earlier one: the model learns both",
        collect=duplicates.ConflictingAnswers,
        kinds=("conversation", "prompt"),
        remedy="keep the right answer; if several are right, nothing needs to change",
    ),
)

_LENGTHS = (
    Check(
        name="length",
        summary="lengths in tokens; rows far longer than the rest fill whole batches and dominate the loss",
        severity="info",
        collect=lengths.Lengths,
        remedy="look at the longest rows; split or shorten any that are accidental",
    ),
    Check(
        name="over-max-length",
        summary="rows longer than data.max_length: the end is cut off and not learned, including the end of the turn",
        collect=lengths.OverMaxLength,
        remedy="raise data.max_length, or shorten the rows",
    ),
)

_PREFERENCES = (
    Check(
        name="identical-pair",
        summary="pairs whose chosen and rejected answers are the same: there is nothing to prefer",
        severity="error",
        inspect=preferences.identical_pair,
        kinds=("preference",),
        fix=_LEFT_OUT,
        remedy="leave these pairs out",
    ),
    Check(
        name="length-bias",
        summary="the longer (or the shorter) answer is nearly always the chosen one: the model learns length",
        collect=preferences.LengthBias,
        kinds=("preference",),
        remedy="add pairs where it is the other way round, or use a method that corrects for length",
    ),
    Check(
        name="label-balance",
        summary="nearly all answers have the same label: there is little to learn from the other side",
        collect=preferences.LabelBalance,
        kinds=("unpaired",),
        remedy="add answers with the rare label, or give them more weight",
    ),
)

_HELD_OUT = (
    Check(
        name="contamination",
        summary="training rows that are held-out rows, or have the same prompt: the scores are too good to be true",
        severity="error",
        compare=contamination.contamination,
        fix="leaves these training rows out",
        remedy="leave these training rows out, or hold out other rows",
    ),
    Check(
        name="contamination-overlap",
        summary="training rows that contain most of a held-out row's words in the same order",
        compare=contamination.overlap,
        remedy="look at the pairs; leave out training rows that give an answer away",
    ),
)


@hookimpl
def register_checks() -> list[Check]:
    return [*_TURNS, *_WORDS, *_DUPLICATES, *_LENGTHS, *_PREFERENCES, *_HELD_OUT]
