"""Merging: one adapter or several into a base, as a folder or as a registered version."""
