"""The only access to MLflow tracking and the registry. It imports mlflow, so import it inside functions.

with open_run(config.run, plugins=plugins) as run:
    run.open_journal(folder)
    run.log_config(config)
    run.metric("train/loss", 1.25, step=10)
"""

from mlflow_ft.manifest import MANIFEST, verify_manifest, write_manifest
from mlflow_ft.tracking.active import ActiveRun
from mlflow_ft.tracking.artifacts import check_uri, fetch, read_json, trained_on
from mlflow_ft.tracking.checkpoints import fetch as fetch_checkpoint
from mlflow_ft.tracking.delivery import JOURNAL_FILE, deliver, stages_left, take_up
from mlflow_ft.tracking.environment import plugin_tag
from mlflow_ft.tracking.journal import Journal
from mlflow_ft.tracking.lineage import versions_with_rows
from mlflow_ft.tracking.metrics import Metric
from mlflow_ft.tracking.models import ModelToLog, chat_signature, pinned
from mlflow_ft.tracking.notes import NOTE, is_generated
from mlflow_ft.tracking.run import open_operation, open_run, refuse
from mlflow_ft.tracking.server import check_server, connect, pinned_store, told
from mlflow_ft.tracking.store import Store

__all__ = [
    "JOURNAL_FILE",
    "MANIFEST",
    "NOTE",
    "ActiveRun",
    "Journal",
    "Metric",
    "ModelToLog",
    "Store",
    "chat_signature",
    "check_server",
    "check_uri",
    "connect",
    "deliver",
    "fetch",
    "fetch_checkpoint",
    "is_generated",
    "open_operation",
    "open_run",
    "pinned",
    "pinned_store",
    "plugin_tag",
    "read_json",
    "refuse",
    "stages_left",
    "take_up",
    "told",
    "trained_on",
    "verify_manifest",
    "versions_with_rows",
    "write_manifest",
]
