"""Reward functions and reward models: how they are found, and how they score sampled answers."""
