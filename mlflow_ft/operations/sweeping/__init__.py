"""A sweep: many trainings with different settings, each a nested run, of which the best one is registered."""
