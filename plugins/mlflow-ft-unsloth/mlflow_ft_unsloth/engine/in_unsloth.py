"""Runs in Unsloth's environment, where nothing of mlflow-ft is: loads the adapter, trains it, saves it.

mlflow_ft/engine/tools/inside.py sets the globals `request` and `callback`.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any


def main(settings: Mapping[str, Any], callback: Callable[[], Any]) -> None:
    """Train the adapter with Unsloth's kernels and TRL's trainer."""
    from unsloth import FastLanguageModel  # isort: skip  # before transformers and trl, which it changes

    import torch
    from datasets import load_dataset
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class WithLogits(TrainerCallback):
        """Lets the model return logits when the training has ended; during it, its loss does not compute them."""

        def on_train_end(self, *_: Any, **__: Any) -> None:
            os.environ["UNSLOTH_RETURN_LOGITS"] = "1"

    load = {**settings["load"], "dtype": getattr(torch, settings["load"]["dtype"])}
    model, _ = FastLanguageModel.from_pretrained(**load)
    tokenizer = AutoTokenizer.from_pretrained(settings["tokenizer"])  # ours: Unsloth would change its padding token
    rows = load_dataset("parquet", data_files=dict(settings["rows"]))
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        args=SFTConfig(**settings["train"]),
        train_dataset=rows["train"],
        eval_dataset=rows["eval"],
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[WithLogits(), callback()],
    )
    trainer.train(resume_from_checkpoint=settings["checkpoint"])
    model.save_pretrained(settings["train"]["output_dir"])


if __name__ == "__main__":  # processes that are started by this one read this file too
    main(globals()["request"]["settings"], globals()["callback"])
