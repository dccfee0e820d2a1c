"""Merge an adapter into its base, tensor by tensor; combine several adapters; quantise a whole model."""
