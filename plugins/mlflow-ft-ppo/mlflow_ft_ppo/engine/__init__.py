"""What computes: imported when a training begins, never before, since it imports torch."""
