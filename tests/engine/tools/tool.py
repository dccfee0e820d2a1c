"""A small tool: transformers' own trainer on the rows and the adapter that it is given. `settings` may break it."""

import subprocess
import sys
import time
from pathlib import Path

from datasets import load_dataset
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)


class Slow(TrainerCallback):
    """Takes its time for a step."""

    def on_step_end(self, *_, **__):
        time.sleep(settings.get("pause", 0))


if __name__ == "__main__":
    settings = globals()["request"]["settings"]
    if settings.get("fails"):
        sys.exit("the tool's own reason")
    if settings.get("child"):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path("child.pid").write_text(str(child.pid))
    base = AutoModelForCausalLM.from_pretrained(settings["base"])
    tokenizer = AutoTokenizer.from_pretrained(settings["tokenizer"])
    model = PeftModel.from_pretrained(base, settings["adapter"], is_trainable=True)
    rows = load_dataset("parquet", data_files={"train": settings["rows"], "eval": settings["held_out"]})
    train = rows["train"].select(range(settings.get("keep", len(rows["train"]))))
    if settings.get("unmasked"):
        train = train.map(lambda row: {"labels": row["input_ids"]})
    if settings.get("freezes"):
        next(weight for weight in model.parameters() if weight.requires_grad).requires_grad_(False)
    args = TrainingArguments(
        output_dir=settings["output"], report_to="none", save_strategy="no", use_cpu=True, **settings["args"]
    )
    collator = DataCollatorForSeq2Seq(tokenizer)
    callbacks = [globals()["callback"](), Slow()]
    trainer = Trainer(model, args, collator, train_dataset=train, eval_dataset=rows["eval"], callbacks=callbacks)
    trainer.train(resume_from_checkpoint=settings["checkpoint"])
    if settings.get("other"):
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.data += 1
    model.save_pretrained(settings["output"])
