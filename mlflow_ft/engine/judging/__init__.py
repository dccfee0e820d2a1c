"""Measure a model: held-out losses and answers, paired tests, and how close its forms are to the trained model."""
