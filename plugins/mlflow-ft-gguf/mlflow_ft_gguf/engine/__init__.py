"""The export itself, imported only when it is needed."""
