"""The work itself, and the only place that imports torch, transformers, peft and trl at module level."""

import logging
import warnings

# When it is imported on a CPU, bitsandbytes warns that an optional package for faster inference is not there.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# LLM.int8() takes its inputs in float16, and would say so at every layer.
logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
# peft 0.21 reads an attribute that transformers 5 has renamed; a user can do nothing about it.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
