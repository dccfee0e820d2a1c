"""Training: one file for each of TRL's trainers, and what they share."""
