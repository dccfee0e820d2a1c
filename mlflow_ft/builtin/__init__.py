"""The plugins that ship inside: one file a kind, registered through the same hooks as anyone's."""
