"""Merging: one or several adapters into a base, as a folder or as a registered version."""
