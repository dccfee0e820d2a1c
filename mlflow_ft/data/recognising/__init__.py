"""What rows mean: where they are in a file, which format they have, and what to do where they have none."""
