"""Another tool's configuration becomes ours: every key mapped, approximated, not needed or refused, and told."""
