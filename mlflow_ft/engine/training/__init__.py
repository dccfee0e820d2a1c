"""The training itself: one file for each of TRL's trainers, and what all of them share."""
