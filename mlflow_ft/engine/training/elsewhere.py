"""Fields of TRL's config classes that would undo what is settled before the training, and what to use instead."""

from __future__ import annotations

PUBLISHING = "models go to MLflow's registry; publish the folder of a packaged model with `hf upload`"
ELSEWHERE = {
    "chat_template_path": "data.chat_template chooses the template, before the rows are tokenised",
    "eos_token": "data.chat_template decides how an answer ends, before the rows are tokenised",
    "pad_token": "model.pad_token chooses it",
    "max_length": "data.max_length chooses it",
    "packing": "objective.packing packs rows",
    "model_init_kwargs": "the settings of `model` say how the base is loaded",
    "bf16": "model.dtype chooses it",
    "fp16": "model.dtype chooses it",
    "torch_compile": "training.compile compiles the layers",
    "torch_compile_backend": "training.compile compiles the layers",
    "torch_compile_mode": "training.compile compiles the layers",
    "use_liger_kernel": "training.liger uses Liger's kernels",
    "gradient_checkpointing": "training.gradient_checkpointing chooses it",
    "load_best_model_at_end": "training.load_best keeps the weights with the lowest held-out loss",
    "resume_from_checkpoint": "`mlflow-ft resume RUN` continues a run from its checkpoint",
    "report_to": "run.also_report_to names further trackers",
    "run_name": "run.name names the run",
    "deepspeed": "launch.strategy spreads a training over GPUs",
    "fsdp": "launch.strategy spreads a training over GPUs",
    "push_to_hub": PUBLISHING,
    "hub_model_id": PUBLISHING,
    "hub_token": "give tokens in the environment (HF_TOKEN): settings are logged",
}
