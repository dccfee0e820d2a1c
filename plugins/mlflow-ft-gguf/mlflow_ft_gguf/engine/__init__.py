"""The work itself; imported only when something is exported."""
