"""A packaged model at work: the MLflow model itself, several at once, and the server in front of them."""
