"""System metrics (CPU, memory, disk, network, GPU), written to the journal so that an outage does not lose them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

log = logging.getLogger(__name__)
# It logs a message at every start and end, which the run's system charts make unnecessary.
logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)


class JournalledMonitor(SystemMetricsMonitor):
    """MLflow's own monitor, with its keys and its environment variables, but sending its values to `publish`.

    MLflow's loop asks the server for the run's state at every sample and stops for good if there is no answer.
    """

    def __init__(self, run_id: str, publish: Callable[[Mapping[str, float], int], None], *, resumed: bool) -> None:
        super().__init__(run_id, resume_logging=resumed)  # type: ignore[no-untyped-call]  # mlflow
        self._publish = publish

    def begin(self) -> None:
        self.start()  # type: ignore[no-untyped-call]  # mlflow

    def end(self) -> None:
        """Stop, and publish the last sample."""
        self.finish()  # type: ignore[no-untyped-call]  # mlflow

    def monitor(self) -> None:
        while not self._shutdown_event.is_set():
            for _ in range(self.samples_before_logging):
                self.collect_metrics()  # type: ignore[no-untyped-call]  # mlflow
                self._shutdown_event.wait(self.sampling_interval)
            self.publish_metrics(self.aggregate_metrics())  # type: ignore[no-untyped-call]  # mlflow

    def publish_metrics(self, metrics: Mapping[str, float]) -> None:
        prefix = self._metrics_prefix + (f"{self.node_id}/" if self.node_id else "")
        self._publish({prefix + key: value for key, value in metrics.items()}, self._logging_step)
        self._logging_step += 1
        for monitor in self.monitors:
            monitor.clear_metrics()


def started(
    run_id: str, publish: Callable[[Mapping[str, float], int], None], *, resumed: bool
) -> JournalledMonitor | None:
    """A monitor that is at work; None, with a warning, if it does not start: that is not worth failing the run."""
    try:
        monitor = JournalledMonitor(run_id, publish, resumed=resumed)
        monitor.begin()
    except Exception as error:  # whatever psutil or the GPU's library raises
        log.warning("no system metrics: %s", error)
        return None
    return monitor
