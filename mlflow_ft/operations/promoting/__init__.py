"""Promotion and rollback: evidence, gates, the decision, and the alias that moves."""
