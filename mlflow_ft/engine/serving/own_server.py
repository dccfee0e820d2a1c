"""The serving engine `transformers`: models in this process, answering requests until a signal comes."""

from __future__ import annotations

import os
import threading

from mlflow_ft.engine.serving import http_server, loaded_models, openai_api, opening, served_page
from mlflow_ft.values import Serving


def serve(serving: Serving) -> None:
    """Load the models and answer requests.

    Raises:
        StoppedError: a signal came. ConfigError, ModelError, RefusedError: a model cannot be served.
    """
    stopping = threading.Event()
    first = serving.models[0]
    if serving.together:
        models = opening.together(serving.models, serving.progress)
    else:
        chats = {first.name: opening.alone(first, serving.progress)}
        models = loaded_models.Served(chats, plain_name=first.plain_name)
    os.environ["MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT"] = str(serving.timeout)  # MLflow's server reads it there
    route = "invocations" if models.scores else "v1/chat/completions"
    app = openai_api.make_app(models, serving.signature, stopping)
    served_page.add(app, models, serving)
    http_server.run(app, serving.listener, stopping=stopping, ready=lambda: serving.ready(models.names, route))
