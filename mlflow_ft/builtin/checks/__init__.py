"""The data checks that ship inside; what each of them does is in the check_ modules beside this one."""

from __future__ import annotations

from mlflow_ft import Check, hookimpl
from mlflow_ft.builtin.checks import (
    calls,
    contamination,
    duplicates,
    lengths,
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
        summary="answers or texts without a word: the model would learn to say nothing",
        severity="error",
        inspect=turns.empty_response,
        kinds=("conversation", "text", "preference", "unpaired"),
        fix=_LEFT_OUT,
        remedy="write the answers, or leave these rows out",
    ),
    Check(
        name="role-order",
        summary="turns in an order that chat templates refuse or that never occurs when the model is used",
        severity="error",
        inspect=turns.role_order,
        kinds=("conversation", "preference", "unpaired", "prompt"),
        remedy="let user and assistant take turns, the user first, a system turn only at the start, a tool's turn only "
        "after it was called",
    ),
    Check(
        name="special-token",
        summary="texts that spell a special token of the tokenizer: it is read as the token, not as words",
        inspect=turns.special_token,
        remedy="take the tokens out of the texts: the chat template writes them",
    ),
    Check(
        name="null-argument",
        summary="nulls in calls and tools that nothing declares: a table's padding, written out as JSON?",
        inspect=calls.padded,
        kinds=("conversation", "preference", "unpaired"),
        remedy="read the table itself (Parquet, a saved data set): its padding is left out; or take these nulls out",
    ),
    Check(
        name="changed",
        summary="rows of which the conversion left something out",
        severity="info",
        inspect=turns.changed,
        remedy="see that nothing is missing that the model is to learn",
    ),
)

_WORDS = (
    Check(
        name="encoding",
        summary="broken characters: text read in the wrong encoding, lost or invisible signs; they are learned too",
        inspect=text.encoding,
        remedy="read the source in its own encoding and write it as UTF-8; ftfy mends what is already mixed up",
    ),
    Check(
        name="language",
        summary="rows that are mainly in another script than the rest of the data",
        severity="info",
        collect=text.Language,
        remedy="leave them out if the model is not to answer in these languages",
    ),
    Check(
        name="refusal",
        summary="answers that refuse, or tell that an AI speaks: the model learns to do so too",
        inspect=text.refusal,
        kinds=("conversation", "text", "preference", "unpaired"),
        remedy="leave them out, or answer them, unless refusing is what is to be learned here",
    ),
    Check(
        name="secret",
        summary="keys, tokens or passwords that look real: a model can be made to recite them",
        inspect=private.secret,
        remedy="take them out of the data, and revoke those that were in use",
    ),
    Check(
        name="personal-data",
        summary="e-mail addresses, phone, card or account numbers that look real: a model can be made to recite them",
        inspect=private.personal_data,
        remedy="replace them by invented ones (name@example.com, 555-0100), or leave the rows out",
    ),
)

_DUPLICATES = (
    Check(
        name="exact-duplicate",
        summary="rows that are the same as an earlier one: they are learned twice, and can be on both sides of a split",
        collect=duplicates.ExactDuplicates,
        fix="keeps the first and leaves the others out",
        remedy="keep one of each",
    ),
    Check(
        name="near-duplicate",
        summary="rows that share most of their three-word sequences with an earlier one: they weigh more than others",
        collect=near_duplicates.NearDuplicates,
        remedy="keep one of each cluster, unless the repetition is meant; rows built on one long passage count too",
    ),
    Check(
        name="conflicting-answers",
        summary="rows that answer the same prompt otherwise than an earlier one: the model is told both",
        collect=duplicates.ConflictingAnswers,
        kinds=("conversation", "prompt"),
        remedy="keep the right answer; where several are right, this may stay",
    ),
)

_LENGTHS = (
    Check(
        name="length",
        summary="lengths in tokens; rows far longer than the rest fill whole batches and weigh more in the loss",
        severity="info",
        collect=lengths.Lengths,
        remedy="look at the longest rows; split or shorten those that are accidents",
    ),
    Check(
        name="over-max-length",
        summary="rows longer than data.max_length: their end is cut off and not learned, the end of the turn with it",
        collect=lengths.OverMaxLength,
        remedy="raise data.max_length, or shorten the rows",
    ),
)

_PREFERENCES = (
    Check(
        name="identical-pair",
        summary="pairs whose better and worse answer are the same: there is nothing to prefer",
        severity="error",
        inspect=preferences.identical_pair,
        kinds=("preference",),
        fix=_LEFT_OUT,
        remedy="leave these pairs out",
    ),
    Check(
        name="length-bias",
        summary="pairs in which the longer (or the shorter) answer is nearly always the better one: length is learned",
        collect=preferences.LengthBias,
        kinds=("preference",),
        remedy="add pairs in which it is the other way round, or use a method that allows for length",
    ),
    Check(
        name="label-balance",
        summary="nearly all answers have the same label: there is little to learn from the other side",
        collect=preferences.LabelBalance,
        kinds=("unpaired",),
        remedy="add answers of the rare label, or weigh them up",
    ),
)

_HELD_OUT = (
    Check(
        name="contamination",
        summary="training rows that are held-out rows, or ask what these ask: the scores are too good to be true",
        severity="error",
        compare=contamination.contamination,
        fix="leaves these training rows out",
        remedy="leave these training rows out, or hold out other rows",
    ),
    Check(
        name="contamination-overlap",
        summary="training rows that hold most of the words of a held-out row in the same order",
        compare=contamination.overlap,
        remedy="look at the pairs; leave those training rows out that give an answer away",
    ),
)


@hookimpl
def register_checks() -> list[Check]:
    return [*_TURNS, *_WORDS, *_DUPLICATES, *_LENGTHS, *_PREFERENCES, *_HELD_OUT]
