"""The training itself, imported only when training begins, because it imports torch."""
