"""Training by another tool, in an environment of its own, as a method of ours."""
