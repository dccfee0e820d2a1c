"""Runs in the tool's environment, as a script: calls the tool's own script, and reports what its trainer does.

    python inside.py REQUEST.json

It imports nothing of mlflow-ft, and torch and transformers only when the tool's script asks for the callback. The
script gets `request` (a dict) and `callback()` as globals: a transformers.TrainerCallback for the tool's trainer, which

- refuses, before the first step, to train other weights or other rows than were asked for;
- writes each event as a line of JSON to the pipe that `request["events"]` numbers;
- saves a checkpoint when one is due, and one after the current step when SIGTERM arrives;
- writes the trained model's logits at the end, to be compared with those of the model that is packaged.
"""

from __future__ import annotations

import array
import hashlib
import json
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

LOOK_SECONDS = 1.0
SHOWN = 3
STOPPED = 128 + signal.SIGTERM
ROWS = ("input_ids", "labels")


class Reporter:
    """Sends events to the process that started this one."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._stream = os.fdopen(descriptor, "w", encoding="utf-8")

    def send(self, event: str, **values: Any) -> None:
        """Write one event."""
        self._stream.write(json.dumps({"event": event, **values}, default=float) + "\n")
        self._stream.flush()


class Stop:
    """SIGTERM ends this process: at once before the training, and after the current step during it.

    SIGUSR1 makes the current step the last one of the training.
    """

    def __init__(self) -> None:
        self.asked = self.training = self.finish = False

    def handle(self, number: int, frame: Any) -> None:
        """The signals' handler."""
        if number == signal.SIGUSR1:
            self.finish = True
            return
        self.asked = True
        if not self.training:
            os._exit(STOPPED)


def watch(parent: int) -> None:
    """End this process and those that it started when the process that asked for it is gone."""
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os.killpg(0, signal.SIGKILL)


def digest(rows: Any) -> str:
    """A hash over the tokens and labels of all rows, in any order: the tool may shuffle them."""
    total = 0
    for row in rows:
        both = b"".join(array.array("q", map(int, row[name])).tobytes() for name in ROWS)  # of one length
        total += int.from_bytes(hashlib.sha256(both).digest(), "big")
    return f"{total % 2**256:064x}"


def misfit(expected: dict[str, Any], model: Any, rows: Any) -> str:
    """How what would be trained differs from what was asked for; "" if it does not."""
    wanted: dict[str, list[int]] = expected["weights"]
    found = {name: list(weight.shape) for name, weight in model.named_parameters() if weight.requires_grad}
    for what, names in (
        ("does not train", wanted.keys() - found.keys()),
        ("trains also", found.keys() - wanted.keys()),
    ):
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            return f"it {what} {', '.join(sorted(names)[:SHOWN])}{more}"
    if shapes := [name for name in sorted(wanted) if wanted[name] != found[name]]:
        return f"{shapes[0]} has the shape {found[shapes[0]]}, not {wanted[shapes[0]]}"
    if len(rows) != expected["rows"]:
        return f"its training data has {len(rows):,} rows, not {expected['rows']:,}"
    if digest(rows) != expected["digest"]:
        return "its training data has other tokens or labels"
    return ""


def plain(values: dict[str, Any] | None) -> dict[str, float]:
    """The numbers among a trainer's metrics."""
    return {name: float(value) for name, value in (values or {}).items() if isinstance(value, int | float)}


def write_logits(model: Any, request: dict[str, Any]) -> None:
    """Write `N.logits`, float32 of shape (positions, vocabulary), for each row of `request["compared"]`."""
    import torch
    from safetensors.torch import save_file

    model.eval()
    device = next(model.parameters()).device
    logits = {}
    for number, row in enumerate(request["compared"]):
        ids = torch.tensor([row["input_ids"]], device=device)
        with torch.no_grad():
            output = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
        logits[f"{number}.logits"] = output[row["positions"]].float().cpu().contiguous()
    save_file(logits, request["logits"])


def make_callback(request: dict[str, Any], reporter: Reporter, stop: Stop) -> Any:
    """The callback for the tool's trainer."""
    from transformers import TrainerCallback

    class Report(TrainerCallback):  # type: ignore[misc,unused-ignore]  # of the tool's environment
        saved = time.monotonic()

        def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if reason := misfit(request["expected"], more["model"], more["train_dataloader"].dataset):
                reporter.send("refused", reason=reason)
                sys.exit(1)
            stop.training = True
            reporter.send("begin", step=state.global_step, max_steps=state.max_steps)

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            reporter.send("step_begin", step=state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            reporter.send("step_end", step=state.global_step, epoch=state.epoch)
            minutes, steps = request["save"].get("minutes"), request["save"].get("steps")
            due = bool(minutes) and time.monotonic() - self.saved >= minutes * 60
            due |= bool(steps) and state.global_step % steps == 0
            control.should_save |= stop.asked or (due and state.global_step < state.max_steps)
            control.should_training_stop |= stop.asked or stop.finish

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.saved = time.monotonic()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            reporter.send("log", step=state.global_step, epoch=state.epoch, values=plain(logs))

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
            reporter.send("evaluate", step=state.global_step, epoch=state.epoch, values=plain(metrics))

        def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if stop.asked:
                os._exit(STOPPED)  # the checkpoint is on the disk
            write_logits(more["model"], request)
            reporter.send("end", step=state.global_step)

    return Report()


def main() -> None:
    """Call the tool's script."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.path.remove(str(Path(__file__).resolve().parent))  # our modules are not the tool's
    threading.Thread(target=watch, args=(request["parent"],), daemon=True).start()
    stop = Stop()
    signal.signal(signal.SIGTERM, stop.handle)
    signal.signal(signal.SIGUSR1, stop.handle)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the process that started this one
    reporter = Reporter(request["events"])
    offered = {"request": request, "callback": lambda: make_callback(request, reporter, stop)}
    sys.argv = [request["script"]]
    runpy.run_path(request["script"], init_globals=offered, run_name="__main__")


if __name__ == "__main__":
    main()
