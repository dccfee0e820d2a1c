"""The work itself, and the only place that imports torch, transformers, peft and trl at module level."""

import logging

# When it is imported on a CPU, bitsandbytes warns that an optional package for faster inference is not there.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
