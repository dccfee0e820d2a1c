"""What is done to finished models: merged, exported, promoted, rolled back, served, packaged again."""
