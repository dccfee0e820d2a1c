"""New packages from templates: a plugin, and a project that uses plugins."""
