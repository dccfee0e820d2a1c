"""The values that the stages pass on: config -> data -> model -> train -> evaluate -> package -> register."""

from mlflow_ft.values.data import Data, Split, StoredRows
from mlflow_ft.values.forms import Exported, Form, Package, Packaged, Version
from mlflow_ft.values.job import Job, Resume, Run
from mlflow_ft.values.launch import Launch, Places, Process, Trials
from mlflow_ft.values.machines import Handle, Machines
from mlflow_ft.values.models import MLFLOW_URIS, BaseModel, Checkpointer, Chosen, LossWatcher, Model, Trained
from mlflow_ft.values.planning import Advice, Aim, Choice, Hardware, Plan, Situation
from mlflow_ft.values.report import CheckResult, Report
from mlflow_ft.values.scores import Answer, Score, Scores, Subject, Worse
from mlflow_ft.values.serving import ServedModel, Serving

__all__ = [
    "MLFLOW_URIS",
    "Advice",
    "Aim",
    "Answer",
    "BaseModel",
    "CheckResult",
    "Checkpointer",
    "Choice",
    "Chosen",
    "Data",
    "Exported",
    "Form",
    "Handle",
    "Hardware",
    "Job",
    "Launch",
    "LossWatcher",
    "Machines",
    "Model",
    "Package",
    "Packaged",
    "Places",
    "Plan",
    "Process",
    "Report",
    "Resume",
    "Run",
    "Score",
    "Scores",
    "ServedModel",
    "Serving",
    "Situation",
    "Split",
    "StoredRows",
    "Subject",
    "Trained",
    "Trials",
    "Version",
    "Worse",
]
