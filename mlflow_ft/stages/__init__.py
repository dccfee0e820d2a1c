"""The seven steps of a run, one file each; from `train` on, each leaves its result on disk."""
