"""Example configurations and the small data that comes with the package."""
