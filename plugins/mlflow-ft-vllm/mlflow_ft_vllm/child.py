"""vLLM's server, run by path in vLLM's own environment: `python child.py ARGUMENTS`. It ends with whoever started it.

The starter holds the other end of stdin. When it is closed, be it by a SIGKILL, the whole process group is killed.
"""

import os
import runpy
import signal
import sys
import threading

SERVER = "vllm.entrypoints.openai.api_server"


def end_with_starter() -> None:
    """Wait until stdin is closed."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":  # the processes that vLLM starts import this file, too
    threading.Thread(target=end_with_starter, daemon=True).start()
    runpy.run_module(SERVER, run_name="__main__", alter_sys=True)
