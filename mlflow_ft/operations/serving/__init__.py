"""Serving and chatting: from a model's name to answers."""
