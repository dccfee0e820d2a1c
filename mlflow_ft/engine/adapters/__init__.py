"""An adapter on its base: how it begins, what trains, its files, and whether they fit."""
