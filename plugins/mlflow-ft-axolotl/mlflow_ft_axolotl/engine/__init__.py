"""What the methods do when they are called."""
