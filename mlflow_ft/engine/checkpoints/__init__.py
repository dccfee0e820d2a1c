"""Checkpoints: the complete state of a training on disk, from which it continues as if it had never stopped."""
