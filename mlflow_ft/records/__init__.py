"""What plugins return: small frozen records with a name, a summary and the function that does the work.

A record is cheap to make. Its function imports torch, transformers or peft when it is called, never before:

    def _train(job, data, model):
        from mlflow_ft.engine import sft

        return sft.train(job, data, model)

    Trainer(name="my-sft", summary="SFT with my defaults", train=_train, defaults={"training.learning_rate": 1e-4})
"""

from mlflow_ft.records.data import Check, Collector, DataFormat, Evaluator, GuardSet, JoiningCollector, Reward
from mlflow_ft.records.machines import Engine, Launcher, PlanRule, ServingEngine
from mlflow_ft.records.models import Exporter, Gate, Packager, Verdict
from mlflow_ft.records.options import Command, Options
from mlflow_ft.records.training import Adapter, Trainer

Record = (
    DataFormat
    | Check
    | Trainer
    | Adapter
    | Evaluator
    | Reward
    | Packager
    | Exporter
    | Gate
    | Launcher
    | PlanRule
    | Engine
    | ServingEngine
    | GuardSet
    | Options
    | Command
)

__all__ = [
    "Adapter",
    "Check",
    "Collector",
    "Command",
    "DataFormat",
    "Engine",
    "Evaluator",
    "Exporter",
    "Gate",
    "GuardSet",
    "JoiningCollector",
    "Launcher",
    "Options",
    "Packager",
    "PlanRule",
    "Record",
    "Reward",
    "ServingEngine",
    "Trainer",
    "Verdict",
]
