#!/usr/bin/env python3
"""Execute a command whose words MLflow's Kubernetes backend has quoted for a shell that never reads them.

The backend quotes every word of an entry point's command and hands the list to Kubernetes, which starts it without a
shell: `--data ''` arrives as a file called `''`, and `a b` as `'a b'`. In a pod each word is therefore unquoted once.
Elsewhere (`docker_env` on one machine) a shell has read the quotes already, and the words are passed on as they are.

exec-unquoted python -m mlflow_ft train qlora --model "''" --data "'my rows.jsonl'"
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence

IN_A_POD = "KUBERNETES_SERVICE_HOST"
"""Kubernetes sets it in every container."""


def unquoted(words: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """The words as the user gave them; nothing is expanded, so a value cannot become a command."""
    return shlex.split(" ".join(words)) if IN_A_POD in environ else list(words)


if __name__ == "__main__":
    command = unquoted(sys.argv[1:], os.environ)
    os.execvp(command[0], command)  # no shell is wanted; the process keeps the pod's signals
