"""The work itself, and the only place that imports torch, transformers, peft and trl at module level."""
