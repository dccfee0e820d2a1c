"""Which method, with which settings, on which hardware: `mlflow-ft plan`."""
