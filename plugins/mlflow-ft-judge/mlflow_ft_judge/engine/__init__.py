"""The judging itself; imported only when something is judged."""
