"""Serving: the MLflow model itself, several models in one process, and the HTTP server."""
