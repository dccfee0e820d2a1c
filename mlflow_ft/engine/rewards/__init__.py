"""Reward functions and reward models: where they come from, and what they say of sampled answers."""
