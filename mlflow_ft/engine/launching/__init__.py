"""Start the processes of a run with accelerate's launcher, and set up what they share (DDP, FSDP, DeepSpeed)."""
