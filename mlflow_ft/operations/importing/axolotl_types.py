"""What Axolotl's data entries may say: types of rows, and the keys of an entry."""

from __future__ import annotations

from dataclasses import dataclass

LEARN_KEYS = frozenset({"train", "training", "weight", "loss", "loss_weight", "loss_scale", "trainable"})
THOUGHTS = frozenset({"reasoning_content", "thinking", "reasoning"})
LOADERS = ("json", "csv", "parquet", "arrow", "text")
"""A `path` that names a kind of file; the files are in `data_files`."""
WORDS = "the words around question and answer are the chat template's, not those of Axolotl's type"
MESSAGES = ("messages", "conversations")


@dataclass(frozen=True)
class RowType:
    """What a `type` means: our format, and their names of its columns."""

    format: str
    columns: dict[str, str]
    about: str = ""
    template: str | None = None


ALPACA = RowType("alpaca", {}, about="written by Axolotl's Alpaca prompt", template="alpaca")
PAIR = {"prompt": "question", "chosen": "chosen", "rejected": "rejected"}
TYPES = {
    "alpaca": ALPACA,
    "alpaca:chat": RowType("alpaca", {}, about=WORDS),
    "alpaca:phi": RowType("alpaca", {}, about=WORDS),
    "alpaca:chatml": RowType("alpaca", {}, template="chatml"),
    "gpteacher": RowType("alpaca", {"output": "response"}, about=WORDS, template="alpaca"),
    "gpteacher:chat": RowType("alpaca", {"output": "response"}, about=WORDS),
    "alpaca_chat.load_qa": RowType("question-answer", {}, about=WORDS),
    "alpaca_chat.load_concise": RowType("alpaca", {}, about=WORDS),
    "alpaca_chat.load_camel_ai": RowType(
        "question-answer", {"question": "message_1", "answer": "message_2"}, about=WORDS
    ),
    "alpaca_w_system.load_open_orca": RowType(
        "question-answer", {"system": "system_prompt", "answer": "response"}, about=WORDS
    ),
    "alpaca_w_system.load_open_orca_chatml": RowType(
        "question-answer", {"system": "system_prompt", "answer": "response"}, template="chatml"
    ),
    "alpaca_w_system.load": RowType("alpaca", {}, about=WORDS),
    "alpaca_w_system.load_chat": RowType("alpaca", {}, about=WORDS),
    "jeopardy": RowType("alpaca", {"instruction": "question", "input": "category", "output": "answer"}, about=WORDS),
    "explainchoice": RowType("question-answer", {"answer": "explanation"}, about="the choices are left out"),
    "summarizetldr": RowType("alpaca", {"instruction": "article", "output": "summary"}, about=WORDS),
    "oasst": RowType("instruction-response", {"instruction": "INSTRUCTION", "response": "RESPONSE"}, about=WORDS),
    "context_qa": RowType("question-answer", {}, about=WORDS),
    "context_qa.load_v2": RowType("question-answer", {}, about=WORDS),
    "completion": RowType("text", {"text": "text"}),
    "pretrain": RowType("text", {"text": "text"}),
    "sharegpt": RowType("sharegpt", {}),
    "sharegpt:chat": RowType("sharegpt", {}, about=WORDS),
    "sharegpt.load_role": RowType("sharegpt", {}),
    "sharegpt.load_guanaco": RowType("sharegpt", {}),
    "sharegpt.load_ultrachat": RowType("messages", {}),
    "llama2_chat": RowType("sharegpt", {}, about=WORDS),
    "chat_template": RowType("messages", {}),
    "chat_template.default": RowType("messages", {}),
    "chat_template.load": RowType("messages", {}),
}
PREFERENCES = {
    "argilla": {"prompt": "instruction", "chosen": "chosen_response", "rejected": "rejected_response"},
    "argilla_chat": {},
    "icr": {"prompt": "input"},
    "intel": {"prompt": "question"},
    "prompt_pairs": {},
    "ultra": {},
    "nectar": {},
    "default": {},
    "load": {},
    "chat_template": {"prompt": "input"},
    "llama3": {"prompt": "input"},
    "": {},
}
"""By the last part of a type, for methods that take pairs."""
DICTIONARY = {
    "field_instruction": "instruction",
    "field_input": "input",
    "field_output": "output",
    "field_system": "system",
    "field_prompt": "prompt",
    "field_chosen": "chosen",
    "field_rejected": "rejected",
    "field_completion": "completion",
    "field_label": "label",
}
"""Fields of a type that the user describes -> our columns."""
SIMPLE = {"name": "subset", "revision": "revision"}
NO_EFFECT = {
    "ds_type": "the kind of file is seen",
    "trust_remote_code": "no code of data sets is run",
    "preprocess_shards": "rows are read one by one",
    "shards_idx": "all rows are read",
    "conversation": "the chat template writes the turns",
    "train_on_eot": "what ends a turn is learned with it",
    "input_format": "no type reads it",
    "temperature": "only read for distillation from a teacher",
    "max_completion_length": "only read for rewards of single steps",
}
REFUSED = {
    "shards": "parts of a set are chosen with data.max_rows",
    "skip": "no rows are skipped; remove them from the file",
    "input_transform": "rows are converted by formats; a plugin can add one",
    "message_field_training_detail": "a turn is learned or not, as a whole",
    "drop_system_message": "system prompts of the rows are kept; remove them from the file",
    "split_thinking": "thoughts are written as the chat template writes them",
    "logprobs_field": "distillation from a teacher is not available",
    "step_separator": "rewards of single steps are not learned",
    "train_on_last_step_only": "rewards of single steps are not learned",
    "length": "rows are not made up",
    "sequence_length": "rows are not made up",
}


LEAVES = (
    *(
        "path",
        "split",
        "type",
        "data_files",
        "field",
        "field_messages",
        "field_chosen",
        "field_rejected",
        "text_column",
    ),
    *("chat_template", "chat_template_jinja", "roles"),
    *("roles_to_train", "train_on_eos", "field_tools", "field_thinking"),
    *("template_thinking_key", "field_human", "field_model", "message_field_role", "message_field_content"),
    *("message_field_training", "message_property_mappings"),
    *(*SIMPLE, *NO_EFFECT, *REFUSED, *(f"type.{leaf}" for leaf in DICTIONARY)),
)
"""The keys of an entry."""
