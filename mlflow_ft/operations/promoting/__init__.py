"""Promotion and rollback: the evidence, the gates, the decision, and the alias that moves."""
